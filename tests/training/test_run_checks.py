"""Parts of a run that cannot be traced, or that return something else than they should: the errors say what to do."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnfx


class Dropping(nn.Module):
    width: int = 3
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(1)(nn.Dropout(self.rate, deterministic=not train)(nn.Dense(self.width)(x)))


@pytest.mark.parametrize(
    ("model", "optimizer", "name"),
    [
        (lambda width: nnfx.models.mlp((width,)), optax.sgd(0.1), "width"),
        (lambda width: nnfx.models.from_linen(Dropping(width=width)), optax.sgd(0.1), "width"),
        (lambda rate: nnfx.models.from_linen(Dropping(rate=rate)), optax.sgd(0.1), "rate"),
        (
            nnfx.models.perceptron(),
            lambda peak: optax.sgd(optax.warmup_cosine_decay_schedule(0.0, peak, 10, 100)),
            "peak",
        ),
        (nnfx.models.perceptron(), lambda steps: optax.sgd(optax.cosine_decay_schedule(0.1, steps)), "steps"),
        (nnfx.models.perceptron(), lambda by: optax.sgd(optax.piecewise_constant_schedule(0.1, {10: by})), "by"),
    ],
    ids=["width", "width of a Flax module", "rate of Flax's dropout", "peak", "steps", "factor"],
)
def test_the_error_says_what_to_do(model, optimizer, name):
    train = nnfx.fit(model, nnfx.losses.mean_square_error, optimizer, epochs=1)
    data = nnfx.data.prepare(np.ones((4, 2)), np.zeros(4), standardize=False)
    with pytest.raises(TypeError) as caught:
        train(jax.random.key(0), data, **{name: 3.0})
    notes = [note for note in caught.value.__notes__ if note.startswith(f"{name}: hyper-parameters are traced")]
    assert len(notes) == 1
    assert "functools.partial" in notes[0]


def test_other_errors_get_no_such_note():
    def model(scale):
        raise TypeError("the model of a user")

    train = nnfx.fit(model, nnfx.losses.mean_square_error, optax.sgd(0.1), epochs=1)
    data = nnfx.data.prepare(np.ones((4, 2)), np.zeros(4), standardize=False)
    with pytest.raises(TypeError, match="the model of a user") as caught:
        train(jax.random.key(0), data, scale=3.0)
    assert not [note for note in getattr(caught.value, "__notes__", []) if "hyper-parameters" in note]


@pytest.mark.parametrize(
    ("package", "module", "adapter"),
    [
        ("equinox", lambda eqx: eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0)), "from_equinox"),
        ("equinox", lambda eqx: eqx.nn.Linear, "from_equinox"),
        ("haiku", lambda hk: hk.transform(lambda x: hk.Linear(1)(x)), "from_haiku"),
        ("haiku", lambda hk: hk.Linear, "from_haiku"),
        ("flax.nnx", lambda nnx: nnx.Linear(2, 1, rngs=nnx.Rngs(0)), "from_nnx"),
        ("flax.nnx", lambda nnx: nnx.Linear, "from_nnx"),
        ("torch", lambda torch: torch.nn.Sequential(torch.nn.Linear(2, 1)), "from_torch"),
        ("torch", lambda torch: torch.nn.Linear, "from_torch"),
    ],
)
def test_a_module_of_another_library_is_an_error_that_names_its_adapter(package, module, adapter):
    given = module(pytest.importorskip(package))
    with pytest.raises(TypeError, match=f"model: expected a Model or a function that returns one, .*{adapter}"):
        nnfx.fit(given, nnfx.losses.mean_square_error, optax.sgd, epochs=1)


def test_a_loss_of_pytorch_is_an_error():
    torch = pytest.importorskip("torch")
    for loss in (torch.nn.BCEWithLogitsLoss(), torch.nn.functional.mse_loss):
        with pytest.raises(TypeError, match="loss: expected a function of JAX arrays, got .* of torch"):
            nnfx.fit(nnfx.models.perceptron(), loss, optax.sgd, epochs=1)


def test_a_metric_that_computes_with_numpy_says_what_to_do():
    def error(outputs, targets):
        return np.abs(np.asarray(outputs)[:, 0] - np.asarray(targets))

    train = nnfx.fit(
        nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd(0.1), epochs=1, metrics={"error": error}
    )
    data = nnfx.data.prepare(np.ones((4, 2)), np.zeros(4), standardize=False)
    with pytest.raises(jax.errors.TracerArrayConversionError) as caught:
        train(jax.random.key(0), data)
    notes = [note for note in caught.value.__notes__ if note.startswith("error: expected a function of JAX arrays")]
    assert len(notes) == 1
    assert "run.predict" in notes[0]


# parts that return arrays


@pytest.mark.parametrize("part", ["penalty", "average"])
def test_parts_that_return_arrays_instead_of_a_number_are_named(key, part):
    options = {part: lambda _: jnp.ones(3)}
    train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=1, **options)
    data = nnfx.data.prepare(np.ones((4, 2)), np.zeros(4), standardize=False)
    with pytest.raises(ValueError, match=rf"{part}: expected a function that returns one number, .*float32\[3\]"):
        train(key, data, learning_rate=0.1)


def test_a_run_prints_its_numbers_as_they_were_given(key):
    train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=1)
    data = nnfx.data.prepare(np.ones((4, 2)), np.zeros(4), standardize=False)
    assert "; learning_rate 0.1\n" in str(train(key, data, learning_rate=0.1))


@pytest.mark.parametrize(
    "loss",
    [nnfx.losses.mean_square_error, nnfx.losses.mean_absolute_error, functools.partial(nnfx.losses.huber, delta=2.0)],
)
def test_codes_of_classes_are_not_numbers_to_regress_on(key, loss):
    x = np.arange(12.0).reshape(6, 2)
    train = nnfx.fit(nnfx.models.perceptron(), loss, optax.sgd, epochs=1)
    message = "loss: expected a loss of classes, .* for the classes 'a', 'b', 'c', got "
    with pytest.raises(TypeError, match=message):
        train(key, nnfx.data.prepare(x, list("abcabc")), learning_rate=0.1)
    with pytest.raises(TypeError, match=message):
        nnfx.sweeps.sweep(train, nnfx.data.prepare(x, list("abcabc")), key=key, learning_rate=jnp.array([0.1, 0.2]))
    train(key, nnfx.data.prepare(x, list("ababab")), learning_rate=0.1)  # 0 and 1: the Brier score and the like
