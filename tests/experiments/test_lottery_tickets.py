import json

import matplotlib.image
import numpy as np
import pytest

from experiments import lottery_tickets
from experiments.lottery_tickets import Config


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    lottery_tickets.main(Config(out=tmp_path, hidden=(4,), rounds=2, starts=2, epochs=1, batch_size=300))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["left"] == pytest.approx([1, 0.64])
    for kind in lottery_tickets.KINDS:
        assert [0 < each["mean"] < 100 for each in written[f"accuracy, {kind}"]] == [True, True]
        assert written["smallest"][kind] in (64, 100)
    assert matplotlib.image.imread(tmp_path / "by_share.png").std() > 0.05
    assert "point less accurate than the whole network" in capsys.readouterr().out


@pytest.mark.slow
def test_tickets_are_as_accurate_with_few_weights_and_learn_faster_than_redrawn_ones(tmp_path):
    summary = lottery_tickets.main(Config(out=tmp_path, starts=3, rounds=7))
    assert summary["smallest"]["initial"] < 20
    assert summary["smallest"]["initial"] < summary["smallest"]["redrawn"]
    assert (summary["better"][3:] == 3).all()
    for initial, redrawn in list(zip(summary["epochs, initial"], summary["epochs, redrawn"], strict=True))[1:6]:
        assert initial["mean"] < redrawn["mean"]


def test_the_first_epoch_below_a_loss():
    losses = np.array([[3.0, 1.0, 0.5, 2.0], [3.0, 3.0, 3.0, 3.0]])
    np.testing.assert_array_equal(lottery_tickets.first_below(losses, 1.5), [2, np.nan])


def test_the_smallest_share_within_a_margin():
    accuracy = np.array([[90.0, 92.0], [90.0, 90.5], [80.0, 81.0], [90.0, 92.0]])
    left = np.array([1.0, 0.5, 0.25, 0.125])
    assert lottery_tickets.smallest_share(left, accuracy, margin=1.0) == 0.5, "later rounds do not count"
    assert lottery_tickets.smallest_share(left, accuracy, margin=0.5) == 1.0
    assert lottery_tickets.smallest_share(left, accuracy, margin=20.0) == 0.125
