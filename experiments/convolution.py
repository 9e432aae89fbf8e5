"""Convolution and pooling by hand: a small kernel slid over a digit, number by number.

    python -m experiments.convolution [--out DIR] [--seed N]

A kernel of 3 × 3 numbers that responds to vertical edges is slid over one of scikit-learn's digits, 8 × 8 pixels with
values from 0 to 16; at each place, nine products are added. The sums go through ReLU and are pooled: the largest of
each 2 × 2 sums is kept. All of this is done first by loops over whole numbers and then by `nnfx.ops`. Expect the two
results to be equal, since sums of such small integers are exact. Then four kernels (blur, sharpen, and edges in
two directions) are slid over a larger picture. The experiment works offline and takes about five seconds.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import nnfx
from experiments.common import GREEN, ORANGE, Results, command, print_table
from experiments.detection import scenes

EDGE = np.array([[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]])
"""A kernel whose sums are positive where the image gets brighter to the right."""
KERNELS = {
    "blur: the mean": np.full((3, 3), 1 / 9),
    "sharpen": np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]]),
    "vertical edges": EDGE,
    "horizontal edges": EDGE.T,
}
POOL = 2
"""The side of the windows that are pooled."""
PLACE = (2, 4)
"""The row and column of the window whose sum is written out."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the convolution experiment."""

    out: Path = Path("runs/convolution")
    """the folder for the results"""
    seed: int = 0
    """the random seed of the larger picture"""
    digit: int = 0
    """index of the digit to convolve by hand, among 1,797"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    images = nnfx.data.images("digits").train
    digit = images.inputs[config.digit, ..., 0].astype(int)
    sums = slide(digit, EDGE)
    pooled = pool(np.maximum(sums, 0))
    compared = {
        "convolution": compare(sums, convolve(digit, EDGE)),
        "max pool": compare(pooled, nnfx.ops.max_pool(as_batch(np.maximum(sums, 0)), POOL)),
    }
    print(f"at row {PLACE[0]} and column {PLACE[1]}: {products(digit)} = {sums[PLACE]}\n")
    print_table(["by hand and by nnfx.ops", "largest difference"], compared.items())
    draw_by_hand(results, digit, sums, pooled)

    digits = scenes.split_items(jax.random.key(config.seed), held_out=0.3)["test"]
    picture = scenes.draw_scenes((config.seed, 0), digits, 1).picture[0]
    maps = {name: np.asarray(convolve(picture, kernel))[0, ..., 0] for name, kernel in KERNELS.items()}
    draw_kernels(results, picture, maps)
    return results.summary(
        {
            "digit": {"row": config.digit, "name": images.targets[config.digit]},
            "differences": compared,
            "sums": sums,
            "pooled": pooled,
            "seed": config.seed,
        }
    )


def slide(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return the sums of products of a kernel and every window of an image, without padding.

    Args:
        image: whole numbers, `(height, width)`.
        kernel: whole numbers, `(rows, columns)`.

    Returns:
        The sums, `(height − rows + 1, width − columns + 1)`.

    Example:
        >>> slide(np.array([[1, 5, 6], [2, 2, 9]]), np.array([[-1, 1]])).tolist()
        [[4, 1], [0, 7]]
    """
    rows, columns = kernel.shape
    sums = np.zeros((image.shape[0] - rows + 1, image.shape[1] - columns + 1), int)
    for top in range(sums.shape[0]):
        for left in range(sums.shape[1]):
            for i in range(rows):
                for j in range(columns):
                    sums[top, left] += image[top + i, left + j] * kernel[i, j]
    return sums


def pool(sums: np.ndarray) -> np.ndarray:
    """Keep the largest number of each 2 × 2 window; a last row or column that does not fill a window is left out.

    Example:
        >>> pool(np.array([[1, 2, 0, 0], [3, 0, 0, 7]])).tolist()
        [[3, 7]]
    """
    height, width = (size // POOL for size in sums.shape)
    corners = [(POOL * i, POOL * j) for i in range(height) for j in range(width)]
    return np.array([sums[i : i + POOL, j : j + POOL].max() for i, j in corners]).reshape(height, width)


def products(image: np.ndarray) -> str:
    """Return the sum of products at `PLACE` as a formula."""
    row, column = PLACE
    window = image[row : row + len(EDGE), column : column + len(EDGE)]
    pairs = zip(window.ravel(), EDGE.ravel(), strict=True)
    return " + ".join(f"{pixel}·{weight}" if weight >= 0 else f"{pixel}·(−{-weight})" for pixel, weight in pairs)


def as_batch(image: np.ndarray) -> jax.Array:
    """Return an image of one channel as a batch for `nnfx.ops`, `(1, height, width, 1)`."""
    return jnp.asarray(image[None, :, :, None], jnp.float32)


def convolve(image: np.ndarray, kernel: np.ndarray) -> jax.Array:
    """Slide a kernel over an image without padding, with nnfx."""
    return nnfx.ops.convolution(as_batch(image), jnp.asarray(kernel[:, :, None, None], jnp.float32), padding="VALID")


def compare(by_hand: np.ndarray, found: jax.Array) -> float:
    """Return the largest absolute difference between the results of both methods."""
    return float(np.abs(by_hand - np.asarray(found)[0, ..., 0]).max())


def draw_by_hand(results: Results, digit: np.ndarray, sums: np.ndarray, pooled: np.ndarray) -> None:
    """Plot all numbers, and frame one window and its result at each stage."""
    row, column = PLACE
    size, kept = len(EDGE), (row // POOL, column // POOL)
    brightest, largest = digit.max(), np.abs(sums).max()
    figure, axes = plt.subplots(1, 5, figsize=(15, 4.4), width_ratios=(8, 3.4, 6, 6, 3.4))
    draw_numbers(axes[0], digit, "a digit, 8 × 8", 0, brightest)
    draw_numbers(axes[1], EDGE, "the kernel, 3 × 3", -1, 1)
    draw_numbers(axes[2], sums, "sums of products, 6 × 6", -largest, largest)
    draw_numbers(axes[3], np.maximum(sums, 0), "ReLU: none below zero", -largest, largest)
    draw_numbers(axes[4], pooled, "max pool, 3 × 3", -largest, largest)
    frame(axes[0], row, column, size, ORANGE)
    frame(axes[1], 0, 0, size, ORANGE)
    frame(axes[2], row, column, 1, ORANGE)
    frame(axes[3], POOL * kept[0], POOL * kept[1], POOL, GREEN)
    frame(axes[4], *kept, 1, GREEN)
    words = f"framed in orange: {products(digit)} = {sums[PLACE]}; in green: the largest of four"
    figure.suptitle(words.replace("-", "−"))
    results.figure("by_hand", figure)


def draw_numbers(axis: Axes, numbers: np.ndarray, title: str, darkest: float, brightest: float) -> None:
    """Plot an array of numbers as an image, with each number on its pixel."""
    axis.imshow(numbers, cmap="gray", vmin=darkest, vmax=brightest)
    for (row, column), number in np.ndenumerate(numbers):
        is_dark = number < (darkest + brightest) / 2
        colour = "white" if is_dark else "black"
        axis.text(column, row, f"{number}".replace("-", "−"), ha="center", va="center", color=colour, fontsize=9)
    axis.set_title(title)
    axis.set_axis_off()


def frame(axis: Axes, row: int, column: int, size: int, colour: str) -> None:
    """Frame a window of `size` × `size` pixels."""
    axis.add_patch(
        Rectangle((column - 0.5, row - 0.5), size, size, fill=False, edgecolor=colour, linewidth=3, clip_on=False)
    )


def draw_kernels(results: Results, picture: np.ndarray, maps: dict[str, np.ndarray]) -> None:
    """Plot a picture and the result of each kernel."""
    figure, axes = plt.subplots(1, 1 + len(maps), figsize=(14, 3.3))
    axes[0].imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes[0].set_title("a picture, 96 × 96")
    for axis, (name, answers) in zip(axes[1:], maps.items(), strict=True):
        largest = float(np.abs(answers).max())
        has_signs = "edges" in name
        axis.imshow(answers, cmap="gray", vmin=-largest if has_signs else 0, vmax=largest if has_signs else 1)
        axis.set_title(name)
    for axis in axes:
        axis.set_axis_off()
    figure.suptitle(
        "four kernels of 3 × 3 on one picture; of edges, bright is brighter to the right or below, and grey is zero"
    )
    results.figure("kernels", figure)


if __name__ == "__main__":
    nnfx.cpu.set_up(devices=1)
    command(main, Config, __doc__)
