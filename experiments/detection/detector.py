"""A network that names the object in a small window, and the same network slid over a whole picture at several scales.

A network that consists only of unpadded convolutions and pooling accepts inputs of any size: for a window, it has one
output; for a picture, one output for every window in it, `STRIDE` pixels apart, all in a single pass.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import nnfx
from experiments.detection.boxes import Found, suppress, vote
from experiments.detection.scenes import SIZE, Scene
from nnfx.models.convolutional import Layer, conv, max_pool
from nnfx.types import Array, Batch, Model, Variables

NAMES = 10
"""The number of names: the digits."""
BACKGROUND = NAMES
"""The class of windows that show no digit of the right size at their centre."""
WINDOW, STRIDE = 24, 4
"""The side of a window, and the distance from one window to the next in a picture, in pixels."""
OBJECT = 16.0
"""The height of a digit that fits its window, with some of its surroundings."""
MARGIN = 8
"""Pixels repeated around a scaled picture, so that a digit at its edge has a window too."""
HEIGHTS = tuple(13.0 * 1.25**i for i in range(6))
"""The heights of digits in pixels of the picture, one for each scale, which resizes that height to `OBJECT`."""
SIDES = tuple(round(SIZE * OBJECT / height) for height in HEIGHTS)
"""The sides of the picture at these scales."""
NEAR, FAR = 3.0, 4.5
"""A window shows a digit at most `NEAR` pixels off its centre, and shows none if all digits are at least `FAR`
pixels off. Windows in between are not used in training."""
SAME, OTHER = np.log(1.18), np.log(1.35)
"""The limits that correspond to `NEAR` and `FAR` for the logarithm of the digit's height relative to `OBJECT`."""
CHOICE = 3
"""The number of empty windows drawn for each one used in training; the windows with the most contrast are kept, since
nearly all others show plain background."""


class Crops(NamedTuple):
    """Windows cut out of pictures.

    Attributes:
        windows: `(crops, WINDOW, WINDOW, 1)`.
        targets: the class of each window, and the digit's box as returned by `encode`, `(crops, 5)`.
    """

    windows: np.ndarray
    targets: np.ndarray


class Slid(NamedTuple):
    """The network's predictions for every window of some pictures, one scale after another.

    Attributes:
        probabilities: the probabilities of the classes, `(batch, windows, NAMES + 1)`.
        boxes: the boxes, `(batch, windows, 4)`, in pixels of the picture.
    """

    probabilities: Array
    boxes: Array


def layers(width: int) -> list[Layer]:
    """Return the layers of the network: the sides of a window become 10, 8, 4 and then 1."""
    relu = nnfx.activations.get("relu")
    return [
        conv(width, 6, strides=2, padding="VALID"),
        relu,
        conv(2 * width, 3, padding="VALID"),
        max_pool(),
        relu,
        conv(6 * width, 4, padding="VALID"),
        relu,
        conv(4 * width, 1),
        relu,
        conv(NAMES + 1 + 4, 1),
    ]


def slid(width: int) -> Model:
    """Return the sliding network, from pictures `(batch, height, width, 1)` to a map of outputs for each."""
    return nnfx.models.cnn(layers(width), outputs=None, activation="identity")


def classifier(width: int) -> Model:
    """Return the network to train, with the same variables, from windows to outputs `(batch, NAMES + 1 + 4)`."""
    return nnfx.models.cnn([*layers(width), flattened], outputs=None, activation="identity")


def flattened(maps: Array) -> Array:
    """Turn maps of one pixel into vectors."""
    return maps.reshape(maps.shape[0], -1)


def loss(outputs: Array, targets: Array, box_weight: ArrayLike) -> Array:
    """Return the cross-entropy of the class, plus the weighted Huber loss of the box if there is a digit."""
    names = targets[:, 0].astype(jnp.int32)
    naming = nnfx.losses.categorical_cross_entropy(outputs[:, : NAMES + 1], names)
    boxing = nnfx.losses.huber(outputs[:, NAMES + 1 :], targets[:, 1:], 0.1)
    return naming + box_weight * jnp.where(names == BACKGROUND, 0, boxing)


def accuracy(outputs: Array, targets: Array) -> Array:
    """Return whether the class is correct."""
    return nnfx.metrics.accuracy(outputs[:, : NAMES + 1], targets[:, 0].astype(jnp.int32))


def light(key: Array, batch: Batch, contrast: ArrayLike) -> Batch:
    """Change the contrast of each window by up to a fraction, and its brightness by up to a third of the fraction."""
    gain, offset = contrast * jax.random.uniform(key, (2, batch.inputs.shape[0], 1, 1, 1), minval=-1, maxval=1)
    return batch._replace(inputs=batch.inputs * (1 + gain) + offset / 3)


def overlay(key: Array, batch: Batch, overlaid: ArrayLike) -> Batch:
    """Overlay at most this fraction of the windows with an empty window of the batch, dimmed by a random factor."""
    chance_key, factor_key = jax.random.split(key)
    is_empty = jnp.roll(batch.targets[:, 0], 1) == BACKGROUND
    is_overlaid = is_empty & jax.random.bernoulli(chance_key, overlaid, is_empty.shape)
    factor = jnp.where(is_overlaid, jax.random.uniform(factor_key, is_empty.shape), 0)[:, None, None, None]
    return batch._replace(inputs=jnp.maximum(batch.inputs, factor * jnp.roll(batch.inputs, 1, axis=0)))


@partial(jax.jit, static_argnums=1)
def scaled(pictures: Array, side: int) -> Array:
    """Resize pictures `(batch, SIZE, SIZE)`, and repeat their edges: `(batch, ..., ..., 1)`."""
    resized = jax.image.resize(pictures, (pictures.shape[0], side, side), "linear")
    return jnp.pad(resized, [(0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)], mode="edge")[..., None]


def encode(boxes: np.ndarray, middles: np.ndarray, scales: ArrayLike) -> np.ndarray:
    """Return the positions and sizes of boxes relative to windows.

    Args:
        boxes: the boxes, `(..., 4)`, in pixels of the picture.
        middles: the centres of the windows, `(..., 2)`, in pixels of the picture.
        scales: the scales at which the windows were cut out, `(..., 1)`.

    Returns:
        The distances of the centre of each box below and to the right of the centre of the window, in units of
        `OBJECT`, then the logarithms of the box's height and width relative to `OBJECT`: `(..., 4)`.
    """
    offsets = (middles_of(boxes) - middles) * scales / OBJECT
    sizes = np.log((boxes[..., 2:] - boxes[..., :2]) * scales / OBJECT)
    return np.concatenate(np.broadcast_arrays(offsets, sizes), axis=-1)


def decode(codes: Array, middles: Array, scales: ArrayLike) -> Array:
    """Return boxes from the codes that `encode` returns."""
    middle = middles + codes[..., :2] * OBJECT / scales
    half = jnp.exp(codes[..., 2:]) * OBJECT / scales / 2
    return jnp.concatenate([middle - half, middle + half], axis=-1)


def middles_of(boxes: np.ndarray) -> np.ndarray:
    """Return the centres of boxes, `(..., 2)`."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def middles_of_windows(corners: np.ndarray, scales: float | np.ndarray) -> np.ndarray:
    """Return the centres of windows, in pixels of the picture, from their corners in the scaled picture, `(..., 2)`."""
    return (corners - MARGIN + WINDOW / 2) / scales


def windows_along(side: int) -> int:
    """Return the number of windows along a side of the scaled picture."""
    return (side + 2 * MARGIN - WINDOW) // STRIDE + 1


def cut_crops(seed: tuple[int, ...], scenes: Scene, per_digit: int, elsewhere: int) -> Crops:
    """Cut training windows out of scenes, at all scales and exactly as the network is slid over them.

    Args:
        seed: the random seed of the choice of windows.
        scenes: the scenes, as returned by `draw_scenes`.
        per_digit: the number of windows around each digit.
        elsewhere: the number of windows without a digit in each scene.
    """
    random = np.random.default_rng(seed)
    levels = [np.asarray(scaled(jnp.asarray(scenes.picture), side)) for side in SIDES]
    windows, targets = [], []
    for i, (boxes, names) in enumerate(zip(scenes.boxes, scenes.names, strict=True)):
        level, corners = draw_windows(random, boxes, per_digit, CHOICE * elsewhere)
        labelled = label(boxes, names, corners, np.array(SIDES)[level][:, None] / SIZE)
        crops = np.stack(
            [
                levels[k][i, top : top + WINDOW, left : left + WINDOW]
                for k, (top, left) in zip(level, corners, strict=True)
            ]
        )
        is_about_digit = np.arange(len(crops)) < len(names) * per_digit
        empty = np.flatnonzero((labelled[:, 0] == BACKGROUND) & ~is_about_digit)
        empty = empty[np.argsort(-crops[empty].std((1, 2, 3)), kind="stable")][:elsewhere]
        kept = np.concatenate([np.flatnonzero((labelled[:, 0] >= 0) & is_about_digit), empty])
        windows.append(crops[kept])
        targets.append(labelled[kept])
    return Crops(np.concatenate(windows), np.concatenate(targets).astype(np.float32))


def draw_windows(
    random: np.random.Generator, boxes: np.ndarray, per_digit: int, elsewhere: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw windows around digits at the scale that fits, then windows elsewhere, a third of them near digits.

    Returns:
        The scales of the windows, as positions in `SIDES`, and their corners in the scaled picture: `(windows,)` and
        `(windows, 2)`.
    """
    heights = boxes[:, 2] - boxes[:, 0]
    fitting = np.abs(np.log(heights[:, None] / np.array(HEIGHTS))).argmin(1)
    digits = np.concatenate([np.repeat(np.arange(len(boxes)), per_digit), random.integers(len(boxes), size=elsewhere)])
    level = np.append(fitting[digits[: len(digits) - elsewhere]], random.integers(len(SIDES), size=elsewhere))
    sides = np.array(SIDES)[level][:, None]
    furthest = np.where(np.arange(len(digits)) < len(digits) - elsewhere, NEAR - 0.5, WINDOW / 2)[:, None]
    off = random.uniform(-furthest, furthest, (len(digits), 2))
    corners = middles_of(boxes)[digits] * sides / SIZE + off + MARGIN - WINDOW / 2
    last = sides + 2 * MARGIN - WINDOW
    anywhere = 2 * elsewhere // 3
    corners[len(digits) - anywhere :] = random.uniform(0, last[len(digits) - anywhere :], (anywhere, 2))
    return level, np.rint(corners).astype(int).clip(0, last)


def label(boxes: np.ndarray, names: np.ndarray, corners: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the class and the box that each window of a scene shows.

    Args:
        boxes: the boxes of the digits in the scene, `(digits, 4)`.
        names: the names of the digits, `(digits,)`.
        corners: the corners of the windows in the scaled picture, `(windows, 2)`.
        scales: the scales of the windows, `(windows, 1)`.

    Returns:
        The class of each window, −1 if it is ambiguous, and the code of the nearest box, `(windows, 5)`.
    """
    codes = encode(boxes[None], middles_of_windows(corners, scales)[:, None], scales[:, None])
    off = np.abs(codes[..., :2]).max(-1) * OBJECT
    growth = np.abs(codes[..., 2])
    is_shown = (off <= NEAR) & (growth <= SAME)
    is_none = ((off >= FAR) | (growth >= OTHER)).all(1)
    nearest = np.where(is_shown, off, np.inf).argmin(1)
    classes = np.where(is_shown.any(1), names[nearest], np.where(is_none, BACKGROUND, -1))
    return np.concatenate([classes[:, None], codes[np.arange(len(corners)), nearest]], axis=1)


@partial(jax.jit, static_argnums=0)
def slide(width: int, variables: Variables, pictures: Array) -> Slid:
    """Slide the network over pictures `(batch, SIZE, SIZE)`: one pass for each scale."""
    model = slid(width)
    probabilities, boxes = [], []
    for side in SIDES:
        maps = model.apply(variables, scaled(pictures, side))
        places = np.indices((windows_along(side),) * 2).reshape(2, -1).T
        outputs = maps.reshape(maps.shape[0], len(places), -1)
        middles = jnp.asarray(middles_of_windows(STRIDE * places, side / SIZE), outputs.dtype)[None]
        probabilities.append(jax.nn.softmax(outputs[..., : NAMES + 1]))
        boxes.append(decode(outputs[..., NAMES + 1 :], middles, side / SIZE))
    return Slid(jnp.concatenate(probabilities, axis=1), jnp.concatenate(boxes, axis=1))


def find(
    width: int,
    variables: Variables,
    pictures: np.ndarray,
    floor: float = 0.1,
    agreeing: float = 0.7,
    most_shared: float = 0.3,
) -> list[Found]:
    """Find the digits in pictures `(batch, SIZE, SIZE)`, each scored by the number of windows that agree.

    Args:
        width: the width of the network.
        variables: the variables of the network, as trained on windows.
        pictures: the pictures.
        floor: the smallest probability of a name at which a window has a vote.
        agreeing: the smallest intersection over union at which two windows agree.
        most_shared: the intersection over union above which two detections count as one digit.
    """
    found = []
    for picture in pictures:  # one at a time, so that one program serves any number of pictures
        said = slide(width, variables, jnp.asarray(picture[None]))
        of_names, boxes = np.asarray(said.probabilities[0, :, :NAMES]), np.asarray(said.boxes[0])
        likely = of_names.max(1) >= floor
        candidates = vote(boxes[likely], of_names[likely], agreeing)
        kept = suppress(candidates.boxes, candidates.scores, most_shared)
        found.append(Found(*(part[kept] for part in candidates)))
    return found
