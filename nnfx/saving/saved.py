"""Saved models: folders with everything needed to predict, opened without the training data or the model's code.

A saved model is a checkpoint (see `nnfx.checkpoint`: complete or absent, with a checksum for every file, and neither
pickles nor code) of the weights, the arrays of the preprocessing, and the model itself as a portable program.
Everything else is written in `checkpoint.json`. A saved model is a folder rather than a single file, so that it is
written, verified and read in the same way as a checkpoint.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checkpoint, checks, memo, paths
from nnfx.data.preprocess import Preprocess
from nnfx.saving import fields
from nnfx.saving.program import Program, fits, is_sequence, symbolic
from nnfx.training.padded_predictions import apply_padded
from nnfx.types import Array, Model, Sequences, Variables

FORMAT = 1
"""The version of the layout; any other version is rejected."""
WITHIN, REASON = "predictor", "reason.txt"
"""The folder of the saved model within a session's folder, and the file there that says why there is no model."""
_KIND = "model"
_OF_A_SESSION, _BY_HAND = "run.json", "model"
"""The file that identifies the folder of a session, and the subfolder where `nnfx.Run.save` may have saved it."""


def save(
    path: str | os.PathLike[str],
    model: Model,
    variables: Variables,
    preprocess: Preprocess,
    notes: Mapping[str, Any],
    inputs: Any = None,
) -> None:
    """Write a model with everything needed for predictions; see `nnfx.Run.save`.

    Args:
        path: a folder that does not exist yet.
        model: the model.
        variables: the variables of the model.
        preprocess: the preprocessing of raw inputs.
        notes: further information to store, as returned by `nnfx.training.run.notes_of`.
        inputs: example inputs, preprocessed; by default, of the shape that `preprocess` returns.
    """
    folder = paths.absolute("path", path)
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder}: expected a path that does not exist yet, got a file, folder or link")
    checkpoint.save(folder, *Unfilled.of(model, variables, preprocess, inputs).filled(variables, notes))


class Unfilled(NamedTuple):
    """A saved model without its weights, which can be filled in later.

    Attributes:
        program: the portable program, as bytes.
        numbers: the arrays of the preprocessing.
        about: the description of the model, of JSON types.
    """

    program: np.ndarray
    numbers: list[Any]
    about: Mapping[str, Any]

    @classmethod
    def of(cls, model: Model, variables: Variables, preprocess: Preprocess, inputs: Any = None) -> "Unfilled":
        """Export a model; see `save`.

        Raises:
            ModuleNotFoundError: if flatbuffers is not installed.
            TypeError: for preprocessing, or names of weights, of a type that cannot be saved.
            ValueError: for a model that cannot be exported.
        """
        names = [[_name(key) for key in path] for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
        program = _program(model, variables, prepared_shapes(preprocess) if inputs is None else inputs)
        described, numbers = fields.split(preprocess)
        about = {
            "kind": _KIND,
            "format": FORMAT,
            "variables": names,
            "preprocess": described,
            "model": f"{_in_words(program.inputs)} -> {_in_words([program.outputs])}",
        }
        return cls(np.frombuffer(program.content, np.uint8), numbers, about)

    def filled(self, variables: Variables, notes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fill in weights, and return the arrays and notes as arguments of `checkpoint.save`."""
        arrays = {"variables": jax.tree.leaves(variables), "preprocess": self.numbers, "program": self.program}
        return arrays, {**self.about, **notes}


def load(path: str | os.PathLike[str]) -> "Predictor":
    """Open a saved model, without the data that it was trained on or the code that defined it.

    Args:
        path: a folder written by `nnfx.Run.save`; or the folder of a session, which may have ended, been killed or be
            still running: the model then has the best weights saved so far.

    Returns:
        The model, which predicts from raw inputs.

    Raises:
        FileNotFoundError: if there is no folder at the path, or no saved model in the folder of a session; the message
            says why.
        nnfx.checkpoint.DamagedError: for a missing, unexpected or altered file, which the message names.
        TypeError: for a `path` that is neither a string nor a path.
        ValueError: for anything other than a saved model, an unsupported format, or a program that this release of
            JAX cannot read.

    Example:
        >>> import nnfx, optax, tempfile
        >>> data = nnfx.data.prepare([[1.0], [2.0], [4.0]], [2.0, 4.0, 8.0], features=("metres",))
        >>> train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd, epochs=100)
        >>> run = train(jax.random.key(0), data, learning_rate=0.3)
        >>> path = f"{tempfile.mkdtemp()}/twice"
        >>> run.save(path)
        >>> model = nnfx.load(path)
        >>> model.features, bool(jnp.allclose(model.predict([[3.0]]), run.predict([[3.0]])))
        (('metres',), True)
    """
    folder = paths.absolute("path", path)
    return _in_session(folder) if (folder / _OF_A_SESSION).is_file() else _opened(folder)


def _in_session(out: Path) -> "Predictor":
    """Open the newest model of a session, which a running session may replace at any moment."""
    while True:
        named = [path for path in (out / WITHIN).glob("epoch-*") if re.fullmatch(r"epoch-\d{8,}", path.name)]
        newest = max(named, key=lambda path: int(path.name.removeprefix("epoch-")), default=out / _BY_HAND)
        if not named and not newest.is_dir():
            raise FileNotFoundError(_why_not(out))
        try:
            return _opened(newest)
        except Exception:  # of any type: the files may be removed while they are read
            if newest.is_dir():
                raise


def _why_not(out: Path) -> str:
    """Return the reason why the folder of a session contains no model, as an error message."""
    if not (out / WITHIN).is_dir() and checkpoint.from_json((out / _OF_A_SESSION).read_text()).get("kind") == "sweep":
        return f"{out}: expected a saved model, or the folder of a session of one run, got the folder of a sweep"
    wanted = f"{out}: expected the folder of a session that has saved its model"
    with contextlib.suppress(OSError):
        reason = (out / WITHIN / REASON).read_text()
        return f"{wanted}, got a session that could not save it: {reason}"
    return f"{wanted}, got no model yet: it is saved with each checkpoint; the same call continues the session"


def _opened(folder: Path) -> "Predictor":
    """Open a saved model."""
    description, leaves = checkpoint.load_by_path(folder)
    about = description.about
    if about.get("kind") != _KIND:
        raise ValueError(f"{folder}: expected a saved model, got a different kind of checkpoint")
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{folder}: expected a saved model of format {FORMAT}, got {about.get('format')},"
            f" written by nnfx {description.versions.get('nnfx')}"
        )
    stored = [leaves[f"['variables'][{i}]"] for i in range(len(about["variables"]))]
    if wide := [leaf for leaf in stored if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype]:
        raise ValueError(f"{folder}: expected jax_enable_x64 to be set, since weights are {wide[0].dtype}, got False")
    numbers = [leaves[name] for name in leaves if name.startswith("['preprocess']")]
    return Predictor(
        program=Program.read(
            f"{folder}, saved with JAX {description.versions.get('jax')}", leaves["['program']"].tobytes()
        ),
        variables=_nested(about["variables"], [jnp.asarray(leaf) for leaf in stored]),
        preprocess=fields.joined(about["preprocess"], numbers),
        hyper=about["hyper"],
        metrics=about["metrics"],
        epoch=about["epoch"],
        versions=description.versions,
        names=tuple(map(tuple, about["variables"])),
    )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Predictor:
    """A trained model that predicts, as returned by `nnfx.load`.

    Attributes:
        program: the model as a portable program, `(weights, inputs) -> outputs`.
        variables: the weights, as nested dictionaries; attributes and positions of other containers become keys.
        preprocess: the preprocessing of raw inputs.
        hyper: the hyper-parameters of the run, by name.
        metrics: the metrics at the epoch of the saved weights, by name.
        epoch: the epoch of the saved weights.
        versions: the versions of Python and of the packages that saved the model, by name.
        names: the path of each weight array, in the order in which the program takes them.
    """

    program: Program
    variables: Variables
    preprocess: Preprocess
    hyper: Mapping[str, Any]
    metrics: Mapping[str, float]
    epoch: int
    versions: Mapping[str, str]
    names: tuple[tuple[Any, ...], ...]

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the raw features; empty if features have no names."""
        return self.preprocess.features

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; empty if classes have no names."""
        return self.preprocess.classes

    def __repr__(self) -> str:
        """Describe the model in a few lines."""
        measured = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        named = f" ({', '.join(map(str, self.features[:8]))}{', …' if len(self.features) > 8 else ''})"
        lines = [
            f"Predictor: {_in_words(self.program.inputs)} -> {_in_words([self.program.outputs])}",
            f"  epoch {self.epoch}: {measured}",
            f"  {sum(leaf.size for leaf in jax.tree.leaves(self.variables))} parameters",
            f"  saved by nnfx {self.versions.get('nnfx')} and JAX {self.versions.get('jax')}",
        ]
        lines[0] += named if self.features else ""
        return "\n".join(lines)

    def predict(self, inputs: Any, variables: Variables | None = None) -> Array:
        """Return the outputs for raw inputs, `(batch, features)` or a data frame; otherwise like `apply`."""
        return self.preprocess.raw_outputs(self.apply(self.preprocess(inputs), variables))

    def apply(self, inputs: Any, variables: Variables | None = None) -> Array:
        """Return the outputs for preprocessed inputs, `(batch, ...)`.

        Args:
            inputs: the preprocessed inputs; any number of rows, and for sequences any number of steps if the model
                accepts that.
            variables: weights to use instead of the saved weights, with the same structure.

        Raises:
            TypeError: for dtypes that the model does not accept.
            ValueError: for shapes that the model does not accept, and integers for which its outputs are NaN, such as
                tokens beyond the range of its embedding.
        """
        prepared = self._checked(inputs)
        weights = self._in_order(self.variables if variables is None else variables)
        outputs = apply_padded(self.program, lambda rows: self.program(weights, rows), prepared, weights)
        _check_tokens(prepared, outputs)
        return outputs

    def _checked(self, inputs: Any) -> list[Any]:
        """Check inputs, and convert them to the arrays that the program takes."""
        wanted = self.program.inputs
        is_one = len(wanted) == 1 and not isinstance(inputs, tuple | dict)
        given = [inputs] if is_one else jax.tree.leaves(inputs)
        expected = _in_words(wanted)
        if len(given) != len(wanted):
            raise ValueError(f"inputs: expected {expected}, got {len(given)} arrays")
        leaves = [arrays.as_array("inputs", leaf) for leaf in given]
        for i, (leaf, like) in enumerate(zip(leaves, wanted, strict=True)):
            if jnp.issubdtype(like.dtype, np.integer) and not jnp.issubdtype(leaf.dtype, np.integer):
                raise TypeError(f"inputs: expected {expected}, got {checks.describe(leaf)}")
            if not fits(leaf, like) or not leaf.shape[0]:
                raise ValueError(f"inputs: expected {expected}, at least one row, got {checks.describe(leaf)}")
            leaves[i] = leaf.astype(like.dtype)
        return leaves

    def _in_order(self, variables: Variables) -> list[Any]:
        """Return the weights in the order in which the program takes them."""
        places = _nested(self.names, list(range(len(self.names))))
        form: Any = jax.tree.structure(places)
        if form != (got := jax.tree.structure(variables)):
            raise ValueError(f"variables: expected the structure of model.variables, {form}, got {got}")
        found = dict(zip(jax.tree.leaves(places), jax.tree.leaves(variables), strict=True))
        return [jnp.asarray(found[i]) for i in range(len(found))]


def _check_tokens(inputs: list[Any], outputs: Any) -> None:
    """Refuse integers whose outputs are NaN: a program cannot refuse tokens beyond its table, whose vectors are NaN."""
    if not all(jnp.issubdtype(leaf.dtype, np.integer) for leaf in inputs) or not checks.is_concrete(outputs):
        return
    if not jnp.issubdtype(outputs.dtype, np.floating):
        return
    axes = tuple(range(1, outputs.ndim))
    is_unknown = np.isnan(np.asarray(outputs)).any(axes)  # on the host, without a program for each shape
    if is_unknown.any():
        row = int(is_unknown.argmax())
        tokens = np.asarray(inputs[0])[row]
        raise ValueError(
            "inputs: expected integers that the model knows, such as the tokens of its embedding, got"
            f" {tokens.min()} to {tokens.max()} in row {row}, whose outputs are NaN"
        )


def prepared_shapes(preprocess: Preprocess) -> Any:
    """Return the shape and dtype of one preprocessed row, or of one sequence with a single step and its length."""
    raw: Any = jax.ShapeDtypeStruct((1, *map(abs, preprocess.shape)), raw_dtype(preprocess))
    if preprocess.takes_sequences:
        raw = Sequences(raw, jax.ShapeDtypeStruct((1,), jax.dtypes.canonicalize_dtype(int)))
    return jax.eval_shape(lambda inputs: preprocess(inputs), raw)


def raw_dtype(preprocess: Preprocess) -> Any:
    """Return the dtype of raw inputs on the device: integer if integers are kept, otherwise that of `preprocess`."""
    return jax.dtypes.canonicalize_dtype(int) if preprocess.keep_integers else preprocess.mean.dtype


@memo.compiled(static=3)
def _apply(model: Model, weights_form: Any, inputs_form: Any, leaves: list[Array], inputs: list[Array]) -> Array:
    """Apply a model to lists of weights and inputs, so that its program can be called without custom classes."""
    return model.apply(jax.tree.unflatten(weights_form, leaves), jax.tree.unflatten(inputs_form, inputs))


def _program(model: Model, variables: Variables, inputs: Any) -> Program:
    """Return the model as a program for any number of rows and, if the model allows it, any number of steps."""
    leaves, form = jax.tree.flatten(inputs)
    weights, weights_form = jax.tree.flatten(variables)
    weights = [jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for leaf in weights]
    function = _apply.program(model, weights_form, form)
    if any(map(is_sequence, leaves)):
        try:
            return Program.of(function, weights, symbolic(leaves, any_time=True))
        except ValueError:  # the model needs a fixed number of steps
            pass
    return Program.of(function, weights, symbolic(leaves, any_time=False))


def _name(key: Any) -> str | int:
    """Return one element of a path as a string or an integer."""
    for attribute in ("key", "name", "idx"):
        value = getattr(key, attribute, None)
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return value
    raise TypeError(f"variables: expected strings or integers as keys, got {key}")


def _nested(names: Any, leaves: list[Any]) -> dict[Any, Any]:
    """Build nested dictionaries from leaves and their paths."""
    tree: dict[Any, Any] = {}
    for path, leaf in zip(names, leaves, strict=True):
        inner = tree
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = leaf
    return tree


def _in_words(shapes: list[Any]) -> str:
    return ", ".join(f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for leaf in shapes)
