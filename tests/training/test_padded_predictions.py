import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.models import Sequences
from nnfx.training.padded_predictions import LARGEST, apply_padded, padded_size

KEY = jax.random.key(0)
DATA = nnfx.data.prepare(np.random.default_rng(0).normal(size=(40, 3)), np.arange(40.0))


def counted(model):
    """Return a model that notes the number of rows each time its prediction is traced."""
    traced = []

    def apply(variables, inputs, **options):
        if not options.get("train"):
            traced.append(jax.tree.leaves(inputs)[0].shape[0])
        return model.apply(variables, inputs, **options)

    return nnfx.Model(model.init, apply), traced


def test_sizes_are_few_and_not_much_larger():
    sizes = [padded_size(rows) for rows in range(1, LARGEST + 1)]
    assert all(size >= rows for rows, size in enumerate(sizes, start=1))
    assert all(size <= rows * 1.25 for rows, size in enumerate(sizes, start=1) if rows > 32)
    assert len(set(sizes)) == 6 + 4 * 7, "powers of two up to 32, then four to an octave"
    assert [padded_size(2**power) for power in range(13)] == [2**power for power in range(13)]
    assert padded_size(LARGEST + 1) == LARGEST + 1


@pytest.fixture(scope="module")
def run():
    model, traced = counted(nnfx.models.mlp((4,)))
    trained = nnfx.fit(model, nnfx.losses.mean_square_error, optax.sgd, epochs=1)(KEY, DATA, learning_rate=0.01)
    return trained, traced


def test_predictions_for_any_number_of_rows_are_made_by_few_programs(run):
    trained, traced = run
    traced.clear()
    raw = np.random.default_rng(1).normal(size=(32, 3)).astype(np.float32)
    hidden, output = (jax.tree.map(np.asarray, trained.best.params[name]) for name in ("hidden_0", "output"))
    prepared = (raw - np.asarray(DATA.preprocess.mean)) / np.asarray(DATA.preprocess.scale)
    expected = np.maximum(prepared @ hidden["kernel"] + hidden["bias"], 0) @ output["kernel"] + output["bias"]
    for rows in range(1, 33):
        found = trained.predict(raw[:rows])
        assert isinstance(found, jax.Array)
        np.testing.assert_allclose(found, expected[:rows], rtol=1e-5, atol=1e-6)
    assert sorted(traced) == [1, 2, 4, 8, 16, 32]


def test_what_is_traced_is_not_padded(run):
    trained, traced = run
    x = jnp.asarray(DATA.train.inputs)[:5]
    eager = trained.apply(x)
    traced.clear()
    np.testing.assert_allclose(jax.jit(trained.apply)(x), eager, rtol=1e-6)
    params = trained.best.variables
    slope = jax.grad(lambda scale: trained.apply(x, jax.tree.map(lambda leaf: scale * leaf, params)).sum())
    assert np.isfinite(slope(1.0))
    assert set(traced) == {5}


def test_trees_of_inputs_are_padded_leaf_by_leaf():
    model, traced = counted(nnfx.models.gru(outputs=2, hidden=(3,)))
    rng = np.random.default_rng(2)
    values, lengths = rng.normal(size=(7, 4, 1)).astype(np.float32), np.array([4, 1, 3, 2, 4, 0, 2])
    variables = model.init(KEY, Sequences(values, lengths))
    compiled = jax.jit(model.apply)

    def apply(inputs):
        return compiled(variables, inputs)

    for rows in (3, 5, 6, 7):
        given = Sequences(values[:rows], lengths[:rows])
        alone = [apply(jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], given))[0] for i in range(rows)]
        np.testing.assert_allclose(apply_padded(apply, apply, given), np.stack(alone), rtol=1e-5, atol=1e-6)
    assert set(traced) == {1, 4, 8}


@pytest.mark.parametrize("mix", [lambda x: x - x.mean(0, keepdims=True), lambda x: x / x.sum(), lambda x: x[::-1]])
def test_rows_that_depend_on_each_other_are_never_padded(mix):
    compiled = jax.jit(mix)

    def apply(x):
        return compiled(x)

    for rows in (3, 5, 7):
        x = np.random.default_rng(rows).uniform(1, 2, size=(rows, 2)).astype(np.float32)
        np.testing.assert_allclose(apply_padded(apply, apply, x), mix(jnp.asarray(x)), rtol=1e-6)


def test_rows_may_lie_along_another_axis_and_none_or_many_stay_as_they_are():
    sizes = []

    def apply(x):
        sizes.append(x.shape)
        return jnp.asarray(2 * x)

    x = np.arange(2 * 5 * 3.0, dtype=np.float32).reshape(2, 5, 3)
    np.testing.assert_array_equal(apply_padded(apply, apply, x, axis=1), 2 * x)
    assert set(sizes) == {(2, 8, 3)}
    for rows in (0, LARGEST + 1):
        assert apply_padded(apply, apply, np.zeros((rows, 1), np.float32)).shape == (rows, 1)
        assert sizes[-1] == (rows, 1)


def test_outputs_are_where_the_variables_are_and_what_is_spread_over_devices_stays_as_it_is():
    double, device = jax.jit(lambda x, by: x * by), jax.devices()[3]
    by, x = jax.device_put(np.float32(2), device), np.ones((3, 1), np.float32)
    found = apply_padded(double, lambda rows: double(rows, by), x, by)
    assert found.devices() == {device}
    assert found.tolist() == [[2.0]] * 3
    mesh = jax.sharding.Mesh(jax.devices()[:3], "rows")
    spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows")))
    assert len(apply_padded(double, lambda rows: double(rows, 2.0), spread).devices()) == 3


def test_what_is_added_brings_in_nothing_that_is_not_finite():
    with jax.debug_nans(True):
        compiled = jax.jit(lambda x: jnp.log(x))
        found = apply_padded(compiled, compiled, np.array([[1.0], [2.0], [3.0]], np.float32))
    np.testing.assert_allclose(found, np.log([[1.0], [2.0], [3.0]]), rtol=1e-6)


def test_evaluations_of_many_sizes_hold_few_programs(run, monkeypatch):
    trained, traced = run
    monkeypatch.setattr(nnfx.memo, "LIMIT", 2)
    batches = [jax.tree.map(lambda leaf, rows=rows: leaf[:rows], DATA.train) for rows in (3, 5, 9)]
    traced.clear()
    for batch in batches:
        outputs = np.asarray(trained.apply(batch.inputs))[:, 0]
        expected = np.mean((outputs - np.asarray(batch.targets)) ** 2)
        np.testing.assert_allclose(trained.evaluate(batch)["loss"], expected, rtol=1e-5)
    gc.collect()
    first = len(traced)
    trained.evaluate(batches[-1])
    assert len(traced) == first, "the latest is still there"
    trained.evaluate(batches[0])
    assert len(traced) > first, "the first was let go"
