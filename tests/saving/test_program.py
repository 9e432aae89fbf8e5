import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx.saving.program import PLATFORMS, Program, symbolic


@jax.jit
def total(inputs):
    return inputs.sum(tuple(range(1, inputs.ndim)))


def shapes(*sizes, dtype=jnp.float32):
    return [jax.ShapeDtypeStruct(sizes, dtype)]


def test_any_number_of_rows_and_steps_on_every_platform():
    program = Program.of(total, symbolic(shapes(1, 4, 2), any_time=True)[0])
    assert program.exported.platforms == PLATFORMS
    assert b"StableHLO_v1.14.0" in program.exported.mlir_module_serialized  # what the oldest release of JAX reads
    again = Program.read("here", program.content)
    for size in ((1, 4, 2), (3, 9, 2)):
        x = np.random.default_rng(0).normal(size=size).astype(np.float32)
        np.testing.assert_allclose(again(x), x.sum((1, 2)), rtol=1e-5, atol=1e-5)


def test_which_axes_are_open():
    def words(given):
        return [str(leaf.shape) for leaf in symbolic(given, any_time=True)]

    assert words(shapes(1, 4, 2)) == ["(batch, time, 2)"]
    assert words(shapes(1, 4)) == ["(batch, 4)"]
    assert words(shapes(1, 4, dtype=jnp.int32)) == ["(batch, time)"]
    assert words(shapes(1, 6, 6, 1)) == ["(batch, 6, 6, 1)"]
    assert [str(leaf.shape) for leaf in symbolic(shapes(1, 4, 2), any_time=False)] == ["(batch, 4, 2)"]


def test_platforms_that_it_cannot_be_made_for_are_left_out():
    def only_where_known(x):
        return jax.lax.platform_dependent(x, cpu=jnp.sin, tpu=jnp.cos)

    program = Program.of(jax.jit(only_where_known), symbolic(shapes(1, 2), any_time=False)[0])
    assert program.exported.platforms == ("cpu", "tpu")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
        lambda x: x if x.shape[0] > 3 else -x,  # the number of rows decides
        lambda x: jax.numpy.linalg.no_such_function(x),
        lambda x: jnp.zeros(int(x.shape[0])),
    ],
)
def test_what_cannot_be_exported(function):
    with pytest.raises(ValueError, match="model: could not be exported as a portable program:"):
        Program.of(jax.jit(function), symbolic(shapes(1, 2), any_time=False)[0])


def test_bytes_that_are_no_program():
    with pytest.raises(ValueError, match="somewhere: could not read the program with JAX .*:"):
        Program.read("somewhere", b"nothing of the kind")


def test_one_program_for_each_number_of_rows(compilations):
    program = Program.of(total, symbolic(shapes(1, 3), any_time=False)[0])
    program(np.zeros((2, 3), np.float32))
    before = compilations()
    for scale in (1, 2):
        program(np.full((2, 3), scale, np.float32))
    assert compilations() == before


def test_without_flatbuffers_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (
        lambda: Program.of(jax.jit(jnp.sin), jax.ShapeDtypeStruct((2,), float)),
        lambda: Program.read("a", b""),
    ):
        with pytest.raises(
            ModuleNotFoundError, match=r"flatbuffers: required .*, but not installed: pip install 'nnfx"
        ):
            call()
