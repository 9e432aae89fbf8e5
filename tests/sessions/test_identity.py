from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.sessions.identity import Identity, moments, words

MEANS = {"jax": "0.10.1", "device": "cpu"}
FIT = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=1)
OTHER = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.adam, epochs=1)


def lowered(function):
    return [jax.jit(function).lower(jnp.zeros(3))]


def prepared(inputs):
    return nnfx.data.prepare(np.asarray(inputs), np.array([0, 1, 1]), standardize=False)


def identity(function=jnp.sin, inputs=((1.0,), (2.0,), (3.0,)), fit=FIT, **others):
    given = {"kind": "run", "key": jax.random.key(0), "hyper": {"learning_rate": np.float32(0.1)}, **others}
    return Identity.of(SimpleNamespace(recipe=fit, lowered=lowered(function), data=prepared(inputs), **given))


def test_the_same_program_and_data_are_the_same():
    first, second = identity(), identity()
    assert first == second
    assert not first.differences(second)
    assert not first.other_means(second)
    assert first.means["jax"] == jax.__version__


def test_a_bit_of_the_data_and_an_operation_of_the_program_count():
    first = identity()
    (data,) = first.differences(identity(jnp.cos, [[1.0], [2.0], [np.nextafter(np.float32(3), 4)]]))
    assert data.startswith("data.train.inputs: expected float32[3,1] ")
    other = identity(jnp.cos)
    (program,) = first.differences(other)  # told if there is nothing more telling
    assert program.startswith(f"program: expected {first.program}, got {other.program}")
    shorter = first._replace(data={name: words for name, words in first.data.items() if name != "train.weights"})
    assert "data.train.weights: expected nothing, got float32[3] " in shorter.differences(first)[0]


def test_the_kind_the_key_and_the_hyper_parameters_count():
    first = identity()
    assert first.differences(identity(kind="sweep")) == ["kind: expected a run, got a sweep"]
    other = identity(key=jax.random.key(1), hyper={"momentum": np.float32(0.5)})
    assert first.differences(other) == [
        "key: expected the key of the checkpoint, got a different one",
        "learning_rate: expected 0.1, got nothing",
        "momentum: expected nothing, got 0.5",
    ]
    assert Identity.noted({**first._asdict(), "seconds": 3.0}) == first


def test_where_the_program_is_the_same_the_words_do_not_count():
    first, second = identity(), identity(fit=OTHER)
    assert first.differences(second) == []
    assert first.differences(second._replace(program="another")) == ["optimizer: expected optax.sgd, got optax.adam"]


def test_programs_are_not_compared_between_other_means_but_parts_are():
    first = identity()._replace(means=MEANS)
    second = first._replace(program="another", means={**MEANS, "device": "gpu"})
    assert not first.differences(second)
    assert first.other_means(second) == ["device cpu, now gpu"]
    other = second._replace(parts=identity(fit=OTHER).parts)
    assert first.differences(other) == ["optimizer: expected optax.sgd, got optax.adam"]


@pytest.mark.parametrize(
    ("start", "is_same"),
    [
        ({"w": np.arange(9.0)}, True),
        ({"w": np.arange(9.0) * (1 + 1e-6)}, True),
        ({"w": np.arange(9.0)[::-1]}, False),
        ({"w": np.arange(9.0) + 0.01}, False),
        ({"w": np.arange(9.0) * [1, -1, 1, 1, 1, 1, 1, 1, 1]}, False),
        ({"w": np.full(9, np.nan)}, False),
    ],
)
def test_between_other_means_the_start_counts(start, is_same):
    first = identity()._replace(start=moments({"w": np.arange(9.0)}))
    second = first._replace(start=moments(start), means=MEANS)
    assert (first.differences(second) == []) == is_same


def test_moments_are_those_of_arithmetic():
    values = np.random.default_rng(0).normal(size=(3, 2**20)).astype(np.float32)
    found = moments({"w": values, "key": jax.random.key(0), "none": np.zeros(0)})
    assert list(found) == ["['w']"]
    flat = values.ravel().astype(np.float64)
    weights = np.cos(np.arange(flat.size) % 4099 + 1)
    wanted = [flat.mean(), np.sqrt((flat**2).mean()), (weights * flat).sum() / np.sqrt(flat.size)]
    np.testing.assert_allclose(found["['w']"], wanted, rtol=1e-6)
    bfloats = moments({"w": jnp.ones(3000, jnp.bfloat16)})["['w']"]
    assert bfloats[:2] == [1.0, 1.0]


def test_numbers_of_any_dtype_are_told_apart():
    first, second = (
        nnfx.data.Data(nnfx.Batch(jnp.full((2, 1), value, jnp.bfloat16), jnp.ones(2), jnp.ones(2)), None,
                       prepared([[1.0], [2.0], [3.0]]).preprocess)
        for value in (1, 2)
    )  # fmt: skip
    assert len([name for name, text in words(first).items() if words(second)[name] != text]) == 1
