"""Interpolated n-gram models of tokens in NumPy, with weights tuned on held-out tokens.

A model of order n interpolates between the frequency of a token after the last n − 1 tokens and the prediction of the
model of order n − 1; below the lowest order, all tokens are equally likely. Kneser and Ney subtract a discount from
each count and, in lower orders, count the different contexts of a token rather than its occurrences. Jelinek and
Mercer interpolate relative frequencies, with a weight for each order.
"""

from typing import Literal, NamedTuple

import numpy as np
import scipy.optimize

Kind = Literal["Kneser–Ney", "Jelinek–Mercer"]


class Table(NamedTuple):
    """The counts of one order: n-grams and their contexts, as sorted codes.

    Attributes:
        grams: the code of each n-gram that occurs.
        counts: the number of times that each n-gram occurs, or the number of contexts in which it occurs.
        contexts: the code of each context that occurs.
        totals: the sum of the counts of the n-grams with each context.
        kinds: the number of different n-grams with each context.
    """

    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray


class Found(NamedTuple):
    """The entries of a table for the n-gram and the context of each target, `(targets,)`."""

    seen: np.ndarray
    total: np.ndarray
    kinds: np.ndarray


class Model(NamedTuple):
    """An n-gram model.

    Attributes:
        kind: the method of interpolation between orders.
        vocabulary: the number of different tokens.
        tables: the tables of the orders 1 to n.
        weights: the discount, or the weight of the relative frequency, of each order.
    """

    kind: Kind
    vocabulary: int
    tables: tuple[Table, ...]
    weights: np.ndarray

    def bits(self, tokens: np.ndarray) -> np.ndarray:
        """Return the bits per token given the preceding tokens, for all tokens except the first, `(tokens − 1,)`."""
        found = [look_up(table, tokens, order, self.vocabulary) for order, table in enumerate(self.tables, start=1)]
        return -np.log2(mixed(self.kind, found, self.weights, self.vocabulary))


def fit(kind: Kind, order: int, vocabulary: int, train: np.ndarray, tune: np.ndarray) -> Model:
    """Count n-grams up to this order in training tokens, and choose the weights that best predict other tokens."""
    tables: list[Table] = []
    for n in range(order, 0, -1):
        grams, counts = np.unique(codes(train, n, vocabulary), return_counts=True)
        if kind == "Kneser–Ney" and n < order:
            longer = np.unique(codes(train, n + 1, vocabulary))
            grams, counts = np.unique(longer % vocabulary**n, return_counts=True)
        contexts, place = np.unique(grams // vocabulary, return_inverse=True)
        tables.insert(0, Table(grams, counts, contexts, np.bincount(place, counts), np.bincount(place)))
    found = [look_up(table, tune, n, vocabulary) for n, table in enumerate(tables, start=1)]
    tuned = scipy.optimize.minimize(
        lambda weights: -np.log2(mixed(kind, found, weights, vocabulary)).mean(),
        np.full(order, 0.7 if kind == "Kneser–Ney" else 0.5),
        method="Nelder-Mead",
        bounds=[(0.01, 0.99)] * order,
        options={"maxfev": 200 * order, "xatol": 1e-3, "fatol": 1e-5},
    )
    return Model(kind, vocabulary, tuple(tables), tuned.x)


def codes(tokens: np.ndarray, n: int, vocabulary: int) -> np.ndarray:
    """Return every n successive tokens as one number, `(tokens − n + 1,)`, whose last digit is the last token."""
    assert vocabulary**n < 2**63
    rows = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.int64), n)
    return rows @ vocabulary ** np.arange(n, dtype=np.int64)[::-1]


def look_up(table: Table, tokens: np.ndarray, n: int, vocabulary: int) -> Found:
    """Return the entries of a table of order n for each token except the first; zeros if too few tokens precede it."""
    grams = codes(tokens, n, vocabulary)[-(len(tokens) - 1) :]
    found = (
        values_of(table.grams, table.counts, grams),
        values_of(table.contexts, table.totals, grams // vocabulary),
        values_of(table.contexts, table.kinds, grams // vocabulary),
    )
    return Found(*(np.pad(each, (len(tokens) - 1 - len(grams), 0)) for each in found))


def values_of(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the values of the wanted keys, zero for missing keys; keys are sorted."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def mixed(kind: Kind, found: list[Found], weights: np.ndarray, vocabulary: int) -> np.ndarray:
    """Return the probability of each target, interpolated from the lowest order to the highest."""
    p = np.full(len(found[0].seen), 1 / vocabulary)
    for (seen, total, kinds), weight in zip(found, weights, strict=True):
        if kind == "Kneser–Ney":
            own, left = np.maximum(seen - weight, 0), weight * kinds
        else:
            own, left = weight * seen, (1 - weight) * total
        p = np.where(total > 0, (own + left * p) / np.maximum(total, 1), p)
    return p
