"""Cluttered pictures of digits or of clothing, drawn from a seed, and the boxes around the objects."""

from typing import Literal, NamedTuple

import jax
import numpy as np
from scipy import ndimage

import nnfx
from nnfx.types import Array

SIZE = 96
"""Pixels along each side of a picture."""
HEIGHTS = 14.0, 36.0
"""The range of heights to which an image is enlarged."""
ROWS, COLUMNS = np.arange(SIZE)[:, None] + 0.5, np.arange(SIZE)[None] + 0.5
"""The coordinates of the centres of the pixels."""
FAINTEST = 0.1
"""Ink fainter than this is left out."""
EDGE = 0.3
"""Ink at least this strong belongs in the box around an object; fainter ink is the soft edge of a stroke."""
MOST_SHARED = 0.05
"""The largest fraction of an object's box that another object's box may cover."""
ATTEMPTS = 40
"""The number of places tried before an object is left out."""


Source = Literal["digits", "fashion_mnist"]
"""The images from which scenes are made."""


class Items(NamedTuple):
    """Images of single objects.

    Attributes:
        images: `(items, side, side)`, from 0 (no ink) to 1 (full ink).
        names: the class of each image, `(items,)`, from 0 to 9.
        classes: the names of the classes.
    """

    images: np.ndarray
    names: np.ndarray
    classes: tuple[str, ...]


class Scene(NamedTuple):
    """A picture and the objects in it.

    Attributes:
        picture: `(SIZE, SIZE)`, float32, from 0 (no ink) to 1 (full ink).
        boxes: the edges of each object's ink, `(objects, 4)`: top, left, bottom, right, in pixels from the upper left
            corner.
        names: the class of each object, `(objects,)`.
    """

    picture: np.ndarray
    boxes: np.ndarray
    names: np.ndarray


def split_items(key: Array, held_out: float, source: Source = "digits") -> dict[str, Items]:
    """Split images into disjoint sets for training, validation and test.

    Args:
        key: a typed key that determines in which set each of scikit-learn's digits is; not used for Fashion-MNIST.
        held_out: the fraction of the digits for validation and test together, half for each.
        source: `"digits"`, 8 × 8 pixels; or `"fashion_mnist"`, whose test set is divided between validation and test.
            Its images are averaged over 2 × 2 pixels, since scenes enlarge images but never reduce them, and the
            brightest pixel of each becomes 1.
    """
    if source == "fashion_mnist":
        images = nnfx.data.images(source)
        assert images.test is not None
        rows = {"train": (images.train, 0, 1), "validation": (images.test, 0, 2), "test": (images.test, 1, 2)}
        return {
            name: Items(halved(part.inputs[start::step, ..., 0]), part.targets[start::step].astype(int), images.classes)
            for name, (part, start, step) in rows.items()
        }
    data = nnfx.data.digits(key=key, valid_fraction=held_out)
    assert data.valid is not None
    parts = {
        "train": data.train,
        "validation": jax.tree.map(lambda array: array[0::2], data.valid),
        "test": jax.tree.map(lambda array: array[1::2], data.valid),
    }
    classes = tuple(map(str, range(10)))
    return {
        name: Items(np.asarray(batch.inputs)[..., 0], np.asarray(batch.targets).astype(int), classes)
        for name, batch in parts.items()
    }


def halved(images: np.ndarray) -> np.ndarray:
    """Average images `(images, height, width)` over blocks of 2 × 2 pixels, and divide each image by its maximum.

    >>> halved(np.array([[[4, 0, 1, 1], [0, 0, 1, 1]]]))
    array([[[1., 1.]]])
    """
    count, height, width = images.shape
    means = images.reshape(count, height // 2, 2, width // 2, 2).mean((2, 4))
    return means / means.max((1, 2), keepdims=True)


def draw_scenes(seed: tuple[int, ...], items: Items, count: int, *, most: int = 6, clutter: bool = True) -> Scene:
    """Draw several scenes; scene number i depends on `(seed, i)` alone.

    Returns:
        The pictures of the scenes, `(count, SIZE, SIZE)`, and their boxes and names, as object arrays with one element
        for each picture.
    """
    scenes = [draw_scene((*seed, i), items, most=most, clutter=clutter) for i in range(count)]
    boxes, names = np.empty(count, object), np.empty(count, object)
    boxes[:], names[:] = [scene.boxes for scene in scenes], [scene.names for scene in scenes]
    return Scene(np.stack([scene.picture for scene in scenes]), boxes, names)


def draw_scene(seed: tuple[int, ...], items: Items, *, most: int = 6, clutter: bool = True) -> Scene:
    """Draw a picture of one or more objects that hardly overlap.

    Args:
        seed: integers that determine everything random.
        items: the images of objects, from which fragments are cut out, too.
        most: the largest number of objects.
        clutter: whether there are lines, blobs, fragments of objects, noise and uneven lighting behind and on the
            objects; otherwise objects are white on black.
    """
    random = np.random.default_rng(seed)
    inks: list[tuple[np.ndarray, int, int]] = []
    boxes, names = np.zeros((0, 4)), []
    for _ in range(random.integers(1, most, endpoint=True)):
        chosen = int(random.integers(len(items.names)))
        ink = enlarge(random, items.images[chosen])
        for _ in range(ATTEMPTS):
            top, left = (int(random.integers(SIZE - side, endpoint=True)) for side in ink.shape)
            box = extent(ink >= EDGE) + np.array([top, left, top, left])
            if not len(boxes) or shared(box, boxes).max() <= MOST_SHARED:
                inks.append((ink, top, left))
                boxes = np.concatenate([boxes, box[None]])
                names.append(int(items.names[chosen]))
                break
    picture = draw_clutter(random, items, boxes) if clutter else np.zeros((SIZE, SIZE))
    faintest = min(float(picture.mean()) + 0.45, 0.9)  # an object as dark as the background would be invisible
    for ink, top, left in inks:
        brightness = random.uniform(faintest, 1) if clutter else 1.0
        paste(picture, brightness * ink, top, left)
    if clutter:
        picture += random.normal(0, random.uniform(0, 0.08), picture.shape)
    return Scene(picture.clip(0, 1).astype(np.float32), boxes, np.array(names))


def enlarge(random: np.random.Generator, image: np.ndarray, heights: tuple[float, float] = HEIGHTS) -> np.ndarray:
    """Enlarge ink smoothly by a random factor, rotate and stretch it a little, and crop it to its edges."""
    height = np.exp(random.uniform(*np.log(heights)))
    width = height * random.uniform(0.85, 1.15)
    angle = np.deg2rad(random.uniform(-12, 12))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix = np.diag([len(image) / height, len(image) / width]) @ turn
    padded = np.pad(image, 1)  # so that ink at the edge of the image fades as it does elsewhere
    side = int(np.ceil(1.5 * max(height, width))) + 4
    offset = (np.array(padded.shape) - 1) / 2 - matrix @ np.full(2, (side - 1) / 2)
    ink = ndimage.affine_transform(padded, matrix, offset, (side, side), order=3)
    ink = np.where(ink < FAINTEST, 0, ink.clip(0, 1))
    top, left, bottom, right = extent(ink > 0).astype(int)
    return ink[top:bottom, left:right]


def extent(mask: np.ndarray) -> np.ndarray:
    """Return the tightest box around the true entries: top, left, bottom, right.

    >>> extent(np.array([[False, False, False], [False, True, True]])).tolist()
    [1.0, 1.0, 2.0, 3.0]
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], float)


def draw_clutter(random: np.random.Generator, items: Items, boxes: np.ndarray) -> np.ndarray:
    """Draw uneven lighting, blobs and lines, and fragments of objects outside the boxes."""
    direction = random.uniform(0, 2 * np.pi)
    light = np.cos(direction) * (ROWS / SIZE - 0.5) + np.sin(direction) * (COLUMNS / SIZE - 0.5)
    picture = random.uniform(0, 0.2) + random.uniform(0, 0.2) * (0.5 + light)
    for _ in range(random.integers(1, 6)):
        (y, x), (a, b) = random.uniform(0, SIZE, 2), random.uniform(2, 12, 2)
        picture += random.uniform(-0.2, 0.45) * (np.exp(-(((ROWS - y) / a) ** 2)) * np.exp(-(((COLUMNS - x) / b) ** 2)))
    for _ in range(random.integers(1, 6)):
        start, end = random.uniform(0, SIZE, (2, 2))
        draw_line(picture, start, end, random.uniform(1, 3), random.uniform(0.3, 0.9))
    for _ in range(random.integers(1, 6)):
        # not from class 1: a part of a 1 looks like a 1, and a trouser leg like trousers
        image = items.images[random.choice(np.flatnonzero(items.names != 1))]
        side = len(image)
        (height, width), (top, left) = (random.integers(low, side // 2, 2, endpoint=True) for low in (3 * side // 8, 0))
        part = image[top : top + height, left : left + width]
        if part.max() < EDGE:
            continue
        whole = np.zeros_like(image)
        whole[top : top + height, left : left + width] = part
        ink = enlarge(random, whole)
        top, left = (int(random.integers(SIZE - length, endpoint=True)) for length in ink.shape)
        box = extent(ink > 0) + np.array([top, left, top, left])
        # an object with a fragment of another on top of it could be any object
        if not len(boxes) or shared(box, boxes).max() <= MOST_SHARED:
            paste(picture, random.uniform(0.5, 1) * ink, top, left)
    return picture.clip(0, 1)


def draw_line(picture: np.ndarray, start: np.ndarray, end: np.ndarray, width: float, brightness: float) -> None:
    """Draw a line with soft edges wherever it is brighter than the picture."""
    down, right = ROWS - start[0], COLUMNS - start[1]
    along = end - start
    part = ((down * along[0] + right * along[1]) / (along @ along)).clip(0, 1)
    distance = np.sqrt((down - part * along[0]) ** 2 + (right - part * along[1]) ** 2)
    np.maximum(picture, brightness * (width / 2 + 0.5 - distance).clip(0, 1), out=picture)


def paste(picture: np.ndarray, ink: np.ndarray, top: int, left: int) -> None:
    """Put ink on a picture wherever the ink is brighter."""
    place = picture[top : top + ink.shape[0], left : left + ink.shape[1]]
    np.maximum(place, ink, out=place)


def shared(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the fraction of the smaller of two boxes that the other covers, `(boxes,)`."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.prod((high - low).clip(0), axis=1) / np.minimum(areas, np.prod(box[2:] - box[:2]))
