import json

import matplotlib.image
import numpy as np
import pytest

from experiments import scaling_model
from experiments.scaling_model import Link, all_reduce, efficiency, ring, sweep_efficiency, tree


def simulated_ring(devices, size, link):
    """Pass the parts around the ring step by step, on all devices at once."""
    seconds = 0.0
    for _ in range(2):  # one round to sum the parts, one to distribute them
        for _ in range(devices - 1):
            seconds += size / devices / link.bandwidth + link.latency
    return seconds


@pytest.mark.parametrize("devices", [1, 2, 3, 8, 100])
def test_a_ring_costs_what_its_steps_do(devices):
    link = Link(bandwidth=3e9, latency=2e-6)
    assert ring(devices, 1e6, link) == pytest.approx(simulated_ring(devices, 1e6, link))


def test_limits_of_an_exchange():
    fast, slow = Link(1e11, 0.0), Link(1e9, 1e-5)
    assert all_reduce(1, 1e9, 8, fast, slow) == 0
    assert all_reduce(8, 1e9, 8, fast, slow) == pytest.approx(2 * 7 / 8 * 1e9 / 1e11), "within a node: its links alone"
    many = all_reduce(80_000, 1e9, 8, fast, slow)
    bytes_alone = 2 * 1e9 / 1e11 + 2 * (1e9 / 8) / 1e9
    assert bytes_alone * 0.9 < many < bytes_alone + 2 * np.ceil(np.log2(10_000)) * 1e-5 + 1e-9, "a tree of 10,000 nodes"
    assert tree(10_000, 1e3, slow) < ring(10_000, 1e3, slow), "latency decides where there is little to send"
    assert ring(4, 1e9, slow) < tree(4, 1e9, slow), "bandwidth where there is much"


def test_efficiencies():
    assert efficiency(2.0, 0.0) == 1
    assert efficiency(1.0, 3.0) == 0.25
    assert efficiency(1.0, 0.5, hidden=0.7) == 1, "what is hidden costs nothing, and gains nothing"
    assert [sweep_efficiency(1000, n) for n in (1, 1000, 2000)] == [1, 1, 0.5]
    assert sweep_efficiency(1000, 999) == pytest.approx(1000 / 1998)


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    scaling_model.main(scaling_model.Config(out=tmp_path, widths=(4, 8), batch_size=4, repeats=2))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert [of["width"] for of in written["measured"]] == [4, 8]
    assert written["measured"][0]["size"] == 4 * (784 * 4 + 4 + 4 * 4 + 4 + 4 * 10 + 10)
    for of in written["measured"]:
        assert of["predicted"] == pytest.approx(of["both"] + of["exchange"])
    assert written["devices"][0] == 1
    assert written["devices"][-1] == 100_000
    for values in written["efficiency"].values():
        assert values[0] == 1
        assert all(0 <= value <= 1 for value in values)
    waits, hides = list(written["efficiency"].values())[:2]
    assert all(a <= b for a, b in zip(waits, hides, strict=True))
    assert matplotlib.image.imread(tmp_path / "scaling.png").std() > 0.05
    assert "predicted efficiency" in capsys.readouterr().out
