"""Low-, mid- and high-level features: what three convolutional layers learn, and what can be predicted from each.

    python -m experiments.learned_features [--out DIR] [--seed N] [--data fashion_mnist]

By default the data are digits placed at random on a larger field, so that no pixel means the same thing in two images;
with `--data fashion_mnist` they are unaltered images of clothing. A network of three convolutional layers is trained
on several splits. A linear classifier, the probe, then predicts the class from raw pixels, from hand-crafted features
(histograms of oriented gradients, HOG), and from all outputs of each layer, trained and untrained: one split of the
images trains the probe, a second chooses its epoch and learning rate, and a third scores it. On digits, expect the
accuracy of the probe to climb from 0.26 on pixels to 0.74, 0.90 and 0.96 on the layers, with HOG close to the first
layer at 0.76. On clothing, 3,600 images are used for training, and the position of a pixel already tells a lot. There
the accuracy climbs from 0.84 on pixels to 0.865 on the first layer and 0.874 on the second; the third layer is no
better, and HOG is close behind at 0.863. On digits, a unit of the first layer sees an edge, a unit of the second layer
a bend or the end of a stroke, and a unit of the third layer much of a digit. The experiment takes one to two minutes,
or three on clothing.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import nnfx
from experiments.common import BLUE, GREY, ORANGE, Results, command, print_table
from nnfx.data import Data
from nnfx.insight import features
from nnfx.types import Array, Batch, Variables

LAYERS = {"conv_0": "low", "conv_1": "mid", "conv_2": "high"}
SEEN = {"conv_0": (1, 2, 5), "conv_1": (2, 4, 10), "conv_2": (4, 8, 20)}
"""The receptive field of a unit in each layer, as `(step, before, width)`.

At position p of its map, a unit sees `width` pixels, starting at pixel `p · step − before`."""
RAW, HOG = "raw pixels", "HOG"
L2, TOTAL_VARIATION = 0.002, 0.02
"""Penalties on a synthetic input, in units of the largest activation for a real image."""
REAL = 5
"""The number of real images to show for each unit."""
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
"""Learning rates tried for the probe; the one with the lowest loss on the images for choosing is kept."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the experiment on learned features."""

    out: Path = Path("runs/learned_features")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    data: Literal["digits", "fashion_mnist"] = "digits"
    """digits placed at random, or unaltered clothing"""
    rows: int = 6000
    """the largest number of images to use: 60 % for training, 15 % for choosing, 25 % for scoring"""
    size: int = 12
    """size of the enlarged digits in pixels, originally 8"""
    field: int = 20
    """size in pixels of the field on which digits are placed"""
    copies: int = 2
    """the number of random places for each training digit"""
    splits: int = 5
    """number of random splits, each with its own network; at least 2 for a standard deviation"""
    widths: tuple[int, int, int] = (8, 16, 32)
    """numbers of features of the three convolutional layers"""
    epochs: int = 20
    """number of epochs of the network; the epoch with the lowest loss on the images for choosing is kept"""
    probe_epochs: int = 30
    """number of epochs of each probe; the best epoch is chosen in the same way"""
    batch_size: int = 64
    """number of images in a minibatch"""
    learning_rate: float = 0.003
    """learning rate of the network (Adam)"""
    units: int = 6
    """number of units of each layer to show"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    images = nnfx.data.images(config.data)
    train = training(network(config), config.epochs, config)
    probe = make_probe(config)
    accuracies: dict[str, list[float]] = {}
    own: list[float] = []
    for key in jax.random.split(jax.random.key(config.seed), config.splits):
        split_key, key = jax.random.split(key)
        data, score_by = split(split_key, images, config)
        run = train(key, data, learning_rate=config.learning_rate)
        own.append(float(run.evaluate(score_by)["accuracy"]))
        sets = represent(run, key, data, score_by)
        for name, parts in sets.items():
            accuracies.setdefault(name, []).append(float(probe(data, score_by, standardised(parts))))
        if len(own) == 1:
            drawn, sizes = (run, score_by), {name: parts[0][0].size for name, parts in sets.items()}

    found = {name: {**mean_and_spread(values), "features": sizes[name]} for name, values in accuracies.items()}
    whole = {"accuracy": mean_and_spread(own)}
    assert data.valid is not None
    rows = {"train": len(data.train.targets), "choose": len(data.valid.targets), "score": len(score_by.targets)}
    show(found, whole["accuracy"], rows, config)
    climb = [RAW, *(f"{layer}, trained" for layer in LAYERS)]
    gains = {
        f"{before} to {after}": mean_and_spread(np.subtract(accuracies[after], accuracies[before]))
        for before, after in [*itertools.pairwise(climb), (HOG, climb[-1])]
    }

    run, score_by = drawn
    draw_probes(results, accuracies, own, config)
    draw_filters_and_maps(results, run, score_by, images.classes)
    draw_units(results, run, score_by, config)
    draw_class_activation_maps(results, run, score_by, images.classes)
    results.history(run.history)
    return results.summary(
        {
            "data": config.data,
            "rows": rows,
            "splits": config.splits,
            "probes": found,
            "gains": gains,
            "network": whole,
            "seed": config.seed,
        }
    )


def split(key: Array, images: nnfx.data.Images, config: Config) -> tuple[Data, Batch]:
    """Draw images for training; most of the others are for scoring, and the rest are held out for choosing."""
    key, rows_key, *place_keys = jax.random.split(key, 5)
    rows = np.asarray(jax.random.permutation(rows_key, len(images.train.targets)))[: config.rows]
    chosen = images._replace(train=type(images.train)(*(array[rows] for array in images.train)))
    data = chosen.prepare(key=key, valid_fraction=0.4)
    assert data.valid is not None
    cut = len(data.valid.targets) * 3 // 8
    choose_by = jax.tree.map(lambda array: array[:cut], data.valid)
    score_by = jax.tree.map(lambda array: array[cut:], data.valid)
    batches = [data.train, choose_by, score_by]
    if config.data == "digits":
        counts = (config.copies, 1, 1)
        batches = [place(*parts, config) for parts in zip(place_keys, batches, counts, strict=True)]
    return dataclasses.replace(data, train=batches[0], valid=batches[1]), batches[2]


def place(key: Array, batch: Batch, copies: int, config: Config) -> Batch:
    """Enlarge each image, and place `copies` copies of it at random positions, each on its own blank canvas."""
    rows = len(batch.targets)
    enlarged = jax.image.resize(batch.inputs, (rows, config.size, config.size, 1), "bilinear")
    batch = jax.tree.map(lambda array: jnp.repeat(array, copies, axis=0), batch._replace(inputs=enlarged))
    corners = jax.random.randint(key, (rows * copies, 2), 0, config.field - config.size + 1)
    field = jnp.zeros((config.field, config.field, 1))

    def put(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_update_slice(field, image, (corner[0], corner[1], 0))

    return batch._replace(inputs=jax.vmap(put)(batch.inputs, corners))


def network(config: Config) -> nnfx.Model:
    """Return three convolutional layers and a dense layer, which sees means over positions if these are random."""
    conv, pool = nnfx.models.conv, nnfx.models.max_pool()
    low, mid, high = config.widths
    layers = [conv(low, 5), pool, conv(mid), pool, conv(high)]
    mean = [nnfx.ops.global_avg_pool] if config.data == "digits" else []
    return nnfx.models.cnn([*layers, *mean], outputs=10)


def training(model: nnfx.Model, epochs: int, config: Config) -> Any:
    """Return a function that trains by minibatches and keeps the epoch with the lowest held-out loss."""
    return nnfx.fit(
        model,
        nnfx.losses.categorical_cross_entropy,
        optax.adam,
        epochs=epochs,
        batch_size=config.batch_size,
        metrics={"accuracy": nnfx.metrics.accuracy},
    )


Parts = tuple[Array, Array, Array]
"""Representations of the images for training, for choosing and for scoring."""


def represent(run: nnfx.Run, key: Array, data: Data, score_by: Batch) -> dict[str, Parts]:
    """Return the inputs of probes: pixels, HOG, and the outputs of layers in the trained and untrained network."""
    model = run.model
    assert data.valid is not None
    inputs = (data.train.inputs, data.valid.inputs, score_by.inputs)
    sets = {RAW: inputs, HOG: tuple(map(histograms_of_gradients, inputs))}
    for state, variables in {"trained": run.best.variables, "untrained": model.init(key, inputs[0][:1])}.items():
        outputs = [features.layer_outputs(model, variables, part) for part in inputs]
        sets |= {f"{layer}, {state}": tuple(output[layer] for output in outputs) for layer in LAYERS}
    return cast(dict[str, Parts], sets)


def histograms_of_gradients(images: Array) -> Array:
    """Return the features of Dalal and Triggs: nine orientations, cells of 4 × 4 pixels, blocks of 2 × 2 cells."""
    from skimage.feature import hog

    options = {"orientations": 9, "pixels_per_cell": (4, 4), "cells_per_block": (2, 2)}
    return jnp.asarray(np.stack([hog(image[..., 0], **options) for image in np.asarray(images)]), float)


def standardised(parts: Parts) -> Parts:
    """Flatten the features, and scale each to mean 0 and standard deviation 1 on the training images."""
    train, *others = (np.asarray(part).reshape(len(part), -1) for part in parts)
    mean, scale = train.mean(0), train.std(0)
    scale[scale < 1e-6] = 1  # a feature that is never active stays zero
    return cast(Parts, tuple(jnp.asarray((part - mean) / scale) for part in (train, *others)))


def make_probe(config: Config) -> Any:
    """Return a function that trains logistic regressions on features, chooses one, and scores it."""
    train = training(nnfx.models.perceptron(outputs=10, initializer="zeros"), config.probe_epochs, config)

    @jax.jit
    def probe(data: Data, score_by: Batch, parts: Parts) -> Array:
        assert data.valid is not None
        batches = (data.train, data.valid, score_by)
        fitted, choose_by, score_by = (batch._replace(inputs=part) for batch, part in zip(batches, parts, strict=True))
        data = dataclasses.replace(data, train=fitted, valid=choose_by)

        def at(rate: Array) -> tuple[Array, Array]:
            run = train(jax.random.key(0), data, learning_rate=rate)
            return run.best.loss, run.evaluate(score_by)["accuracy"]

        losses, scores = jax.vmap(at)(jnp.array(RATES))
        return scores[losses.argmin()]

    return probe


def mean_and_spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return the mean and the standard deviation over the splits."""
    several = np.asarray(values, float)
    return {"mean": float(several.mean()), "deviation": float(several.std(ddof=1))}


def show(found: dict[str, dict[str, Any]], own: dict[str, float], rows: dict[str, int], config: Config) -> None:
    """Print the accuracy of every probe."""
    print(
        f"{config.splits} splits: {rows['train']} images for training, {rows['choose']} for choosing,"
        f" {rows['score']} for scoring\n"
    )
    table = [[name, numbers["features"], numbers["mean"], numbers["deviation"]] for name, numbers in found.items()]
    print_table(["linear probe on", "features", "accuracy", "± sd"], table)
    print(f"\nthe network itself: {own['mean']:.4f} ± {own['deviation']:.4f}")


def draw_probes(results: Results, accuracies: dict[str, list[float]], own: list[float], config: Config) -> None:
    """Plot the accuracy of the probes on every split, and the mean over splits."""
    figure, axis = plt.subplots(figsize=(8, 4.6))
    places = {RAW: 0, HOG: 1} | {layer: place for place, layer in enumerate(LAYERS, start=2)}
    series: dict[str, tuple[list[str], dict[str, Any]]] = {
        "fixed features": ([RAW, HOG], {"color": GREY, "fmt": "s"}),
        "layers before training": ([f"{layer}, untrained" for layer in LAYERS], {"color": ORANGE, "fmt": "^--"}),
        "layers after training": ([f"{layer}, trained" for layer in LAYERS], {"color": BLUE, "fmt": "o-"}),
    }
    for label, (names, style) in series.items():
        where = np.array([places[name.split(", ")[0]] for name in names])
        values = np.array([accuracies[name] for name in names])
        axis.errorbar(where, values.mean(1), values.std(1, ddof=1), capsize=5, label=label, **style)
        for place, on_splits in zip(where, values, strict=True):
            axis.plot(np.full(len(on_splits), place + 0.12), on_splits, ".", color=style["color"], alpha=0.5)
    axis.axhline(float(np.mean(own)), color="black", linewidth=1, linestyle=":", label="the network's own outputs")
    axis.set_xticks(range(5), [RAW, HOG, *(f"layer {i + 1}\n({level})" for i, level in enumerate(LAYERS.values()))])
    axis.set(ylabel="accuracy of a linear probe, unseen images", xlabel="what the probe reads")
    axis.set_title(f"{config.data}: mean ± standard deviation of {config.splits} splits (dots: each)")
    axis.legend(loc="lower right")
    results.figure("probes", figure)


def picture(axis: Axes, image: ArrayLike, title: str = "", **options: Any) -> None:
    """Plot an image without ticks on its axes."""
    axis.imshow(np.asarray(image), **{"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest", **options})
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set(visible=True, color=GREY, linewidth=0.5)
    axis.set_title(title, fontsize=9)


def draw_filters_and_maps(results: Results, run: nnfx.Run, score_by: Batch, classes: tuple[str, ...]) -> None:
    """Plot the filters of the first layer, and each layer's strongest feature maps for one image."""
    model, image = run.model, score_by.inputs[:1]
    outputs = features.layer_outputs(model, run.best.variables, image)
    filters = features.drawable(features.filters(run.best.variables, "conv_0"))
    shown = len(filters)
    figure, axes = plt.subplots(4, shown + 1, figsize=(1.15 * (shown + 1), 5.4))
    picture(axes[0, 0], image[0, ..., 0], f"an image:\n{classes[int(score_by.targets[0])]}")
    for axis in axes[1:, 0]:
        axis.set_visible(False)
    for unit, axis in enumerate(axes[0, 1:]):
        picture(axis, filters[unit, ..., 0], f"filter {unit}")
    for row, (layer, level) in zip(axes[1:], LAYERS.items(), strict=True):
        maps = np.asarray(outputs[layer][0])
        strongest = np.sort(np.argsort(-maps.max((0, 1)))[:shown])
        for unit, axis in zip(strongest, row[1:], strict=True):
            picture(axis, maps[..., unit], f"{level} {unit}", vmax=float(maps.max()), cmap="viridis")
    figure.suptitle(
        f"filters of the first layer (grey: zero), and the {shown} strongest feature maps of each layer"
        " (dark: zero; bright: the layer's largest)",
        fontsize=10,
    )
    results.figure("filters_and_maps", figure)


def draw_units(results: Results, run: nnfx.Run, score_by: Batch, config: Config) -> None:
    """Plot the synthetic input and the real images that excite units of each layer most."""
    model, variables = run.model, run.best.variables
    figure = plt.figure(figsize=(14, 1.0 + 0.85 * config.units))
    panels = cast(Any, figure.subfigures(1, 3, wspace=0.04))
    for panel, (layer, level) in zip(panels, LAYERS.items(), strict=True):
        strengths = features.layer_outputs(model, variables, score_by.inputs)[layer].max((1, 2))
        units = jnp.argsort(-strengths.std(0))[: config.units]  # the units whose activations differ most between images
        found, top = exciting(model, variables, layer, units, score_by.inputs, jax.random.key(config.seed))
        axes = panel.subplots(config.units, 1 + REAL, squeeze=False)
        for row, unit in enumerate(units):
            images = jnp.concatenate([found.inputs[row, None], score_by.inputs[top.rows[row]]])
            activations = [found.activation[row], *top.activations[row]]
            maps = np.asarray(features.layer_outputs(model, variables, images)[layer][..., unit])
            for axis, image, map_, activation in zip(axes[row], images, maps, activations, strict=True):
                strongest = np.unravel_index(map_.argmax(), map_.shape)
                picture(axis, seen(image, layer, *map(int, strongest)), f"{float(activation):.2g}")
            axes[row, 0].set_ylabel(f"unit {int(unit)}", fontsize=9)
            for spine in axes[row, 0].spines.values():
                spine.set(color=ORANGE, linewidth=2)
        width = SEEN[layer][-1]
        panel.suptitle(f"{level} level: {layer}, a unit sees {width} × {width} pixels", fontsize=11)
    figure.suptitle(
        "framed: the input that excites a unit most, by gradient ascent; beside it the unseen images that do"
        " (above each: the activation)",
        fontsize=11,
    )
    results.figure("units", figure)


@functools.partial(jax.jit, static_argnums=(0, 2))
def exciting(
    model: nnfx.Model, variables: Variables, layer: str, units: Array, images: Array, key: Array
) -> tuple[features.Maximum, features.Top]:
    """Find the synthetic input and the real images that excite each unit most."""

    def one(unit: Array) -> tuple[features.Maximum, features.Top]:
        top = features.top_inputs(model, variables, images, layer, unit, REAL, pool="max")
        scale = top.activations[0]
        found = features.maximize(
            key,
            model,
            variables,
            layer,
            unit,
            images.shape[1:],
            steps=128,
            l2=L2 * scale,
            total_variation=TOTAL_VARIATION * scale,
            bounds=(0.0, 1.0),
            starts=8,
            pool="max",
        )
        return found, top

    return jax.vmap(one)(units)


def seen(image: Array, layer: str, row: int, column: int) -> np.ndarray:
    """Cut out the part of an image that a unit at this position of its map sees; pixels beyond the edge are black."""
    step, before, width = SEEN[layer]
    top, left = (position * step - before + width for position in (row, column))
    return np.pad(np.asarray(image[..., 0]), width)[top : top + width, left : left + width]


def draw_class_activation_maps(results: Results, run: nnfx.Run, score_by: Batch, classes: tuple[str, ...]) -> None:
    """Plot where the network sees the class that it predicts, and the pixels on which the prediction depends."""
    model, variables = run.model, run.best.variables
    images, targets = score_by.inputs[:8], score_by.targets[:8]
    predicted = run.apply(images).argmax(-1)
    maps = np.asarray(features.class_activation_map(model, variables, images, "conv_2", relative=True))
    saliency = np.asarray(features.saliency(model, variables, images))
    figure, axes = plt.subplots(3, len(images), figsize=(1.5 * len(images), 5.2))
    for column, (image, target, guess) in enumerate(zip(images[..., 0], targets, predicted, strict=True)):
        words = f"{classes[int(target)]}\ntaken for {classes[int(guess)]}"
        picture(axes[0, column], image, words)
        picture(axes[1, column], image)
        axes[1, column].imshow(maps[column], cmap="inferno", alpha=0.65, vmin=0)
        picture(axes[2, column], saliency[column], vmax=float(saliency[column].max()))
    for axis, label in zip(axes[:, 0], ("image", "class activation map", "saliency"), strict=True):
        axis.set_ylabel(label)
    figure.suptitle(
        "where the predicted class is seen (last convolutional layer), and the pixels that determine the prediction"
    )
    results.figure("class_activation_maps", figure)


if __name__ == "__main__":
    command(main, Config, __doc__)
