import json

import matplotlib.image
import pytest

from experiments import data_parallel


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "processes"), [((1, 3), 1), ((1, 2, 8), 2)])
def test_the_experiment_writes_what_it_says(tmp_path, capsys, devices, processes):
    config = data_parallel.Config(
        out=tmp_path,
        devices=devices,
        processes=processes,
        hidden=(16,),
        epochs=2,
        timed_epochs=1,
        batch_size=50,
        learning_rate=0.05,
    )
    data_parallel.main(config)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["gradient_bytes"] == 4 * (64 * 16 + 16 + 16 * 10 + 10)
    assert [(run["strategy"], run["devices"], run["processes"]) for run in written["runs"]] == [
        *((strategy, count, 1) for strategy in ("mesh", "pmap") for count in devices),
        *((strategy, 2, 2) for strategy in ("mesh", "pmap") if processes == 2),
    ]
    for run in written["runs"]:
        assert run["loss_apart"] < 1e-5
        assert run["examples_per_second"] > 0
        if run["devices"] == 1:
            assert run["exchanges"] == []
        else:
            largest = max(each["bytes"] for each in run["exchanges"])
            assert written["gradient_bytes"] <= largest <= written["gradient_bytes"] + 64
    assert matplotlib.image.imread(tmp_path / "data_parallel.png").std() > 0.05
    assert (tmp_path / "history.csv").read_text().startswith("epoch,mesh on 1 train_loss")
    assert "exchanges per step" in capsys.readouterr().out


def test_more_devices_than_there_are():
    with pytest.raises(ValueError, match="devices: expected at most the 8 available, got 9"):
        data_parallel.main(data_parallel.Config(devices=(9,)))
