import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import nnfx
from nnfx.sweeps.programs import programs_of
from nnfx.sweeps.table import PACKING, Packing, Table
from nnfx.training.epochs import EMPTY, RUNNING

KEY = jax.random.key(0)


@pytest.fixture
def table():
    data = nnfx.data.titanic("fare", "age", key=KEY, valid_fraction=0.25)
    train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=2)
    points = {"learning_rate": np.linspace(0.1, 0.8, 8)}
    table = Table.of(train, data, KEY, 4, None, points, Mesh(jax.devices()[:1], "members"))
    programs = programs_of(train, table.mesh, table.axis, None)
    table.state = programs.start(table.hyper, table.groups, (KEY, table.fixed))
    return table


def stop_all_but(table, members):
    stopped_by = np.where(np.isin(table.member, members), RUNNING, 0)
    table.state = table.state._replace(stopped_by=stopped_by)


def test_members_are_numbered_group_by_group(table):
    assert table.member.tolist() == np.arange(32).reshape(4, 8).tolist()
    assert table.running() == 32


def test_packing_keeps_who_is_running_with_their_numbers_and_weights(table):
    before = np.asarray(table.state.train.params["kernel"])
    stop_all_but(table, [3, 9, 15, 24])
    table.pack()
    assert table.member.shape == (4, 2)
    assert sorted(table.member[table.member >= 0]) == [3, 9, 15, 24]
    assert table.running() == 4
    for place in zip(*np.nonzero(table.member >= 0), strict=True):
        group, point = divmod(table.member[place], 8)
        assert table.seeds[place[0]] == group
        assert table.hyper["learning_rate"][place] == np.float32(table.points["learning_rate"][point])
        np.testing.assert_array_equal(table.state.train.params["kernel"][place], before[group, point])
    assert (table.state.stopped_by[table.member < 0] == EMPTY).all()
    np.testing.assert_array_equal(table.harvested["variables"]["params"]["kernel"], before.reshape(32, 2, 1))


def test_a_table_that_is_more_than_half_full_stays(table):
    stop_all_but(table, np.arange(20))
    table.pack()
    assert table.member.shape == (4, 8)


def test_the_table_after_a_rung_is_the_one_that_packing_makes(table):
    later = table.after(2)
    stop_all_but(table, [8 * group + point for group in range(4) for point in (1, 6)])
    assert table.pack()
    assert later.member.shape == table.member.shape == (4, 2)
    assert later.groups.seeds.tolist() == table.groups.seeds.tolist()
    assert {name: each.shape for name, each in later.hyper.items()} == {"learning_rate": (4, 2)}
    assert later.after(2) is None, "it stays"


@pytest.mark.parametrize(
    ("packing", "kept", "width"),
    [(PACKING, 4, 4), (Packing(1 / 4, 1), 4, 8), (Packing(1 / 4, 1), 2, 2), (PACKING, 1, 1), (Packing(1 / 2, 4), 1, 4)],
)
def test_a_table_is_packed_once_few_enough_run_and_stays_wide_enough(table, packing, kept, width):
    stop_all_but(table, [8 * group + point for group in range(4) for point in range(kept)])
    assert table.pack(packing) is (width < 8)
    assert table.member.shape == (4, width)
    assert table.running() == 4 * kept


def test_of_a_table_with_one_point_the_groups_are_as_many_as_the_packing_says(table):
    table._place(np.arange(4), np.zeros((4, 1), int))
    stop_all_but(table, [0])
    assert table.pack(Packing(1 / 2, 2))
    assert table.member.shape == (2, 1)


def test_epochs_that_a_member_has_not_run_are_nan(table):
    values = np.arange(4 * 8 * 3, dtype=np.float32).reshape(4, 8, 3)
    epochs = np.full((4, 8), 2)
    epochs[1, 3], epochs[2, 5] = 0, 1
    table.record({"train_loss": values}, 2, epochs)
    found = table.history["train_loss"].reshape(4, 8, 2)
    assert table.done == 2
    assert found.dtype == np.float32
    for place in np.ndindex(4, 8):
        run = epochs[place]
        assert found[place][:run].tolist() == values[place][:run].tolist()
        assert np.isnan(found[place][run:]).all()
