import shutil

import numpy as np
import pytest

import nnfx
from nnfx.data.formats import Examples


@pytest.fixture
def small_images(monkeypatch):
    """Replace Fashion-MNIST by a hundred images in which a bright row shows the label."""
    rng = np.random.default_rng(0)

    def examples(rows):
        labels = rng.integers(0, 10, rows).astype(np.int32)
        images = rng.integers(0, 30, (rows, 28, 28, 1)).astype(np.uint8)
        images[np.arange(rows), 2 * labels] = 255
        return Examples(images, labels)

    images = nnfx.data.Images(examples(70), examples(30), tuple("0123456789"), 255)
    data = images.prepare(hold_out_test=True)
    monkeypatch.setattr(nnfx.data, "fashion_mnist", lambda hold_out_test: data)
    return data


@pytest.fixture
def folder(tmp_path):
    """Write a table of 30 rows, of which both splits train on 24, the way both versions of Gal's repository do."""
    rng, data = np.random.default_rng(0), tmp_path / "UCI_Datasets/yacht/data"
    data.mkdir(parents=True)
    inputs = rng.normal(3, 2, (30, 3))
    np.savetxt(data / "data.txt", np.column_stack([inputs, inputs.sum(1) + rng.normal(0, 0.1, 30)]))
    np.savetxt(data / "index_features.txt", [0, 1, 2])
    np.savetxt(data / "index_target.txt", [3])
    for what, number in {"splits": 2, "hidden": 4, "epochs": 2}.items():
        (data / f"n_{what}.txt").write_text(f"{number}\n")
    for split in range(2):
        order = rng.permutation(30)
        np.savetxt(data / f"index_train_{split}.txt", order[:24])
        np.savetxt(data / f"index_test_{split}.txt", order[24:])
    results = tmp_path / "UCI_Datasets/yacht/results"
    results.mkdir()
    grid = [(0.005, 0.25, -2.0), (0.1, 0.25, -1.0), (0.05, 0.5, -3.0), (0.005, 0.25, -9.0), (0.1, 0.25, -8.0)]
    lines = [f"Dropout_Rate: {p} Tau: {tau} :: {score}" for p, tau, score in [*grid, (0.05, 0.5, -7.0)]]
    (results / "validation_ll_100_xepochs_1_hidden_layers.txt").write_text("\n".join(lines) + "\n")
    for name, scores in {"rmse": [0.625, 0.875], "MC_rmse": [0.5, 0.75], "ll": [-1.5, -1.25]}.items():
        np.savetxt(results / f"test_{name}_100_xepochs_1_hidden_layers.txt", scores)
    old = tmp_path / "2016/yacht"
    shutil.copytree(data, old / "data")
    (old / "net/net").mkdir(parents=True)
    script = "        dropout = 0.25\n        tau = 0.5 # obtained from BO\n        lengthscale = 1e-1\n"
    (old / "net/net/net.py").write_text(script)
    for number, folder_ in enumerate(("results", "results_10x_epochs", "results_2_layers")):
        (old / "net" / folder_).mkdir()
        for name, score in {"rmse": 3.0, "MC_rmse": 2.0, "ll": -4.0}.items():
            np.savetxt(old / f"net/{folder_}/test_{name}.txt", [score + number, score + number + 0.5])
    return tmp_path
