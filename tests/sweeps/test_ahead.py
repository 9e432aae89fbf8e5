"""Programs that are compiled in the background are the same, in order, and leave no thread behind."""

import functools
import signal
import threading

import jax
import numpy as np
import optax
import pytest

import nnfx
from nnfx.search import search
from nnfx.sweeps import Halving, programs, sweep
from nnfx.sweeps.ahead import Ahead
from tests.search.searches import same
from tests.sessions.sessions import bits

KEY = jax.random.key(0)
ONE = {"key": KEY, "devices": jax.devices()[:1]}
RNG = np.random.default_rng(0)
DATA = nnfx.data.prepare(RNG.normal(size=(8, 2)), np.arange(8) % 2, key=KEY, valid_fraction=0.25)
EPOCHS = (1, 2, 3)
GIVEN = {"points": [{"epochs": epochs, "learning_rate": rate} for epochs in EPOCHS for rate in (0.1, 0.5)], **ONE}


def maker(model=None):
    """Return a new `make`, none of whose programs has been compiled."""
    model = model or nnfx.models.perceptron()
    return functools.cache(
        lambda epochs: nnfx.fit(model, nnfx.losses.binary_cross_entropy, optax.sgd, epochs=epochs, batch_size=3)
    )


def threads():
    return [each for each in threading.enumerate() if each.name.startswith("nnfx-compile")]


@pytest.fixture
def compiled(monkeypatch):
    """The names of the threads that compiled the programs."""
    found, before = [], programs._compile

    def compile_(lowered, options):
        found.append(threading.current_thread().name.partition("_")[0])
        return before(lowered, options)

    monkeypatch.setattr(programs, "_compile", compile_)
    return found


@pytest.fixture(scope="module")
def make():
    return maker()


@pytest.fixture(scope="module")
def without(make):
    """The result of a search that compiles nothing ahead."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(programs.Program, "prepare", lambda *_: None)
        return search(make, DATA, **GIVEN)


def test_a_search_that_compiles_ahead_has_the_same_bits(without, compiled):
    same(search(maker(), DATA, **GIVEN), without)
    assert compiled == ["nnfx-compile"] * 2 * len(EPOCHS)
    assert not threads()


def test_no_more_than_one_group_is_prepared_ahead(without, make, monkeypatch):
    prepared, trained, before = {}, [], programs.Program.prepare

    def prepare(self, *given):
        prepared.setdefault(self, len(trained))
        before(self, *given)

    monkeypatch.setattr(programs.Program, "prepare", prepare)
    same(search(make, DATA, on_chunk=trained.append, **GIVEN), without)
    assert [*prepared.values()] == [0, 0, 0, 0, 1, 1], "the first two groups; then the third, while the second trains"


def test_an_error_is_raised_when_the_turn_of_its_group_comes(monkeypatch):
    trained, traced, before = [], [], programs.Program._lowered

    class Broken:
        def compile(self, *_):
            raise RuntimeError("no such instruction")

    def lowered(self, *given):
        traced.append(self)
        return (Broken(), {}) if len(traced) > 4 else before(self, *given)

    monkeypatch.setattr(programs.Program, "_lowered", lowered)
    make = maker()
    with pytest.raises(RuntimeError, match="no such instruction"):
        search(make, DATA, on_chunk=trained.append, **GIVEN)
    assert len(trained) == 2
    assert not threads()
    monkeypatch.undo()
    assert len(search(make, DATA, **GIVEN).rows) == 6, "what failed is compiled again"


def test_an_error_of_tracing_is_raised_when_the_turn_of_its_group_comes():
    trained, model = [], nnfx.models.perceptron()

    def apply(variables, inputs, **options):
        if trained:
            raise ArithmeticError("cannot be traced")
        return model.apply(variables, inputs, **options)

    with pytest.raises(ArithmeticError, match="cannot be traced"):
        search(maker(nnfx.Model(model.init, apply)), DATA, on_chunk=trained.append, **GIVEN)
    assert len(trained) == 2, "the second was traced before the first was trained"
    assert not threads()


def test_ctrl_c_ends_a_search_and_its_threads(without):
    def interrupt(_):
        signal.raise_signal(signal.SIGINT)

    make = maker()
    with pytest.raises(KeyboardInterrupt):
        search(make, DATA, on_chunk=interrupt, **GIVEN)
    assert not threads()
    same(search(make, DATA, **GIVEN), without)


def test_a_program_that_no_thread_had_begun_is_compiled_when_it_is_needed():
    double = programs.Program(lambda members, *_: (2 * members, ()), jax.sharding.Mesh(jax.devices()[:1], "members"), 0)
    members, groups = np.ones((2, 2), np.float32), programs.Groups(np.zeros(2), np.zeros(2))
    is_over = threading.Event()
    with Ahead() as ahead:
        for _ in range(8):  # more than there are threads
            ahead.compile(is_over.wait)
        double.prepare(ahead, members, groups, ())
        threading.Timer(0.05, is_over.set).start()
    assert not threads()
    assert double(members, groups, ()).tolist() == [[2, 2], [2, 2]]


def test_a_sweep_compiles_both_of_its_programs_in_the_background(without, compiled):
    found, third = sweep(maker()(3), DATA, learning_rate=[0.1, 0.5], **ONE), without.sweeps[2]
    assert compiled == ["nnfx-compile"] * 2
    assert not threads()
    assert bits((found.variables, found.histories)) == bits((third.variables, third.histories))


def test_halving_of_small_networks_has_few_programs_and_the_bits_of_the_sweep_that_drops_no_point(compiled):
    fit, rates = maker()(4), np.geomspace(0.01, 1, 128)
    halved = sweep(fit, DATA, halving=Halving((1, 2, 3), 1 / 4), learning_rate=rates, **ONE)
    assert compiled == ["nnfx-compile"] * 3, "one to start, and for 128 and 32 points; those of 8 and 2 stay with 32"
    whole = sweep(fit, DATA, learning_rate=rates, epochs_per_chunk=1, **ONE)
    for name, values in halved.histories.items():
        was_run = ~np.isnan(values)
        assert was_run.sum(0).tolist() == [128, 32, 8, 2]
        assert values[was_run].tobytes() == whole.histories[name][was_run].tobytes()


def test_halving_of_other_networks_compiles_every_size_ahead(compiled):
    rates = np.geomspace(0.01, 1, 16)
    halved = sweep(maker()(3), DATA, halving=Halving((1, 2), 1 / 4), learning_rate=rates, **ONE)
    assert compiled == ["nnfx-compile"] * 4, "one to start, and for 16, 4 and 1 points"
    assert sorted(row["epochs"] for row in halved.rows) == [1] * 12 + [2] * 3 + [3]
