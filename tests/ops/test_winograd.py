"""Convolutions by tiles, as on CPUs, against direct sums in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from nnfx import ops
from nnfx.ops import winograd

pytestmark = pytest.mark.usefixtures("strict_dtypes")

CASES = {
    "odd sizes": ((3, 13, 15, 64), (3, 3, 64, 72), "SAME", ((1, 1), (1, 1))),
    "valid": ((2, 15, 14, 64), (3, 3, 64, 64), "VALID", ((0, 0), (0, 0))),
    "uneven padding, several chunks": ((5, 30, 31, 64), (3, 3, 64, 64), [(2, 0), (1, 2)], ((2, 0), (1, 2))),
    "kernel gradient by tiles": ((3, 12, 13, 64), (3, 3, 64, 128), "SAME", ((1, 1), (1, 1))),
}
SHARE_OF_LARGEST = 3e-6
"""The tolerance, as a fraction of the largest entry: errors of tiles are about those of direct sums in float32."""


@pytest.fixture(params=CASES, name="case")
def make_case(request):
    inputs, kernel, padding, pairs = CASES[request.param]
    return normal(*inputs), normal(*kernel), padding, pairs


def normal(*shape):
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def directly(inputs, kernel, pairs):
    """Sum over the nine shifts of the padded inputs, in float64."""
    padded = np.pad(inputs.astype(np.float64), [(0, 0), *pairs, (0, 0)])
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j].astype(np.float64) for i in range(3) for j in range(3)
    )


def gradients_directly(inputs, cotangent, kernel, pairs):
    """Return the cotangents of inputs and kernel, in float64."""
    padded = np.pad(inputs.astype(np.float64), [(0, 0), *pairs, (0, 0)])
    height, width = cotangent.shape[1:3]
    to_inputs, to_kernel = np.zeros_like(padded), np.zeros(kernel.shape)
    for i in range(3):
        for j in range(3):
            window = np.s_[:, i : i + height, j : j + width]
            to_inputs[window] += cotangent @ kernel[i, j].T.astype(np.float64)
            to_kernel[i, j] = np.tensordot(padded[window], cotangent, ((0, 1, 2), (0, 1, 2)))
    (top, _), (left, _) = pairs
    return to_inputs[:, top : top + inputs.shape[1], left : left + inputs.shape[2]], to_kernel


def assert_close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=SHARE_OF_LARGEST * np.abs(expected).max())


def test_values_and_gradients_equal_direct_sums(case, monkeypatch):
    inputs, kernel, padding, pairs = case
    calls = []
    for name in ("convolve", "kernel_gradient"):
        original = getattr(winograd, name)
        monkeypatch.setattr(winograd, name, lambda *a, name=name, f=original: (calls.append(name), f(*a))[1])
    found, pull_back = jax.vjp(lambda x, k: ops.convolution(x, k, padding=padding), inputs, kernel)
    expected = directly(inputs, kernel, pairs)
    assert_close(found, expected)
    cotangent = normal(*expected.shape)
    for got, wanted in zip(pull_back(cotangent), gradients_directly(inputs, cotangent, kernel, pairs), strict=True):
        assert_close(got, wanted)
    assert calls.count("convolve") >= 2
    assert ("kernel_gradient" in calls) == (kernel.shape[2] * kernel.shape[3] >= winograd.FEWEST_PRODUCTS)


def test_errors_are_about_those_of_a_direct_convolution():
    inputs, kernel = normal(4, 16, 16, 64), normal(3, 3, 64, 64)
    expected = directly(inputs, kernel, ((1, 1), (1, 1)))
    by_tiles, direct = (np.abs(ops.convolution(inputs, kernel, plain=plain) - expected) for plain in (False, True))
    assert np.sqrt((by_tiles**2).mean()) < 3 * np.sqrt((direct**2).mean())
    assert not np.array_equal(by_tiles, direct)


def test_mapped_over_kernels_and_over_both():
    inputs, kernels = normal(2, 12, 12, 64), normal(3, 3, 3, 64, 64)
    found = jax.vmap(ops.convolution, (None, 0))(inputs, kernels)
    for got, kernel in zip(found, kernels, strict=True):
        assert_close(got, directly(inputs, kernel, ((1, 1), (1, 1))))
    found = jax.vmap(ops.convolution)(normal(3, 2, 12, 12, 64), kernels)
    assert_close(found[1], directly(normal(3, 2, 12, 12, 64)[1], kernels[1], ((1, 1), (1, 1))))


def test_second_derivatives_equal_those_of_the_plain_convolution():
    inputs, kernel, direction = normal(2, 12, 12, 64), normal(3, 3, 64, 128), normal(3, 3, 64, 128)

    def product_with_hessian(plain):
        def wave(k):
            return jnp.sin(0.1 * ops.convolution(inputs, k, plain=plain)).sum()

        return jax.grad(lambda k: jnp.vdot(jax.grad(wave)(k), direction))(kernel)

    expected = product_with_hessian(plain=True)
    np.testing.assert_allclose(product_with_hessian(plain=False), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_gradients_on_two_devices_are_those_on_one():
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    inputs, kernel = normal(4, 12, 13, 64), normal(3, 3, 64, 128)
    gradient = jax.jit(jax.grad(lambda x, k: jnp.sin(ops.convolution(x, k)).sum(), (0, 1)))
    specs = PartitionSpec("devices"), PartitionSpec()
    for got, wanted in zip(
        jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=specs))(inputs, kernel),
        gradient(inputs, kernel),
        strict=True,
    ):
        assert_close(got, np.asarray(wanted))


def test_an_image_affects_no_other_one():
    inputs, kernel = normal(3, 12, 12, 64), normal(3, 3, 64, 64)
    damaged = inputs.copy()
    damaged[1] = np.nan
    clean, found = ops.convolution(inputs, kernel), ops.convolution(damaged, kernel)
    np.testing.assert_array_equal(found[::2], clean[::2])
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize(
    ("shape", "outputs", "dtype"),
    [
        ((5, 5, 64, 64), (16, 16), np.float32),
        ((3, 3, 3, 64), (16, 16), np.float32),
        ((3, 3, 32, 64), (16, 16), np.float32),
        ((3, 3, 64, 64), (4, 16), np.float32),
        ((3, 3, 64, 64), (16, 16), np.float64),
        ((3, 3, 64, 64), (16, 16), jnp.bfloat16),
        ((3, 64, 64), (16,), np.float32),
    ],
)
def test_other_convolutions_are_direct(shape, outputs, dtype):
    assert not winograd.suits(shape, outputs, dtype)
    assert winograd.suits((3, 3, 64, 64), (16, 16), np.float32)
