"""Population-based training, against the same algorithm written as a loop in Python."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.search import Choice
from nnfx.sweeps import LogUniform, Uniform, population
from nnfx.sweeps.population import chosen_parents, draw_members, explored
from nnfx.training.epochs import scan_epochs, start
from nnfx.training.step import split_key

KEY = jax.random.key(3)
RANGES = {"learning_rate": LogUniform(1e-3, 3.0), "momentum": Uniform(0.0, 0.95)}
EPOCHS, ROUND, SIZE = 12, 3, 8
RTOL = 0 if tuple(map(int, jax.__version__.split(".")[:2])) < (0, 12) else 1e-6
"""Bits are equal up to JAX 0.10; from 0.12 on, XLA rounds differently within the loop over rounds."""


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(90, 3))
    labels = (inputs @ [1.0, -2.0, 0.5] + rng.normal(size=90) > 0).astype(int)
    return nnfx.data.prepare(inputs, labels, key=KEY, valid_fraction=0.3)


@pytest.fixture(scope="module")
def train():
    model = nnfx.models.mlp(hidden=(4,))
    return nnfx.fit(model, nnfx.losses.binary_cross_entropy, optax.sgd, epochs=EPOCHS, batch_size=20)


@pytest.fixture(scope="module")
def found(data, train):
    return population(train, size=SIZE, epochs_per_round=ROUND, replaced=0.3, **RANGES)(KEY, data)


def test_it_equals_the_algorithm_written_as_a_loop(data, train, found):
    """Jaderberg et al., algorithm 1, with truncation selection: only the training of a round is compiled."""
    of_members, of_exchanges = jax.random.split(KEY)
    ranges = tuple(sorted(RANGES.items()))
    hyper = draw_members(of_exchanges, ranges, SIZE)
    keys = [split_key(jax.random.fold_in(of_members, i)) for i in range(SIZE)]
    order = split_key(of_members).order
    begin = jax.jit(lambda key, own: start(key, train.bind(own), data.train, data.valid))
    states = [
        begin(jax.random.fold_in(of_members, i), {name: values[i] for name, values in hyper.items()})
        for i in range(SIZE)
    ]

    @jax.jit
    def advance(states, hyper, first):
        return jax.vmap(
            lambda state, own: scan_epochs(
                train, own, state._replace(order_key=order), data.train, data.valid, ROUND, first
            )
        )(states, hyper)

    stack = jax.jit(lambda states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
    unstack = jax.jit(lambda stacked: [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(SIZE)])
    losses, parents = [], np.arange(SIZE)
    for number in range(EPOCHS // ROUND):
        for name, values in hyper.items():
            np.testing.assert_array_equal(found.hyper[name][number], values, err_msg=f"{name} in round {number}")
        np.testing.assert_array_equal(found.parents[number], parents)
        states = [
            state._replace(train=state.train._replace(key=key.step), order_key=order)
            for state, key in zip(states, keys, strict=True)
        ]
        ended, history = advance(stack(states)._replace(order_key=None), hyper, ROUND * number)
        losses.append(np.asarray(history["valid_loss"][:, -1]))
        states = unstack(ended)
        if number == EPOCHS // ROUND - 1:
            break
        key = jax.random.fold_in(of_exchanges, number + 1)
        ranking = sorted(range(SIZE), key=lambda i: losses[-1][i])
        drawn = jax.random.randint(jax.random.fold_in(key, 0), (2,), 0, 2)
        parents = np.arange(SIZE)
        for place, rank in zip(ranking[-2:], drawn, strict=True):
            parents[place] = ranking[int(rank)]
        states = [states[parent] for parent in parents]
        hyper = explored(key, hyper, jnp.asarray(parents), ranges, (0.8, 1.25), 0.25)
    np.testing.assert_allclose(found.losses, losses, rtol=RTOL)
    for mine, theirs in zip(
        jax.tree.leaves(found.runs.state.params),
        jax.tree.leaves(jax.tree.map(lambda *leaves: np.stack(leaves), *[state.train.params for state in states])),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, rtol=10 * RTOL, atol=10 * RTOL)


def test_the_worst_go_on_from_the_best(found):
    losses, parents = np.asarray(found.losses), np.asarray(found.parents)
    for before, of_round in zip(losses, parents[1:], strict=False):
        ranking = np.argsort(before)
        for member, parent in enumerate(of_round):
            assert parent == member if member in ranking[:-2] else parent in ranking[:2]
    assert (parents[0] == np.arange(SIZE)).all()


def test_a_lineage_leads_from_a_member_back_to_its_first_ancestor(found):
    parents = np.asarray(found.parents)
    for member in range(SIZE):
        places = found.lineage(member)
        assert places[-1] == member
        for number in range(1, len(places)):
            assert places[number - 1] == parents[number][places[number]]
        numbers = found.schedule(member)
        for name in RANGES:
            np.testing.assert_array_equal(numbers[name], np.asarray(found.hyper[name])[np.arange(4), places])


def test_numbers_change_only_for_members_that_are_replaced_and_stay_within_their_range(found):
    parents = np.asarray(found.parents)
    for name, bounds in RANGES.items():
        values = np.asarray(found.hyper[name])
        assert (values >= np.float32(bounds.low)).all()
        assert (values <= np.float32(bounds.high)).all()
        is_same = values[1:] == values[:-1]
        assert is_same[parents[1:] == np.arange(SIZE)].all()
        assert not is_same[parents[1:] != np.arange(SIZE)].all()


def test_members_are_runs(data, found):
    best = found.best
    losses = np.asarray(found.runs.best.loss)
    assert float(best.best.loss) == losses.min()
    measured = best.evaluate(data.valid)
    np.testing.assert_allclose(measured["loss"], losses.min(), rtol=1e-5)
    assert best.predict(np.zeros((2, 3))).shape == (2, 1)
    assert int(best.epochs) == EPOCHS
    assert best.history["train_loss"].shape == (EPOCHS,)


def test_members_with_losses_that_are_not_finite_are_replaced():
    parents = chosen_parents(KEY, jnp.array([1.0, jnp.nan, 0.5, jnp.inf, 2.0, 0.1]), replaced=2)
    assert set(np.flatnonzero(parents != jnp.arange(6))) == {1, 3}
    assert set(parents[jnp.array([1, 3])].tolist()) <= {2, 5}


@pytest.mark.slow
def test_populations_are_mapped_over_keys(data, train, found):
    evolve = population(train, size=SIZE, epochs_per_round=ROUND, replaced=0.3, **RANGES)
    several = jax.vmap(lambda key: evolve(key, data))(jnp.stack([jax.random.key(9), KEY]))
    np.testing.assert_array_equal(several.parents[1], found.parents)
    np.testing.assert_allclose(several.losses[1], found.losses, rtol=1e-5)


def test_a_number_that_is_given_stays_fixed(data, train):
    evolve = population(train, size=4, epochs_per_round=6, learning_rate=LogUniform(0.01, 1.0), momentum=0.9)
    found = evolve(KEY, data)
    assert set(found.hyper) == {"learning_rate"}
    np.testing.assert_array_equal(found.runs.hyper["momentum"], np.full(4, np.float32(0.9)))


RATE = {"learning_rate": LogUniform(0.01, 1.0)}
WRONG = {
    "a run": ({"size": 1, "epochs_per_round": 3, **RATE}, ValueError, "size: expected at least 2 members, got 1"),
    "rounds": (
        {"size": 4, "epochs_per_round": 5, **RATE},
        ValueError,
        "epochs_per_round: expected a divisor of the 12",
    ),
    "half": ({"size": 4, "epochs_per_round": 3, "replaced": 0.6, **RATE}, ValueError, "replaced: .* at most 0.5, got"),
    "factors": ({"size": 4, "epochs_per_round": 3, "factors": 2.0, **RATE}, TypeError, "factors: expected two numbers"),
    "zero": (
        {"size": 4, "epochs_per_round": 3, "factors": (0.0, 2.0), **RATE},
        ValueError,
        r"factors\[0\]: .* above 0",
    ),
    "a choice": (
        {"size": 4, "epochs_per_round": 3, "learning_rate": Choice(0.1, 0.2)},
        TypeError,
        "learning_rate: expected a number, got Choice",
    ),
    "no range": ({"size": 4, "epochs_per_round": 3, "learning_rate": 0.1}, ValueError, "values: expected at least one"),
    "order": ({"size": 4, "epochs_per_round": 3, "learning_rate": Uniform(1, 0.1)}, ValueError, "learning_rate.high: "),
    "unknown": ({"size": 4, "epochs_per_round": 3, "rate": Uniform(0, 1), **RATE}, TypeError, "rate: expected one of"),
    "missing": ({"size": 4, "epochs_per_round": 3, "momentum": Uniform(0, 1)}, TypeError, "learning_rate"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_raises_a_clear_error(train, name):
    options, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        population(train, **options)


def test_it_needs_held_out_data_and_no_stopping_rules(data, train):
    evolve = population(train, size=4, epochs_per_round=3, **RATE)
    with pytest.raises(ValueError, match="data.valid: expected held-out data to rank members by, got none"):
        evolve(KEY, nnfx.data.Data(data.train, None, data.preprocess))
    stopping = nnfx.fit(
        nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=4, stop=nnfx.stopping.patience
    )
    with pytest.raises(ValueError, match="fit: expected a run without stopping rules, got patience"):
        population(stopping, size=4, epochs_per_round=2, **RATE)
    with pytest.raises(TypeError, match="fit: expected the result of nnfx.fit"):
        population(evolve, size=4, epochs_per_round=2, **RATE)


def test_the_history_of_a_member_is_that_of_its_weights(found):
    """Half of the members are replaced in every round, so that most have their best weights from others."""
    histories = np.asarray(found.runs.history["valid_loss"])
    for member in range(SIZE):
        run = found.run(member)
        assert float(run.best_metrics["valid_loss"]) == float(run.best.loss)
        ends = histories[member, ROUND - 1 :: ROUND]
        np.testing.assert_array_equal(ends, np.asarray(found.losses)[np.arange(4), found.lineage(member)])
        assert float(run.best.loss) == histories[member].min()


@pytest.mark.parametrize("member", [-1, 99, 1.0, True, "a"])
def test_members_have_numbers(found, member):
    for look_up in (found.run, found.lineage, found.schedule):
        with pytest.raises((TypeError, ValueError), match="^member: expected"):
            look_up(member)


def test_of_members_that_all_diverged_none_is_best(data):
    train = nnfx.fit(nnfx.models.mlp((4,)), nnfx.losses.mean_square_error, optax.sgd, epochs=6)
    diverged = population(train, size=2, epochs_per_round=3, learning_rate=Uniform(1e20, 1e21))(KEY, data)
    with pytest.raises(ValueError, match="best: expected a member with a finite loss, got none"):
        _ = diverged.best
