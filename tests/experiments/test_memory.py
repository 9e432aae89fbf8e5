import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from experiments import memory

TINY = {name: task._replace(epochs=2) for name, task in memory.TASKS.items()}


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "TASKS", TINY)
    monkeypatch.setattr(memory, "COLOURS", {"GRU": memory.COLOURS["GRU"]})
    monkeypatch.setattr(memory, "STEPS_PER_EPOCH", 3)
    config = memory.Config(out=tmp_path, tasks=("copy",), gaps=(6,), seeds=2, batch_size=4)
    summary = memory.main(config)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert {"gaps", "seeds", "scores", "solved", "gradient_that_is_left", "seed", "wall_s"} <= set(written)
    assert list(written["scores"]) == ["copy"]
    for name, by_kind in summary["scores"].items():
        assert list(by_kind) == ["GRU"]
        for kind, scores in by_kind.items():
            assert scores[0].shape == (2,)
            assert np.isfinite(scores[0]).all()
            assert written["solved"][name][kind] == [int(TINY[name].is_solved(scores[0]).sum())]
            for left in written["gradient_that_is_left"][name][kind].values():
                assert left > 0
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert len(rows) == 2
    assert float(rows[-1]["copy GRU gap 6 train_loss"]) > 0
    for name in ("success", "learning_curves", "gradients"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    assert not list(tmp_path.glob(".*")), "nothing is left written aside"
    assert "how many solved it" in capsys.readouterr().out


def test_two_numbers_are_marked_one_in_each_half(key):
    inputs, targets = map(np.asarray, memory.draw_adding(key, 500, 7))
    numbers, marks = inputs[..., 0], inputs[..., 1]
    assert set(np.unique(marks)) == {0, 1}
    np.testing.assert_array_equal(marks[:, :3].sum(1), 1)
    np.testing.assert_array_equal(marks[:, 3:].sum(1), 1)
    assert marks.any(0).all(), "each place is marked in some sequence"
    np.testing.assert_allclose(targets, numbers[marks == 1].reshape(500, 2).sum(1), rtol=1e-6)
    assert 0 <= numbers.min() < 0.01 < 0.99 < numbers.max() < 1
    assert np.var(targets) == pytest.approx(1 / 6, rel=0.2), "what knowing nothing costs"


@pytest.mark.slow
def test_symbols_are_shown_then_silence_then_cues(key):
    inputs, symbols = map(np.asarray, memory.draw_copy(key, 500, 4))
    shown, silence, cues = np.split(inputs, [3, 7], axis=1)
    np.testing.assert_array_equal(shown.argmax(-1), symbols)
    np.testing.assert_array_equal(shown.sum(-1), 1)
    assert not silence.any()
    np.testing.assert_array_equal(cues, np.broadcast_to(np.eye(9)[8], (500, 3, 9)))
    assert set(np.unique(symbols)) == set(range(8))
    answers = np.concatenate([np.zeros((500, 7, 8)), np.eye(8)[symbols]], axis=1)
    assert memory.recalled(answers, symbols).mean() == 1
    wrong = np.concatenate([np.zeros((500, 7, 8)), np.eye(8)[(symbols + 1) % 8]], axis=1)
    assert memory.recalled(wrong, symbols).mean() == 0
    assert memory.recall_loss(jnp.asarray(20 * answers, float), symbols).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_gates_keep_for_times_up_to_the_gap(key, kind):
    inputs, _ = memory.draw_adding(key, 1, 50)
    biases = memory.network(memory.TASKS["adding"], kind, 50).init(key, inputs)["params"]["layer_0"]["bias"]
    first, keep, *others = np.split(np.asarray(biases), 4)
    times = 1 / (1 - jax.nn.sigmoid(keep))  # a gate that keeps p at each step has forgotten 1/e after about 1/(1−p)
    assert 1.9 < times.min() < 10 < 40 < times.max() < 50.1
    np.testing.assert_array_equal(first, -keep if kind == "LSTM" else 0)
    assert not np.any(others)


@pytest.mark.slow
def test_networks_have_about_as_many_weights(key):
    inputs, _ = memory.draw_adding(key, 1, 50)
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(memory.network(memory.TASKS["adding"], kind, 50).init(key, inputs)))
        for kind in memory.WIDTHS
    ]
    assert max(sizes) < 1.1 * min(sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("add",)}, "tasks: expected one of 'adding', 'copy', got 'add'"),
        ({"gaps": (10, 3)}, "gaps: expected at least 4 steps each, got 3"),
    ],
)
def test_wrong_options_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        memory.main(dataclasses.replace(memory.Config(out=tmp_path), **change))
