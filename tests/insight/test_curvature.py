import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from nnfx import losses, models, ops
from nnfx.insight import curvature
from nnfx.insight.lanczos import tridiagonal
from nnfx.types import Batch

KEY = jax.random.key(1)
RNG = np.random.default_rng(0)


class Plain(nn.Module):
    """A network of convolutions that can be differentiated in every mode, for `jax.hessian`."""

    plain: bool

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.he_normal(), (3, 3, 1, 2))
        x = nn.tanh(ops.convolution(x, kernel, plain=self.plain, strides=2))
        return nn.Dense(3)(ops.max_pool(x, 2).reshape(len(x), -1))


def batch(*shape, classes=0):
    inputs = jnp.asarray(RNG.normal(size=(12, *shape)), jnp.float32)
    targets = jnp.arange(12, dtype=jnp.int32) % classes if classes else jnp.asarray(RNG.normal(size=12), jnp.float32)
    return Batch(inputs, targets, jnp.asarray(RNG.uniform(size=12), jnp.float32))


CASES = {
    "mlp": (models.mlp((5,), activation="tanh"), losses.mean_square_error, batch(3), False),
    "batch norm": (
        models.mlp((6,), 3, activation="softplus", batch_norm=True),
        losses.categorical_cross_entropy,
        batch(4, classes=3),
        True,
    ),
    "convolutions": (
        models.from_linen(Plain(plain=False)),
        losses.categorical_cross_entropy,
        batch(6, 6, 1, classes=3),
        False,
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """The arguments of every function, the options, and the whole Hessian in float64."""
    model, loss, data, train = CASES[request.param]
    variables = model.init(KEY, data.inputs)
    reference = models.from_linen(Plain(plain=True)) if request.param == "convolutions" else model
    with jax.enable_x64(True):
        wide, examples = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, float if leaf.dtype == jnp.float32 else leaf.dtype), (dict(variables), data)
        )
        flat, restore = ravel_pytree(wide["params"])

        def of(flat):
            applied = {**wide, "params": restore(flat)}
            outputs = reference.apply(applied, examples.inputs, weights=examples.weights, train=train)
            return losses.empirical(loss(outputs[0] if train else outputs, examples.targets), examples.weights)

        hessian = np.asarray(jax.jit(jax.hessian(of))(flat))
    return (model, loss, variables, data), {"train": train}, hessian


def flattened(tree):
    return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(tree)], axis=1)


def by_default(*names):
    """Run only these cases by default: the others differ only in the Hessian-vector product, which has its own test."""
    cases = [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in CASES]
    return pytest.mark.parametrize("case", cases, indirect=True)


@by_default("mlp", "convolutions")
def test_products_with_a_vector_are_those_of_the_whole_hessian(case):
    arguments, options, hessian = case
    flat, restore = ravel_pytree(arguments[2]["params"])
    vector = jax.random.normal(KEY, flat.shape)
    product = curvature.hessian_vector_product(*arguments, restore(vector), **options)
    expected = hessian @ np.asarray(vector, np.float64)
    np.testing.assert_allclose(ravel_pytree(product)[0], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@by_default("mlp")
def test_eigenpairs_are_those_of_the_whole_hessian(case):
    arguments, options, hessian = case
    values, vectors = np.linalg.eigh(hessian)
    for end, order in (("largest", slice(None, -5, -1)), ("smallest", slice(0, 4))):
        found = curvature.eigenpairs(KEY, *arguments, count=4, end=end, **options)
        np.testing.assert_allclose(found.values, values[order], rtol=1e-4, atol=1e-5 * values[-1])
        assert (found.residuals < 1e-4 * values[-1]).all()
        if end == "largest":
            np.testing.assert_allclose(found.values, values[order], rtol=1e-4)
            overlap = np.abs((flattened(found.vectors) * vectors[:, order].T).sum(1))
            np.testing.assert_allclose(overlap, 1, rtol=1e-4)
            np.testing.assert_allclose(curvature.sharpness(KEY, *arguments, **options), values[-1], rtol=1e-4)


@pytest.mark.slow
@by_default("mlp")
def test_a_few_steps_say_how_well_they_found(case):
    arguments, options, hessian = case
    found = curvature.eigenpairs(KEY, *arguments, count=2, steps=6, **options)
    vectors = flattened(found.vectors).astype(np.float64)
    for value, vector, residual in zip(found.values, vectors, found.residuals, strict=True):
        off = np.linalg.norm(hessian @ vector - value * vector)
        np.testing.assert_allclose(residual, off, rtol=0.01, atol=1e-5 * np.abs(hessian).max())
        assert np.abs(np.linalg.eigvalsh(hessian) - value).min() <= off + 1e-6


@by_default("mlp")
def test_the_trace_is_the_sum_of_the_diagonal_within_its_error(case):
    arguments, options, hessian = case
    found = curvature.trace(KEY, *arguments, draws=256, **options)
    assert abs(found.value - np.trace(hessian)) < 4 * found.error
    off_diagonal = hessian - np.diag(np.diag(hessian))
    np.testing.assert_allclose(found.error, np.sqrt(2 * (off_diagonal**2).sum() / 256), rtol=0.3)


@by_default("mlp")
def test_the_spectrum_has_the_moments_of_the_whole_hessian(case):
    arguments, options, hessian = case
    found = curvature.spectrum(KEY, *arguments, draws=200, steps=20, **options)
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-5)
    values = np.linalg.eigvalsh(hessian)
    for power in (1, 2, 3):
        by_draw = np.asarray((found.weights * found.values**power).sum(1), np.float64)
        error = by_draw.std(ddof=1) / np.sqrt(200)
        assert abs(by_draw.mean() - (values**power).mean()) < 4 * error
        assert error < np.abs(values**power).mean()


@by_default("mlp")
def test_the_density_integrates_to_one_and_is_that_of_the_eigenvalues(case):
    arguments, options, hessian = case
    values = np.linalg.eigvalsh(hessian)
    width = 0.05 * (values[-1] - values[0])
    grid = np.linspace(values[0] - 6 * width, values[-1] + 6 * width, 400)
    density = np.asarray(curvature.spectrum(KEY, *arguments, draws=200, steps=20, **options).density(grid, width))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-4)
    bells = np.exp(-(((grid[:, None] - values[None]) / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))
    assert np.trapezoid(np.abs(density - bells.mean(1)), grid) < 0.1


def test_lanczos_goes_on_where_its_vectors_are_closed():
    matrix = jnp.diag(jnp.array([3.0, 3.0, 1.0, 0.0, 0.0, -2.0]))
    found = tridiagonal(lambda v: matrix @ v, jnp.ones(6), 6, KEY)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(np.linalg.eigvalsh(found.matrix), [-2, 0, 0, 1, 3, 3], atol=1e-5)
    np.testing.assert_allclose(found.basis @ matrix @ found.basis.T, found.matrix, atol=1e-5)


@pytest.mark.parametrize(("name", "mode"), [("mlp", "forward"), ("convolutions", "reverse")])
def test_forward_mode_goes_over_the_gradient_where_it_can(name, mode):
    model, loss, data, train = CASES[name]
    product = curvature._product(model, loss, train, model.init(KEY, data.inputs), data)
    assert product.func.__name__ == mode


def test_the_density_s_width_may_be_traced():
    found = curvature.Spectrum(jnp.array([[0.0, 1.0]]), jnp.array([[0.25, 0.75]]))
    peak = jax.jit(lambda width: found.density(jnp.array([0.0, 1.0]), width))(0.01)
    np.testing.assert_allclose(peak, np.array([0.25, 0.75]) / (0.01 * np.sqrt(2 * np.pi)), rtol=1e-5)


MODEL, LOSS, DATA, _ = CASES["mlp"]
ARGUMENTS = (MODEL, LOSS, MODEL.init(KEY, DATA.inputs), DATA)
SPECTRUM = curvature.Spectrum(jnp.ones((1, 2)), jnp.ones((1, 2)) / 2)


def test_all_work_under_jit():
    variables = ARGUMENTS[2]

    def all_of_them(v):  # called as in other tests, so that only the compiled versions are compiled here
        return {
            "sharpness": curvature.sharpness(KEY, MODEL, LOSS, v, DATA),
            "trace": curvature.trace(KEY, MODEL, LOSS, v, DATA, draws=256).value,
            "product": curvature.hessian_vector_product(MODEL, LOSS, v, DATA, v["params"])["output"]["bias"],
        }

    expected = all_of_them(variables)
    for name, found in jax.jit(all_of_them)(variables).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, err_msg=name)


# errors


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: curvature.eigenpairs(0, *ARGUMENTS), TypeError, "key: expected a typed key"),
        (lambda: curvature.eigenpairs(KEY, *ARGUMENTS, count=0), ValueError, "count: .*got 0"),
        (lambda: curvature.eigenpairs(KEY, *ARGUMENTS, count=27), ValueError, "count: expected at most 26,"),
        (lambda: curvature.eigenpairs(KEY, *ARGUMENTS, count=9, steps=8), ValueError, "count: expected at most 8,"),
        (lambda: curvature.eigenpairs(KEY, *ARGUMENTS, end="top"), ValueError, "end: expected one of 'largest'"),
        (lambda: curvature.sharpness(KEY, *ARGUMENTS, steps=1.5), TypeError, "steps: expected a positive integer"),
        (lambda: curvature.spectrum(KEY, *ARGUMENTS, draws=0), ValueError, "draws: .*got 0"),
        (lambda: curvature.spectrum(KEY, "mlp", *ARGUMENTS[1:]), TypeError, "model: expected a Model"),
        (lambda: curvature.trace(KEY, *ARGUMENTS, draws=1), ValueError, "draws: expected at least 2"),
        (lambda: curvature.trace(KEY, *ARGUMENTS[:2], {"params": {}}, DATA), ValueError, "at least one parameter"),
        (
            lambda: curvature.hessian_vector_product(*ARGUMENTS, {"kernel": jnp.ones(3)}),
            ValueError,
            r"vector: expected the tree and shapes of variables\['params'\]",
        ),
        (lambda: SPECTRUM.density(0.5, 0.1), ValueError, r"at: expected eigenvalues \(points,\)"),
        (lambda: SPECTRUM.density(jnp.ones(2), 0), ValueError, "width: .*above 0"),
    ],
)
def test_errors_name_the_argument(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
