"""An HTML report about a search, a sweep or a population: figures, and a sortable table of all points."""

import io
import os
import re
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from nnfx import checks, distributed, paths
from nnfx.search import figures
from nnfx.search.comparison import FEWEST_PAIRS, compare
from nnfx.search.effects import effects
from nnfx.search.programs import words
from nnfx.search.result import Search, size_words
from nnfx.sweeps import Population, Sweep
from nnfx.sweeps.result import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["report"]

FEWEST = 8
"""The smallest number of points for which importance is shown."""

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
figure { margin: 0; overflow-x: auto; } figcaption { color: #444; max-width: 60rem; }
svg { max-width: 100%; height: auto; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
caption { text-align: left; color: #444; padding-bottom: 0.5rem; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th button { font: inherit; font-weight: 600; border: 0; background: none; padding: 0; cursor: pointer; color: #00558c; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
tbody tr:hover { background: #f3f6f9; }
"""

SCRIPT = """
const table = document.querySelector("table"), heads = [...table.tHead.rows[0].cells];
const key = (row, i) => row.cells[i].dataset.value ?? row.cells[i].textContent;
const isEmpty = text => text === "" || text === "nan";
heads.forEach((head, i) => head.firstElementChild.addEventListener("click", () => {
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const rows = [...table.tBodies[0].rows].sort((one, other) => {
    const [a, b] = [key(one, i), key(other, i)];
    if (isEmpty(a) || isEmpty(b)) return isEmpty(a) - isEmpty(b);
    const difference = Number(a) - Number(b);
    return sign * (Number.isNaN(difference) ? a.localeCompare(b) : difference);
  });
  heads.forEach(each => each.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  table.tBodies[0].append(...rows);
}));
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{summary}
{sections}
<h2>Table of all {what}</h2>
<div class="table" tabindex="0" role="region" aria-label="Table of all {what}">
{table}
</div>
</main>
<script>{script}</script>
</body>
</html>
"""


def report(found: Search | Sweep | Population, path: str | os.PathLike[str], *, title: str | None = None) -> None:
    """Write a self-contained HTML report about a search, a sweep or a population.

    It shows the best point, the number of points that can be distinguished from it, the figures of
    `nnfx.search.figures` as SVG, and a table of all points, or members, that can be sorted by clicking on a column
    name. Importance and partial dependence are left out for fewer than 8 points. The page is written under a temporary
    name, and then moved into place; with several processes, the first one writes it.

    Args:
        found: the result of `nnfx.search.search`, `nnfx.sweeps.sweep` or `nnfx.sweeps.population`.
        path: the path of the page, such as `"search.html"`; an existing file is replaced.
        title: the heading of the page; by default, the kind of result and its size.

    Raises:
        ModuleNotFoundError: if Matplotlib or scikit-learn is not installed.
        TypeError, ValueError: for a `found` of another type, or points that are all the same. Nothing is written then.

    Example:
        >>> import jax, nnfx, optax, pathlib, tempfile
        >>> data = nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)
        >>> train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=2)
        >>> found = nnfx.sweeps.sweep(train, data, key=jax.random.key(0), learning_rate=[0.1, 1.0])
        >>> path = pathlib.Path(tempfile.mkdtemp(), "sweep.html")
        >>> report(found, path)
        >>> path.read_text().startswith("<!DOCTYPE html>")
        True
    """
    place = paths.absolute("path", path)
    if title is not None and not isinstance(title, str):
        raise TypeError(f"title: expected a string, got {checks.describe(title)}")
    if isinstance(found, Population):
        text = _of_population(found, title)
    elif isinstance(found, Search | Sweep):
        text = _of_points(found, title)
    else:
        raise TypeError(
            f"found: expected the result of a search, a sweep or a population, got {checks.describe(found)}"
        )
    if distributed.is_first():
        with paths.replace(place) as aside:
            aside.write_text(text, encoding="utf-8", newline="\n")


def _of_points(found: Search | Sweep, title: str | None) -> str:
    """Return the page of a search or a sweep."""
    ranked = found.by_point()
    rows = [{"rank": i + 1, **row} for i, row in enumerate(ranked.rows)]
    sections = [
        _section(
            "The best so far",
            figures.best_so_far(found),
            "The mean score of the best point so far, against the number of epochs trained, summed over all members."
            " Points are counted one after the other, in the order in which they were drawn.",
        ),
        _section(
            "Each point as a line",
            figures.parallel_coordinates(found),
            "Each line is a point: it connects the point's values, with its mean score on the right. The darker a line,"
            " the better its rank. Outlying bad scores are clipped.",
        ),
    ]
    if len(rows) >= FEWEST:
        of_names = effects(found)
        sections += [
            _section(
                "What matters",
                figures.importance(of_names),
                "The fraction of the scores' variance due to each name, as modelled by trees, with two standard errors."
                " It refers to the values that were tried.",
            ),
            _section(
                "How the score depends on each name",
                figures.partial_dependence(of_names),
                "The mean score against the value of a name, averaged over the other names, with two standard errors.",
            ),
        ]
    programs = len(found.programs) if isinstance(found, Search) else 1
    name, _ = found.judged_by
    best = rows[0]
    searched = found.searched if isinstance(found, Search) else tuple(found.hyper)
    point = words({each: best[each] for each in searched if best[each] != ""})
    summary = f"<p>{size_words(len(rows), programs, len(found.rows))}, ranked by their mean {escape(name)}.</p>\n"
    summary += f"<p>The best: <strong>{escape(point)}</strong>, with {_shown(best[name])}"
    summary += f" ± {_shown(best['standard_error'])}.</p>" if best["runs"] > 1 else ".</p>"
    if isinstance(found, Search) and best["runs"] > 1:
        summary += f"\n<p>{_told_apart(found)}</p>"
    kind = "search" if isinstance(found, Search) else "sweep"
    return _page(title or f"A {kind} of {len(rows)} points", summary, sections, "points", rows)


def _told_apart(found: Search) -> str:
    """Describe in one or two sentences how many points can be distinguished from the best."""
    values, dropped = found.by_group(found.judged_by[0])
    has_failed = np.isnan(values).any(0)
    best = found.by_point().numbers[0]
    others = [i for i in np.flatnonzero(~dropped & ~has_failed) if i != best]
    if len(values) < FEWEST_PAIRS:
        return f"With {len(values)} runs of each point, no difference can be significant at 5 %."
    apart = sum(compare(values[:, i], values[:, best]).p_value <= 0.05 for i in others)
    left_out = {"dropped": int(dropped.sum()), "with failed runs": int((has_failed & ~dropped).sum())}
    rest = " and ".join(f"{count} {words}" for words, count in left_out.items() if count)
    return (
        f"Paired comparisons on the same seeds and folds distinguish it from {apart} of {len(others)} other points at"
        f" 5 %{f', apart from {rest}' if rest else ''}."
    )


def _of_population(members: Population, title: str | None) -> str:
    """Return the page of a population."""
    losses = np.asarray(members.losses, np.float64)[-1]
    order = np.argsort(np.where(np.isfinite(losses), losses, np.inf), kind="stable")
    rows = [
        {"rank": rank + 1, "member": int(member)}
        | {name: float(np.asarray(values)[-1, member]) for name, values in members.hyper.items()}
        | {"loss": float(losses[member]), "first ancestor": int(members.lineage(int(member))[0])}
        for rank, member in enumerate(order)
    ]
    rounds = len(members.parents)
    summary = f"<p>{len(rows)} members, {rounds} rounds of {members.epochs_per_round} epochs.</p>"
    section = _section(
        "Lineage",
        figures.lineage(members),
        "The hyper-parameters and the losses of all members; each line continues from that of its parent.",
    )
    return _page(title or f"A population of {len(rows)} members", summary, [section], "members", rows)


def _page(title: str, summary: str, sections: list[str], what: str, rows: list[Row]) -> str:
    return PAGE.format(
        title=escape(title),
        style=STYLE,
        script=SCRIPT,
        summary=summary,
        sections="\n".join(sections),
        what=what,
        table=_table(f"Click on a column name to sort the {what} by that column.", rows),
    )


def _table(caption: str, rows: list[Row]) -> str:
    """Return a table; cells show numbers to four digits, but are sorted by their exact values."""
    heads = "".join(
        f'<th scope="col"{" aria-sort=ascending" if i == 0 else ""}><button type="button">{escape(name)}</button></th>'
        for i, name in enumerate(rows[0])
    )
    body = "\n".join(f"<tr>{''.join(map(_cell, row.values()))}</tr>" for row in rows)
    return (
        f"<table>\n<caption>{escape(caption)}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"
        "</table>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f'<td data-value="{float(value)!r}">{_shown(value)}</td>'
    return f"<td>{escape(str(value))}</td>"


def _shown(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4g}"


def _section(heading: str, figure: "Figure", caption: str) -> str:
    drawn = as_svg(figure, re.sub(r"\W+", "-", heading.lower()), label=f"{heading}. {caption}")
    return f"<h2>{escape(heading)}</h2>\n<figure>\n{drawn}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def as_svg(figure: "Figure", name: str, label: str) -> str:
    """Return a figure as an SVG element to embed in a page, with text kept as text, not as paths.

    Args:
        figure: a Matplotlib figure.
        name: a name that is unique within the page; the ids of the element begin with it.
        label: a text alternative for screen readers.
    """
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :].rstrip()
    # unused ids, which are the same in every figure, are removed; used ids are prefixed with the figure's name
    used = set(re.findall(r"#([\w.-]+)", drawn))
    drawn = re.sub(r' id="([\w.-]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", drawn)
    drawn = re.sub(r'(?<=[("])#(?=[\w.-]+[)"])', f"#{name}-", drawn)
    return drawn.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
