"""The page about a search: complete by itself, escaped, accessible, and with the numbers of the result."""

import re
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest

from nnfx.search import report
from nnfx.sweeps import Population
from tests.search.made import search_of, sweep_of

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
VOID = {"meta", "br", "link", "img", "input"}


class Page(HTMLParser):
    """Reads a page, and checks that its elements are nested."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.cells, self._open = [], [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "td" in self._open or "th" in self._open:
            self.cells[-1][-1] += data


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    points = [{"act": ("<b>tanh</b>", "relu")[i % 2], "rate": float(rng.uniform())} for i in range(12)]
    return search_of(points, rng.uniform(size=(6, 12)), static=("act",))


@pytest.fixture(scope="module")
def text(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "search.html"
    report(found, path, title="A & B")
    assert [each.name for each in path.parent.iterdir()] == ["search.html"], "nothing else is left behind"
    return path.read_text(encoding="utf-8")


def test_a_page_needs_nothing_else(text):
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object")
        assert "src" not in attributes
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import", text)
    # what remains are the names of SVG's vocabularies, which nothing is fetched from
    assert set(re.findall(r"https?://[^\"]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "default-src 'none'" in text


def test_ids_are_unique_and_every_reference_has_one(text):
    ids = [attributes["id"] for _, attributes in Page(text).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"""(?:xlink:href="|url\()#([\w.-]+)""", text)) <= set(ids)


def test_a_page_can_be_read_without_seeing_its_figures(text):
    elements = Page(text).elements
    figures = [attributes for tag, attributes in elements if tag == "svg"]
    assert len(figures) == 4
    assert all(each["role"] == "img" and len(each["aria-label"]) > 40 for each in figures)
    assert [tag for tag, _ in elements].count("h1") == 1
    heads = [attributes for tag, attributes in elements if tag == "th"]
    assert all(each["scope"] == "col" for each in heads)
    assert ("html", {"lang": "en"}) in elements


def test_the_table_holds_all_points_ranked(text, found):
    head, *rows = Page(text).cells
    ranked = found.by_point().rows
    assert head == list(ranked[0])
    assert len(rows) == 12
    for row, given in zip(rows, ranked, strict=True):
        assert row[head.index("act")] == given["act"], "escaped, and read back as it was"
        assert float(row[head.index("valid_loss")]) == pytest.approx(given["valid_loss"], rel=1e-3)
    exact = [float(value) for value in re.findall(r'data-value="([^"]+)"', text)][1::4]
    np.testing.assert_allclose(exact, [row["valid_loss"] for row in ranked], rtol=0)
    alike = len(found.indistinguishable().rows) - 1
    assert f"distinguish it from {11 - alike} of 11 other points at 5 %." in text
    assert "<h1>A &amp; B</h1>" in text


def test_sweeps_and_populations_have_pages(tmp_path):
    report(sweep_of({"rate": np.array([0.1, 1.0])}, [[2.0, 1.0]]), tmp_path / "sweep.html")
    text = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    assert "A sweep of 2 points" in text
    assert "What matters" not in text, "two points say nothing about importance"
    members = Population(
        None,
        {"rate": jnp.array([[1.0, 2.0], [3.0, 4.0]])},
        jnp.array([[0, 1], [1, 1]]),
        jnp.array([[2.0, 1.0], [0.5, 0.7]]),
        5,
    )
    report(members, tmp_path / "population.html")
    head, *rows = Page((tmp_path / "population.html").read_text(encoding="utf-8")).cells
    assert head == ["rank", "member", "rate", "loss", "first ancestor"]
    assert rows == [["1", "0", "3", "0.5", "1"], ["2", "1", "4", "0.7", "1"]]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((3, "a.html"), TypeError, "found: expected the result of a search, a sweep or a population, got 3"),
        ((sweep_of({"rate": [1.0, 2.0]}, [[1.0, 2.0]]), 3), TypeError, "path: expected a path, got 3"),
        ((sweep_of({"rate": [1.0, 1.0]}, [[1.0, 2.0]]), "a.html"), ValueError, "found: expected points that differ"),
    ],
)
def test_wrong_input_is_an_error_and_writes_nothing(given, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        report(*given)
    with pytest.raises(TypeError, match="title: expected a string, got 3"):
        report(sweep_of({"rate": [1.0, 2.0]}, [[1.0, 2.0]]), "a.html", title=3)
    assert not list(tmp_path.iterdir())


def test_it_counts_only_points_that_a_test_distinguishes(tmp_path):
    """By hand: eight pairs that all agree have a p-value of 2 / 2⁸; points 2 and 3 are neither alike nor apart."""
    points = [{"rate": np.float64(i)} for i in range(4)]
    values = np.arange(8.0)[:, None] + np.array([[1.0, 2.0, 3.0, 4.0]])
    values[0, 3] = np.nan
    report(search_of(points, values, reasons=["epochs", "epochs", "dropped", "epochs"]), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "distinguish it from 1 of 1 other points at 5 %, apart from 1 dropped and 1 with failed runs." in text
    assert 'data-value="1.0"' in text
    assert "np.float64" not in text
