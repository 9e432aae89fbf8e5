"""The folder of a search: another search is refused, and a search is described by the same text in every process."""

import jax
import numpy as np
import optax
import pytest

import nnfx
from nnfx.search import Choice, Grid, Halving, Uniform, When, search
from nnfx.search.folder import checksum, words_of
from tests.search.searches import FAST


@pytest.fixture(scope="module")
def data():
    return nnfx.data.titanic("fare", "age", key=jax.random.key(9), valid_fraction=0.25)


def make(width=2):
    loss = nnfx.losses.binary_cross_entropy
    return nnfx.fit(nnfx.models.mlp(hidden=(width,)), loss, optax.sgd, epochs=4, batch_size=100)


def test_another_search_does_not_overwrite_the_results_of_a_folder(data, tmp_path):
    space = {"width": Choice(2), "learning_rate": Choice(0.1)}
    given = {"points": Grid(1), "out": tmp_path, "progress": False, **FAST}
    search(make, data, space, **given)
    before = (tmp_path / "members.csv").read_text()
    others = [
        ({"space": {**space, "width": Choice(3)}}, "points: expected 1 in all, .*, got 1 in all"),
        ({"seeds": 2}, "seeds: expected 1, got 2"),
        ({"key": jax.random.key(1)}, "key: expected uint32"),
        ({"method": Halving((1,))}, "points kept: expected all, got {1: 1}"),
    ]
    for changed, message in others:
        with pytest.raises(ValueError, match=f"expected the search saved there, got a different one:\n  {message}"):
            search(make, data, **{"space": space, **given, **changed})
    assert (tmp_path / "members.csv").read_text() == before
    train = make(2)
    for given_to in (
        lambda: nnfx.sweeps.sweep(train, data, key=jax.random.key(0), learning_rate=[0.1], out=tmp_path),
        lambda: nnfx.session(train, tmp_path)(jax.random.key(0), data, learning_rate=0.1),
    ):
        with pytest.raises(ValueError, match="expected the folder of a run or a sweep, got the folder of a search"):
            given_to()
    assert (tmp_path / "members.csv").read_text() == before
    with pytest.raises(NotADirectoryError, match=r"members.csv: expected a folder, got a file"):
        search(make, data, space, **{**given, "out": tmp_path / "members.csv"})
    (tmp_path / "search.json").write_text("[]")
    with pytest.raises(ValueError, match=r"search.json: could not read the description of a search"):
        search(make, data, space, **given)
    (tmp_path / "search.json").rename(tmp_path / "run.json")
    with pytest.raises(ValueError, match="expected the folder of a search, got the folder of a run or a sweep"):
        search(make, data, space, **given)


def test_points_have_a_checksum_of_all_their_digits():
    points = [{"rate": 0.1, "width": 2}, {"rate": 0.2, "width": 3}]
    assert checksum(points) == checksum([{"width": 2, "rate": 0.1}, points[1]]), "the order of names does not matter"
    others = [points[::-1], points[:1], [points[0], {**points[1], "rate": np.nextafter(0.2, 1)}]]
    assert len({checksum(each) for each in [points, *others]}) == 4


def test_a_space_is_described_without_addresses_in_memory():
    class Made:
        pass

    space = {"optimizer": Choice(Made(), optax.sgd), "l2": When("optimizer", optax.sgd, Uniform(0.0, 1.0))}
    text = words_of(space)
    assert text == words_of({**space, "optimizer": Choice(Made(), optax.sgd)})
    assert "0x" not in text
    assert text.endswith("sgd); l2: When(optimizer, sgd, Uniform(low=0.0, high=1.0))")
