import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import nnfx
from nnfx import augment
from nnfx.distributed.collectives import collectives
from nnfx.models import conv, max_pool
from nnfx.training.data_parallel import data_parallel
from nnfx.types import Batch

STRATEGIES = ("mesh", "pmap")
SPLITTING = {
    "perceptron": (nnfx.models.perceptron(), (3,)),
    "mlp with dropout": (nnfx.models.mlp((16,), dropout=0.3), (3,)),
    "cnn with batch norm": (nnfx.models.cnn([conv(4), max_pool()], outputs=1, hidden=(8,), batch_norm=True), (6, 6, 1)),
    "lstm": (nnfx.models.lstm(hidden=(8,)), (5, 2)),
}
OPTIMIZER = optax.sgd(0.05)  # Adam would hide a gradient that is n times too large


def batches(shape, rows, count=1):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(count, rows, *shape)).astype(np.float32)
    weights = rng.uniform(0.5, 2, size=(count, rows)).astype(np.float32)
    return Batch(jnp.asarray(inputs), jnp.asarray(inputs.reshape(count, rows, -1).sum(-1)), jnp.asarray(weights))


def close(first, second, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), first, second)


def without_key(state):
    return state._replace(key=None)


def trained(step, state, many):
    return jax.jit(lambda state, many: jax.lax.scan(step, state, many))(state, many)


@functools.cache
def trained_by_one(name):
    model, shape = SPLITTING[name]
    step, state = step_and_state(model, shape)
    return trained(step, state, batches(shape, rows=13, count=50))


# a cheap one with random draws represents them; batch statistics are also tested with other layers
@pytest.fixture(
    params=[pytest.param(name, marks=[] if name == "mlp with dropout" else [pytest.mark.slow]) for name in SPLITTING]
)
def name(request):
    return request.param


def step_and_state(model, shape, **options):
    step = nnfx.make_step(model, nnfx.losses.mean_square_error, OPTIMIZER, **options)
    return step, nnfx.init_state(jax.random.key(0), model, OPTIMIZER, jnp.zeros((1, *shape)))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_of_weight_zero_may_hold_any_values_even_if_a_device_has_no_others(strategy):
    model, shape = nnfx.models.mlp((4,), batch_norm=True), (3,)
    step, state = step_and_state(model, shape)
    whole = jax.tree.map(lambda leaf: leaf[0], batches(shape, rows=7))
    is_kept = jnp.arange(7) % 2 == 0  # the second of two devices has no row with a weight
    given = Batch(
        jnp.where(is_kept[:, None], whole.inputs, jnp.nan),
        jnp.where(is_kept, whole.targets, jnp.nan),
        jnp.where(is_kept, whole.weights, 0),
    )
    expected, _ = jax.jit(step)(state, Batch(*(leaf[::2] for leaf in whole)))
    found, _ = jax.jit(data_parallel(step, strategy=strategy, devices=jax.devices()[:2]))(state, given)
    close(without_key(expected), without_key(found))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_eight_devices_train_as_one_does_with_batches_that_do_not_divide(name, strategy):
    model, shape = SPLITTING[name]
    step, state = step_and_state(model, shape)
    many = batches(shape, rows=13, count=50)
    split = data_parallel(step, strategy=strategy)
    expected, measured = trained_by_one(name)
    got, split_measured = trained(split, state, many)
    close(without_key(got), without_key(expected))
    close(split_measured, measured)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_gradient_crosses_in_one_exchange_a_step(name, strategy):
    model, shape = SPLITTING[name]
    step, state = step_and_state(model, shape)
    batch = jax.tree.map(lambda array: array[0], batches(shape, rows=16))
    split = data_parallel(step, strategy=strategy)
    crossing = collectives(jax.jit(split).lower(state, batch).compile())
    assert {each.kind for each in crossing} <= {"all-reduce"}
    others = sorted(each.bytes for each in crossing)
    largest = others.pop()
    kernels = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params) if leaf.ndim > 1)
    assert largest >= kernels
    if "batch norm" in name:
        assert others[-1] <= 64, "statistics of the batch, a few numbers a channel, and their own gradients"
    else:
        assert others == [4], "the weight of the batch, by which its share of the gradient is divided"


def test_nothing_crosses_where_there_is_one_device():
    step, _ = step_and_state(*SPLITTING["perceptron"])
    assert data_parallel(step, devices=jax.devices()[:1]) is step


AUGMENTS = {
    "noise": functools.partial(augment.gaussian_noise, noise=0.3),
    "flip": augment.flip,
    "shift": functools.partial(augment.shift, pixels=2),
    "rotation": functools.partial(augment.rotation, degrees=30),
    "cutout": functools.partial(augment.cutout, size=3),
    "mixup": functools.partial(augment.mixup, alpha=1.0),
}


@functools.cache
def augmented(kind):
    """Return a step, its arguments, and its weights on one device."""
    model, shape = nnfx.models.perceptron(), (4, 4, 1)
    flat = model._replace(
        init=lambda key, x: model.init(key, x.reshape(len(x), -1)),
        apply=lambda variables, x, **options: model.apply(variables, x.reshape(len(x), -1), **options),
    )
    step, state = step_and_state(flat, shape, augment=AUGMENTS[kind])
    batch = jax.tree.map(lambda array: array[0], batches(shape, rows=11))
    return step, state, batch, jax.jit(step)(state, batch)[0].params


# sharing out a batch does not depend on the kind: one that acts on each row and mixes rows represents them
DEFAULT = "mixup"


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        pytest.param(kind, strategy, marks=[] if (kind, strategy) == (DEFAULT, "pmap") else [pytest.mark.slow])
        for kind in AUGMENTS
        for strategy in STRATEGIES
    ],
)
def test_augmentation_does_not_depend_on_the_number_of_devices(kind, strategy):
    step, state, batch, expected = augmented(kind)
    got, _ = jax.jit(data_parallel(step, strategy=strategy, devices=jax.devices()[:4]))(state, batch)
    close(got.params, expected)


@pytest.mark.parametrize("strategy", [pytest.param("mesh", marks=pytest.mark.slow), "pmap"])
def test_micro_batches_are_split_as_well(strategy):
    model, shape = SPLITTING["mlp with dropout"]
    step, state = step_and_state(model, shape, micro_batches=2)
    batch = jax.tree.map(lambda array: array[0], batches(shape, rows=16))
    expected, _ = jax.jit(step)(state, batch)
    split = jax.jit(data_parallel(step, strategy=strategy, devices=jax.devices()[:4])).lower(state, batch).compile()
    close(without_key(split(state, batch)[0]), without_key(expected))
    if strategy == "pmap":
        assert [each.kind for each in collectives(split)] == ["all-reduce"] * 2  # the batch's weight, and the gradient


def test_a_mesh_keeps_the_meaning_of_layers_that_know_nothing_of_it():
    class Foreign(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
            return nn.Dense(1)(nn.Dropout(0.5)(x, deterministic=not train))

    model = nnfx.models.from_linen(Foreign())
    step, state = step_and_state(model, (3,))
    batch = jax.tree.map(lambda array: array[0], batches((3,), rows=13))
    expected, _ = jax.jit(step)(state, batch)
    close(without_key(jax.jit(data_parallel(step))(state, batch)[0]), without_key(expected))


@functools.cache
def whole_run(strategy):
    """Return a run on all devices, or on one if there is no strategy."""
    data = nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)
    train = nnfx.fit(
        nnfx.models.mlp((8,), dropout=0.2), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=3, batch_size=50,
        stop=nnfx.stopping.patience, parallel=strategy and functools.partial(data_parallel, strategy=strategy),
    )  # fmt: skip
    return train(jax.random.key(0), data, learning_rate=0.1, patience=2, min_improvement=0.0)


@pytest.mark.parametrize("strategy", ["mesh", pytest.param("pmap", marks=pytest.mark.slow)])
def test_a_whole_run_is_split(strategy):
    alone, together = whole_run(None), whole_run(strategy)
    close(together.history, alone.history)
    close(together.best.params, alone.best.params)


@pytest.mark.slow
def test_members_and_their_batches_are_spread_at_once():
    data = nnfx.data.titanic("fare", "age")
    train = nnfx.fit(nnfx.models.mlp((8,), dropout=0.2), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=2)
    options = {"key": jax.random.key(0), "seeds": 2, "learning_rate": [0.01, 0.1]}
    alone = nnfx.sweeps.sweep(train, data, **options, devices=jax.devices()[:1])
    spread = nnfx.sweeps.sweep(train, data, **options, devices_per_member=4)
    close(spread.variables, alone.variables)


def test_wrong_input():
    step, _ = step_and_state(*SPLITTING["perceptron"])
    with pytest.raises(TypeError, match="step: expected a function of a state and a batch, got 3"):
        data_parallel(3)
    with pytest.raises(ValueError, match="strategy: expected .*'mesh'.*got 'gspmd'"):
        data_parallel(step, strategy="gspmd")
    with pytest.raises(ValueError, match="devices: expected one or more of jax.devices"):
        data_parallel(step, devices=[])
    with pytest.raises(ValueError, match="devices: expected each device once"):
        data_parallel(step, devices=jax.devices()[:1] * 2)
    data = nnfx.data.titanic("fare", "age")
    train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=1)
    with pytest.raises(ValueError, match="devices_per_member: expected a divisor of the 8 devices, got 3"):
        nnfx.sweeps.sweep(train, data, key=jax.random.key(0), learning_rate=[0.1], devices_per_member=3)
    with pytest.raises(TypeError, match="parallel: expected a function such as nnfx.data_parallel"):
        nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=1, parallel=8)
