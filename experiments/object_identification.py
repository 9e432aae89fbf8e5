"""Find and name digits in larger, cluttered pictures, with a window classifier that slides over the whole picture.

    python -m experiments.object_identification [--images digits|fashion_mnist] [--out DIR] [--seed N]

Pictures of 96 × 96 pixels contain one to six of scikit-learn's digits, 14 to about 40 pixels high, among lines, blobs,
fragments of other digits, noise and uneven lighting. A random key, derived from the seed, divides the digits:
training, validation and test scenes never share a digit, though the same people wrote them. A small convolutional
network learns from windows of 24 × 24 pixels which of the ten digits each shows, if any, and where its box is. It is
then slid over whole pictures at six scales, one pass each; windows that agree vote, and the best of overlapping boxes
is kept. The number of votes needed for a detection is selected using validation scenes alone.

A detection is correct if its class is correct, and its box and the true box share at least half of the area that they
cover together; of two detections of the same digit, the one with fewer votes counts as wrong. Expect an F1 of about
0.95 on the test scenes. Nearly all detections where there is no digit are fragments and ends of lines that look like
a 1. `nnfx.metrics.detection` measures the average precision as defined by COCO: expect about 0.71, and 0.95 at an
intersection over union of 0.5. The experiment takes one to two minutes, most of it for training.

With `--images fashion_mnist`, the scenes contain articles of clothing instead, with the same network and the same
number of windows. They are harder to tell apart: expect an F1 of about 0.62, an average precision of about 0.36, and
0.56 at an intersection over union of 0.5. Most wrong detections have a wrong class. The images are downloaded once,
into the folder named by the environment variable NNFX_DATA.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

import nnfx
from experiments.common import Results, command, print_table
from experiments.detection import boxes as of_boxes
from experiments.detection import detector, figures, scenes
from experiments.detection.boxes import Curve, Found, Score
from experiments.detection.scenes import Scene, Source
from nnfx.data import Data
from nnfx.data.batching import steps_per_epoch
from nnfx.metrics import detection
from nnfx.types import Array, Variables

PARTS = ("train", "validation", "test")
LEAST = 0.5
"""The smallest intersection over union at which a box counts as correct."""
AREAS = {name: detection.AREAS[name] for name in ("all", "small", "medium")}
"""The ranges of areas in COCO's metrics that occur here; no object in these scenes is large."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the experiment on finding objects."""

    out: Path = Path("runs/object_identification")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    images: Source = "digits"
    """the images from which the scenes are made"""
    held_out: float = 0.3
    """the fraction of the digits for validation and test scenes, half for each"""
    train_scenes: int = 3000
    """number of scenes out of which to cut training windows"""
    validation_scenes: int = 200
    """number of scenes for choosing the threshold"""
    test_scenes: int = 200
    """number of scenes for scoring"""
    per_digit: int = 2
    """number of windows cut out around each digit"""
    elsewhere: int = 8
    """number of windows without a digit cut out of each scene"""
    width: int = 24
    """number of features of the network's first layer"""
    epochs: int = 6
    """number of training epochs"""
    batch_size: int = 64
    """number of windows in a minibatch"""
    learning_rate: float = 0.003
    """the peak learning rate (AdamW, with a warm-up and cosine decay)"""


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    split_key, train_key = jax.random.split(jax.random.key(config.seed))
    items = scenes.split_items(split_key, config.held_out, config.images)
    classes = items["train"].classes
    counts = {"train": config.train_scenes, "validation": config.validation_scenes, "test": config.test_scenes}
    drawn = {part: scenes.draw_scenes(seed_of(part, config), items[part], counts[part]) for part in PARTS}
    for part, images in items.items():
        print(f"{part}: {len(images.names)} images, shown {total(drawn[part])} times in {counts[part]} scenes")

    data = cut(drawn, config)
    assert data.valid is not None
    print(f"{len(data.train.weights)} windows to train on, {len(data.valid.weights)} held out\n")
    run = train(train_key, data, config)
    variables = run.best.variables

    found = {part: detector.find(config.width, variables, drawn[part].picture) for part in ("validation", "test")}
    curves = {
        "test": curve(found["test"], drawn["test"]),
        "test, box alone": curve(found["test"], drawn["test"], with_names=False),
        "validation": curve(found["validation"], drawn["validation"]),
    }
    threshold = of_boxes.best_threshold(curves["validation"])
    finds, test = [each.above(threshold) for each in found["test"]], drawn["test"]
    is_right = right(finds, test)
    scores = {
        "test": score(finds, test, is_right),
        "test, box alone": score(finds, test, right(finds, test, with_names=False)),
        "test, at IoU 0.75": score(finds, test, right(finds, test, least=0.75)),
        "validation": score_at(threshold, found["validation"], drawn["validation"]),
    }
    by_name = {classes[name]: score_name(name, finds, test, is_right) for name in range(detector.NAMES)}
    seconds = time_scenes(config.width, variables, test.picture)
    coco = evaluate(found["test"], test)
    error = standard_error(config.seed, finds, test, is_right)
    wrong = faults(finds, test, is_right)

    print_table(
        ["", "F1", "precision", "recall", "found", "true"],
        [
            [name, each.f1, each.precision, each.recall, each.found, each.true]
            for name, each in {**scores, **{f"test, only {name}": each for name, each in by_name.items()}}.items()
        ],
    )
    print(f"\nF1 on test scenes: {scores['test'].f1:.3f} ± {error:.3f}, with at least {threshold:.2f} votes")
    print("by COCO's metrics: " + ", ".join(f"{name} {value:.3f}" for name, value in coco.items()))
    print("wrong detections: " + ", ".join(f"{count} {kind}" for kind, count in wrong.items()))
    print(
        f"a scene takes {1000 * seconds['found']:.1f} ms, of which the network takes {1000 * seconds['slid']:.1f} ms;"
        f" applied to each window by itself, it takes {1000 * seconds['window_by_window']:.1f} ms"
    )

    figures.draw_scenes(results, finds, test, is_right, classes)
    figures.draw_curves(results, curves, scores, by_name)
    figures.draw_maps(results, config.width, variables, test, classes)
    results.history(run.history)
    return results.summary(
        {
            "f1": scores["test"].f1,
            "f1_standard_error": error,
            "precision": scores["test"].precision,
            "recall": scores["test"].recall,
            "average_precision": coco["AP"],
            "coco": coco,
            "images": config.images,
            "threshold_votes": threshold,
            "scores": {name: each._asdict() for name, each in scores.items()},
            "by_class": {name: each._asdict() for name, each in by_name.items()},
            "wrong_finds": wrong,
            "seconds_per_scene": seconds,
            "scenes": counts,
            "items": {part: len(images.names) for part, images in items.items()},
            "windows": {"train": len(data.train.weights), "held_out": len(data.valid.weights)},
            "held_out_accuracy": run.final["valid_accuracy"],
            "seed": config.seed,
            "scene_seeds": {part: seed_of(part, config) for part in counts},
        }
    )


def seed_of(part: str, config: Config) -> tuple[int, int]:
    """Return the seed of the scenes of a split; for scene number i, i is appended to the seed."""
    return config.seed, PARTS.index(part)


def total(truth: Scene) -> int:
    """Count the objects in scenes."""
    return sum(map(len, truth.names))


def cut(drawn: dict[str, Scene], config: Config) -> Data:
    """Cut windows for training out of the training scenes, and windows for evaluation out of the validation scenes."""
    train = detector.cut_crops((config.seed, 3), drawn["train"], config.per_digit, config.elsewhere)
    valid = detector.cut_crops((config.seed, 4), drawn["validation"], config.per_digit, config.elsewhere)
    data = nnfx.data.prepare(*train, standardize=False)
    held_out = nnfx.Batch(jnp.asarray(valid.windows), jnp.asarray(valid.targets), jnp.ones(len(valid.targets)))
    return dataclasses.replace(data, valid=held_out)


def train(key: Array, data: Data, config: Config) -> nnfx.Run:
    """Train the classifier of windows."""
    steps = config.epochs * steps_per_epoch(len(data.train.weights), config.batch_size)

    def optimizer(learning_rate: ArrayLike) -> optax.GradientTransformation:
        return optax.adamw(nnfx.schedules.warmup_cosine(learning_rate, steps // 20, steps), weight_decay=0.1)

    fitted = nnfx.fit(
        detector.classifier(config.width),
        detector.loss,
        optimizer,
        epochs=config.epochs,
        batch_size=config.batch_size,
        metrics={"accuracy": detector.accuracy},
        augment=[nnfx.augment.gaussian_noise, detector.light, detector.overlay],
        average=nnfx.averaging.exponential,
    )
    return fitted(
        key,
        data,
        learning_rate=config.learning_rate,
        box_weight=30.0,
        ema_decay=0.995,
        noise=0.03,
        contrast=0.2,
        overlaid=0.6,
    )


def right(found: list[Found], truth: Scene, least: float = LEAST, with_names: bool = True) -> list[np.ndarray]:
    """Return whether each detection in each scene is correct; optionally, only its box is compared."""
    matched = []
    for each, boxes, names in zip(found, truth.boxes, truth.names, strict=True):
        counted = each if with_names else each._replace(names=np.zeros_like(each.names))
        matched.append(of_boxes.match(counted, boxes, names if with_names else np.zeros_like(names), least) >= 0)
    return matched


def curve(found: list[Found], truth: Scene, with_names: bool = True) -> Curve:
    """Compute precision and recall over all scenes."""
    is_right = np.concatenate(right(found, truth, with_names=with_names))
    return of_boxes.precision_recall(np.concatenate([each.scores for each in found]), is_right, total(truth))


def evaluate(found: list[Found], truth: Scene) -> dict[str, float]:
    """Return COCO's average precision and recall of all detections, regardless of their scores.

    No scene contains more than six objects, so ten detections of a class in a scene are enough.
    """
    detections = [detection.Detections(*each) for each in found]
    objects = [detection.Objects(boxes, names) for boxes, names in zip(truth.boxes, truth.names, strict=True)]
    return detection.evaluate(detections, objects, areas=AREAS, limits=(1, 10)).summary()


def score(finds: list[Found], truth: Scene, is_right: list[np.ndarray]) -> Score:
    """Score all detections in all scenes."""
    return Score.of(sum(int(each.sum()) for each in is_right), sum(len(each.names) for each in finds), total(truth))


def score_at(threshold: float, found: list[Found], truth: Scene) -> Score:
    """Score the detections whose scores are at least this threshold."""
    finds = [each.above(threshold) for each in found]
    return score(finds, truth, right(finds, truth))


def score_name(name: int, finds: list[Found], truth: Scene, is_right: list[np.ndarray]) -> Score:
    """Score the detections of one class."""
    is_named = np.concatenate([each.names for each in finds]) == name
    true = int((np.concatenate(list(truth.names)) == name).sum())
    return Score.of(int((is_named & np.concatenate(is_right)).sum()), int(is_named.sum()), true)


def standard_error(seed: int, finds: list[Found], truth: Scene, is_right: list[np.ndarray]) -> float:
    """Return the standard error of F1, by resampling the scenes with replacement."""
    random = np.random.default_rng((seed, 5))
    rights = np.array([each.sum() for each in is_right])
    counted = np.array([len(each.names) for each in finds]) + np.array([len(names) for names in truth.names])
    rows = random.integers(len(rights), size=(1000, len(rights)))
    return float((2 * rights[rows].sum(1) / np.maximum(counted[rows].sum(1), 1)).std(ddof=1))


def faults(finds: list[Found], truth: Scene, is_right: list[np.ndarray]) -> dict[str, int]:
    """Count the wrong detections by the kind of error."""
    counts = {"with a wrong name": 0, "of an object found before": 0, "with a box that is off": 0, "of nothing": 0}
    kinds = list(counts)
    for each, boxes, names, is_hit in zip(finds, truth.boxes, truth.names, is_right, strict=True):
        shared = detection.intersection_over_union(each.boxes, boxes)
        for i in np.flatnonzero(~is_hit):
            nearest = int(shared[i].argmax())
            if shared[i, nearest] >= LEAST:
                counts[kinds[int(each.names[i] == names[nearest])]] += 1
            else:
                counts[kinds[2 if shared[i, nearest] >= 0.1 else 3]] += 1
    return counts


def time_scenes(width: int, variables: Variables, pictures: np.ndarray, repeats: int = 20) -> dict[str, float]:
    """Time the sliding network, the whole search, and the network on each window by itself, picture by picture.

    Returns:
        Medians in seconds, excluding compilation.
    """
    everywhere = detector.slide(width, variables, jnp.asarray(pictures[:1])).boxes.shape[1]
    windows = jnp.zeros((everywhere, detector.WINDOW, detector.WINDOW, 1))
    apply = jax.jit(detector.classifier(width).apply)
    works: dict[str, Callable[[np.ndarray], Any]] = {
        "found": lambda picture: detector.find(width, variables, picture),
        "slid": lambda picture: jax.block_until_ready(detector.slide(width, variables, jnp.asarray(picture))),
        "window_by_window": lambda _: apply(variables, windows).block_until_ready(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for i in range(
        -1, min(repeats, len(pictures))
    ):  # the first call compiles; the functions are called in turn, so that the load on the machine is the same for all
        for name, work in works.items():
            began = time.perf_counter()
            work(pictures[max(i, 0)][None])
            seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(each[1:])) for name, each in seconds.items()}


if __name__ == "__main__":
    command(main, Config, __doc__)
