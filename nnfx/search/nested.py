"""Nested cross-validation: an unbiased score of a whole search, on rows that the search has not used."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from nnfx.data import folds as of_folds
from nnfx.data.folds import Folds
from nnfx.data.prepare import Data
from nnfx.search.result import Search
from nnfx.sweeps.result import LAST, Row, Rows
from nnfx.sweeps.table import folds_of
from nnfx.types import Array, Batch


@dataclasses.dataclass(frozen=True, repr=False)
class Nested(Rows):
    """A search repeated for each outer fold, and scored on the rows of that fold.

    Attributes:
        rows: one dictionary per outer fold: its number, the names and values of the best point of its search, the
            mean loss of that point's members on their held-out rows within the search (`valid_loss`) and on the rows
            of the outer fold (`loss`), and `optimism`, `loss` minus `valid_loss`.
        searches: the search of each outer fold.
    """

    rows: list[Row]
    searches: tuple[Search, ...]

    @property
    def score(self) -> float:
        """The mean loss on the rows that were held out from the searches."""
        return float(np.mean([row["loss"] for row in self.rows]))

    @property
    def standard_error(self) -> float:
        """The standard error of the score over the outer folds, treated as independent."""
        return float(np.std([row["loss"] for row in self.rows], ddof=1) / len(self.rows) ** 0.5)

    @property
    def optimism(self) -> float:
        """The mean amount, over the outer folds, by which the loss of the best point within a search is too low."""
        return float(np.mean([row["optimism"] for row in self.rows]))

    def __str__(self) -> str:
        """Format the table and the score."""
        return f"{super().__str__()}\n\nloss {self.score:.4g} ± {self.standard_error:.2g}, optimism {self.optimism:.4g}"


def outer_parts(data: Data, key: Array, count: int) -> Iterator[tuple[Data, Batch]]:
    """Yield the data to search on and the rows held out from the search, both preprocessed, for each outer fold.

    All outer folds train on the same number of rows, leaving out one row if necessary, so that they can share programs.
    """
    rows = data.train.weights.shape[0]
    size = rows - -(-rows // count)
    parted = Folds.of(data.train, data.preprocess, of_folds.assign(key, data.train.weights, count), count)
    for fold in range(count):
        number = jnp.asarray(fold)
        inputs = parted.inputs(data.train.inputs, data.preprocess, number)
        whole = Batch(inputs, parted.targets(data.train.targets, number), data.train.weights)
        whole = jax.tree.map(np.asarray, whole)
        is_held_out = np.asarray(parted.of_row) == fold
        own, held_out = np.flatnonzero(~is_held_out)[:size], np.flatnonzero(is_held_out)
        preprocess = jax.tree.map(lambda stack, fold=fold: stack[fold], parted.preprocess)
        yield (
            dataclasses.replace(data, train=_taken(whole, own), preprocess=preprocess, report=None),
            _taken(whole, held_out),
        )


def scored(result: Search, data: Data, key: Array, folds: int, held_out: Batch) -> Row:
    """Return the best point of a search, with its loss within the search and on rows held out from the search.

    Raises:
        ValueError: if no member of the search ended with finite values.
    """
    best = result.best_row
    members = [row for row in result.rows if row["point"] == best["point"] and row["reason"] not in LAST]
    parted = folds_of(data, key, len({row["seed"] for row in result.rows}), folds)
    losses = []
    for row in members:
        fold = jnp.asarray(row["fold"])
        # preprocessed like the member's own training rows
        inputs = parted.inputs(held_out.inputs, data.preprocess, fold)
        rows = Batch(inputs, parted.targets(held_out.targets, fold), held_out.weights)
        losses.append(float(result.member(row["member"]).evaluate(rows)["loss"]))
    inner, outer = float(np.mean([row["valid_loss"] for row in members])), float(np.mean(losses))
    searched = {name: best[name] for name in result.searched}
    return {**searched, "valid_loss": inner, "loss": outer, "optimism": outer - inner}


def _taken(batch: Batch, rows: np.ndarray) -> Batch:
    taken: Batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[rows]), batch)
    return taken
