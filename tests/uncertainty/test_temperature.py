import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from nnfx import uncertainty
from tests.uncertainty.made import ALLOWED, BINARY, LABELS, LOGITS, MASK, RNG, SINGLE, P, f32, ints, masked

pytestmark = pytest.mark.usefixtures("strict_dtypes")

WEIGHTS = RNG.integers(0, 4, size=200)


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
    assert uncertainty.fit_temperature(f32(logits), ints(labels)) == pytest.approx(expected, rel=1e-4)
    with jax.enable_x64(True):
        ours = uncertainty.fit_temperature(jnp.asarray(logits), jnp.asarray(labels))
        assert ours.dtype == jnp.float64
        assert float(ours) == pytest.approx(expected, rel=1e-6)


def test_the_temperature_lowers_the_likelihood_and_the_calibration_error():
    temperature = uncertainty.fit_temperature(f32(LOGITS), ints(LABELS))
    scaled = uncertainty.probabilities(f32(LOGITS) / temperature)
    assert 1.6 < temperature < 2.5
    for score in (uncertainty.negative_log_likelihood, uncertainty.expected_calibration_error):
        assert score(scaled, ints(LABELS)).mean() < score(f32(P), ints(LABELS)).mean()


def test_temperature_of_a_single_output():
    expected = best_temperature(*SETS["two classes"])
    for logits in (f32(SINGLE), f32(SINGLE)[:, None]):
        assert uncertainty.fit_temperature(logits, ints(BINARY)) == pytest.approx(expected, rel=1e-4)


def test_a_weight_counts_like_copies():
    weighted = uncertainty.fit_temperature(f32(LOGITS), ints(LABELS), f32(WEIGHTS))
    copies = np.repeat(np.arange(200), WEIGHTS)
    assert weighted == pytest.approx(best_temperature(LOGITS, LABELS, WEIGHTS), rel=1e-4)
    assert weighted == pytest.approx(float(uncertainty.fit_temperature(f32(LOGITS[copies]), ints(LABELS[copies]))))


def test_temperature_under_jit_and_vmap():
    logits, labels = f32(LOGITS).reshape(4, 50, 4), ints(LABELS).reshape(4, 50)
    mapped = jax.jit(jax.vmap(uncertainty.fit_temperature))(logits, labels)
    single = [uncertainty.fit_temperature(*pair) for pair in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(mapped, single, rtol=1e-5)


@pytest.mark.slow
def test_the_gradient_of_the_temperature_is_that_of_the_minimum():
    with jax.enable_x64(True):
        logits, labels, weights = jnp.asarray(LOGITS[:9]), jnp.asarray(LABELS[:9]), jnp.arange(1.0, 10.0)

        def fit(logits, weights):
            return uncertainty.fit_temperature(logits, labels, weights)

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
    value, gradient = jax.value_and_grad(uncertainty.fit_temperature)(f32([2.0, -2.0]), ints(labels))
    assert value == pytest.approx(end, rel=1e-3)
    assert (gradient == 0).all()


def test_a_traced_logit_that_is_not_finite_gives_no_temperature():
    assert jnp.isnan(jax.jit(uncertainty.fit_temperature)(f32([2.0, jnp.nan]), ints([0, 1])))


def test_the_temperature_with_classes_ruled_out():
    logits, labels = masked(LOGITS)[ALLOWED], LABELS[ALLOWED]
    kept = best_temperature(LOGITS[ALLOWED][:, ~MASK], np.searchsorted(np.flatnonzero(~MASK), labels))
    assert uncertainty.fit_temperature(f32(logits), ints(labels)) == pytest.approx(kept, rel=1e-4)
    gradient = jax.grad(lambda z: uncertainty.fit_temperature(z, ints(labels)))(f32(logits))
    assert jnp.isfinite(gradient).all()
    assert (gradient[:, 1] == 0).all()
    with pytest.raises(
        ValueError, match="labels: expected classes whose logits are not −∞, got one with a logit of −∞ at"
    ):
        uncertainty.fit_temperature(f32(masked(LOGITS)), ints(LABELS))
    assert jnp.isnan(jax.jit(uncertainty.fit_temperature)(f32(masked(LOGITS)), ints(LABELS)))
    weights = f32(ALLOWED)  # an example without weight may hold anything
    weighted = uncertainty.fit_temperature(f32(masked(LOGITS)), ints(LABELS), weights)
    assert weighted == pytest.approx(kept, rel=1e-4)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [1.0, np.nan]])
def test_weights_that_cannot_be_meant(weights):
    logits, labels = f32([[2.0, 0.0], [1.0, 0.0]]), ints([0, 1])
    with pytest.raises(ValueError, match="weights: expected"):
        uncertainty.fit_temperature(logits, labels, weights)
    assert jnp.isnan(jax.jit(uncertainty.fit_temperature)(logits, labels, f32(weights)))


def test_no_examples_have_no_temperature():
    with pytest.raises(ValueError, match="logits: expected at least one example"):
        uncertainty.fit_temperature(jnp.zeros((0, 3)), jnp.zeros(0, int))


def test_wrong_logits_labels_and_weights_are_named():
    logits, labels = f32(LOGITS[:3]), ints(LABELS[:3])
    with pytest.raises(ValueError, match=r"^logits: expected \(batch, classes\)"):
        uncertainty.fit_temperature(logits[None], labels)
    with pytest.raises(ValueError, match=r"^logits: expected finite numbers"):
        uncertainty.fit_temperature(logits.at[0, 0].set(jnp.inf), labels)
    with pytest.raises(ValueError, match=r"^labels: expected labels from 0 to 3"):
        uncertainty.fit_temperature(logits, ints([0, 1, 4]))
    with pytest.raises(ValueError, match=r"^weights: expected one per example"):
        uncertainty.fit_temperature(logits, labels, jnp.ones(2))


def test_the_temperature_takes_lists():
    temperature = uncertainty.fit_temperature([3.0, 3.0, 3.0, -3.0], [1, 1, 0, 0], [1, 1, 1, 1])
    assert temperature == pytest.approx(3 / np.log(3), rel=1e-4)


@pytest.mark.parametrize(
    ("logits", "labels", "weights"),
    [
        (np.zeros((4, 3)), [0, 1, 2, 0], None),
        (np.zeros(3), [0, 1, 1], None),
        ([[2.0, 2.0], [-7.0, -7.0]], [0, 1], None),
        ([[1.0, -np.inf, 1.0], [2.0, 2.0, 2.0]], [0, 1], None),
        ([[5.0, 1.0], [2.0, 2.0]], [1, 1], [0.0, 1.0]),
    ],
)
def test_the_temperature_of_logits_that_say_nothing_is_one(logits, labels, weights):
    weights = None if weights is None else f32(weights)
    assert uncertainty.fit_temperature(f32(logits), ints(labels), weights) == 1
