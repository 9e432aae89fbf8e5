import collections
import csv
import json

import matplotlib.image
import numpy as np
import pytest

from experiments import characters


def test_the_parts_are_whole_sonnets_and_make_up_all_of_them():
    text = characters.sonnets()
    assert len(text.characters) == 61
    lines = collections.Counter()
    for part, poems in ((text.train, 124), (text.valid, 15), (text.test, 15)):
        joined = "".join(text.characters[i] for i in part)
        sonnets = joined.strip().split("\n\n")
        assert len(sonnets) == poems
        lines.update(len(sonnet.split("\n")) for sonnet in sonnets)
    assert lines == {14: 152, 15: 1, 12: 1}  # the 99th has a line too many, and the 126th two too few
    assert "".join(text.characters[i] for i in text.train).startswith("From fairest creatures we desire increase,\n")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gru", "lstm", "transformer"])
def test_the_experiment_writes_what_it_says(tmp_path, model, capsys):
    config = characters.Config(
        out=tmp_path, model=model, hidden=8, features=4, epochs=2, batch_size=64, orders=5, written=40
    )
    summary = characters.main(config)
    written = json.loads((tmp_path / "summary.json").read_text())
    name = characters.NAMES[model]
    assert written["bits"].keys() == {name, *(f"{n}-gram, {kind}" for n in range(1, 6) for kind in characters.KINDS)}
    assert len(written["bits_by_context"]) == config.length
    # by hand: how often a character occurs among those trained on, and next to none of them is new
    text = characters.sonnets()
    share = np.bincount(text.train, minlength=61) / len(text.train)
    by_hand = -np.log2(np.maximum(share, 1e-9))[text.test[1:]].mean()
    assert written["bits"]["1-gram, Jelinek–Mercer"]["test"] == pytest.approx(by_hand, abs=0.03)
    assert 2.3 < written["bits"]["5-gram, Kneser–Ney"]["test"] < 2.35
    assert written["bits"][name]["test"] < np.log2(61)
    assert len(summary["written"]) <= 40
    assert summary["stream_error"] < 1e-5
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert len(rows) == 2
    for name in ("context", "learning_curves"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    assert "written by the network" in capsys.readouterr().out
