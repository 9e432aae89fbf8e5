import jax
import jax.numpy as jnp
import numpy as np

import nnfx
from nnfx.host.identity import Identity, words

MEANS = {"jax": "0.10.1", "device": "cpu"}


def lowered(function):
    return jax.jit(function).lower(jnp.zeros(3))


def prepared(inputs):
    return nnfx.data.prepare(np.asarray(inputs), np.array([0, 1, 1]), standardize=False)


def test_the_same_program_and_data_are_the_same():
    first, second = (Identity.of(lowered(jnp.sin), words(prepared([[1.0], [2.0], [3.0]]))) for _ in range(2))
    assert first == second
    assert not first.differences(second)
    assert not first.other_means(second)
    assert first.means["jax"] == jax.__version__


def test_a_bit_of_the_data_and_an_operation_of_the_program_count():
    first = Identity.of(lowered(jnp.sin), words(prepared([[1.0], [2.0], [3.0]])))
    other = Identity.of(lowered(jnp.cos), words(prepared([[1.0], [2.0], [np.nextafter(np.float32(3), 4)]])))
    (data,) = first.differences(other)
    assert data.startswith("data.train.inputs: expected float32[3,1] ")
    (program,) = first._replace(data=other.data).differences(other)
    assert program.startswith(f"program: expected {first.program}, got {other.program}")
    shorter = first._replace(data={name: words for name, words in first.data.items() if name != "train.weights"})
    assert "data.train.weights: expected nothing, got float32[3] " in shorter.differences(first)[0]


def test_programs_are_not_compared_between_other_means():
    first, second = Identity("a", {}, MEANS), Identity("b", {}, {**MEANS, "device": "gpu"})
    assert not first.differences(second)
    assert first.other_means(second) == ["device cpu, now gpu"]


def test_numbers_of_any_dtype_are_told_apart():
    first, second = (
        nnfx.data.Data(nnfx.Batch(jnp.full((2, 1), value, jnp.bfloat16), jnp.ones(2), jnp.ones(2)), None,
                       prepared([[1.0], [2.0], [3.0]]).preprocess)
        for value in (1, 2)
    )  # fmt: skip
    program = lowered(jnp.sin)
    assert len(Identity.of(program, words(first)).differences(Identity.of(program, words(second)))) == 1
