"""Double descent: with width, the test error falls, rises to a peak at interpolation, and falls again.

    python -m experiments.double_descent [--out DIR] [--seed N] [--noise 0.1]

Two-layer networks learn 200 handwritten digits, a tenth of which have labels drawn at random. Their hidden ReLU layer
stays random, and their output layer is the minimum-norm least-squares solution. Once there are as many hidden
units as digits, the network interpolates: its training error is zero. At this width the problem is ill-conditioned,
and the test error peaks; beyond it, the minimum-norm solution becomes smoother with width, and the error falls below
its lowest value before the peak. A penalty on the norm, ridge regression, removes the peak. Expect all of this in each
of five random starts. It works offline and takes less than half a minute.

References:
    Belkin, Hsu, Ma and Mandal, *Reconciling modern machine-learning practice and the classical bias-variance
    trade-off*, PNAS 2019. Nakkiran et al., *Deep double descent*, ICLR 2020.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

import nnfx
from experiments.common import BLUE, GREY, ORANGE, Results, command, mean_and_error, print_table
from nnfx.insight import features
from nnfx.types import Array, Batch, Model


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the double descent experiment."""

    out: Path = Path("runs/double_descent")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    rows: int = 200
    """number of digits to train on; all others are held out"""
    noise: float = 0.1
    """fraction of the training digits whose labels are drawn at random"""
    relative_widths: tuple[float, ...] = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1, 1.2, 1.5, 2, 3, 5, 10, 20)
    """numbers of hidden units, as multiples of the number of training digits"""
    starts: int = 5
    """number of random choices of digits, labels and hidden units"""
    ridge: float = 1.0
    """the penalty on the squared norm, for comparison"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    widths = [max(1, round(config.rows * times)) for times in config.relative_widths]
    keys = jax.random.split(jax.random.key(config.seed), config.starts)
    model = nnfx.models.mlp((max(widths),), 10)
    errors = np.stack([measure(key, model, widths, config) for key in keys])  # starts × widths × (3,)
    train, test, penalised = (100 * errors[:, :, i].T for i in range(3))  # in per cent, widths × starts
    print(f"errors in per cent, {config.starts} random starts; ± standard error\n")
    found = {
        name: [mean_and_error(each) for each in values]
        for name, values in (("train", train), ("test", test), ("ridge", penalised))
    }
    print_table(
        ["width", *(head for name in found for head in (name, "±"))],
        [[str(width), *(n for name in found for n in found[name][i].values())] for i, width in enumerate(widths)],
    )
    relative = np.array(widths) / config.rows
    threshold = int(np.argmin(np.abs(relative - 1)))
    lowest_before = test[:threshold].min(0)
    peaks = relative[
        np.where(relative[:, None] >= 0.5, test, 0).argmax(0)
    ]  # only the wider half: narrow networks may have larger errors
    counts = {
        "peak_within_a_fifth": int((np.abs(peaks - 1) < 0.201).sum()),
        "widest_below_peak": int((test[-1] < test[threshold]).sum()),
        "widest_below_all_before": int((test[-1] < lowest_before).sum()),
    }
    print()
    print_table([f"of {config.starts} random starts", "how many"], counts.items())
    draw(results, np.array(widths), train, test, penalised, config)
    parts = {"peak": test[threshold], "lowest_before": lowest_before, "widest": test[-1], "widest_ridge": penalised[-1]}
    means = {name: mean_and_error(values) for name, values in parts.items()}
    return results.summary({**counts, **means, "errors": found, "widths": widths, "seed": config.seed})


def digits(key: Array, config: Config) -> tuple[Batch, Batch]:
    """Draw training digits, some with labels drawn at random, and hold out the others."""
    split_key, which_key, label_key = jax.random.split(key, 3)
    data = nnfx.data.digits(key=split_key, valid_fraction=1 - config.rows / 1797)
    assert data.valid is not None
    labels = jax.random.randint(label_key, (config.rows,), 0, 10)
    is_noisy = jax.random.bernoulli(which_key, config.noise, (config.rows,))
    return data.train._replace(targets=jnp.where(is_noisy, labels, data.train.targets)), data.valid


def measure(key: Array, model: Model, widths: list[int], config: Config) -> list[tuple[float, float, float]]:
    """Return the training error, and the test error without and with a penalty, for each number of hidden units."""
    data_key, weights_key = jax.random.split(key)
    parts = digits(data_key, config)
    variables = model.init(weights_key, parts[0].inputs)
    hidden = [features.layer_outputs(model, variables, part.inputs)["hidden_0"] for part in parts]
    train, test = (np.asarray(each, float) for each in hidden)
    labels, test_labels = (np.asarray(part.targets) for part in parts)

    def errors(width: int) -> tuple[float, float, float]:
        inputs, unseen, targets = train[:, :width], test[:, :width], np.eye(10)[labels] - 0.1
        plain, penalised = (least_squares(inputs, targets, ridge) for ridge in (0, config.ridge))
        outputs = ((inputs @ plain, labels), (unseen @ plain, test_labels), (unseen @ penalised, test_labels))
        train_error, test_error, ridge_error = (float((each.argmax(1) != right).mean()) for each, right in outputs)
        return train_error, test_error, ridge_error

    return [errors(width) for width in widths]


def least_squares(inputs: np.ndarray, targets: np.ndarray, ridge: float) -> np.ndarray:
    """Return the weights w that minimise `‖inputs w − targets‖² + ridge ‖w‖²`; if ridge is 0, those of minimum norm."""
    left, values, right = np.linalg.svd(inputs, full_matrices=False)
    is_zero = values <= values.max() * max(inputs.shape) * np.finfo(float).eps
    inverse = np.where(is_zero, 0, values / np.where(is_zero, 1, values**2 + ridge))
    return right.T @ (inverse[:, None] * (left.T @ targets))


def draw(
    results: Results, widths: np.ndarray, train: np.ndarray, test: np.ndarray, ridge: np.ndarray, config: Config
) -> None:
    """Plot the errors by width."""
    figure, axis = plt.subplots(figsize=(7.6, 4.6))
    for values, colour, label in (
        (test, ORANGE, "test"),
        (ridge, BLUE, f"test, ridge {config.ridge:g}"),
        (train, GREY, "training"),
    ):
        axis.plot(widths, values, color=colour, alpha=0.3, linewidth=0.8)
        axis.plot(widths, values.mean(1), "o-", color=colour, label=label, markersize=4)
    axis.axvline(config.rows, color="black", linestyle=":", linewidth=1)
    axis.annotate(" as many units as digits", (config.rows, 95))
    axis.set(xscale="log", xlabel="hidden units", ylabel="error (%)", ylim=(-2, 100))
    axis.set_title(
        f"{config.rows} digits, {config.noise:.0%} of the labels random; {config.starts} starts (thin) and their mean"
    )
    axis.legend()
    results.figure("by_width", figure)


if __name__ == "__main__":
    nnfx.cpu.set_up(devices=1)
    command(main, Config, __doc__)
