import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import sklearn.metrics

from nnfx import calibration

pytestmark = pytest.mark.usefixtures("strict_dtypes")

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(200, 4)) * 3
LABELS = (LOGITS / 2 + RNG.gumbel(size=LOGITS.shape)).argmax(1)  # so that T = 2 is right
P = scipy.special.softmax(LOGITS, 1)
SINGLE = RNG.normal(size=200) * 3
BINARY = (RNG.uniform(size=200) < scipy.special.expit(SINGLE / 2)).astype(int)
WEIGHTS = RNG.integers(0, 4, size=200)


def f32(values):
    return jnp.asarray(values, jnp.float32)


def ints(values):
    return jnp.asarray(values, jnp.int32)


def test_probabilities_of_classes_and_of_a_single_output():
    np.testing.assert_allclose(calibration.probabilities(f32(LOGITS)), P, rtol=1e-5)
    two = np.stack([scipy.special.expit(-SINGLE), scipy.special.expit(SINGLE)], 1)
    for logits in (f32(SINGLE), f32(SINGLE)[:, None]):
        np.testing.assert_allclose(calibration.probabilities(logits), two, rtol=1e-5)
    members = f32(SINGLE).reshape(4, 50, 1)
    np.testing.assert_allclose(calibration.probabilities(members), two.reshape(4, 50, 2), rtol=1e-5)


def test_probabilities_of_large_logits_keep_their_small_side():
    np.testing.assert_allclose(calibration.probabilities(f32([80.0]))[0, 0], np.exp(-80.0), rtol=1e-5)


def test_negative_log_likelihood_against_scikit_learn():
    ours = calibration.negative_log_likelihood(f32(P), ints(LABELS))
    np.testing.assert_allclose(ours, -np.log(P[np.arange(200), LABELS]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.mean(), sklearn.metrics.log_loss(LABELS, P), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_negative_log_likelihood_is_finite_at_zero(dtype):
    p = jnp.array([[0.0, 1.0]], dtype)
    value, gradient = jax.value_and_grad(lambda p: calibration.negative_log_likelihood(p, ints([0])).sum())(p)
    assert value > 80
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


def test_brier_score_against_a_loop_and_scikit_learn():
    ours = calibration.brier_score(f32(P), ints(LABELS))
    expected = [sum((p[k] - (k == y)) ** 2 for k in range(4)) for p, y in zip(P, LABELS, strict=True)]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    p = scipy.special.expit(SINGLE)
    two = calibration.brier_score(calibration.probabilities(f32(SINGLE)), ints(BINARY))
    np.testing.assert_allclose(two.mean() / 2, sklearn.metrics.brier_score_loss(BINARY, p), rtol=1e-5)


def by_bin(p, labels, bins):
    """Equation 3 of Guo et al., literally."""
    confidence, right = p.max(1), p.argmax(1) == labels
    rows = []
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        some = inside.any()
        rows.append(
            (confidence[inside].mean() if some else np.nan, right[inside].mean() if some else np.nan, inside.sum())
        )
    confidence, accuracy, counts = np.array(rows).T
    return confidence, accuracy, counts, np.nansum(counts / len(p) * np.abs(accuracy - confidence))


@pytest.mark.parametrize("bins", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(15, marks=pytest.mark.slow)])
def test_calibration_error_and_reliability_against_a_loop(bins):
    confidence, accuracy, counts, error = by_bin(P, LABELS, bins)
    diagram = calibration.reliability(f32(P), ints(LABELS), bins)
    np.testing.assert_array_equal(diagram.counts, counts)
    np.testing.assert_allclose(diagram.confidence, confidence, rtol=1e-5)
    np.testing.assert_allclose(diagram.accuracy, accuracy, rtol=1e-5)
    assert bins == 1 or (counts == 0).any()  # so that the mean of no examples is tested
    ours = calibration.expected_calibration_error(f32(P), ints(LABELS), bins)
    np.testing.assert_allclose(ours, error, rtol=1e-4)
    compiled = jax.jit(calibration.expected_calibration_error, static_argnums=2)(f32(P), ints(LABELS), bins)
    np.testing.assert_allclose(compiled, error, rtol=1e-4)


def test_an_empty_bin_raises_nothing_under_the_flags_that_look_for_nan():
    with jax.debug_nans(True), jax.debug_infs(True):
        diagram = calibration.reliability(f32([[0.25, 0.75]]), ints([1]), 4)
    np.testing.assert_array_equal(diagram.confidence, [np.nan, np.nan, 0.75, np.nan])
    np.testing.assert_array_equal(diagram.accuracy, [np.nan, np.nan, 1, np.nan])


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    p = f32([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    assert calibration.reliability(p, ints([0, 0, 0]), 4).counts.tolist() == [0, 1, 1, 1]


def test_calibration_error_of_low_precision_counts_every_example():
    p = jnp.broadcast_to(jnp.array([0.75, 0.25], jnp.bfloat16), (1000, 2))
    error = calibration.expected_calibration_error(p, ints(np.arange(1000) % 2))
    assert error == pytest.approx(0.25)


def best_temperature(logits, labels, weights=None):
    weights = np.ones(len(labels)) if weights is None else weights

    def loss(log_t):
        log_p = scipy.special.log_softmax(logits / np.exp(log_t), 1)
        return -(weights * log_p[np.arange(len(labels)), labels]).sum()

    return np.exp(scipy.optimize.minimize_scalar(loss, bracket=(-1, 1), tol=1e-12).x)


SETS = {
    "too sure": (LOGITS, LABELS),
    "too unsure": (LOGITS / 30, LABELS),
    "far too sure": (LOGITS * 100, LABELS),
    "two classes": (np.stack([0 * SINGLE, SINGLE], 1), BINARY),
    "few": (LOGITS[:9], LABELS[:9]),
}


# cases of the same shape share a program
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if SETS[name][0].shape == LOGITS.shape else [pytest.mark.slow]) for name in SETS],
)
def test_temperature_against_scipy(name):
    logits, labels = SETS[name]
    expected = best_temperature(logits, labels)
    assert calibration.fit_temperature(f32(logits), ints(labels)) == pytest.approx(expected, rel=1e-4)
    with jax.enable_x64(True):
        ours = calibration.fit_temperature(jnp.asarray(logits), jnp.asarray(labels))
        assert ours.dtype == jnp.float64
        assert float(ours) == pytest.approx(expected, rel=1e-6)


def test_the_temperature_lowers_the_likelihood_and_the_calibration_error():
    temperature = calibration.fit_temperature(f32(LOGITS), ints(LABELS))
    scaled = calibration.probabilities(f32(LOGITS) / temperature)
    assert 1.6 < temperature < 2.5
    for score in (calibration.negative_log_likelihood, calibration.expected_calibration_error):
        assert score(scaled, ints(LABELS)).mean() < score(f32(P), ints(LABELS)).mean()


def test_temperature_of_a_single_output():
    expected = best_temperature(*SETS["two classes"])
    for logits in (f32(SINGLE), f32(SINGLE)[:, None]):
        assert calibration.fit_temperature(logits, ints(BINARY)) == pytest.approx(expected, rel=1e-4)


def test_a_weight_counts_like_copies():
    weighted = calibration.fit_temperature(f32(LOGITS), ints(LABELS), f32(WEIGHTS))
    copies = np.repeat(np.arange(200), WEIGHTS)
    assert weighted == pytest.approx(best_temperature(LOGITS, LABELS, WEIGHTS), rel=1e-4)
    assert weighted == pytest.approx(float(calibration.fit_temperature(f32(LOGITS[copies]), ints(LABELS[copies]))))


def test_temperature_under_jit_and_vmap():
    logits, labels = f32(LOGITS).reshape(4, 50, 4), ints(LABELS).reshape(4, 50)
    mapped = jax.jit(jax.vmap(calibration.fit_temperature))(logits, labels)
    single = [calibration.fit_temperature(*pair) for pair in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(mapped, single, rtol=1e-5)


@pytest.mark.slow
def test_the_gradient_of_the_temperature_is_that_of_the_minimum():
    with jax.enable_x64(True):
        logits, labels, weights = jnp.asarray(LOGITS[:9]), jnp.asarray(LABELS[:9]), jnp.arange(1.0, 10.0)

        def fit(logits, weights):
            return calibration.fit_temperature(logits, labels, weights)

        by_logits, by_weights = jax.grad(fit, argnums=(0, 1))(logits, weights)
        for i in range(9):
            h = 1e-4 * jnp.eye(9)[i]
            central = (fit(logits, weights + h) - fit(logits, weights - h)) / 2e-4
            np.testing.assert_allclose(by_weights[i], central, rtol=1e-5)
            h = jnp.outer(h, jnp.eye(4)[1])
            central = (fit(logits + h, weights) - fit(logits - h, weights)) / 2e-4
            np.testing.assert_allclose(by_logits[i, 1], central, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(("labels", "end"), [([1, 0], 1e-4), ([0, 1], 1e4)])
def test_a_temperature_without_bounds_ends_at_that_of_the_range(labels, end):
    value, gradient = jax.value_and_grad(calibration.fit_temperature)(f32([2.0, -2.0]), ints(labels))
    assert value == pytest.approx(end, rel=1e-3)
    assert (gradient == 0).all()


def test_a_traced_logit_that_is_not_finite_gives_no_temperature():
    assert jnp.isnan(jax.jit(calibration.fit_temperature)(f32([2.0, jnp.nan]), ints([0, 1])))


MEMBERS = scipy.special.softmax(RNG.normal(size=(5, 7, 3)), -1)


def test_spread_against_numpy_and_scipy():
    ours = calibration.spread(f32(MEMBERS))
    np.testing.assert_allclose(ours.mean, MEMBERS.mean(0), rtol=1e-5)
    np.testing.assert_allclose(ours.std, MEMBERS.std(0), rtol=1e-4)
    np.testing.assert_allclose(ours.entropy, scipy.stats.entropy(MEMBERS.mean(0), axis=-1), rtol=1e-5)
    divergence = scipy.stats.entropy(MEMBERS, MEMBERS.mean(0)[None], axis=-1).mean(0)  # an equivalent form
    np.testing.assert_allclose(ours.mutual_information, divergence, rtol=1e-4)


def test_members_that_agree_have_no_spread_and_finite_gradients():
    same = f32([[[0.0, 1.0], [0.3, 0.7]]] * 3)
    ours = calibration.spread(same)
    np.testing.assert_allclose(ours.std, 0, atol=1e-6)
    np.testing.assert_allclose(ours.mutual_information, 0, atol=1e-6)
    assert (ours.mutual_information >= 0).all()
    single = f32([[[0.0, 1.0], [0.25, 0.75]]])
    for field in range(4):
        gradient = jax.jit(jax.grad(lambda p, field=field: calibration.spread(p)[field].sum()))(single)
        assert jnp.isfinite(gradient).all()


SCORES = {
    "negative_log_likelihood": calibration.negative_log_likelihood,
    "brier_score": calibration.brier_score,
    "expected_calibration_error": calibration.expected_calibration_error,
    "reliability": calibration.reliability,
}


@pytest.mark.parametrize("name", SCORES)
def test_wrong_probabilities_and_labels_are_named(name):
    score = SCORES[name]
    good, labels = f32([[0.25, 0.75], [0.5, 0.5]]), ints([0, 1])
    score(good, labels)
    for wrong in (good * 3 - 1, good * 0.5, good.at[0, 0].set(jnp.nan)):
        with pytest.raises(ValueError, match=r"^probabilities: expected numbers from 0 to 1"):
            score(wrong, labels)
    for wrong in (good[:, 1], good[:, :1], good[None]):
        with pytest.raises(ValueError, match=r"^probabilities: expected \(batch, classes\)"):
            score(wrong, labels)
    with pytest.raises(ValueError, match=r"^labels: expected labels from 0 to 1, got labels from 0 to 2"):
        score(good, ints([0, 2]))
    for wrong in (f32([0, 1]), ints([0]), ints([[0], [1]])):
        with pytest.raises(ValueError, match=r"^labels: expected integers"):
            score(good, wrong)


def test_other_wrong_input_is_named():
    logits, labels = f32(LOGITS[:3]), ints(LABELS[:3])
    with pytest.raises(ValueError, match=r"^logits: expected a batch"):
        calibration.probabilities(f32(1.0))
    with pytest.raises(TypeError, match=r"^logits: expected an array of floating"):
        calibration.probabilities(labels)
    with pytest.raises(TypeError, match=r"^probabilities: expected an array of floating"):
        calibration.spread(labels)
    with pytest.raises(ValueError, match=r"^bins: "):
        calibration.reliability(f32(P), ints(LABELS), bins=0)
    with pytest.raises(ValueError, match=r"^logits: expected \(batch, classes\)"):
        calibration.fit_temperature(logits[None], labels)
    with pytest.raises(ValueError, match=r"^logits: expected finite numbers"):
        calibration.fit_temperature(logits.at[0, 0].set(jnp.inf), labels)
    with pytest.raises(ValueError, match=r"^labels: expected labels from 0 to 3"):
        calibration.fit_temperature(logits, ints([0, 1, 4]))
    with pytest.raises(ValueError, match=r"^weights: expected one per example"):
        calibration.fit_temperature(logits, labels, jnp.ones(2))
    with pytest.raises(ValueError, match=r"^probabilities: expected \(members, batch, classes\)"):
        calibration.spread(f32(P))


def test_low_precision_softmax_passes_the_check():
    p = calibration.probabilities(jnp.asarray(np.random.default_rng(1).normal(size=(50, 100)), jnp.bfloat16))
    assert jnp.isfinite(calibration.brier_score(p, ints(np.arange(50)))).all()


MASK = np.arange(4) == 1
ALLOWED = LABELS != 1


def masked(logits):
    return np.where(MASK, -np.inf, logits)


def test_classes_ruled_out_have_no_probability():
    p = calibration.probabilities(f32(masked(LOGITS)))
    np.testing.assert_allclose(p, scipy.special.softmax(masked(LOGITS), 1), rtol=1e-5)
    assert (p[:, 1] == 0).all()
    np.testing.assert_array_equal(calibration.probabilities(f32([-np.inf, np.inf])), [[1, 0], [0, 1]])
    for score in (calibration.negative_log_likelihood, calibration.brier_score):
        kept = score(p[ALLOWED], ints(LABELS[ALLOWED]))
        others = np.flatnonzero(~MASK)
        three = scipy.special.softmax(LOGITS[ALLOWED][:, others], 1)
        labels = np.searchsorted(others, LABELS[ALLOWED])
        np.testing.assert_allclose(kept, score(f32(three), ints(labels)), rtol=1e-4, atol=1e-6)
    error = calibration.expected_calibration_error(p[ALLOWED], ints(LABELS[ALLOWED]))
    np.testing.assert_allclose(error, by_bin(np.asarray(p[ALLOWED]), LABELS[ALLOWED], 15)[3], rtol=1e-4)


def test_the_temperature_with_classes_ruled_out():
    logits, labels = masked(LOGITS)[ALLOWED], LABELS[ALLOWED]
    kept = best_temperature(LOGITS[ALLOWED][:, ~MASK], np.searchsorted(np.flatnonzero(~MASK), labels))
    assert calibration.fit_temperature(f32(logits), ints(labels)) == pytest.approx(kept, rel=1e-4)
    gradient = jax.grad(lambda z: calibration.fit_temperature(z, ints(labels)))(f32(logits))
    assert jnp.isfinite(gradient).all()
    assert (gradient[:, 1] == 0).all()
    with pytest.raises(
        ValueError, match="labels: expected classes whose logits are not −∞, got one with a logit of −∞ at"
    ):
        calibration.fit_temperature(f32(masked(LOGITS)), ints(LABELS))
    assert jnp.isnan(jax.jit(calibration.fit_temperature)(f32(masked(LOGITS)), ints(LABELS)))
    weights = f32(ALLOWED)  # an example without weight may hold anything
    weighted = calibration.fit_temperature(f32(masked(LOGITS)), ints(LABELS), weights)
    assert weighted == pytest.approx(kept, rel=1e-4)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [1.0, np.nan]])
def test_weights_that_cannot_be_meant(weights):
    logits, labels = f32([[2.0, 0.0], [1.0, 0.0]]), ints([0, 1])
    with pytest.raises(ValueError, match="weights: expected"):
        calibration.fit_temperature(logits, labels, weights)
    assert jnp.isnan(jax.jit(calibration.fit_temperature)(logits, labels, f32(weights)))


def test_no_examples_have_no_temperature():
    with pytest.raises(ValueError, match="logits: expected at least one example"):
        calibration.fit_temperature(jnp.zeros((0, 3)), jnp.zeros(0, int))


@pytest.mark.parametrize("labels", [[0, 2], [-1, 0]])
@pytest.mark.parametrize("name", ["negative_log_likelihood", "brier_score", "expected_calibration_error"])
def test_traced_labels_out_of_range_are_no_numbers(name, labels):
    score = jax.jit(SCORES[name])
    assert jnp.isnan(score(f32([[0.25, 0.75], [0.5, 0.5]]), ints(labels))).any()
    assert jnp.isnan(score(f32([[0.25, 3.75], [0.5, 0.5]]), ints([0, 1]))).any()


def test_calibration_takes_what_users_hold():
    pandas, polars, torch = map(pytest.importorskip, ("pandas", "polars", "torch"))
    p, labels = [[0.25, 0.75], [0.75, 0.25]], [1, 1]
    frames = (np.array, pandas.DataFrame, lambda rows: polars.DataFrame(rows, orient="row"), torch.tensor)
    for door in (list, *frames):
        series = door if door in (list, np.array, torch.tensor) else pandas.Series
        np.testing.assert_allclose(calibration.brier_score(door(p), series(labels)), [0.125, 1.125])
        assert calibration.expected_calibration_error(door(p), series(labels)) == pytest.approx(0.25)
    temperature = calibration.fit_temperature([3.0, 3.0, 3.0, -3.0], [1, 1, 0, 0], [1, 1, 1, 1])
    assert temperature == pytest.approx(3 / np.log(3), rel=1e-4)
