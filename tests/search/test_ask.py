"""Points asked of Optuna's samplers."""

import jax
import optax
import pytest

import nnfx
from nnfx.search import Ask, Choice, Integer, LogUniform, Normal, Uniform, When, search
from tests.search.searches import cut_at, same
from tests.sessions.sessions import CutError

optuna = pytest.importorskip("optuna")

KEY = jax.random.key(0)
SPACE = {
    "width": Choice(2, 3),
    "learning_rate": LogUniform(1e-4, 10.0),
    "scale": When("width", 3, Normal(1.0, 0.1)),
    "shift": Uniform(0.0, 1.0),
    "steps": Integer(1, 3),
}


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


def shifted(learning_rate, shift, scale=1.0, steps=1):
    return optax.sgd(learning_rate * (1 + 0 * (shift + scale + steps)))


def make(width):
    return nnfx.fit(nnfx.models.mlp((width,)), nnfx.losses.binary_cross_entropy, shifted, epochs=2, batch_size=100)


def asked(data, seed=0, **options):
    method = Ask(optuna.samplers.TPESampler(seed=seed, n_startup_trials=4), batch=6)
    return search(make, data, SPACE, key=KEY, points=8, method=method, devices=jax.devices()[:1], **options)


def test_a_sampler_is_asked_and_told(data, monkeypatch, tmp_path, capsys):
    told = []
    tell = optuna.study.Study.tell
    monkeypatch.setattr(
        optuna.study.Study, "tell", lambda self, *given, **state: told.append(given) or tell(self, *given, **state)
    )
    found = asked(data)
    assert len(found.points) == 8
    for point in found.points:
        assert ("scale" in point) is (point["width"] == 3)
        assert 1e-4 <= point["learning_rate"] <= 10.0
        assert 0.0 <= point["shift"] <= 1.0
        assert point["steps"] in (1, 2, 3)
        assert 0.3 < point.get("scale", 1.0) < 1.7
    losses = {row["point"]: row["valid_loss"] for row in found.rows}
    assert [loss for _, loss in told] == [losses[number] for number in range(8)]

    with pytest.raises(CutError):
        asked(data, out=tmp_path, progress=False, on_chunk=cut_at(2))
    same(asked(data, out=tmp_path, progress="rates"), found)
    assert capsys.readouterr().out == "rates: 8 points in batches of 6\n"
    assert sorted(path.name for path in tmp_path.glob("b*")) == ["batch-000", "batch-001"]


def test_points_asked_for_twice_are_trained_once_and_told_twice(data, monkeypatch):
    told = []
    monkeypatch.setattr(optuna.study.Study, "tell", lambda self, trial, loss: told.append((trial.params, loss)))
    space = {"width": Choice(2, 3), "learning_rate": Choice(0.1), "shift": Choice(0.0)}
    method = Ask(optuna.samplers.RandomSampler(seed=0), batch=5)
    found = search(make, data, space, key=KEY, points=5, method=method, devices=jax.devices()[:1])
    assert len(found.rows) == len(found.points) == 2
    assert len(told) == 5
    losses = {found.points[row["point"]]["width"]: row["valid_loss"] for row in found.rows}
    assert all(loss == losses[(2, 3)[params["width"]]] for params, loss in told)


def test_wrong_samplers_are_errors(data):
    given = {"key": KEY, "devices": jax.devices()[:1]}
    with pytest.raises(TypeError, match="sampler: expected an Optuna sampler, such as .*, got 'tpe'"):
        search(make, data, SPACE, points=2, method=Ask("tpe"), **given)
    with pytest.raises(TypeError, match="points: expected a positive integer, got None"):
        search(make, data, SPACE, method=Ask(optuna.samplers.TPESampler()), **given)
    with pytest.raises(TypeError, match="space: expected ranges by name"):
        search(make, data, points=2, method=Ask(optuna.samplers.TPESampler()), **given)


@pytest.mark.slow
def test_a_sampler_may_end_before_all_points_and_may_be_used_again(data, tmp_path):
    grid = optuna.samplers.GridSampler({"width": [0, 1], "learning_rate": [0.1, 0.5]})
    space = {"width": Choice(2, 3), "learning_rate": Uniform(0.1, 0.5)}

    def plain(width):
        model = nnfx.models.mlp((width,))
        return nnfx.fit(model, nnfx.losses.binary_cross_entropy, optax.sgd, epochs=2, batch_size=100)

    found = search(plain, data, space, key=KEY, points=6, method=Ask(grid, batch=2), devices=jax.devices()[:1])
    assert sorted((point["width"], point["learning_rate"]) for point in found.points) == [
        (2, 0.1), (2, 0.5), (3, 0.1), (3, 0.5)
    ]  # fmt: skip
    method = Ask(optuna.samplers.TPESampler(seed=0), batch=2)
    given = {"key": KEY, "points": 4, "method": method, "devices": jax.devices()[:1], "out": tmp_path}
    same(*(search(plain, data, space, **given, progress=False) for _ in range(2)))


def test_points_of_earlier_batches_are_told_again_without_training(data, monkeypatch):
    told = []
    monkeypatch.setattr(optuna.study.Study, "tell", lambda self, trial, loss: told.append((trial.params, loss)))
    space = {"width": Choice(2, 3), "learning_rate": Choice(0.1), "shift": Choice(0.0)}
    method = Ask(optuna.samplers.RandomSampler(seed=0), batch=2)
    found = search(make, data, space, key=KEY, points=8, method=method, devices=jax.devices()[:1])
    assert sorted(point["width"] for point in found.points) == [2, 3]
    assert len(found.rows) == 2
    losses = {found.points[row["point"]]["width"]: row["valid_loss"] for row in found.rows}
    assert [loss for _, loss in told] == [losses[(2, 3)[params["width"]]] for params, _ in told]
    assert len(told) == 8


def test_a_wrong_name_writes_nothing(data, tmp_path):
    method = Ask(optuna.samplers.RandomSampler(seed=0), batch=2)
    with pytest.raises(TypeError, match="learning_rat"):
        search(make, data, {**SPACE, "learning_rat": Choice(0.1)}, key=KEY, points=2, method=method, out=tmp_path)
    assert not list(tmp_path.iterdir())
