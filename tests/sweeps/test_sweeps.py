import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import sweeps
from nnfx.sweeps import Halving, members, sweep

KEY = jax.random.key(0)
ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


def make(optimizer=optax.sgd, epochs=5, model=None, **options):
    model = model or nnfx.models.perceptron()
    return nnfx.fit(model, nnfx.losses.binary_cross_entropy, optimizer, epochs=epochs, **options)


@pytest.fixture(scope="module")
def plain():
    return make()


@pytest.fixture(scope="module")
def budgeted():
    return make(epochs=10, batch_size=100, stop=nnfx.stopping.step_budget)


@pytest.fixture(scope="module")
def with_dropout():
    return make(model=lambda dropout: nnfx.models.mlp((8,), dropout=dropout), epochs=3)


def close(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second)


def single(train, data, row, **numbers):
    return train(jax.random.fold_in(KEY, row["seed"]), data, **numbers)


@pytest.mark.parametrize(
    ("optimizer", "epochs"), [pytest.param(optax.sgd, 50, marks=pytest.mark.slow), (optax.adam, 5)]
)
def test_members_equal_the_runs_made_one_at_a_time(data, optimizer, epochs):
    train = make(
        optimizer, epochs, lambda dropout: nnfx.models.mlp((8,), dropout=dropout, batch_norm=True), batch_size=100
    )
    result = sweep(train, data, key=KEY, seeds=2, learning_rate=[0.01, 0.1], dropout=0.3, devices=ONE)
    assert len(result.rows) == 4
    for row in result.rows:
        run = single(train, data, row, learning_rate=row["learning_rate"], dropout=row["dropout"])
        history = result.histories["valid_loss"][row["member"]]
        np.testing.assert_allclose(history, run.history["valid_loss"], rtol=1e-5, atol=1e-5)
        variables = jax.tree.map(lambda stack, i=row["member"]: stack[i], result.variables)
        assert row["best_epoch"] == int(run.best.epoch)
        close(variables, run.best.variables, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2, 6])
def test_members_trained_a_few_at_a_time_are_the_same(data, with_dropout, at_once):
    options = {"key": KEY, "seeds": 3, "learning_rate": [0.01, 0.1, 1.0], "dropout": 0.2, "devices": ONE}
    together, few = sweep(with_dropout, data, **options), sweep(with_dropout, data, **options, at_once=at_once)
    close(few.histories, together.histories, rtol=1e-5, atol=1e-6)
    close(few.variables, together.variables, rtol=1e-5, atol=1e-6)


def test_the_size_of_a_member_determines_how_many_are_trained_at_once_unless_given(data, plain, monkeypatch):
    asked = []
    monkeypatch.setattr(members, "best_at_once", lambda *asked_of: asked.append(asked_of) or 7)

    def choose(*of):
        raise InterruptedError(of[3])

    monkeypatch.setattr(members, "programs_of", choose)
    options = {"key": KEY, "learning_rate": [0.01, 0.1], "devices": ONE}
    for given, chosen in (({}, 7), ({"at_once": 2}, 2)):
        with pytest.raises(InterruptedError, match=f"^{chosen}$"):
            sweep(plain, data, **options, **given)
    [(fit, rows, hyper)] = asked
    assert fit is plain
    assert rows.weights.shape == data.train.weights.shape
    assert jax.tree.map(jnp.shape, hyper) == {"learning_rate": ()}


def test_how_many_at_once_is_checked(data, plain):
    with pytest.raises(ValueError, match="at_once: expected .*, got 0"):
        sweep(plain, data, key=KEY, learning_rate=0.1, at_once=0)


def test_members_that_stop_are_packed_away_and_end_as_they_would_alone(data):
    train = make(optax.sgd, 60, stop=nnfx.stopping.small_change)
    rates = np.array([3e-4, 0.3, 0.01, 0.1, 1.0, 0.6, 0.2, 0.5])
    sizes = []
    result = sweep(
        train, data, key=KEY, seeds=4, learning_rate=rates, tolerance=0.02, epochs_per_chunk=20, devices=ONE,
        on_chunk=lambda progress: sizes.append(progress.running),
    )  # fmt: skip
    assert sizes[0] > sizes[-1]
    for row in result.rows:
        run = single(train, data, row, learning_rate=row["learning_rate"], tolerance=0.02)
        assert row["epochs"] == int(run.epochs)
        assert row["reason"] == run.reason
        history = result.histories["train_loss"][row["member"]]
        np.testing.assert_allclose(history, run.history["train_loss"], rtol=1e-4)
        assert np.isnan(history[row["epochs"] :]).all()
    assert len({row["epochs"] for row in result.rows}) > 3


def test_one_diverging_member_never_touches_another(data):
    train = make(model=nnfx.models.mlp((8,), activation="tanh"))
    rates = np.full(64, 0.1)
    rates[1:] = np.logspace(-3, -1, 63)
    harmless = sweep(train, data, key=KEY, seeds=2, learning_rate=rates, devices=ONE)
    rates[17] = 1e38
    wild = sweep(train, data, key=KEY, seeds=2, learning_rate=rates, devices=ONE)
    others = np.array([number for number in range(128) if number % 64 != 17])
    assert not np.isfinite(wild.histories["train_loss"][[17, 81], -1]).any()
    for name, values in harmless.histories.items():
        assert values[others].tobytes() == wild.histories[name][others].tobytes()


def test_another_grid_of_the_same_size_compiles_nothing_and_a_sweep_few_programs(data, compilations):
    train = make(optax.sgd, 40, stop=nnfx.stopping.patience)

    def run(scale):
        before = compilations()
        rates = scale * np.logspace(-3, 1, 64)
        sweep(train, data, key=KEY, seeds=16, learning_rate=rates, patience=2, epochs_per_chunk=2, devices=ONE)
        return compilations() - before

    small = {"seeds": 2, "patience": 50, "epochs_per_chunk": 40, "devices": ONE}
    sweep(train, data, key=KEY, learning_rate=[0.1, 0.2], **small)
    before = compilations()
    sweep(train, data, key=jax.random.key(1), learning_rate=[0.3, 0.4], **small)
    assert compilations() == before > 0
    assert run(1.0) <= 8


@pytest.mark.parametrize(("seeds", "rates"), [pytest.param(16, 1, marks=pytest.mark.slow), (3, 5)])
def test_members_spread_over_devices_are_the_same(data, plain, seeds, rates):
    options = {"key": KEY, "seeds": seeds, "learning_rate": np.logspace(-3, -1, rates)}
    alone, spread = sweep(plain, data, devices=ONE, **options), sweep(plain, data, **options)
    assert len(jax.devices()) == 8
    for name, values in alone.histories.items():
        np.testing.assert_allclose(spread.histories[name], values, rtol=1e-5)
    close(alone.variables, spread.variables, rtol=1e-5, atol=1e-6)


def test_each_row_is_held_out_once_and_folds_equal_runs_on_data_prepared_by_hand():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 3)) * [1, 10, 0.1] + 5, rng.integers(0, 2, size=50)
    whole = nnfx.data.prepare(x, y)
    train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=20)
    result = sweep(train, whole, key=KEY, seeds=1, folds=5, learning_rate=[0.5])
    assert [row["fold"] for row in sorted(result.rows, key=lambda row: row["fold"])] == [0, 1, 2, 3, 4]

    fold_of_row = np.asarray(nnfx.data.permutation.permutation(jax.random.fold_in(KEY, 1), 50)) % 5
    assert np.bincount(fold_of_row).tolist() == [10] * 5
    for row in result.rows:
        held_out = fold_of_row == row["fold"]
        by_hand = nnfx.data.prepare(x[~held_out], y[~held_out])
        valid = nnfx.Batch(by_hand.preprocess(x[held_out]), jnp.asarray(y[held_out]), jnp.ones(10))
        fold = nnfx.data.Data(by_hand.train, valid, by_hand.preprocess)
        run = train(jax.random.fold_in(KEY, 0), fold, learning_rate=0.5)
        np.testing.assert_allclose(result.histories["valid_loss"][row["member"]], run.history["valid_loss"], rtol=1e-4)
        mine = jax.tree.map(lambda stack, i=row["member"]: stack[i], result.preprocess)
        np.testing.assert_allclose(mine(x), by_hand.preprocess(x), rtol=1e-3, atol=1e-4)


def test_successive_halving_drops_the_worse_points(data):
    train = make(optax.sgd, 12)
    rates = np.array([1e-4, 0.1, 1e-3, 0.5, 1e-5, 1e30, 0.3, 1e-6])
    given = {"key": KEY, "seeds": 2, "learning_rate": rates, "devices": ONE}
    result = sweep(train, data, **given, halving=Halving((3, 6), keep=0.5))
    full = sweep(train, data, **given, epochs_per_chunk=3)
    epochs = {row["member"]: row["epochs"] for row in result.rows}
    assert sorted(epochs.values()) == [3] * 8 + [6] * 4 + [12] * 4
    assert epochs[5] == epochs[13] == 3, "what diverged ranks last"
    for row in result.rows:
        history = result.histories["valid_loss"][row["member"]]
        assert np.isfinite(history).sum() in (0, row["epochs"]) or row["learning_rate"] > 1
        np.testing.assert_allclose(
            history[: row["epochs"]], full.histories["valid_loss"][row["member"], : row["epochs"]], rtol=1e-5
        )
        assert (row["reason"] == "dropped") == (row["epochs"] < 12)
        assert row["best_epoch"] <= row["epochs"]
    ranked = np.nanmin(full.histories["valid_loss"][:, :3], axis=1).reshape(2, 8).mean(0)
    assert {n % 8 for n, e in epochs.items() if e > 3} == set(np.argsort(ranked)[:4])


@pytest.mark.slow
def test_a_budget_of_steps_acts_on_each_member(data, budgeted):
    result = sweep(budgeted, data, key=KEY, learning_rate=0.1, max_steps=[6, 13, 1000], devices=ONE)
    assert {row["max_steps"]: (row["epochs"], row["reason"]) for row in result.rows} == {
        6: (1, "step_budget"),
        13: (3, "step_budget"),
        1000: (10, "last epoch"),
    }


@pytest.mark.slow
def test_a_budget_of_time_acts_on_each_member(data):
    train = make(epochs=10**6, stop=nnfx.stopping.time_budget)
    given = {"key": KEY, "learning_rate": 0.1, "epochs_per_chunk": 200, "devices": ONE}
    result = sweep(train, data, **given, max_seconds=[1e-3, 4.0])
    short, long = sorted(result.rows, key=lambda row: row["max_seconds"])
    assert short["reason"] == long["reason"] == "time_budget"
    assert short["epochs"] <= 201
    assert short["epochs"] <= long["epochs"] < 10**6


@pytest.mark.slow
def test_what_there_is_so_far_can_be_kept_on_the_way(data, budgeted, tmp_path):
    seen = []

    def look(progress):
        seen.append(progress.result())
        progress.result().save(tmp_path / "so_far.csv")
        if progress.epoch == 2:
            raise KeyboardInterrupt

    given = {"key": KEY, "learning_rate": 0.1, "max_steps": [6, 1000, 1000], "devices": ONE}
    with pytest.raises(KeyboardInterrupt):
        sweep(budgeted, data, **given, on_chunk=look)
    whole = sweep(budgeted, data, **given)
    assert [{row["reason"] for row in result.rows} for result in seen] == [{"step_budget", "running"}] * 2
    for result, epochs in zip(seen, (1, 2), strict=True):
        assert [result.member(number).row["epochs"] for number in (0, 1)] == [1, epochs]
        np.testing.assert_array_equal(
            result.histories["valid_loss"][:, :epochs], whole.histories["valid_loss"][:, :epochs]
        )
    assert len((tmp_path / "so_far.csv").read_text().splitlines()) == 4


@pytest.mark.slow
def test_nothing_is_marked_by_nan_or_infinities_on_devices(data):
    """Otherwise `jax_debug_nans` and `jax_debug_infs` would report them, although they are intended."""
    train = make(epochs=4, batch_size=100, stop=nnfx.stopping.step_budget)
    given = {"key": KEY, "seeds": 2, "devices": ONE, "learning_rate": [0.05, 0.1, 0.2, 0.3], "max_steps": 7}
    with jax.debug_nans(True), jax.debug_infs(True):
        result = sweep(train, data, **given, epochs_per_chunk=1)
        halved = sweep(train, data, **given, halving=Halving((1,), keep=0.5))
        found = result.ensemble(3).predict(np.zeros((3, 2)))
        assert "step_budget" in str(result)
    assert [row["epochs"] for row in result.rows] == [2] * 8
    assert sorted(row["epochs"] for row in halved.rows) == [1] * 4 + [2] * 4
    assert np.isfinite(found).all()


@pytest.mark.slow
def test_seeds_alone_differ_where_no_number_is_swept(data):
    train = make(functools.partial(optax.sgd, learning_rate=0.1), epochs=2)
    result = sweep(train, data, key=KEY, seeds=3, devices=ONE)
    columns = ["member", "seed", "epochs", "best_epoch", "train_loss", "valid_loss", "reason"]
    assert [list(row) for row in result.rows] == [columns] * 3
    for row in result.rows:
        history = result.histories["valid_loss"][row["member"]]
        np.testing.assert_allclose(history, single(train, data, row).history["valid_loss"], rtol=1e-5)
    [point] = result.by_point().rows
    losses = [row["valid_loss"] for row in result.rows]
    np.testing.assert_allclose(point["valid_loss"], np.mean(losses))
    np.testing.assert_allclose(point["standard_error"], np.std(losses, ddof=1) / 3**0.5)
    assert result.ensemble(3).predict(np.zeros((2, 2))).shape == (3, 2, 1)


def test_points_may_come_in_any_form(data, plain):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    columns = {"learning_rate": [0.1, 0.3], "momentum": [0.0, 0.9]}
    expected = sweep(plain, data, key=KEY, points=columns, devices=ONE)
    forms = {
        "pandas": {"points": pandas.DataFrame(columns)},
        "polars": {"points": polars.DataFrame(columns)},
        "dictionaries": {"points": [{"learning_rate": 0.1, "momentum": 0.0}, {"momentum": 0.9, "learning_rate": 0.3}]},
        "arrays of JAX": {"points": {name: jnp.asarray(column) for name, column in columns.items()}},
        "Series": {"points": {name: pandas.Series(column) for name, column in columns.items()}},
    }
    for options in forms.values():
        assert sweep(plain, data, key=KEY, **options, devices=ONE).histories["valid_loss"].tobytes() == (
            expected.histories["valid_loss"].tobytes()
        )


def test_ranges_are_drawn_from_as_many_times_as_points_are_asked_for(data, plain):
    def swept(key=KEY, **ranges):
        return sweep(plain, data, key=key, points=8, devices=ONE, **ranges)

    ranges = {"learning_rate": sweeps.LogUniform(1e-3, 1.0), "momentum": sweeps.Uniform(0.1, 0.9)}
    result = swept(**ranges)
    for name, (low, high) in ranges.items():
        drawn = [row[name] for row in result.rows]
        assert len(set(drawn)) == 8
        assert low < min(drawn) < max(drawn) < high
    again = swept(learning_rate=ranges["learning_rate"], momentum=0.5)
    assert {row["learning_rate"] for row in again.rows} == {row["learning_rate"] for row in result.rows}
    assert {row["momentum"] for row in again.rows} == {0.5}
    other = swept(jax.random.key(7), **ranges)
    assert not {row["momentum"] for row in other.rows} & {row["momentum"] for row in result.rows}


WRONG = {
    "points of unequal lengths": (
        {"points": {"learning_rate": [1, 2], "momentum": [0.1]}},
        ValueError,
        "points: .*'momentum': 1",
    ),
    "points and values": (
        {"points": {"learning_rate": [1]}, "momentum": [0.1, 0.2]},
        ValueError,
        "momentum: expected one number for all points",
    ),
    "nothing to sweep": ({}, ValueError, "points: expected at least one hyper-parameter, got none; .* learning_rate"),
    "a range without a number of points": (
        {"learning_rate": sweeps.LogUniform(1e-3, 1)},
        TypeError,
        "learning_rate: expected numbers, .*points=20",
    ),
    "a range among points": (
        {"points": {"learning_rate": sweeps.Uniform(0, 1)}},
        TypeError,
        "learning_rate: expected numbers, .*draw",
    ),
    "a number of points without a range": (
        {"points": 3, "learning_rate": 0.1},
        TypeError,
        "points: expected a range to draw",
    ),
    "a range beside several numbers": (
        {"points": 3, "learning_rate": sweeps.LogUniform(1e-3, 1), "momentum": [0.0, 0.9]},
        ValueError,
        r"momentum: expected a range or one number to draw 3 points",
    ),
    "points that are a list of numbers": ({"points": [0.1, 0.2]}, TypeError, "points: expected numbers by hyper-"),
    "points that are text": ({"points": "learning_rate"}, TypeError, "points: expected numbers by hyper-"),
    "points of other names": (
        {"points": [{"learning_rate": 1}, {"momentum": 1}]},
        ValueError,
        r"points\[1\]: .*learning_rate, got momentum",
    ),
    "numbers as text": ({"learning_rate": ["fast"]}, TypeError, "learning_rate: expected an array of real numbers"),
    "devices that are a number": ({"learning_rate": 1, "devices": 2}, TypeError, "devices: expected a sequence.*got 2"),
    "what is called is no function": ({"learning_rate": 1, "on_chunk": 3}, TypeError, "on_chunk: .*got 3"),
    "unknown number": ({"learning_rte": [1, 2]}, TypeError, r"learning_rte: .*'learning_rate'\?"),
    "a rate of zero among others": ({"learning_rate": [0.1, 0.0]}, ValueError, "learning_rate: .*above 0, got 0"),
    "a rate that is not a number": ({"learning_rate": [np.nan]}, ValueError, "learning_rate: expected finite"),
    "rates of rank 2": ({"learning_rate": np.ones((2, 2))}, ValueError, "learning_rate: .*points"),
    "no seeds": ({"learning_rate": 1, "seeds": 0}, ValueError, "seeds: .*got 0"),
    "a legacy key": ({"learning_rate": 1, "key": 0}, TypeError, "key: expected a typed key"),
    "folds beside held-out data": ({"learning_rate": 1, "folds": 3}, ValueError, "folds: .*data.valid"),
    "no epochs in a chunk": ({"learning_rate": 1, "epochs_per_chunk": 0}, ValueError, "epochs_per_chunk: .*got 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_raises_a_clear_error(data, plain, name):
    options, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        sweep(plain, data, **{"key": KEY, **options})


def test_what_is_swept_is_what_fit_returns(data, plain):
    for each in (plain(KEY, data, learning_rate=0.1), plain.factories["model"][0], "train"):
        with pytest.raises(TypeError, match="fit: expected the result of nnfx.fit, got"):
            sweep(each, data, key=KEY, learning_rate=0.1)
    with pytest.raises(TypeError, match="data: expected nnfx.data.Data"):
        sweep(plain, data.train, key=KEY, learning_rate=0.1)


def test_wrong_folds_and_rungs(data, plain):
    with pytest.raises(TypeError, match="rungs: expected a sequence of epochs, such as .*, got 2"):
        sweep(plain, data, key=KEY, halving=Halving(2), learning_rate=[1, 2])
    with pytest.raises(TypeError, match=r"halving: expected nnfx.sweeps.Halving\(rungs=...\), got"):
        sweep(plain, data, key=KEY, halving=(1, 2), learning_rate=[1, 2])
    with pytest.raises(
        ValueError, match="epochs_per_chunk: expected a common divisor of the rungs .* such as 1, got 2"
    ):
        sweep(plain, data, key=KEY, halving=Halving((2,)), epochs_per_chunk=2, learning_rate=[1, 2])
    whole = nnfx.data.Data(data.train, None, data.preprocess)
    with pytest.raises(ValueError, match="folds: expected 2 to 536"):
        sweep(plain, whole, key=KEY, folds=1000, learning_rate=1)
    for rungs in ((), (3, 2), (2, 2), (5,)):
        with pytest.raises(ValueError, match="rungs: expected epochs that increase and stay below 5"):
            sweep(plain, data, key=KEY, halving=Halving(rungs), learning_rate=[1, 2])
    with pytest.raises(ValueError, match="keep: .*below 1, got 1"):
        sweep(plain, data, key=KEY, halving=Halving((2,), keep=1.0), learning_rate=[1, 2])
    with pytest.raises(ValueError, match="data.valid: expected held-out data"):
        sweep(plain, whole, key=KEY, halving=Halving((2,)), learning_rate=[1, 2])
