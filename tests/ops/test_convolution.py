import functools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jax.test_util import check_grads

from nnfx import ops

pytestmark = pytest.mark.usefixtures("strict_dtypes")

GEOMETRIES = {
    "same": ((5, 7, 8, 3), (3, 3, 3, 4), {}),
    "one channel": ((3, 6, 6, 1), (5, 5, 1, 2), {}),
    "even kernel": ((2, 5, 6, 2), (2, 4, 2, 3), {}),
    "one by one": ((3, 4, 4, 3), (1, 1, 3, 2), {}),
    "valid": ((4, 7, 8, 2), (3, 2, 2, 3), {"padding": "VALID"}),
    "strides": ((3, 9, 8, 2), (3, 3, 2, 2), {"strides": (2, 3)}),
    "strides that leave some out": ((3, 8, 9, 2), (3, 2, 2, 2), {"strides": (2, 3), "padding": "VALID"}),
    "strides beyond the kernel": ((2, 9, 9, 2), (2, 1, 2, 2), {"strides": 3}),
    "dilation": ((3, 9, 8, 2), (3, 2, 2, 3), {"dilation": (2, 3)}),
    "padding beyond the kernel": ((3, 5, 6, 2), (3, 2, 2, 3), {"padding": [(3, 3), (4, 0)]}),
    "everything": ((5, 9, 7, 2), (3, 2, 2, 3), {"strides": (1, 2), "dilation": (2, 1), "padding": [(2, 0), (0, 3)]}),
    "series": ((4, 11, 3), (3, 3, 5), {}),
    "causal series": ((4, 11, 3), (3, 3, 5), {"padding": [(4, 0)], "dilation": 2}),
}


CONVOLUTIONS = {name: partial(ops.convolution, **keywords) for name, (_, _, keywords) in GEOMETRIES.items()}


# One case of each kind; the others are slow tests.
A_FEW = {"same", "strides that leave some out", "dilation", "padding beyond the kernel", "everything", "causal series"}


@pytest.fixture(
    params=[pytest.param(name, marks=() if name in A_FEW else pytest.mark.slow) for name in GEOMETRIES], name="case"
)
def make_case(request):
    """Return inputs, a kernel, the keywords, and the convolution as a function of the two; the same in every test."""
    inputs_shape, kernel_shape, keywords = GEOMETRIES[request.param]
    return normal(*inputs_shape), normal(*kernel_shape), keywords, CONVOLUTIONS[request.param]


def normal(*shape):
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def by_flax(inputs, kernel, *, strides=1, padding="SAME", dilation=1):
    axes = inputs.ndim - 2
    layer = nn.Conv(kernel.shape[-1], kernel.shape[:axes], strides, padding, kernel_dilation=dilation, use_bias=False)
    return layer.apply({"params": {"kernel": kernel}}, inputs)


def wave(function):
    """Reduce a function's values to a scalar whose gradient distinguishes every output and its derivative."""
    return lambda *arguments: jnp.sin(function(*arguments)).sum()


def with_gradient(function):
    """Return a function's values and the gradient of their wave."""
    return lambda *arguments: (function(*arguments), jax.grad(wave(function), (0, 1))(*arguments))


@functools.cache
def compiled_with_gradient(function):
    return jax.jit(with_gradient(function))


def in_double(function, *arguments):
    with jax.enable_x64(True):
        return jax.tree.map(
            np.asarray, jax.jit(function)(*[jnp.asarray(np.asarray(x), jnp.float64) for x in arguments])
        )


def assert_close(actual, expected, tolerance=1e-5):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance * (1 + np.abs(e).max()))


def test_numbers_and_gradients_are_those_of_flax(case):
    # Flax in float64: in float32 its gradient is wrong for padding beyond the kernel up to jaxlib 0.10.1;
    # tests/test_compatibility.py fails once no supported release has this bug, and convolution need not pad by itself.
    inputs, kernel, keywords, convolve = case
    value, gradient = in_double(with_gradient(partial(by_flax, **keywords)), inputs, kernel)
    assert_close(compiled_with_gradient(convolve)(inputs, kernel), (value, gradient))
    plain = partial(ops.convolution, plain=True, **keywords)
    assert_close(jax.jit(jax.grad(wave(plain), (0, 1)))(inputs, kernel), gradient)


@pytest.mark.parametrize(
    "case",
    [pytest.param("same", marks=pytest.mark.slow), "everything", pytest.param("causal series", marks=pytest.mark.slow)],
    indirect=True,
)
def test_first_and_second_derivatives_against_finite_differences(case):
    inputs, kernel, _, convolve = case
    with jax.enable_x64(True):
        arguments = [jnp.asarray(np.asarray(x), jnp.float64) for x in (inputs, kernel)]
        check_grads(jax.jit(wave(convolve)), arguments, order=2, modes=["rev"])


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("strides that leave some out", marks=pytest.mark.slow),
        "everything",
        pytest.param("causal series", marks=pytest.mark.slow),
    ],
    indirect=True,
)
def test_a_hessian_vector_product_is_reverse_over_reverse(case):
    inputs, kernel, keywords, convolve = case

    def product(function):
        def slope(x, k):
            gradients = jax.grad(wave(function), (0, 1))(x, k)
            return sum((g * jnp.cos(v)).sum() for g, v in zip(gradients, (x, k), strict=True))

        return jax.grad(slope, (0, 1))

    expected = in_double(product(lambda x, k: by_flax(x, k, **keywords)), inputs, kernel)
    assert_close(jax.jit(product(convolve))(inputs, kernel), expected, 1e-4)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), pytest.param((0, 0), marks=pytest.mark.slow), (1, 3)])
@pytest.mark.parametrize(
    "case",
    [pytest.param("same", marks=pytest.mark.slow), "everything", pytest.param("causal series", marks=pytest.mark.slow)],
    indirect=True,
)
def test_mapped_is_one_by_one(case, axes):
    inputs, kernel, _, convolve = case

    def members(x, axis):
        scaled = [x * np.float32(factor) for factor in (1.0, -0.5, 2.0)]
        return scaled if axis is None else [np.take(np.stack(scaled, axis), i, axis) for i in range(3)]

    def stacked(x, axis):
        return x if axis is None else np.stack(members(x, axis), axis)

    arguments = stacked(inputs, axes[0]), stacked(kernel, axes[1])
    singles = [
        (inputs if axes[0] is None else x, kernel if axes[1] is None else k)
        for x, k in zip(members(inputs, 0), members(kernel, 0), strict=True)
    ]
    single = jax.device_get([compiled_with_gradient(convolve)(*one) for one in singles])
    outputs, expected = jax.tree.map(lambda *parts: np.stack(parts), *single)

    @jax.jit
    def mapped(x, k):
        all_at_once = jax.vmap(convolve, axes)
        each = jax.vmap(jax.grad(wave(convolve), (0, 1)), axes)
        return all_at_once(x, k), each(x, k), jax.grad(wave(all_at_once), (0, 1))(x, k)

    found, gradients, total = mapped(*arguments)
    assert_close(found, outputs)
    assert_close(gradients, expected)
    for actual, each, axis in zip(total, expected, axes, strict=True):
        assert_close(actual, each.sum(0) if axis is None else np.moveaxis(each, 0, axis))


def test_mapped_twice():
    inputs, kernels = normal(2, 3, 2, 5, 5, 2), normal(2, 3, 3, 2, 4)
    gradient = jax.jit(jax.grad(wave(ops.convolution), (0, 1)))

    @jax.jit
    def mapped(inputs, kernels):  # only the inner map shares the kernel
        per_example = jax.vmap(jax.vmap(gradient, (0, None)))(inputs, kernels)
        return per_example, jax.vmap(jax.vmap(gradient))(inputs, jnp.stack([kernels] * 3, 1))

    expected = [gradient(inputs[i, j], kernels[i]) for i in range(2) for j in range(3)]
    expected = jax.tree.map(lambda *gs: np.stack(gs).reshape(2, 3, *gs[0].shape), *expected)
    for found in mapped(inputs, kernels):
        assert_close(found, expected)


def test_members_are_not_a_grouped_convolution(key):
    inputs, kernels = jnp.ones((4, 2, 8, 8, 3)), jnp.ones((4, 3, 3, 3, 5))
    program = jax.jit(jax.vmap(jax.grad(wave(ops.convolution), (0, 1)))).lower(inputs, kernels).compile().as_text()
    assert "convolution" in program
    assert "feature_group_count" not in program
    assert "batch_group_count" not in program


@pytest.mark.parametrize(
    "case",
    [pytest.param("same", marks=pytest.mark.slow), "everything", pytest.param("causal series", marks=pytest.mark.slow)],
    indirect=True,
)
def test_in_a_loop_as_outside(case):
    inputs, kernel, _, convolve = case
    step = jax.value_and_grad(wave(convolve), (0, 1))

    @jax.jit
    def descend(carry, _):
        value, gradients = step(*carry)
        return jax.tree.map(lambda v, g: v - 0.01 * g, carry, gradients), value

    carry, values = jax.jit(lambda *carry: lax.scan(descend, carry, length=3))(inputs, kernel)
    expected, listed = (inputs, kernel), []
    for _ in range(3):
        expected, value = descend(expected, None)
        listed.append(value)
    assert_close(carry, expected)
    assert_close(values, np.stack(listed))


def test_what_the_first_layer_does_not_need_is_not_computed():
    inputs, kernel = jnp.ones((2, 2, 16, 16, 3)), normal(3, 3, 3, 5)

    def convolutions(arguments):
        def body(kernel, x):
            gradients = jax.grad(wave(ops.convolution), arguments)(x, kernel)
            return kernel - gradients[0], gradients[1:]

        program = jax.jit(lambda k, xs: lax.scan(body, k, xs)).lower(kernel, inputs).compile().as_text()
        return program.count(" convolution(")

    assert convolutions((1,)) == 2
    assert convolutions((1, 0)) == 3


@pytest.mark.parametrize("batch", [0, *(pytest.param(batch, marks=pytest.mark.slow) for batch in (1, 7)), 37])
def test_any_batch(batch):
    # The kernel's gradient takes eight images of 16 × 16 at a time.
    inputs, kernel = normal(batch, 16, 16, 2), normal(3, 3, 2, 4)
    gradient = jax.jit(jax.grad(wave(ops.convolution), (0, 1)))(inputs, kernel)
    if batch:
        assert_close(gradient, in_double(jax.grad(wave(by_flax), (0, 1)), inputs, kernel))
    else:
        assert gradient[0].shape == inputs.shape
        assert not gradient[1].any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16])
def test_half_precision_is_kept_and_adds_up_in_more(key, dtype):
    keys = jax.random.split(key)
    inputs, kernel = jax.random.uniform(keys[0], (256, 8, 8, 2)), jax.random.uniform(keys[1], (3, 3, 2, 4))

    @jax.jit
    def numbers(inputs, kernel):
        outputs, pull = jax.vjp(ops.convolution, inputs, kernel)
        return outputs, *pull(jnp.ones_like(outputs))

    outputs, *gradients = numbers(inputs.astype(dtype), kernel.astype(dtype))
    assert {outputs.dtype, *(g.dtype for g in gradients)} == {jnp.dtype(dtype)}
    for actual, wanted in zip((outputs, *gradients), numbers(inputs, kernel), strict=True):
        np.testing.assert_allclose(np.asarray(actual, np.float32), wanted, rtol=4 * float(jnp.finfo(dtype).eps))


def test_numpy_arrays_are_taken():
    inputs, kernel = np.ones((1, 3, 3, 1), np.float32), np.ones((3, 3, 1, 1), np.float32)
    assert ops.convolution(inputs, kernel, padding="VALID").tolist() == [[[[9.0]]]]


def test_the_plain_one_has_forward_mode():
    inputs, kernel = normal(2, 4, 4, 2), normal(3, 3, 2, 1)
    value, slope = jax.jvp(lambda k: ops.convolution(inputs, k, plain=True), (kernel,), (kernel,))
    assert_close(value, slope)
    hessian = jax.jit(jax.hessian(wave(lambda k: ops.convolution(inputs, k, plain=True))))(kernel)
    assert_close(hessian, jax.jit(jax.jacrev(jax.jacrev(wave(lambda k: ops.convolution(inputs, k)))))(kernel), 1e-4)


@pytest.mark.parametrize("shared", ["kernel", "inputs"])
def test_over_devices_the_gradient_of_what_they_share_is_the_sum(shared):
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(AxisType.Auto,))
    inputs, kernel = normal(8, 5, 5, 2), normal(3, 3, 2, 8)
    ours, split = (
        PartitionSpec(),
        {"kernel": PartitionSpec("devices"), "inputs": PartitionSpec(None, None, None, "devices")},
    )
    specs = (split["kernel"], ours) if shared == "kernel" else (ours, split["inputs"])
    gradient = jax.jit(jax.grad(wave(ops.convolution), (0, 1)))
    sharded = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=specs))
    assert_close(sharded(inputs, kernel), gradient(inputs, kernel))


def test_the_backend_is_chosen_at_lowering():
    arguments = jnp.ones((64, 16, 16, 3)), jnp.ones((3, 3, 3, 5))
    gradient = jax.jit(jax.grad(wave(ops.convolution), 1))
    for platform, looped in (("cpu", True), ("cuda", False), ("tpu", False)):
        program = gradient.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.while" in program) == looped, platform


IMAGE, SERIES, KERNEL = jnp.ones((2, 8, 8, 3)), jnp.ones((2, 8, 3)), jnp.ones((3, 3, 3, 4))


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((jnp.ones((8, 3)), KERNEL), {}, ValueError, r"inputs: .*\(batch, width, channels\) or .*float32\[8,3\]"),
        ((SERIES, KERNEL), {}, ValueError, r"kernel: expected \(width, channels, features\).*float32\[3,3,3,4\]"),
        ((IMAGE, KERNEL[0]), {}, ValueError, r"kernel: expected \(height, width, .*float32\[3,3,4\]"),
        ((IMAGE, KERNEL[:, :, :2]), {}, ValueError, "kernel: expected 3 channels, like the inputs, got 2"),
        ((IMAGE, KERNEL[:0]), {}, ValueError, "kernel: expected no empty axis"),
        ((IMAGE.astype(int), KERNEL.astype(int)), {}, TypeError, "inputs and kernel: expected arrays of floats"),
        ((IMAGE, KERNEL.astype(jnp.bfloat16)), {}, TypeError, "of the same dtype, got float32.* and bfloat16"),
        ((IMAGE, KERNEL), {"strides": 0}, ValueError, "strides: expected a positive integer, got 0"),
        ((IMAGE, KERNEL), {"strides": (1, -1)}, ValueError, "strides: expected a positive integer, got -1"),
        ((IMAGE, KERNEL), {"strides": (1, 1, 1)}, ValueError, r"strides: .*or 2 of them, got \(1, 1, 1\)"),
        ((IMAGE, KERNEL), {"strides": 1.5}, TypeError, "strides: expected a positive integer, got 1.5"),
        ((IMAGE, KERNEL), {"strides": "two"}, TypeError, "strides: expected a positive integer, got 'two'"),
        ((IMAGE, KERNEL), {"dilation": 0}, ValueError, "dilation: expected a positive integer, got 0"),
        ((IMAGE, KERNEL), {"padding": "SAMME"}, ValueError, "padding: .*'SAME', 'VALID'.*did you mean 'SAME'"),
        ((IMAGE, KERNEL), {"padding": 1}, ValueError, "padding: .* or 2 pairs of non-negative integers.*got 1"),
        ((IMAGE, KERNEL), {"padding": [(1, 1)]}, ValueError, r"padding: .*2 pairs.*got \[\(1, 1\)\]"),
        ((IMAGE, KERNEL), {"padding": [(1, 1), (1, -1)]}, ValueError, "padding: .*non-negative integers"),
        ((IMAGE, KERNEL), {"padding": [(1, 1), (1,)]}, ValueError, "padding: .*2 pairs"),
        ((IMAGE, KERNEL), {"padding": [(1, 1), (0.5, 1)]}, TypeError, "padding: .*integers"),
        (
            (IMAGE[:, :2], KERNEL),
            {"padding": "VALID"},
            ValueError,
            r"kernel: expected at most the size.*\(2, 8\), got \(3, 3\)",
        ),
        ((IMAGE, KERNEL), {"padding": "VALID", "dilation": 4}, ValueError, r"\(8, 8\), got \(9, 9\)"),
    ],
)
def test_what_is_wrong_is_said(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        ops.convolution(*arguments, **keywords)
