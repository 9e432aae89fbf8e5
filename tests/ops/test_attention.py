import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import ops

pytestmark = pytest.mark.usefixtures("strict_dtypes")

RNG = np.random.default_rng(0)
Q, K, V = (RNG.normal(size=(2, time, 3, 4)) for time in (5, 7, 7))
CAUSAL = np.tril(np.ones((5, 7), bool), 1)
MASKS = {"none": None, "one for all": CAUSAL, "one each": np.stack([CAUSAL, CAUSAL[:, ::-1]])}


def reference(q, k, v, mask=None):
    """Attention in float64: for each example, head and query, one weighted mean."""
    out = np.zeros_like(q)
    for b, t, h in np.ndindex(q.shape[:3]):
        seen = np.ones(k.shape[1], bool) if mask is None else np.broadcast_to(mask, (len(q), *mask.shape[-2:]))[b, t]
        shares = np.exp(k[b, seen, h] @ q[b, t, h] / np.sqrt(q.shape[-1]))
        out[b, t, h] = shares / shares.sum() @ v[b, seen, h] if seen.any() else 0
    return out


def f32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@pytest.mark.parametrize("mask", MASKS)
def test_attention_against_numpy(mask):
    mask = MASKS[mask]
    ours = ops.attention(*f32(Q, K, V), mask if mask is None else jnp.asarray(mask))
    np.testing.assert_allclose(ours, reference(Q, K, V, mask), rtol=1e-5, atol=1e-6)


def test_attention_of_one_sequence():
    ours = ops.attention(*f32(Q[0], K[0], V[0]), jnp.asarray(CAUSAL))
    np.testing.assert_allclose(ours, reference(Q, K, V, CAUSAL)[0], rtol=1e-5, atol=1e-6)


def test_attention_and_its_gradients_against_pytorch():
    torch = pytest.importorskip("torch")
    mask = MASKS["one each"]
    theirs = [torch.tensor(each.swapaxes(1, 2).copy(), requires_grad=True) for each in (Q, K, V)]
    attended = torch.nn.functional.scaled_dot_product_attention(*theirs, attn_mask=torch.tensor(mask[:, None].copy()))
    cotangent = RNG.normal(size=Q.shape)
    attended.backward(torch.tensor(cotangent.swapaxes(1, 2).copy()))
    ours, pull = jax.vjp(lambda *parts: ops.attention(*parts, jnp.asarray(mask)), *f32(Q, K, V))
    np.testing.assert_allclose(ours, attended.detach().numpy().swapaxes(1, 2), rtol=1e-5, atol=1e-6)
    for gradient, their in zip(pull(f32(cotangent)[0]), theirs, strict=True):
        np.testing.assert_allclose(gradient, their.grad.numpy().swapaxes(1, 2), rtol=1e-4, atol=1e-6)


def test_a_query_that_sees_nothing_gets_zero():
    mask = jnp.asarray(CAUSAL).at[2].set(False)
    out, pull = jax.vjp(lambda *parts: ops.attention(*parts, mask), *f32(Q, K, V))
    np.testing.assert_array_equal(out[:, 2], 0)
    np.testing.assert_allclose(out, reference(Q, K, V, np.asarray(mask)), rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in pull(jnp.ones_like(out)))


def test_large_scores_and_half_precision():
    large = ops.attention(*f32(100 * Q, 100 * K, V))
    winners = np.einsum("bqhd,bkhd->bqhk", Q, K).argmax(-1)
    expected = np.stack([[[V[b, winners[b, t, h], h] for h in range(3)] for t in range(5)] for b in range(2)])
    np.testing.assert_allclose(large, expected, rtol=1e-5)
    half = ops.attention(*(part.astype(jnp.bfloat16) for part in f32(Q, K, V)))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), reference(Q, K, V), atol=0.03)


def test_rotation_against_complex_numbers():
    positions = np.array([0, 1, 5, 100, 1000])
    points = Q[..., :2] + 1j * Q[..., 2:]
    turned = points * np.exp(1j * positions[:, None] / 10_000.0 ** (np.arange(2) / 2))[:, None]
    expected = np.concatenate([turned.real, turned.imag], -1)
    np.testing.assert_allclose(ops.rotated(f32(Q)[0], jnp.asarray(positions)), expected, atol=2e-4)


@pytest.mark.parametrize("start", [0, 50, 10**7, 2**31 - 5])
def test_products_of_what_is_rotated_depend_on_the_distance_alone_however_far_the_positions(start):
    q, k = Q, K[:, :5]
    points = [each[..., :2] + 1j * each[..., 2:] for each in (q, k)]
    speeds = 10_000.0 ** (-np.arange(2) / 2)
    turned = [each * np.exp(1j * np.arange(5)[:, None, None] * speeds) for each in points]
    expected = np.einsum("bqhd,bkhd->bhqk", turned[0], turned[1].conj()).real
    positions = jnp.asarray(start + np.arange(5), jnp.int32)
    q, k = f32(q, k)
    found = jnp.einsum("bqhd,bkhd->bhqk", ops.rotated(q, positions), ops.rotated(k, positions))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=5e-6)
    moved = jnp.einsum("bqhd,bkhd->bhqk", ops.rotated(q, jnp.arange(5) + 1), ops.rotated(k, jnp.arange(5)))
    assert not np.allclose(moved, expected, atol=0.01)


def test_wrong_input():
    q, k, v = f32(Q, K, V)
    with pytest.raises(ValueError, match=r"keys: expected float32\[2,5,3,4\] with any number of keys.*\[2,7,3,3\]"):
        ops.attention(q, k[..., :3], v[..., :3])
    with pytest.raises(ValueError, match="keys: expected .* values of the same shape"):
        ops.attention(q, k, v[:, :6])
    with pytest.raises(ValueError, match=r"x: expected an even number of features, got float32\[2,5,3,3\]"):
        ops.rotated(q[..., :3], jnp.arange(5))
    with pytest.raises(TypeError, match=r"positions: expected integers, got float32\[5\]"):
        ops.rotated(q, jnp.arange(5.0))
