import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import metrics

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 5, 6))
LABELS = RNG.integers(0, 6, size=(4, 5))
WEIGHTS = RNG.uniform(size=(4, 5)) * (RNG.uniform(size=(4, 5)) < 0.7)
LOSSES = np.log(np.exp(LOGITS).sum(-1)) - np.take_along_axis(LOGITS, LABELS[..., None], -1)[..., 0]


def f32(values):
    return jnp.asarray(values, jnp.float32)


def test_bits_per_token_against_numpy():
    bits = metrics.bits_per_token(f32(LOGITS[:, 0]), LABELS[:, 0])
    np.testing.assert_allclose(bits, LOSSES[:, 0] / np.log(2), rtol=1e-5)
    np.testing.assert_allclose(metrics.bits_per_token(f32(LOGITS), LABELS), LOSSES.mean(1) / np.log(2), rtol=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_perplexity_against_numpy(weights):
    expected = np.exp(np.average(LOSSES, weights=weights))
    weights = None if weights is None else f32(weights)
    labels = LABELS if weights is None else np.where(WEIGHTS == 0, -1, LABELS)
    one_hot = np.eye(6)[LABELS] * (1 if weights is None else (WEIGHTS != 0)[..., None])
    for given in (labels, one_hot):
        np.testing.assert_allclose(metrics.perplexity(f32(LOGITS), given, weights), expected, rtol=1e-5)
        np.testing.assert_allclose(jax.jit(metrics.perplexity)(f32(LOGITS), given, weights), expected, rtol=1e-5)


def test_perplexity_against_pytorch():
    torch = pytest.importorskip("torch")
    labels = np.where(WEIGHTS == 0, -1, LABELS)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS.reshape(-1, 6)), torch.tensor(labels.ravel()), ignore_index=-1
    )
    ours = metrics.perplexity(f32(LOGITS), labels, f32(WEIGHTS != 0))
    np.testing.assert_allclose(ours, np.exp(theirs.item()), rtol=1e-6)


def test_the_ends_of_perplexity():
    certain = jnp.full((3, 4), -jnp.inf).at[:, 1].set(0.0)
    assert metrics.perplexity(certain, jnp.ones(3, int)) == 1
    assert metrics.perplexity(certain, jnp.zeros(3, int)) == jnp.inf
    np.testing.assert_allclose(metrics.perplexity(jnp.zeros((2, 50)), jnp.array([3, 7])), 50, rtol=1e-5)
    assert jnp.isnan(metrics.perplexity(f32(LOGITS), LABELS, jnp.zeros((4, 5))))


def test_both_are_found_by_name():
    assert metrics.get("perplexity") is metrics.perplexity
    assert metrics.get("bits_per_token") is metrics.bits_per_token


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [
        (LABELS[:3], None, r"labels: expected integers or one-hot rows for logits float32\[4,5,6\], got"),
        (LABELS, np.ones(4), r"weights: expected one weight for each label, got float32\[4\]"),
        (np.where(LABELS == 0, 6, LABELS), None, "targets: expected labels from 0 to 5, got labels from 1 to 6"),
        (LABELS, -np.ones((4, 5)), "weights: expected non-negative numbers, got -1"),
    ],
)
def test_wrong_input(labels, weights, message):
    with pytest.raises(ValueError, match=message):
        metrics.perplexity(f32(LOGITS), labels, weights)
