"""No use of a run's function or a model keeps it, or its programs, alive."""

import functools
import gc
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx
from nnfx import sweeps, uncertainty
from nnfx.forecasting import backtest, baselines
from nnfx.insight import (
    attribution,
    audit,
    backpropagation,
    curvature,
    features,
    flow,
    lags,
    landscape,
    layers,
    summary,
    tangent,
    trajectory,
)

KEY = jax.random.key(0)
DATA = nnfx.data.prepare(np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2, key=KEY, valid_fraction=0.2)
LOSS, BATCH = nnfx.losses.binary_cross_entropy, DATA.train
SERIES = np.sin(np.arange(24.0))[:, None]
RATE = {"learning_rate": 0.01}


def own(x):
    """Return a user's own activation, a new one for each model."""
    return jnp.tanh(x)


def made(model=None, loss=LOSS, epochs=1, **options):
    model = model or nnfx.models.perceptron(activation=lambda x: own(x))
    return nnfx.fit(model, lambda outputs, targets: loss(outputs, targets), optax.sgd, epochs=epochs, **options)


def trained(**options):
    return made(**options)(KEY, DATA, **RATE)


def predicted(_):
    run = trained()
    for rows in (2, 3):
        run.predict(np.zeros((rows, 3)))
    return run.fit


def evaluated(_):
    run = trained()
    run.evaluate(DATA.valid)
    uncertainty.fit_temperature(run.apply(DATA.valid.inputs), DATA.valid.targets)
    return run.fit


def budgeted(_):
    fit = made(stop=functools.partial(nnfx.stopping.time_budget, max_seconds=60.0))
    fit(KEY, DATA, **RATE)
    return fit


def in_session(folder):
    fit = made()
    nnfx.session(fit, folder / "run", progress=False)(KEY, DATA, **RATE)
    return fit


def streamed(folder):
    fit = made(batch_size=5)
    examples = nnfx.data.store(folder / "examples", [(np.zeros((10, 3), np.float32), np.zeros(10, np.float32))])
    nnfx.session(fit, folder / "run", progress=False)(KEY, examples, **RATE)
    return fit


def together(_):
    fit = made()
    result = sweeps.sweep(fit, DATA, key=KEY, seeds=2, devices=jax.devices()[:1], **RATE)
    result.ensemble(2).predict(np.zeros((2, 3)))
    return fit


def halved(_):
    fit = made(epochs=2)
    options = {"key": KEY, "halving": sweeps.Halving((1,)), "devices": jax.devices()[:1]}
    sweeps.sweep(fit, DATA, learning_rate=[0.01, 0.1], **options)
    return fit


def transformed(_):
    fit = made()
    jax.jit(jax.vmap(lambda key: fit(key, DATA, **RATE).final))(jax.random.split(KEY, 2))
    jax.grad(lambda rate: fit(KEY, DATA, learning_rate=rate).final["train_loss"])(0.1)
    return fit


def backtested(_):
    fit = nnfx.fit(baselines.linear(2), lambda o, t: nnfx.losses.mean_square_error(o, t), optax.sgd, epochs=1)
    backtest.refitted(
        fit, SERIES, key=KEY, lookback=4, horizon=2, origins=[16], devices=jax.devices()[:1], **RATE
    )  # fmt: skip
    return fit


FITS = [predicted, evaluated, budgeted, in_session, streamed, together, halved, transformed, backtested]


def by_default(names, cases):
    """Return cases, with those that are not named here marked slow."""
    return [
        pytest.param(each, marks=() if name in names else pytest.mark.slow, id=name) for name, each in cases.items()
    ]


@pytest.mark.parametrize(
    "use", by_default({"predicted", "in_session", "together"}, {use.__name__: use for use in FITS})
)
def test_a_runs_function_dies_with_the_last_reference_to_it(use, tmp_path):
    fit = weakref.ref(use(tmp_path))
    gc.collect()
    assert fit() is None


def at(model, variables):
    return model, LOSS, variables, BATCH


def followed(model):
    step = nnfx.make_step(model, LOSS, optax.sgd(0.1))
    state = nnfx.init_state(KEY, model, optax.sgd(0.1), BATCH.inputs)
    return trajectory.follow(step, state, BATCH, lambda state: state.step, steps=1)


LOOKS = {
    "landscape": lambda m, v: landscape.measure(
        *at(m, v), landscape.random_cut(KEY, v["params"], 1), jnp.zeros(1), devices=jax.devices()[:1]
    ),
    "trace": lambda m, v: curvature.trace(KEY, *at(m, v), draws=2),
    "eigenpairs": lambda m, v: curvature.eigenpairs(KEY, *at(m, v), steps=2),
    "gradients": lambda m, v: flow.per_example_gradients(*at(m, v)),
    "noise": lambda m, v: flow.noise_scale(*at(m, v)),
    "audit": lambda m, v: audit.gradient(KEY, *at(m, v), share=0.1),
    "backpropagation": lambda m, v: backpropagation.lay_open(*at(m, v)),
    "maximize": lambda m, v: features.maximize(KEY, m, v, "output", 0, (3,), steps=1),
    "top": lambda m, v: features.top_inputs(m, v, BATCH.inputs, "output", 0, count=1),
    "saliency": lambda m, v: attribution.saliency(m, v, BATCH.inputs),
    "layers": lambda m, v: layers.layer_outputs(m, v, BATCH.inputs),
    "summary": lambda m, v: summary.summarize(m, BATCH.inputs),
    "mc_dropout": lambda m, v: uncertainty.mc_dropout(KEY, m, v, BATCH.inputs, draws=2),
    "laplace": lambda m, v: uncertainty.laplace.predict(
        m, v, uncertainty.laplace.fit(m, v, BATCH, prior_precision=1.0, noise=1.0), BATCH.inputs
    ),
    "tangent": lambda m, v: tangent.kernel(tangent.linearize(m, v), v, BATCH.inputs),
    "trajectory": lambda m, v: followed(m),
}


@pytest.mark.parametrize("name", by_default({"landscape", "gradients", "layers"}, dict(zip(LOOKS, LOOKS, strict=True))))
def test_a_model_that_was_looked_into_dies_with_the_last_reference_to_it(name):
    model = nnfx.models.mlp((2,), activation=lambda x: own(x))
    LOOKS[name](model, model.init(KEY, BATCH.inputs))
    apply = weakref.ref(model.apply)
    del model
    gc.collect()
    assert apply() is None


@pytest.mark.slow
def test_recurrent_models_and_forecasters_die_with_the_last_reference_to_them():
    def seen_through_time():
        model, x = nnfx.models.rnn(hidden=(2,), activation=lambda x: own(x)), jnp.ones((2, 3, 1))
        batch = nnfx.Batch(x, jnp.ones(2), jnp.ones(2))
        lags.gradient_by_lag(model, nnfx.losses.mean_square_error, model.init(KEY, x), batch)
        return model

    def forecasting():
        model = baselines.linear(2)
        variables = model.init(KEY, jnp.ones((1, 4, 1)))
        backtest.fixed(model, variables, SERIES, lookback=4, horizon=2, origins=[16])
        return model

    gone = [weakref.ref(make().apply) for make in (seen_through_time, forecasting)]
    gc.collect()
    assert [each() for each in gone] == [None, None]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts what Linux has mapped")
def test_programs_of_runs_that_are_gone_take_no_memory():
    """Linux ends a process at 65,530 mappings; each compiled program takes several."""

    def mapped():
        gc.collect()
        return len(Path("/proc/self/maps").read_text().splitlines())

    def use(width):
        run = trained(model=nnfx.models.mlp((width,)))
        run.predict(np.zeros((2, 3)))
        run.evaluate(DATA.valid)

    use(2)
    before = mapped()
    for width in range(3, 7):
        use(width)
    assert mapped() - before < 4 * 4, "no more than some that serve all, where each run has three programs"


@pytest.mark.slow
def test_a_model_dies_with_the_step_that_was_made_of_it():
    model, optimizer = nnfx.models.mlp((2,), activation=lambda x: own(x)), optax.adam(0.01)
    step = nnfx.make_step(model, LOSS, optimizer)
    jax.jit(step)(nnfx.init_state(KEY, model, optimizer, BATCH.inputs), BATCH)
    apply = weakref.ref(model.apply)
    del model, step
    gc.collect()
    assert apply() is None
