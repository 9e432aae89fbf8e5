import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx import losses, models
from nnfx.insight import audit
from nnfx.types import Batch, Model

KEY = jax.random.key(5)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(9, 4)), jnp.float32)
BATCH = Batch(X, jnp.asarray(RNG.normal(size=9), jnp.float32), jnp.ones(9))
MSE = losses.mean_square_error
PERCEPTRON = models.perceptron()
START = PERCEPTRON.init(KEY, X)


# planted faults


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def layer(fault, x, w, a):
    """Return `x W a tanh(a)`, whose derivative is right except for one fault."""
    return x @ w * (a * jnp.tanh(a))[None]


def forward(fault, x, w, a):
    return layer(fault, x, w, a), (x, w, a)


def backward(fault, kept, delta):
    x, w, a = kept
    scaled = delta * (a * jnp.tanh(a))[None]
    to_x, to_w = scaled @ (w if fault == "a transposed weight" else w.T), x.T @ scaled
    slope = jnp.tanh(a) + (0 if fault == "a dropped term" else a / jnp.cosh(a) ** 2)
    to_w = {"a wrong sign": -to_w, "a missing factor": to_w / len(x), "a stopped gradient": 0 * to_w}.get(fault, to_w)
    to_w = to_w.at[1, 1].multiply(0.9999) if fault == "a small error of one element" else to_w
    return to_x, to_w, (delta * (x @ w)).sum(0) * slope


layer.defvjp(forward, backward)


def network(fault):
    """Three layers, the second faulty, with ReLU and zero biases: an example of zeros is at kinks."""

    def init(key, x):
        draw = [0.6 * jax.random.normal(each, (4, 4)) for each in jax.random.split(key, 3)]
        return {
            "params": {
                "first": {"kernel": draw[0], "bias": jnp.zeros(4)},
                "second": {"kernel": draw[1], "factor": jnp.array([0.5, -1.0, 1.5, 0.8])},
                "third": {"kernel": draw[2]},
            }
        }

    def apply(variables, x, **_):
        p = variables["params"]
        h = jax.nn.relu(x @ p["first"]["kernel"] + p["first"]["bias"][None])
        h = jax.nn.relu(layer(fault, h, p["second"]["kernel"], p["second"]["factor"]))
        return h @ p["third"]["kernel"]

    return Model(init, apply)


FAULTS = {
    "a wrong sign": {"second/kernel"},
    "a missing factor": {"second/kernel"},
    "a dropped term": {"second/factor"},
    "a transposed weight": {"first/kernel", "first/bias"},
    "a stopped gradient": {"second/kernel"},
    "a small error of one element": {"second/kernel"},
    "none": set(),
}


# Faults of a whole leaf, like a wrong sign.
SLOW = {"a missing factor", "a stopped gradient"}


@pytest.mark.parametrize("fault", [pytest.param(f, marks=pytest.mark.slow if f in SLOW else ()) for f in FAULTS])
def test_a_planted_fault_is_found_and_its_leaf_named(fault):
    model = network(fault)
    batch = Batch(X.at[:3].set(0), X[::-1], jnp.ones(9))
    found = audit.gradient(KEY, model, MSE, model.init(KEY, X), batch)
    assert set(found.failures) == FAULTS[fault]
    assert found.passed == (fault == "none")
    assert found.leaves["first/bias"].kinks > 0, "an empty example without bias lies on the kink of every unit"
    if fault == "none":
        assert all(leaf.error < 1e-7 for leaf in found.leaves.values())
    if fault == "a small error of one element":
        assert found.leaves["second/kernel"].worst == (1, 1)
    for name in FAULTS[fault]:
        assert f"\n{name}[" in str(found), "the table says what the gradient and the differences are"


def test_a_fault_cannot_hide_behind_kinks():
    @jax.custom_vjp
    def shifted(x, b):
        return x + b[None]

    shifted.defvjp(lambda x, b: (shifted(x, b), None), lambda _, delta: (delta, 2 * delta.sum(0)))

    def apply(variables, x, **_):
        return jax.nn.relu(shifted(x, variables["params"]["bias"]))

    empty = Batch(jnp.zeros((9, 3)), jnp.ones((9, 3)), jnp.ones(9))
    found = audit.gradient(KEY, Model(None, apply), MSE, {"params": {"bias": jnp.zeros(3)}}, empty)
    assert found.leaves["bias"].kinks == found.leaves["bias"].audited == 3
    assert found.failures == ("bias",)


# verdicts


def test_derivatives_are_those_of_the_closed_form():
    found = audit.gradient(KEY, PERCEPTRON, MSE, START, BATCH)
    inputs, targets = np.asarray(X, np.float64), np.asarray(BATCH.targets, np.float64)
    errors = inputs @ np.asarray(START["params"]["kernel"], np.float64)[:, 0] - targets
    by_hand = {"kernel": 2 * inputs.T @ errors[:, None] / 9, "bias": 2 * errors.mean(keepdims=True)}
    assert found.passed
    np.testing.assert_allclose(found.loss, (errors**2).mean(), rtol=1e-12)
    for name, expected in by_hand.items():
        leaf = found.leaves[name]
        assert leaf.shape == expected.shape
        np.testing.assert_allclose(leaf.scale, np.abs(expected).max(), rtol=1e-8)
        np.testing.assert_allclose(leaf.difference, expected[leaf.worst], rtol=1e-8)
        np.testing.assert_allclose(leaf.gradient, expected[leaf.worst], rtol=1e-12)


def test_at_the_kink_of_the_absolute_error_the_place_beside_decides(monkeypatch):
    def absolute_error(outputs, targets):  # with a one-sided slope at its kink, where that of the library is zero
        error = outputs[:, 0] - targets.astype(outputs.dtype)
        return jnp.where(error >= 0, error, -error)

    exact = BATCH._replace(targets=PERCEPTRON.apply(START, X)[:, 0])
    with jax.enable_x64(True):
        start = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), START)
        exact = exact._replace(targets=PERCEPTRON.apply(start, jnp.asarray(X, float))[:, 0])
    found = audit.gradient(KEY, PERCEPTRON, absolute_error, START, exact)
    assert {leaf.verdict for leaf in found.leaves.values()} == {"right"}
    assert found.leaves["kernel"].kinks == 4
    monkeypatch.setattr(audit, "BESIDE", 0.0)
    found = audit.gradient(KEY, PERCEPTRON, absolute_error, START, exact)
    assert {leaf.verdict for leaf in found.leaves.values()} == {"undecided"}
    assert not found.passed


def test_where_nothing_reaches_a_layer_its_gradient_is_flat():
    model = models.mlp((3,))
    variables = model.init(KEY, X)
    variables["params"]["hidden_0"]["bias"] = jnp.full(3, -100.0)
    found = audit.gradient(KEY, model, MSE, variables, BATCH)
    verdicts = {name: leaf.verdict for name, leaf in found.leaves.items()}
    assert verdicts["hidden_0/kernel"] == verdicts["hidden_0/bias"] == verdicts["output/kernel"] == "flat"
    assert verdicts["output/bias"] == "right"
    assert found.passed


@pytest.mark.slow
def test_a_share_is_drawn_by_the_key_and_reaches_every_leaf():
    model = models.mlp((11,), activation="tanh")
    variables = model.init(KEY, X)
    found = [
        audit.gradient(jax.random.key(seed), model, MSE, variables, BATCH, share=0.1, tolerance=1e-12)
        for seed in (0, 0, 1)
    ]
    assert [leaf.audited for leaf in found[0].leaves.values()] == [2, 5, 1, 2]
    assert found[0] == found[1]
    assert [leaf.worst for leaf in found[0].leaves.values()] != [leaf.worst for leaf in found[2].leaves.values()]
    assert "5 of 44" in str(found[0])


def test_all_losses_are_computed_in_one_program_that_leaves_nothing_behind():
    traces = []

    def apply(variables, x, **_):
        traces.append(x.dtype)
        return PERCEPTRON.apply(variables, x)

    audit.gradient(KEY, Model(PERCEPTRON.init, apply), MSE, START, BATCH)
    assert len(traces) <= 4
    assert jnp.ones(1).dtype == jnp.float32


# errors

NARROW = Model(None, lambda variables, x, **_: (x @ variables["params"]["kernel"]).astype(jnp.float32))
NAN = {"params": {"kernel": jnp.full((4, 1), jnp.nan), "bias": jnp.zeros(1)}}


def call(model=PERCEPTRON, loss=MSE, variables=START, batch=BATCH, key=KEY, **options):
    return audit.gradient(key, model, loss, variables, batch, **options)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"model": "mlp"}, TypeError, "model: expected a Model.*'mlp'"),
        ({"loss": "mse"}, TypeError, "loss: expected a function"),
        ({"variables": START["params"]}, ValueError, r"variables: expected variables of a model, \{'params': ...\}"),
        ({"variables": {"params": {}}}, ValueError, "variables: expected at least one parameter"),
        ({"variables": {"params": {"kernel": jnp.ones((4, 1), int)}}}, TypeError, "variables: kernel: expected floats"),
        ({"variables": NAN}, ValueError, "variables: kernel: expected finite numbers, got 4"),
        ({"batch": (X, X)}, TypeError, "batch: expected a Batch.*tuple"),
        ({"batch": BATCH._replace(targets=jnp.ones(8))}, ValueError, r"batch: expected 9 rows.*float32\[8\]"),
        ({"batch": BATCH._replace(inputs=X * jnp.nan)}, ValueError, "batch.inputs: expected finite"),
        ({"batch": BATCH._replace(weights=-jnp.ones(9))}, ValueError, "batch.weights: .*negative"),
        ({"loss": losses.categorical_cross_entropy}, ValueError, "outputs: expected logits for two classes"),
        ({"loss": lambda o, t: MSE(o, t).mean()}, ValueError, r"loss: expected one value per example, \[9\]"),
        ({"loss": losses.binary_cross_entropy}, ValueError, "targets: expected binary labels"),
        ({"key": 0}, TypeError, "key: expected a typed key"),
        ({"share": 0}, ValueError, "share: expected a finite number above 0"),
        ({"share": 1.5}, ValueError, "share: .*at most 1, got 1.5"),
        ({"tolerance": 0.0}, ValueError, "tolerance: .*above 0"),
        ({"model": NARROW}, ValueError, "model: expected outputs in float64.*float32"),
        ({"loss": lambda o, t: MSE(o, t) / 0}, ValueError, "loss: expected finite values and gradients"),
    ],
)
def test_errors_name_the_argument(wrong, kind, message):
    with pytest.raises(kind, match=message):
        call(**wrong)


def test_an_audit_cannot_be_traced():
    with pytest.raises(TypeError, match="variables: expected concrete arrays"):
        jax.jit(lambda variables: call(variables=variables).loss)(START)
