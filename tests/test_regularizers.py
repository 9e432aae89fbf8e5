import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nnfx import regularizers

RNG = np.random.default_rng(0)
KERNEL, FILTERS = RNG.normal(size=(4, 3)), RNG.normal(size=(3, 3, 2, 5))
WEIGHTS = np.concatenate([KERNEL.ravel(), FILTERS.ravel()])


def tree(dtype=jnp.float32, kernel=KERNEL, filters=FILTERS, **vectors):
    vectors = vectors or {"bias": np.full(3, 7.0), "scale": np.float64(5.0)}
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), {"dense": {"kernel": kernel, **vectors}, "conv": filters})


def norms(kernel):
    kernel = np.asarray(kernel, np.float64)
    return np.sqrt((kernel**2).reshape(-1, kernel.shape[-1]).sum(0))


def test_penalties_against_numpy_leave_biases_out():
    absolute, square = np.abs(WEIGHTS).sum(), (WEIGHTS**2).sum()
    np.testing.assert_allclose(regularizers.l1(tree(), 0.3), 0.3 * absolute, rtol=1e-6)
    np.testing.assert_allclose(regularizers.l2(tree(), 0.3), 0.15 * square, rtol=1e-6)
    np.testing.assert_allclose(regularizers.elastic_net(tree(), 0.3, 0.8), 0.3 * absolute + 0.4 * square, rtol=1e-6)


PENALTIES = {
    "l1": lambda params, number: regularizers.l1(params, number),
    "l2": lambda params, number: regularizers.l2(params, number),
    "elastic_net": lambda params, number: regularizers.elastic_net(params, number, 2 * number),
}


@pytest.fixture(params=PENALTIES)
def penalty(request):
    return PENALTIES[request.param]


def test_gradients_equal_finite_differences(penalty):
    with jax.enable_x64(True):
        params = tree(jnp.float64)
        flat, unflatten = jax.flatten_util.ravel_pytree(params)

        @jax.jit
        def value(flat, number):
            return penalty(unflatten(flat), number)

        gradient, slope = jax.grad(value, argnums=(0, 1))(flat, 0.3)
        for i in range(flat.size):
            h = 1e-6 * np.eye(flat.size)[i]
            central = (value(flat + h, 0.3) - value(flat - h, 0.3)) / 2e-6
            np.testing.assert_allclose(gradient[i], central, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(slope, (value(flat, 0.4) - value(flat, 0.2)) / 0.2, rtol=1e-9)


def test_numbers_may_be_mapped_over(penalty):
    numbers = jnp.array([0.0, 0.1, 2.0])
    mapped = jax.jit(jax.vmap(lambda number: penalty(tree(), number)))(numbers)
    np.testing.assert_allclose(mapped, [penalty(tree(), float(n)) for n in numbers], rtol=1e-6)


def test_no_weights_cost_nothing_and_zeros_have_a_gradient(penalty):
    assert penalty({"bias": jnp.ones(3)}, 1.0) == 0
    assert penalty({}, jnp.float32(0.5)) == 0
    assert (jax.grad(penalty)(jnp.zeros((2, 2)), 1.0) == 0).all()


def test_many_weights_of_low_precision_are_summed_in_full(penalty):
    ones = jnp.ones((100, 100))
    with jax.numpy_dtype_promotion("strict"):
        value = penalty(ones.astype(jnp.bfloat16), jnp.float32(0.5))
        np.testing.assert_array_equal(value, penalty(ones, jnp.float32(0.5)))
        assert jax.grad(penalty)(ones.astype(jnp.bfloat16), jnp.float32(0.5)).dtype == jnp.bfloat16


def limited(params, updates, limit):
    transformation = regularizers.max_norm(limit)
    return transformation.update(updates, transformation.init(params), params)[0]


def test_max_norm_against_numpy():
    params, updates = tree(), tree(kernel=2 * KERNEL[::-1], filters=3 * FILTERS[::-1])
    after = optax.apply_updates(params, limited(params, updates, 4.0))
    for name, old, change in (
        ("kernel", KERNEL, 2 * KERNEL[::-1]),
        ("conv", FILTERS, 3 * FILTERS[::-1]),
    ):
        free = old + change
        expected = free * np.minimum(1, 4 / norms(free))
        ours = after["conv"] if name == "conv" else after["dense"]["kernel"]
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
        assert (norms(ours) <= 4 * (1 + 1e-6)).all()
        assert (norms(free) > 4).any()
    np.testing.assert_array_equal(after["dense"]["bias"], np.full(3, 14.0))
    np.testing.assert_array_equal(after["dense"]["scale"], 10.0)


def test_max_norm_leaves_what_is_within_the_limit_as_it_is():
    updates = 0.1 * jnp.asarray(KERNEL, jnp.float32)
    corrected = limited(jnp.asarray(KERNEL, jnp.float32), updates, float(np.sort(norms(1.1 * KERNEL))[1]) * 1.001)
    same = (corrected == updates).all(0)
    assert same.tolist() == (norms(KERNEL) < norms(KERNEL).max()).tolist()


def test_max_norm_brings_back_weights_that_started_outside():
    kernel = jnp.full((3, 2), 10.0)
    after = optax.apply_updates(kernel, limited(kernel, jnp.zeros((3, 2)), 1.0))
    np.testing.assert_allclose(norms(after), [1, 1], rtol=1e-5)


def test_adam_stays_within_the_limit():
    def train(limit, steps=30):
        optimizer = optax.chain(optax.adam(0.1), regularizers.max_norm(limit))
        params = {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}

        def loss(params):
            return ((params["kernel"] - 2) ** 2).sum() + ((params["bias"] - 2) ** 2).sum()

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[1]

    limits = jnp.array([0.5, 1.0, 100.0])
    runs = jax.jit(jax.vmap(train))(limits)
    columns = jnp.sqrt((runs["kernel"] ** 2).sum(2))
    assert (columns <= limits[:, None, None] * (1 + 1e-6)).all()
    np.testing.assert_allclose(columns[:2, -1], [[0.5, 0.5], [1, 1]], rtol=1e-5)
    assert (columns[2, -1] > 2).all()
    assert (runs["bias"][:, -1] > 1.5).all()
    for i, limit in enumerate(limits):
        np.testing.assert_allclose(train(float(limit))["kernel"], runs["kernel"][i], rtol=1e-4, atol=1e-6)


def test_max_norm_is_differentiable_also_at_zero():
    zeros = jnp.zeros((3, 2))
    gradient = jax.grad(lambda u, c: limited(zeros, u, c).sum(), argnums=(0, 1))(zeros, 1.0)
    assert all(jnp.isfinite(g).all() for g in gradient)
    slope = jax.grad(lambda c: limited(jnp.zeros((4, 2)), jnp.ones((4, 2)), c).sum())(1.0)
    assert slope == pytest.approx(8 / 2)  # every weight is c / √4


def test_max_norm_keeps_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        corrected = limited(jnp.full((3, 2), 9, jnp.bfloat16), jnp.ones((3, 2), jnp.float32), jnp.float32(1.0))
    assert corrected.dtype == jnp.float32
    np.testing.assert_allclose(norms(9 + corrected), [1, 1], rtol=1e-5)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"^l1: expected a finite number at least 0, got -1"):
        regularizers.l1(tree(), -1.0)
    with pytest.raises(ValueError, match=r"^l2: "):
        regularizers.elastic_net(tree(), 1.0, jnp.inf)
    with pytest.raises(ValueError, match=r"^limit: "):
        regularizers.max_norm(0.0)
    transformation = regularizers.max_norm()
    with pytest.raises(ValueError, match=r"^params: expected the parameters"):
        transformation.update(jnp.ones((2, 2)), transformation.init(jnp.ones((2, 2))))
