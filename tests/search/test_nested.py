"""Nested cross-validation: no leak, and an honest score where the best of many points is only luck."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx.search import Choice, Grid, LogUniform, nested
from nnfx.search.nested import outer_parts
from tests.sessions.sessions import bits

KEY = jax.random.key(0)
FEATURES = 200
ONE = jax.devices()[:1]
MODEL = nnfx.models.perceptron()


def one_column(column):
    """Return a linear model of one of the features."""

    def apply(variables, inputs, **options):
        return MODEL.apply(variables, inputs * (jnp.arange(FEATURES) == column).astype(inputs.dtype)[None], **options)

    return MODEL._replace(apply=apply)


TRAIN = nnfx.fit(one_column, nnfx.losses.mean_square_error, optax.sgd, epochs=10)
POINTS = [{"column": column, "learning_rate": 0.2} for column in range(FEATURES)]


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(1)
    return rng.normal(size=(60, FEATURES)).astype(np.float32), rng.normal(size=60).astype(np.float32)


@pytest.fixture(scope="module")
def found(noise):
    return nested(TRAIN, nnfx.data.prepare(*noise), key=KEY, points=POINTS, outer_folds=3, folds=2, devices=ONE)


def test_of_noise_the_best_score_is_too_good_and_the_nested_one_is_not(noise, found):
    """No model predicts noise better than the mean of the other targets does."""
    _, targets = noise
    of_means = np.mean([((targets[rows] - np.delete(targets, rows).mean()) ** 2).mean() for rows in parts(noise)])
    within = np.mean([row["valid_loss"] for row in found.rows])
    assert within < 0.9 * targets.var()
    assert found.score > 0.98 * of_means
    assert found.optimism == pytest.approx(found.score - within)
    assert found.optimism > 0.1
    np.testing.assert_allclose(found.standard_error, np.std([row["loss"] for row in found.rows], ddof=1) / 3**0.5)
    assert str(found).endswith(f"optimism {found.optimism:.4g}")


def test_the_members_of_the_best_point_are_scored_on_rows_that_the_search_lacks(noise, found):
    """All rows, raw, are told apart by their inputs; the loss is computed by NumPy from raw predictions."""
    inputs, targets = noise
    held_out = []
    for row, search in zip(found.rows, found.searches, strict=True):
        best = search.by_point().numbers[0]
        assert row["column"] == search.points[best]["column"]
        members = [search.member(each["member"]) for each in search.rows if each["point"] == best]
        errors = np.mean([(np.asarray(run.predict(inputs))[:, 0] - targets) ** 2 for run in members], axis=0)
        sums = {tuple(rows): errors[list(rows)].mean() for rows in parts(noise)}
        (rows,) = (rows for rows, loss in sums.items() if np.isclose(loss, row["loss"], rtol=1e-4))
        held_out += rows
        np.testing.assert_allclose(
            row["valid_loss"], np.mean([each["valid_loss"] for each in search.rows if each["point"] == best])
        )
    assert sorted(held_out) == list(range(60))


def parts(noise):
    """Return the rows of each outer fold, found by their targets."""
    return [
        [int(np.flatnonzero(noise[1] == target)[0]) for target in np.asarray(held_out.targets)]
        for _, held_out in outer_parts(nnfx.data.prepare(*noise), jax.random.fold_in(KEY, 3), 3)
    ]


def test_rows_that_are_held_out_affect_nothing_that_the_search_is_given(noise):
    inputs, targets = (np.copy(each) for each in noise)
    rows = parts(noise)[0]
    inputs[rows], targets[rows] = 10 * inputs[rows] + 7, -50
    key = jax.random.fold_in(KEY, 3)
    own, changed = (next(outer_parts(nnfx.data.prepare(*each), key, 3))[0] for each in (noise, (inputs, targets)))
    for mine, theirs in zip(jax.tree.leaves(own), jax.tree.leaves(changed), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    np.testing.assert_allclose(own.train.inputs.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(own.train.inputs.std(0), 1, rtol=1e-4)


@pytest.mark.slow
def test_outer_folds_share_programs_even_if_the_rows_do_not_divide(noise, compilations):
    inputs, targets = (each[:59] for each in noise)
    made = []

    def make(activation):
        made.append(activation)
        model = nnfx.models.mlp((3,), activation=activation)
        return nnfx.fit(model, nnfx.losses.mean_square_error, optax.sgd, epochs=2)

    space = {"activation": Choice("tanh"), "learning_rate": LogUniform(0.01, 0.1)}
    given = {"key": KEY, "points": Grid(2), "folds": 2, "devices": ONE}
    counts = []
    for outer in (2, 6):
        before = compilations()
        found = nested(make, nnfx.data.prepare(inputs, targets), space, outer_folds=outer, **given)
        counts.append(compilations() - before)
        assert {search.sweeps[0].histories["train_loss"].shape for search in found.searches} == {(4, 2)}
    assert made == ["tanh"] * 2, "once for all searches"
    assert counts[1] <= counts[0] + 5


@pytest.mark.slow
def test_a_nested_search_resumes(noise, tmp_path):
    given = {"key": KEY, "points": POINTS[:3], "outer_folds": 2, "folds": 2, "devices": ONE}
    data = nnfx.data.prepare(*noise)
    found = nested(TRAIN, data, out=tmp_path, progress=False, **given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outer-0", "outer-1"]
    again = nested(TRAIN, data, out=tmp_path, progress=False, **given)
    assert again.rows == found.rows
    for first, other in zip(found.searches, again.searches, strict=True):
        assert bits(first.sweeps[0].variables) == bits(other.sweeps[0].variables)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"outer_folds": 1}, ValueError, "outer_folds: expected at least 2, got 1"),
        (
            {"outer_folds": 31},
            ValueError,
            "outer_folds: expected at most 30, half of the rows with positive weight, got 31",
        ),
        ({"folds": None}, TypeError, "folds: expected a positive integer, got None"),
        ({"folds": 1}, ValueError, "folds: expected at least 2, got 1"),
        ({"key": 0}, TypeError, "key: expected a typed key"),
        ({"data": 3}, TypeError, "data: expected nnfx.data.Data"),
        (
            {"valid_fraction": 0.5},
            ValueError,
            "data.valid: expected None, since rows are held out in folds, got a held-out split",
        ),
    ],
)
def test_wrong_input_is_an_error(noise, changed, error, message):
    given = {"key": KEY, "points": POINTS, **changed}
    fraction = given.pop("valid_fraction", 0.0)
    data = given.pop("data", None) or nnfx.data.prepare(*noise, key=KEY, valid_fraction=fraction)
    with pytest.raises(error, match=message):
        nested(TRAIN, data, **given)


def test_rows_of_weight_zero_are_in_no_fold(noise):
    inputs, targets = (values[:40] for values in noise)
    weights = np.where(np.arange(40) < 20, 0.0, 1.0)
    data = nnfx.data.prepare(inputs, targets, weights=weights)
    held_out = [int((np.asarray(rows.weights) > 0).sum()) for _, rows in outer_parts(data, KEY, 10)]
    assert held_out == [2] * 10
    with pytest.raises(ValueError, match="outer_folds: expected at most 10, half of the rows with positive weight"):
        nested(TRAIN, data, key=KEY, points=POINTS[:1], outer_folds=11, folds=2)
    with pytest.raises(ValueError, match="folds: expected 2 to 20, .* with positive weight, got 21"):
        nnfx.sweeps.sweep(TRAIN, data, key=KEY, folds=21, column=0, learning_rate=0.1)
