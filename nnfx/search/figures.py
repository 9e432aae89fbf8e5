"""Figures of a search or a sweep; each function returns a Matplotlib figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnfx import checks
from nnfx.search.effects import Curve, Effects
from nnfx.search.programs import word
from nnfx.search.result import Search
from nnfx.search.scores import Scores, is_number
from nnfx.sweeps import Population, Sweep
from nnfx.sweeps.result import ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["best_so_far", "importance", "lineage", "parallel_coordinates", "partial_dependence"]

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"
"""Okabe and Ito's blue and vermilion, which colour-blind readers can tell apart, and a grey."""
MOST_LINES = 300
"""The largest number of points plotted as lines; of more points, only the best are shown."""
ABSENT = -0.15
"""The height at which a line passes an axis whose name is absent; axes extend from 0 to 1."""
COLUMNS = 3
"""The number of panels side by side."""


def parallel_coordinates(found: Search | Sweep) -> "Figure":
    """Plot each point as a line through its values for all names, coloured by the rank of its score.

    The best lines are the darkest and on top; the best tenth is thick. Where a name is absent because of a
    condition, a line passes below the axis of that name. Outlying bad scores are clipped, as in `Scores.clipped`.

    Args:
        found: the result of a search or a sweep.

    Raises:
        ModuleNotFoundError: if Matplotlib is not installed.
        TypeError, ValueError: for a `found` of another type, or points that are all the same.
    """
    scores = Scores.of(found)
    figure = _figure(2.0 + 1.9 * len(scores.names), 4.2)
    axis = figure.add_subplot()
    order = ranking(scores.values, scores.dropped, scores.largest_first)[:MOST_LINES]
    clipped = scores.clipped(scores.mean)
    heights, ticks = [], []
    for column in [*(scores.of_name(name) for name in scores.names), clipped.tolist()]:
        of_points, marks = _scaled(column)
        heights.append(of_points)
        ticks.append(marks)
    places = np.arange(len(heights))
    lines = np.where(np.isnan(heights), ABSENT, heights)
    if scores.largest_first:
        lines[-1] = 1 - lines[-1]  # so that the best scores are at the bottom
        ticks[-1] = [(1 - height, label) for height, label in ticks[-1]]
    shades = _shades(len(order))
    for rank, point in reversed(list(enumerate(order))):
        is_top = rank < max(1, len(order) // 10)
        axis.plot(places, lines[:, point], color=shades[rank], linewidth=2.0 if is_top else 0.8, marker=".", zorder=2)
    for place, marks in zip(places, ticks, strict=True):
        axis.plot([place, place], [0, 1], color=GREY, linewidth=0.8, zorder=1)
        marks = [*marks, (ABSENT, "absent")] if np.isnan(heights[place]).any() else marks
        for height, label in marks:
            axis.annotate(
                label,
                (place, height),
                (5, 0),
                textcoords="offset points",
                fontsize=8,
                va="center",
                zorder=3,
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
            )
    axis.set_xticks(places, [*scores.names, _words(scores.metric)])
    axis.set(xlim=(-0.15, len(places) - 0.5), ylim=(ABSENT - 0.05, 1.06), yticks=[])
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    of = "" if len(order) == len(scores.points) else f"the best {len(order)} of "
    axis.set_title(f"{of}{len(scores.points)} points; darker is better", loc="left")
    return figure


def partial_dependence(effects: Effects) -> "Figure":
    """Plot the mean score against the value of each name, ± two standard errors, the most important name first.

    Args:
        effects: as returned by `nnfx.search.effects`.

    Raises:
        ModuleNotFoundError: if Matplotlib is not installed.
    """
    names = [row["name"] for row in effects.rows if row["name"] in effects.curves]
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = _figure(1.0 + 3.1 * columns, 0.6 + 2.5 * rows)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        _dependence(axis, name, effects.curves[name])
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel(f"mean {_words(effects.metric)}")
    return figure


def importance(effects: Effects) -> "Figure":
    """Plot the fraction of the scores' variance due to each name, with error bars of two standard errors.

    Args:
        effects: as returned by `nnfx.search.effects`.

    Raises:
        ModuleNotFoundError: if Matplotlib is not installed.
    """
    names = [row["name"] for row in effects.rows]
    shares, errors = (np.array([row[column] for row in effects.rows]) for column in ("share", "standard_error"))
    figure = _figure(6.4, 1.2 + 0.4 * len(names))
    axis = figure.add_subplot()
    colours = [GREY if name == "interactions" else BLUE for name in names]
    places = np.arange(len(names))
    reach = np.stack([np.minimum(2 * errors, shares), np.minimum(2 * errors, np.maximum(1 - shares, 0))])
    axis.barh(places, 100 * shares, color=colours, height=0.6)
    axis.errorbar(100 * shares, places, xerr=100 * reach, fmt="none", ecolor="black", capsize=3)
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.set(xlabel=f"share of the variance of the {_words(effects.metric)} (%)", xlim=(0, None))
    _tidy(axis)
    axis.grid(visible=False, axis="y")
    axis.set_title(f"a model of the scores explains {max(0.0, effects.explained):.0%} at unseen points", loc="left")
    return figure


def best_so_far(found: Search | Sweep) -> "Figure":
    """Plot the mean score of the best point so far against the number of epochs trained, summed over all members.

    Points are counted one after the other, in the order in which they were drawn, although the points of a program
    train side by side. Points that were dropped during training, or failed, count towards the epochs only.

    Args:
        found: the result of a search or a sweep.

    Raises:
        ModuleNotFoundError: if Matplotlib is not installed.
        TypeError, ValueError: for a `found` of another type, points that are all the same, or if no point has a
            finite score.
    """
    scores = Scores.of(found)
    spent, means = np.cumsum(scores.epochs), np.where(scores.dropped, np.nan, scores.mean)
    errors = scores.values.std(0, ddof=1) / len(scores.values) ** 0.5 if len(scores.values) > 1 else 0 * means
    holders = best_until(means, scores.largest_first)
    if holders[-1] < 0:
        raise ValueError("found: expected a point whose runs all ended with finite scores, got none")
    figure = _figure(6.4, 3.6)
    axis = figure.add_subplot()
    is_known = holders >= 0
    at, best, error = spent[is_known], means[holders[is_known]], errors[holders[is_known]]
    clipped = np.where(np.isfinite(means), scores.clipped(means), np.nan)
    axis.plot(spent, clipped, ".", color=GREY, markersize=4, label="each point")
    axis.plot(at, best, color=BLUE, linewidth=2, drawstyle="steps-post", label="best so far")
    if len(scores.values) > 1:
        axis.fill_between(
            at,
            best - error,
            best + error,
            step="post",
            color=BLUE,
            alpha=0.2,
            linewidth=0,
            label="± its standard error",
        )
    scale = "log" if _is_log(clipped.tolist(), 10) else "linear"
    axis.set(xlabel="epochs, of all members", ylabel=_words(scores.metric), yscale=scale)
    _tidy(axis)
    axis.legend(fontsize=8, framealpha=0.9, edgecolor="none")
    return figure


def best_until(means: np.ndarray, largest_first: bool) -> np.ndarray:
    """Return the index of the best point so far, for each point; −1 before the first finite score.

    >>> best_until(np.array([np.nan, 3.0, 4.0, 1.0]), False).tolist()
    [-1, 1, 1, 3]
    """
    kept = np.where(np.isfinite(means), -means if largest_first else means, np.inf)
    is_better = kept < np.concatenate([[np.inf], np.minimum.accumulate(kept)[:-1]])
    return np.maximum.accumulate(np.where(is_better, np.arange(len(means)), -1))


def lineage(members: Population) -> "Figure":
    """Plot the hyper-parameters and losses of a population by epoch, and highlight the ancestors of the best member.

    Each member's line continues from that of its parent, so replaced members appear as branches.

    Args:
        members: as returned by `nnfx.sweeps.population`.

    Raises:
        ModuleNotFoundError: if Matplotlib is not installed.
        TypeError: for anything that is not a `Population`.
    """
    if not isinstance(members, Population):
        raise TypeError(f"members: expected the result of nnfx.sweeps.population, got {checks.describe(members)}")
    losses, parents = np.asarray(members.losses, np.float64), np.asarray(members.parents)
    rounds, size = parents.shape
    best = int(np.where(np.isfinite(losses[-1]), losses[-1], np.inf).argmin())
    ancestors = members.lineage(best)
    epochs = np.arange(1, rounds + 1) * members.epochs_per_round
    panels = {**{name: np.asarray(values) for name, values in members.hyper.items()}, "held-out loss": losses}
    figure = _figure(1.0 + 3.1 * len(panels), 3.4)
    for axis, (name, values) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        for i in range(1, rounds):
            came = np.stack([values[i - 1, parents[i]], values[i]])
            axis.plot(epochs[i - 1 : i + 1], came, color=GREY, alpha=0.4, linewidth=0.8)
        followed = values[np.arange(rounds), ancestors]
        axis.plot(epochs, followed, color=ORANGE, linewidth=2.2, marker=".", label="of the best member")
        axis.set(xlabel="epoch", title=_words(name))
        axis.xaxis.get_major_locator().set_params(integer=True)
        if _is_log(values.ravel().tolist(), 10 if values is losses else 100):
            axis.set_yscale("log")
        _tidy(axis)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{size} members, each continuing from its parent", x=0.02, ha="left", fontsize=11)
    return figure


def _dependence(axis: "Axes", name: str, curve: Curve) -> None:
    """Plot the partial dependence on one name."""
    score, error = curve.score, 2 * curve.standard_error
    if curve.is_number and len(curve.values) > 4:
        axis.plot(curve.values, score, color=BLUE, linewidth=2)
        axis.fill_between(curve.values, score - error, score + error, color=BLUE, alpha=0.2, linewidth=0)
        if _is_log(curve.values):
            axis.set_xscale("log")
    else:
        places = np.arange(len(curve.values))
        axis.errorbar(places, score, error, fmt="o", color=BLUE, capsize=3)
        axis.set_xticks(places, [word(value) for value in curve.values])
        axis.set_xlim(-0.5, len(places) - 0.5)
    axis.set_xlabel(name)
    _tidy(axis)


def _figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size in inches."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "matplotlib: required for figures, but not installed: pip install 'nnfx[experiments]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _tidy(axis: "Axes") -> None:
    """Remove the top and right spines, and add a light grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


def _shades(count: int) -> Any:
    """Return colours by rank, from dark blue for the best to light for the worst."""
    from matplotlib import colormaps

    return colormaps["cividis"](np.sqrt(np.linspace(0, 0.95, count)))


def _scaled(values: Sequence[Any]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Return the height of each value on its axis, from 0 to 1, NaN if absent, and the ticks with their labels."""
    if not is_number(values):
        known = sorted({each for each in values if each is not None})
        spaced = dict(zip(known, np.linspace(0, 1, len(known)) if len(known) > 1 else [0.5], strict=True))
        return np.array([np.nan if each is None else spaced[each] for each in values]), [
            (float(height), each) for each, height in spaced.items()
        ]
    numbers = np.array([np.nan if value is None else float(value) for value in values])
    mapped = np.log(numbers) if _is_log(values) else numbers
    low, high = np.nanmin(mapped), np.nanmax(mapped)
    heights = (mapped - low) / (high - low) if high > low else 0 * mapped + 0.5
    distinct = np.unique(numbers[np.isfinite(numbers)])
    if len(distinct) > 5:
        ends = np.linspace(low, high, 5)
        return heights, [
            (float(share), f"{np.exp(at) if _is_log(values) else at:.3g}")
            for share, at in zip(np.linspace(0, 1, 5), ends, strict=True)
        ]
    first = [int(np.flatnonzero(numbers == each)[0]) for each in distinct]
    return heights, [(float(heights[i]), word(values[i])) for i in first]


def _is_log(values: Sequence[Any], factor: float = 100) -> bool:
    """Return whether to use a logarithmic scale: all values are positive, and they span at least `factor`.

    >>> _is_log([0.001, 1.0]), _is_log([0.0, 1.0]), _is_log([1, 32])
    (True, False, False)
    """
    present = np.array([value for value in values if value is not None], float)
    present = present[np.isfinite(present)]
    return len(present) > 0 and bool(present.min() > 0 and present.max() >= factor * present.min())


def _words(metric: str) -> str:
    """Return the name of a metric or hyper-parameter as a label.

    >>> _words("valid_loss"), _words("learning_rate")
    ('held-out loss', 'learning rate')
    """
    return metric.replace("valid_", "held-out ").replace("_", " ")
