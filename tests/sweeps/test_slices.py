import jax
import numpy as np
import optax
import pytest

import nnfx
from nnfx.sweeps import Halving, slices, sweep

KEY = jax.random.key(0)
RATES = np.linspace(0.05, 0.5, 7)


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


def make(**options):
    return nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=8, **options)


class Asked(slices.Program):
    """A program that records the shapes it is run with."""

    def __init__(self, bytes_per_member=100):
        self.shapes, self.bytes_per_member = [], bytes_per_member

    def bytes_needed(self, members, groups, shared):
        height, width = members.shape[:2]
        return 50 + self.bytes_per_member * height * width

    def __call__(self, members, groups, shared):
        self.shapes.append(members.shape[:2])
        return members * 2 + groups.seeds[:, None] + shared


@pytest.mark.parametrize(
    ("memory", "spread", "expected"),
    [
        (10_000, (1, 1), (6, 8)),
        (2_000, (1, 1), (2, 8)),
        (400, (1, 1), (1, 3)),
        (150, (1, 1), (1, 1)),
        (600, (1, 2), (1, 4)),
        (1_700, (2, 1), (2, 8)),
    ],
)
def test_whole_groups_if_possible_else_some_of_a_group(memory, spread, expected):
    members, groups = np.zeros((6, 8)), slices.Groups(np.arange(6), np.arange(6))
    shape = slices.fitting_shape(Asked(), members, groups, 1.0, spread, memory)
    assert shape == expected


@pytest.mark.parametrize("shape", [(5, 7), (2, 7), (1, 3), (1, 1)])
def test_slices_together_are_the_table(shape):
    members = np.random.default_rng(0).normal(size=(5, 7))
    program, groups = Asked(), slices.Groups(np.arange(5), np.arange(5))
    result = slices.in_slices(program, shape, members, groups, 1.0)
    np.testing.assert_array_equal(result, members * 2 + np.arange(5)[:, None] + 1)
    assert set(program.shapes) == {shape}, "slices of one shape need one program"


@pytest.fixture
def asked(monkeypatch):
    """Return the shapes that programs were run with, and the bytes that each needs."""
    bytes_needed, asked = slices.Program.bytes_needed, []

    def noted(program, members, groups, shared):
        asked.append((jax.tree.leaves(members)[0].shape[:2], bytes_needed(program, members, groups, shared)))
        return asked[-1][1]

    monkeypatch.setattr(slices.Program, "bytes_needed", noted)
    return asked


def whole_and_sliced(asked, run):
    """Run with all memory, and with an amount between that and the need of the smallest slice."""
    whole = run(memory=None)
    shape, most = asked[0]
    with pytest.raises(MemoryError, match="memory: expected at least"):
        run(memory=1)
    least = asked[-1][1]
    assert least < most
    asked.clear()
    sliced = run(memory=(least + most) // 2)
    first = next(shape for shape, needed in asked if needed <= (least + most) // 2)
    assert np.prod(first) < np.prod(shape), "it ran in slices"
    return whole, sliced


@pytest.mark.parametrize(
    "devices", [pytest.param(jax.devices()[:1], marks=pytest.mark.slow), jax.devices()[:2]], ids=len
)
def test_a_sweep_in_slices_has_the_members_of_the_whole(data, devices, asked):
    train = make(stop=nnfx.stopping.small_change)
    given = {
        "key": KEY, "seeds": 3, "learning_rate": RATES, "tolerance": 0.01, "epochs_per_chunk": 4, "devices": devices
    }  # fmt: skip
    whole, sliced = whole_and_sliced(asked, lambda memory: sweep(train, data, memory=memory, **given))
    for name, values in whole.histories.items():
        np.testing.assert_allclose(sliced.histories[name], values, rtol=1e-4)
    assert [row["epochs"] for row in sliced.rows] == [row["epochs"] for row in whole.rows]


@pytest.mark.slow
def test_halving_in_slices_ranks_over_all_of_them(data, asked):
    train = make()
    given = {"key": KEY, "halving": Halving((4,)), "seeds": 2, "learning_rate": RATES, "devices": jax.devices()[:1]}
    whole, sliced = whole_and_sliced(asked, lambda memory: sweep(train, data, memory=memory, **given))
    assert {r["member"]: r["epochs"] for r in whole.rows} == {r["member"]: r["epochs"] for r in sliced.rows}


def test_free_memory_is_what_the_machine_has():
    one, two = (slices.free_memory(tuple(jax.devices()[:n])) for n in (1, 2))
    assert 2**20 < one < 2**44
    assert 0.4 < two / one < 0.6


def test_wrong_input(data):
    train, given = make(), {"key": KEY, "learning_rate": RATES[:2], "devices": jax.devices()[:1]}
    with pytest.raises(MemoryError, match=r"memory: expected at least \d+ bytes per device for one member, got 10"):
        sweep(train, data, **given, memory=10)
    with pytest.raises(ValueError, match="memory: expected a positive integer, got 0"):
        sweep(train, data, **given, memory=0)
