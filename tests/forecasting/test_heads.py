import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import nnfx
from nnfx import losses
from nnfx.forecasting import heads

RANDOM = np.random.default_rng(0)
MEAN, DEVIATION = RANDOM.normal(size=(5, 3, 2)), RANDOM.uniform(0.1, 2, size=(5, 3, 2))
OUTPUTS = jnp.asarray(np.stack([MEAN, DEVIATION], -1), jnp.float32)
TARGETS = jnp.asarray(RANDOM.normal(size=(5, 3, 2)), jnp.float32)
DECILES = heads.quantiles(np.arange(1, 10) / 10)


def test_the_gaussian_loss_is_the_density_of_scipy():
    expected = -stats.norm.logpdf(np.asarray(TARGETS, float), MEAN, DEVIATION).mean((1, 2))
    np.testing.assert_allclose(heads.GAUSSIAN.loss(OUTPUTS, TARGETS), expected, rtol=1e-5)


def test_the_gaussian_quantiles_and_intervals_are_those_of_scipy():
    levels = (0.01, 0.3, 0.5, 0.95)
    expected = stats.norm.ppf(np.array(levels), MEAN[..., None], DEVIATION[..., None])
    np.testing.assert_allclose(heads.GAUSSIAN.quantiles(OUTPUTS, levels), expected, rtol=1e-5, atol=1e-5)
    lower, upper = heads.interval(heads.GAUSSIAN, OUTPUTS, 0.8)
    for bound, expected in zip((lower, upper), stats.norm.interval(0.8, MEAN, DEVIATION), strict=True):
        np.testing.assert_allclose(bound, expected, rtol=1e-5, atol=1e-5)


def test_a_gaussian_pool_has_the_moments_of_the_mixture(key):
    pooled = heads.GAUSSIAN.pool(OUTPUTS)  # five members
    drawn = MEAN + DEVIATION * RANDOM.normal(size=(200_000, 1, 1, 1)).astype(np.float32)
    np.testing.assert_allclose(pooled[..., 0], drawn.mean((0, 1)), atol=0.01)
    np.testing.assert_allclose(pooled[..., 1], drawn.std((0, 1)), atol=0.01)


@pytest.mark.parametrize("head", [heads.GAUSSIAN, DECILES, heads.POINT], ids=["Gaussian", "quantiles", "point"])
def test_outputs_follow_a_change_of_unit(head, key):
    shape = (5, 3, 2, head.parameters) if head.parameters else (5, 3, 2)
    outputs = head.constrain(jax.random.normal(key, shape))
    shift, scale = jnp.array([3.0, -1.0]).reshape(1, 1, 2), jnp.array([0.5, 20.0]).reshape(1, 1, 2)
    changed = head.affine(outputs, shift, scale)
    np.testing.assert_allclose(head.point(changed), head.point(outputs) * scale + shift, rtol=1e-5, atol=1e-5)
    if head.parameters:
        for level in (0.1, 0.47, 0.9):
            expected = head.quantiles(outputs, [level])[..., 0] * scale + shift
            np.testing.assert_allclose(head.quantiles(changed, [level])[..., 0], expected, rtol=1e-4, atol=1e-4)


def test_a_change_of_unit_changes_the_density_by_its_slope():
    shift, scale = jnp.full((1, 1, 1), 3.0), jnp.full((1, 1, 1), 5.0)
    changed = heads.GAUSSIAN.loss(heads.GAUSSIAN.affine(OUTPUTS, shift, scale), TARGETS * 5 + 3)
    np.testing.assert_allclose(changed, heads.GAUSSIAN.loss(OUTPUTS, TARGETS) + np.log(5), rtol=1e-5)


def test_deviations_are_positive_and_quantiles_do_not_cross(key):
    raw = 100 * jax.random.normal(key, (1000, 2))
    assert (heads.GAUSSIAN.constrain(raw)[:, 1] > 0).all()
    assert (heads.GAUSSIAN.constrain(raw)[:, 0] == raw[:, 0]).all()
    assert (jnp.diff(DECILES.constrain(jax.random.normal(key, (100, 9)))) >= 0).all()


def test_quantiles_between_the_levels_are_interpolated():
    head = heads.quantiles([0.05, 0.5, 0.95])
    outputs = jnp.array([[0.0, 2.0, 11.0]])
    np.testing.assert_allclose(head.quantiles(outputs, (0.05, 0.275, 0.5, 0.6, 0.95))[0], [0, 1, 2, 4, 11], rtol=1e-6)
    assert head.point(outputs).tolist() == [2.0]
    lower, upper = heads.interval(head, outputs, 0.9)  # (1 − 0.9) / 2 is rounded to a value below 0.05
    assert (lower.item(), upper.item()) == (0.0, 11.0)
    assert heads.quantiles([0.4, 0.6]).point(jnp.array([1.0, 2.0])) == pytest.approx(1.5)


def constant(head):
    """Return a forecaster with the same output for every window: only parameters."""

    def apply(variables, inputs, *, key=None, weights=None, train=False):
        raw = variables["params"]["raw"]
        outputs = head.constrain(jnp.broadcast_to(raw, (len(inputs), *raw.shape)))
        return (outputs, {}) if train else outputs

    return nnfx.Model(lambda key, inputs: {"params": {"raw": jnp.zeros((1, 1, head.parameters))}}, apply)


@pytest.mark.parametrize("name", ["Gaussian", pytest.param("quantiles", marks=pytest.mark.slow)])
def test_training_finds_the_parameters_of_a_sample(name, key):
    sample = np.random.default_rng(1).gamma(2.0, size=(400, 1, 1)).astype(np.float32)
    data = nnfx.data.prepare(np.zeros((400, 1, 1)), sample, standardize=False)
    head = heads.GAUSSIAN if name == "Gaussian" else heads.quantiles([0.1, 0.5, 0.9])
    run = nnfx.fit(constant(head), head.loss, optax.adam, epochs=3000)(key, data, learning_rate=0.005)
    found = run.apply(data.train.inputs)[0, 0, 0]
    if name == "Gaussian":
        np.testing.assert_allclose(found, [sample.mean(), sample.std()], rtol=2e-3)
    else:
        below = (sample.ravel()[None] < np.asarray(found)[:, None]).mean(1)
        np.testing.assert_allclose(below, [0.1, 0.5, 0.9], atol=1.5 / 400)  # one of the sample is at each quantile


@pytest.mark.parametrize(
    ("levels", "error", "words"),
    [
        (0.5, TypeError, "levels: expected a sequence of levels, such as (0.1, 0.5, 0.9), got 0.5"),
        ([], ValueError, "levels: expected at least one level, got none"),
        ([0.1, 1.0], ValueError, "levels[1]: expected a finite number above 0 and below 1, got 1"),
        ([0.5, float("nan")], ValueError, "levels[1]: expected a finite number above 0 and below 1, got nan"),
        ([0.9, 0.1], ValueError, "levels: expected levels in ascending order, got (0.9, 0.1)"),
        ([0.1, 0.2], ValueError, "levels: expected the median, 0.5, within their range, got 0.1 to 0.2"),
    ],
)
def test_senseless_levels(levels, error, words):
    with pytest.raises(error) as caught:
        heads.quantiles(levels)
    assert words in str(caught.value)


def test_what_a_head_cannot_say():
    with pytest.raises(ValueError, match="levels: expected levels within those of the head, 0.1 to 0.9, got 0.05"):
        heads.interval(DECILES, jnp.zeros((1, 9)), 0.9)
    with pytest.raises(ValueError, match="head: expected a head with quantiles, such as heads.GAUSSIAN"):
        heads.interval(heads.POINT, jnp.zeros((1, 1)), 0.9)
    with pytest.raises(ValueError, match="level: expected a finite number above 0 and below 1, got 90"):
        heads.interval(heads.GAUSSIAN, OUTPUTS, 90)
    with pytest.raises(ValueError, match=r"outputs: expected \(..., 9\), the parameters of the head last, got"):
        heads.interval(DECILES, OUTPUTS, 0.8)
    with pytest.raises(ValueError, match=r"outputs: expected \(..., 2\)"):
        heads.GAUSSIAN.quantiles(jnp.zeros((4, 3)), [0.5])


def test_targets_are_checked_before_training(key):
    model, targets = constant(heads.GAUSSIAN), np.zeros((4, 1, 1), np.float32)
    with pytest.raises(ValueError, match="outputs: expected 2 parameters for each of the targets"):
        losses.check(heads.GAUSSIAN.loss, jnp.zeros((4, 1, 1)), targets)
    targets[2] = np.nan
    with pytest.raises(ValueError, match="targets: expected finite numbers, got 1 not finite"):
        losses.check(heads.GAUSSIAN.loss, jnp.zeros((4, 1, 1, 2)), targets)
    data = nnfx.data.Data(
        nnfx.Batch(jnp.zeros((4, 1, 1)), jnp.asarray(targets), jnp.ones(4)),
        None,
        nnfx.data.prepare([[0.0]], [0]).preprocess,
    )
    with pytest.raises(ValueError, match="targets: expected finite numbers"):
        nnfx.fit(model, heads.GAUSSIAN.loss, optax.sgd, epochs=1)(key, data, learning_rate=0.1)
    with pytest.raises(TypeError, match="targets: expected an array of real numbers"):
        heads.GAUSSIAN.loss(jnp.zeros((1, 1, 1, 2)), jnp.zeros((1, 1, 1), complex))


@pytest.mark.slow
def test_dtypes_are_kept(strict_dtypes):
    for dtype in (jnp.bfloat16, jnp.float32):
        raw = jnp.zeros((2, 3, 1, 9), dtype)
        outputs = DECILES.constrain(raw)
        assert (
            DECILES.quantiles(outputs, [0.3]).dtype == DECILES.loss(outputs, jnp.zeros((2, 3, 1), dtype)).dtype == dtype
        )
        gaussian = heads.GAUSSIAN.constrain(raw[..., :2])
        assert heads.GAUSSIAN.quantiles(gaussian, [0.3]).dtype == dtype
        assert heads.GAUSSIAN.loss(gaussian, jnp.zeros((2, 3, 1), dtype)).dtype == dtype


def test_a_deviation_of_zero_has_no_likelihood():
    outputs, targets = jnp.array([[[[1.0, 0.0]]]]), jnp.ones((1, 1, 1))
    with pytest.raises(ValueError, match="outputs: expected positive standard deviations"):
        heads.GAUSSIAN.loss(outputs, targets)
    assert jnp.isnan(jax.jit(heads.GAUSSIAN.loss)(outputs, targets)).all()


def test_the_pool_of_members_that_agree_has_a_gradient():
    members = jnp.zeros((3, 1, 2))
    assert heads.GAUSSIAN.pool(members).tolist() == [[0.0, 0.0]]
    assert (jax.grad(lambda members: heads.GAUSSIAN.pool(members).sum())(members)[..., 1] == 0).all()


def test_heads_take_lists_and_arrays_of_numpy():
    outputs, targets = [[[[0.0, 1.0]]]], [[[2]]]
    expected = -stats.norm.logpdf(2.0)
    np.testing.assert_allclose(heads.GAUSSIAN.loss(outputs, targets), expected, rtol=1e-6)
    np.testing.assert_allclose(heads.GAUSSIAN.loss(np.array(outputs), jnp.array(targets)), expected, rtol=1e-6)
    assert heads.interval(heads.quantiles([0.1, 0.9]), [[1.0, 3.0]], 0.8).upper.tolist() == [3.0]
