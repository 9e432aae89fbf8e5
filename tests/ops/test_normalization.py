import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nnfx import ops

pytestmark = pytest.mark.usefixtures("strict_dtypes")
X = np.random.default_rng(0).normal(2, 3, (33, 4, 5)).astype(np.float32)


def start():
    return ops.RunningStatistics(jnp.zeros(5), jnp.ones(5), jnp.zeros(()))


def close(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second)


def test_the_same_numbers_as_flax():
    scale, bias = jnp.arange(1.0, 6.0), jnp.arange(5.0)
    flax_layer = nn.BatchNorm(use_running_average=False, epsilon=1e-5, momentum=0.9)
    variables = flax_layer.init(jax.random.key(0), X)
    theirs, _ = flax_layer.apply({**variables, "params": {"scale": scale, "bias": bias}}, X, mutable=["batch_stats"])
    ours = ops.batch_norm(jnp.asarray(X), ops.batch_statistics(jnp.asarray(X)), scale, bias)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_padding_changes_nothing():
    padded = jnp.concatenate([jnp.asarray(X), jnp.full((7, 4, 5), 1e6)])
    weights = jnp.concatenate([jnp.ones(33), jnp.zeros(7)])
    close(ops.batch_statistics(padded, weights), ops.batch_statistics(jnp.asarray(X)), rtol=1e-4, atol=1e-5)


def test_a_weight_of_two_is_an_example_twice():
    weights = jnp.asarray(np.arange(33) % 3, jnp.float32)
    repeated = jnp.asarray(np.repeat(X, np.arange(33) % 3, axis=0))
    close(ops.batch_statistics(jnp.asarray(X), weights), ops.batch_statistics(repeated), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cuts", [(33,), (16, 32), (1, 2, 30), tuple(range(1, 33))])
def test_without_forgetting_the_running_statistics_are_those_of_all_examples(cuts):
    running = start()
    for part in np.split(X, [cut for cut in cuts if cut < 33]):
        running = ops.update_statistics(running, ops.batch_statistics(jnp.asarray(part)), 1.0)
    rows = X.reshape(-1, 5).astype(np.float64)
    np.testing.assert_allclose(running.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(running.var, rows.var(0), rtol=1e-4)
    assert running.weight == 33


def test_with_forgetting_they_are_those_of_exponentially_weighted_examples():
    running = start()
    parts = np.split(X, [10, 20, 30])
    for part in parts:
        running = ops.update_statistics(running, ops.batch_statistics(jnp.asarray(part)), 0.8)
    weights = np.repeat(0.8 ** np.arange(3, -1, -1), [len(part) for part in parts])
    share = (weights / weights.sum())[:, None] / 4
    mean = (X.astype(np.float64) * share[..., None]).sum((0, 1))
    np.testing.assert_allclose(running.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(running.var, ((X - mean) ** 2 * share[..., None]).sum((0, 1)), rtol=1e-4)


def test_a_batch_of_weight_zero_leaves_them():
    running = ops.update_statistics(start(), ops.batch_statistics(jnp.asarray(X)), 0.9)
    empty = ops.batch_statistics(jnp.asarray(X), jnp.zeros(33))
    after = ops.update_statistics(running, empty, 0.9)
    close(after[:2], running[:2], rtol=1e-6)
    close(ops.update_statistics(start(), empty, 0.9), start())


@pytest.mark.slow
def test_gradients_in_double_precision():
    with jax.enable_x64(True):
        x, weights = jnp.asarray(X[:6, 0], jnp.float64), jnp.asarray([1.0, 0, 2, 1, 1, 0.5])

        def normalise(x, scale, bias):
            return jnp.sin(ops.batch_norm(x, ops.batch_statistics(x, weights), scale, bias))

        check_grads(normalise, (x, jnp.arange(1.0, 6.0), jnp.ones(5)), order=2, atol=1e-5, rtol=1e-5)


def test_half_precision_inputs_have_statistics_in_single():
    statistics = ops.batch_statistics(jnp.full((4096, 2), 1.5, jnp.bfloat16))
    assert statistics.mean.dtype == jnp.float32
    np.testing.assert_allclose(statistics.mean, 1.5)
    assert ops.batch_norm(jnp.ones((4, 2), jnp.bfloat16), statistics, jnp.ones(2), jnp.zeros(2)).dtype == jnp.bfloat16


def test_wrong_input():
    with pytest.raises(ValueError, match=r"inputs: expected \(batch, ..., channels\), got float32\[3\]"):
        ops.batch_statistics(jnp.ones(3))
    with pytest.raises(ValueError, match=r"weights: expected one per example, \(3,\), got float32\[2\]"):
        ops.batch_statistics(jnp.ones((3, 1)), jnp.ones(2))


def test_layer_norm_against_numpy_and_pytorch():
    x = 100 + np.random.default_rng(0).normal(size=(2, 3, 5))
    scale, bias = np.arange(1.0, 6), np.arange(5.0)
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias
    ours = ops.layer_norm(*(jnp.asarray(each, jnp.float32) for each in (x, scale, bias)))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.layer_norm(torch.tensor(x), (5,), torch.tensor(scale), torch.tensor(bias))
    np.testing.assert_allclose(theirs, expected, rtol=1e-6)
