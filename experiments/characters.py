"""Which character comes next? A recurrent network against interpolated n-grams, on Shakespeare's sonnets.

    python -m experiments.characters [--out DIR] [--seed N] [--model lstm|transformer]

The 154 sonnets, 94,038 characters in total, are bundled. One tenth of the text is held out to choose the network's
epoch and the weights of the n-grams, another tenth gives the final scores, and the rest is used for training. N-grams
are interpolated by the methods of Kneser and Ney and of Jelinek and Mercer. Beyond five characters, n-grams hardly
improve, while the network does. Expect 2.32 bits per character from the best n-grams, and about 2.28 from the network.
A transformer takes more than twice as long and reaches 2.33, no better than the n-grams: in these epochs, it does not
learn all that it could. The experiment works offline and takes less than two minutes.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt

import nnfx
from experiments import ngrams
from experiments.common import BLUE, GREEN, GREY, ORANGE, Results, command, curves_of, print_table
from nnfx import models
from nnfx.data.batching import steps_per_epoch
from nnfx.types import Array, Model

KINDS: tuple[ngrams.Kind, ...] = ("Jelinek–Mercer", "Kneser–Ney")
NAMES = {"gru": "GRU", "lstm": "LSTM", "transformer": "transformer"}
AT_ONCE = 1024
"""The number of examples evaluated at once, which bounds memory use."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options for the experiment with characters."""

    out: Path = Path("runs/characters")
    """the folder for the results"""
    seed: int = 0
    """the random seed"""
    model: Literal["gru", "lstm", "transformer"] = "gru"
    """the kind of network"""
    hidden: int = 128
    """width of each of the two layers of the network"""
    features: int = 32
    """length of the vector that represents a character"""
    dropout: float = 0.4
    """dropout rate between layers; a quarter of this rate applies to the character vectors"""
    length: int = 64
    """number of characters in an example"""
    epochs: int = 24
    """number of epochs"""
    batch_size: int = 16
    """number of examples in a minibatch"""
    learning_rate: float = 0.004
    """the peak learning rate (Adam, one cycle)"""
    clip: float = 1.0
    """the norm to which larger gradients are clipped"""
    ema_decay: float = 0.99
    """decay of the moving average of the weights, per step"""
    orders: int = 7
    """the largest n of the n-grams"""
    written: int = 300
    """number of characters that the network writes at the end"""


class Text(NamedTuple):
    """The sonnets as integers: their characters, and the splits for training, selection and scoring."""

    characters: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def main(config: Config) -> dict[str, Any]:
    """Run the experiment, and return its summary."""
    results = Results(config.out)
    text = sonnets()
    print(", ".join(f"{name}: {len(getattr(text, name)):,} characters" for name in ("train", "valid", "test")), "\n")
    run = trained(config, text)
    by_context = bits_by_context(run, text, config)
    counted = {
        kind: [ngrams.fit(kind, n, len(text.characters), text.train, text.valid) for n in range(1, config.orders + 1)]
        for kind in KINDS
    }
    bits = {
        f"{n}-gram, {kind}": {part: float(model.bits(getattr(text, part)).mean()) for part in ("valid", "test")}
        for kind, several in counted.items()
        for n, model in enumerate(several, start=1)
    }
    name = NAMES[config.model]
    bits[name] = {part: score(run, getattr(text, part), config) for part in ("valid", "test")}
    print_table(
        ["", "bits per character, held out", "scored", "perplexity"],
        [[label, of["valid"], of["test"], 2 ** of["test"]] for label, of in bits.items()],
    )
    off = stream_error(run, text.test[: 4 * config.length])
    print(f"\none character at a time, logits differ by at most {off:.1e}")
    sample = written(run, text, config)
    print(f"\nwritten by the network:\n\n{sample}")
    draw_context(results, bits, by_context, config)
    draw_learning_curves(results, run, bits, config)
    results.history(curves_of({name: [run]}))
    return results.summary(
        {
            "characters": {name: len(getattr(text, name)) for name in ("train", "valid", "test")},
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.state.params)),
            "bits": bits,
            "bits_by_context": by_context,
            "stream_error": off,
            "best_epoch": int(run.best.epoch),
            "written": sample,
            "seed": config.seed,
        }
    )


def sonnets() -> Text:
    """Return the sonnets: a tenth for selection, another tenth for the final scores, and the rest for training."""
    poems = (Path(__file__).parent / "sonnets.txt").read_text(encoding="utf-8").strip().split("\n\n")
    characters = "".join(sorted(set("\n".join(poems))))
    place = {character: i for i, character in enumerate(characters)}

    def joined(chosen: list[str]) -> np.ndarray:
        return np.array([place[character] for character in "\n\n".join(chosen) + "\n\n"], np.int32)

    rest = [poem for i, poem in enumerate(poems) if i % 10 not in (4, 9)]
    return Text(characters, joined(rest), joined(poems[4::10]), joined(poems[9::10]))


def network(config: Config, characters: int) -> Model:
    """Return a network that takes characters, and returns the logits of the next character at every step."""
    behind = {
        "gru": lambda: models.gru(characters, (config.hidden,) * 2, dropout=config.dropout, returns="all"),
        "lstm": lambda: models.lstm(characters, (config.hidden,) * 2, dropout=config.dropout, returns="all"),
        "transformer": lambda: models.transformer(
            characters, config.hidden, 2, 4, context=config.length, dropout=config.dropout / 2, returns="all"
        ),
    }
    return models.embedding(characters, config.features, behind[config.model](), dropout=config.dropout / 4)


def trained(config: Config, text: Text) -> nnfx.Run:
    """Train the network, and keep its weights at the epoch that predicts the held-out sonnets best."""
    train = nnfx.data.next_tokens(text.train, config.length)
    valid = nnfx.data.next_tokens(text.valid, config.length, context=config.length // 2)
    preprocess = nnfx.data.Preprocess(None, jnp.zeros(()), jnp.ones(()), (), (config.length,))
    total_steps = config.epochs * steps_per_epoch(len(train.targets), config.batch_size)

    def clipped_adam(learning_rate: Array) -> optax.GradientTransformation:
        rate = nnfx.schedules.one_cycle(learning_rate, total_steps)
        return optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(rate))

    fit = nnfx.fit(
        network(config, len(text.characters)),
        nnfx.losses.categorical_cross_entropy,
        clipped_adam,
        epochs=config.epochs,
        batch_size=config.batch_size,
        metrics={"bits": nnfx.metrics.bits_per_token},
        average=nnfx.averaging.exponential,
    )
    numbers = {"learning_rate": config.learning_rate, "ema_decay": config.ema_decay}
    return fit(jax.random.key(config.seed), nnfx.data.Data(train, valid, preprocess), **numbers)


def score(run: nnfx.Run, tokens: np.ndarray, config: Config) -> float:
    """Return the network's bits per character, with at least `length` preceding characters where there are as many."""
    batch = nnfx.data.next_tokens(tokens, 2 * config.length, context=config.length)
    return float(run.evaluate(batch)["bits"])


def bits_by_context(run: nnfx.Run, text: Text, config: Config) -> np.ndarray:
    """Return the mean bits per scored character given 1 to `length` preceding characters, `(length,)`."""
    inputs, targets, _ = nnfx.data.next_tokens(text.test, config.length, context=config.length - 1)
    losses = []
    for i in range(0, len(inputs), AT_ONCE):
        logits = run.apply(inputs[i : i + AT_ONCE])
        rows = logits.reshape(-1, logits.shape[-1]), targets[i : i + AT_ONCE].reshape(-1)
        losses.append(np.asarray(nnfx.metrics.bits_per_token(*rows)).reshape(-1, config.length))
    return np.concatenate(losses).mean(0)


def stream_error(run: nnfx.Run, tokens: np.ndarray) -> float:
    """Return the largest difference between the logits computed for whole sequences and for one character at a time."""
    stream = run.model.stream
    assert stream is not None
    step = functools.partial(stream.step, run.best.variables)
    streamed = jax.jit(lambda tokens: jax.lax.scan(step, stream.start(1), tokens)[1])(jnp.asarray(tokens)[:, None])
    return float(jnp.abs(streamed[:, 0] - run.apply(tokens[None])[0]).max())


def written(run: nnfx.Run, text: Text, config: Config, temperature: float = 0.7) -> str:
    """Sample text from the network, one character at a time, starting after a line break."""
    stream = run.model.stream
    assert stream is not None
    variables, start = run.best.variables, jnp.full(1, text.characters.index("\n"))

    def step(carry: tuple[Any, Array], key: Array) -> tuple[tuple[Any, Array], Array]:
        state, logits = stream.step(variables, *carry)
        token = jax.random.categorical(key, logits / temperature)
        return (state, token), token[0]

    @functools.partial(jax.jit, static_argnums=1)
    def tokens(key: Array, number: int) -> Array:
        return jax.lax.scan(step, (stream.start(1), start), jax.random.split(key, number))[1]

    found = tokens(jax.random.key(config.seed), config.written)
    return "".join(text.characters[i] for i in found).strip()


def draw_context(results: Results, bits: dict[str, Any], by_context: np.ndarray, config: Config) -> None:
    """Plot the bits per scored character against the number of preceding characters that are known."""
    name = NAMES[config.model]
    figure, axis = plt.subplots(figsize=(7, 4.4))
    for kind, colour in zip(KINDS, (ORANGE, GREEN), strict=True):
        orders = np.arange(1, config.orders + 1)
        values = [bits[f"{n}-gram, {kind}"]["test"] for n in orders]
        axis.plot(orders[1:] - 1, values[1:], "o-", color=colour, markersize=4, label=f"n-grams, {kind}")
    axis.plot(np.arange(1, len(by_context) + 1), by_context, color=BLUE, label=name)
    axis.axhline(bits[name]["test"], color=BLUE, linestyle="--", linewidth=1, label=f"{name}, all that is known")
    axis.set(xscale="log", xlabel="characters known before", ylabel="bits per character")
    axis.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    axis.legend()
    results.figure("context", figure)


def draw_learning_curves(results: Results, run: nnfx.Run, bits: dict[str, Any], config: Config) -> None:
    """Plot the bits per character by epoch, on the training and the held-out sonnets."""
    figure, axis = plt.subplots(figsize=(7, 4.4))
    for part, colour in (("train", GREY), ("valid", BLUE)):
        values = run.history[f"{part}_bits"]
        label = "training, with dropout" if part == "train" else "held out"
        axis.plot(np.arange(1, len(values) + 1), values, color=colour, label=f"{NAMES[config.model]}, {label}")
    best = min(bits[f"5-gram, {kind}"]["valid"] for kind in KINDS)
    axis.axhline(best, color=ORANGE, linestyle="--", label="the best 5-grams, held out")
    axis.set(xlabel="epoch", ylabel="bits per character")
    axis.legend()
    results.figure("learning_curves", figure)


if __name__ == "__main__":
    nnfx.cpu.set_up(devices=1, cache=None)
    command(main, Config, __doc__)
