"""Every cell of `nnfx/models/CONVENTIONS.md` is measured on the library that it is about, as it is installed."""

import inspect
import os
import re
from pathlib import Path

import jax
import pytest

import nnfx
from nnfx import models
from tests.conventions.layers import LAYERS, OPTIMIZERS, gelu
from tests.conventions.recurrent import RECURRENT

TEXT = (Path(nnfx.__file__).parent / "models/CONVENTIONS.md").read_text()
MEASURED = {**RECURRENT, **LAYERS, **OPTIMIZERS}
PACKAGES = {"Haiku": "haiku", "Keras": "keras", "PyTorch": "torch"}
CHOICES = "chosen in nnfx by"


def tables():
    """Return the cells by row and column."""
    cells = {}
    for table in re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line.strip("|").split(" |")] for line in table.splitlines())
        cells |= {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    return cells


def test_each_cell_has_a_measure():
    written = {(what, library) for what, row in tables().items() for library, cell in row.items() if cell != "–"}
    measured = {(what, library) for what, row in MEASURED.items() for library in row}
    assert {cell for cell in written if cell[1] != CHOICES} == measured


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # raised within Keras
@pytest.mark.parametrize(("what", "library"), [(what, library) for what, row in MEASURED.items() for library in row])
def test_the_library_does_what_the_table_says(what, library):
    package = None
    if library in PACKAGES:
        os.environ.setdefault("KERAS_BACKEND", "jax")
        package = pytest.importorskip(PACKAGES[library], reason=f"{library} is not installed: {PACKAGES[library]}")
    with jax.numpy_rank_promotion("allow"), jax.legacy_prng_key("allow"):
        measured = MEASURED[what][library](package)
    assert measured == tables()[what][library]


def test_what_can_be_chosen_is_an_argument():
    rows = {what: row[CHOICES] for what, row in tables().items() if row.get(CHOICES)}
    named = [found for cell in rows.values() for found in re.findall(r"`(\w+)\((\w+)=\)`", cell)]
    assert len(named) > 10
    for function, argument in named:
        places = [place for place in (models, nnfx.activations) if hasattr(place, function)]
        assert argument in inspect.signature(getattr(places[0], function)).parameters
    assert gelu(nnfx.activations.get("gelu_exact")) == "exact"
