"""Models that start from given weights."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import nnfx
from nnfx import models

X = np.random.default_rng(0).normal(size=(30, 2))
DATA = nnfx.data.prepare(X, X[:, 0] > 0)
BCE = nnfx.losses.binary_cross_entropy
OLD = models.mlp((4,), activation="tanh", batch_norm=True)
NEW = models.mlp((4,), outputs=3, activation="tanh", batch_norm=True)
GIVEN = OLD.init(jax.random.key(5), X)


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_leaves_of_the_same_name_shape_and_dtype_are_taken_and_the_others_stay():
    initial = NEW.init(jax.random.key(0), X)
    variables, report = models.merge(initial, GIVEN)
    same(variables["params"]["hidden_0"], GIVEN["params"]["hidden_0"])
    same(variables["batch_stats"], GIVEN["batch_stats"])
    same(variables["params"]["output"], initial["params"]["output"])
    assert set(report.other) == {"params.output.kernel", "params.output.bias"}
    assert len(report.taken) == 6
    assert (report.missing, report.unknown) == ((), ())


def test_the_report_names_what_was_taken_what_was_not_and_why():
    initial = {
        "params": {"a": jnp.zeros(2), "b": jnp.zeros((2, 3)), "c": jnp.zeros(1, jnp.bfloat16), "d": jnp.zeros(1)}
    }
    given = {"params": {"a": np.ones(2, np.float32), "b": np.ones((3, 2), np.float32), "c": np.ones(1, np.float32)}}
    variables, report = models.merge(initial, given | {"more": {"e": np.ones(1)}})
    assert str(report).split("\n") == [
        "1 of 4 leaves taken",
        "  params.a: taken",
        "  params.b: initial, expected float32[2,3], got float32[3,2]",
        "  params.c: initial, expected bfloat16[1], got float32[1]",
        "  params.d: initial, not given",
        "  more.e: unknown to the model",
    ]
    assert variables["params"]["a"].tolist() == [1, 1]
    assert [float(leaf.sum()) for leaf in jax.tree.leaves(variables)] == [2, 0, 0, 0]


def test_shapes_alone_are_enough_for_the_report():
    shapes = jax.eval_shape(NEW.init, jax.random.key(0), X)
    report = models.merge(shapes, GIVEN).report
    assert report == models.merge(NEW.init(jax.random.key(0), X), GIVEN).report


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int8, ml_dtypes.float8_e4m3fn])
def test_every_bit_of_what_is_taken_is_that_which_was_given(dtype):
    bits = np.arange(256, dtype=np.uint8)
    given = bits.view(dtype) if np.dtype(dtype).itemsize == 1 else np.arange(0, 2**16, 251, np.uint16).view(dtype)
    variables, _ = models.merge({"params": {"a": jnp.zeros(given.shape, dtype)}}, {"params": {"a": given}})
    assert np.asarray(variables["params"]["a"]).tobytes() == given.tobytes()


def test_a_run_starts_from_what_is_given_under_every_key():
    model = models.pretrained(OLD, GIVEN)
    train = nnfx.fit(model, BCE, nnfx.optimizers.freeze(optax.sgd, "*"), epochs=1)
    for seed in (0, 1):
        same(train(jax.random.key(seed), DATA, learning_rate=0.1).state.params, GIVEN["params"])
    assert jax.tree.structure(model.init(jax.random.key(0), X)) == jax.tree.structure(GIVEN)


def test_given_weights_with_a_frozen_part_train_the_rest():
    model = models.pretrained(NEW, GIVEN)
    optimizer = nnfx.optimizers.freeze(functools.partial(optax.adamw, weight_decay=0.1), "hidden_*")
    data = nnfx.data.prepare(X, (X[:, 0] > 0).astype(int) + 1)
    run = nnfx.fit(model, nnfx.losses.categorical_cross_entropy, optimizer, epochs=2)(
        jax.random.key(0), data, learning_rate=0.1
    )
    same(run.state.params["hidden_0"], GIVEN["params"]["hidden_0"])
    start = NEW.init(nnfx.split_key(jax.random.key(0)).init, X)["params"]["output"]
    assert not np.allclose(run.state.params["output"]["kernel"], start["kernel"], atol=0.01)


def test_donating_a_state_leaves_what_was_given():
    state = nnfx.init_state(jax.random.key(0), models.pretrained(OLD, GIVEN), optax.sgd(0.1), X)
    jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(state.params)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(GIVEN))


def test_its_programs_are_freed_with_it_rather_than_with_the_model_beneath():
    model = models.pretrained(OLD, GIVEN)
    train = nnfx.fit(model, BCE, optax.sgd, epochs=1)
    train(jax.random.key(0), DATA, learning_rate=0.1)
    nnfx.evaluate(model, {"loss": BCE}, model.init(jax.random.key(0), X), DATA.train)
    of_model = weakref.ref(model.init)
    del model, train
    gc.collect()
    assert of_model() is None


def test_a_recurrent_model_keeps_its_stream():
    model = models.gru(hidden=(3,))
    variables = model.init(jax.random.key(0), jnp.ones((1, 4, 2)))
    assert models.pretrained(model, variables).stream is model.stream


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: models.pretrained(max, GIVEN), TypeError, "model: expected a Model"),
        (lambda: models.pretrained(OLD, 7), ValueError, r"variables: expected \{'params': ...\}.*got 7"),
        (lambda: models.pretrained(OLD, GIVEN["params"]), ValueError, r"variables: .*got \['hidden_0', 'output'\]"),
        (lambda: models.pretrained(OLD, {"params": {"a": "text"}}), TypeError, "given: expected arrays.*for params.a"),
        (
            lambda: models.pretrained(OLD, {"params": {"a": np.ones(1)}}).init(jax.random.key(0), X),
            ValueError,
            "variables: expected at least one leaf of the model, got none:\n0 of 8 leaves taken\n.*params.a: unknown",
        ),
    ],
)
def test_what_no_model_can_start_from(call, kind, message):
    with pytest.raises(kind, match="(?s)" + message):
        call()
