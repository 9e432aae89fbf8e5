"""Ensembles of a sweep's members, which predict together."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from nnfx import memo, uncertainty
from nnfx.arrays import as_numpy, to_device
from nnfx.data.prepare import Preprocess
from nnfx.data.preprocess import each
from nnfx.training.fit import Fit
from nnfx.training.integers import check_inputs
from nnfx.training.padded_predictions import apply_padded
from nnfx.types import Array, Hyper, Variables


@dataclasses.dataclass(frozen=True, repr=False)
class Ensemble:
    """Several stacked runs that predict together; their agreement shows how certain the prediction is.

    Attributes:
        fit: the run function that trained the members.
        hyper: the members' hyper-parameters, `(members,)` each.
        variables: the members' best weights, stacked.
        preprocess: the members' preprocessing of raw features, stacked.
        temperature: T, which divides the logits of the mean prediction; 1 until calibrated.

    Example:
        >>> import nnfx, optax
        >>> data = nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)
        >>> train = nnfx.fit(nnfx.models.mlp((8,)), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=20)
        >>> result = nnfx.sweeps.sweep(train, data, key=jax.random.key(0), seeds=8, learning_rate=1.0)
        >>> ensemble = result.ensemble(5)
        >>> ensemble
        Ensemble: 5 members, temperature 1
        >>> fares_and_ages = np.array([[7.0, 20.0], [500.0, 40.0]])
        >>> ensemble.probabilities(fares_and_ages).shape, ensemble.spread(fares_and_ages).std.shape
        ((2, 2), (2, 2))

    References:
        Lakshminarayanan et al., *Simple and scalable predictive uncertainty estimation using deep ensembles*, 2017.
    """

    fit: Fit
    hyper: Hyper
    variables: Variables
    preprocess: Preprocess
    temperature: float = 1.0

    def __repr__(self) -> str:
        """Return a summary: the number of members, and the temperature."""
        members = jax.tree.leaves(self.variables)[0].shape[0]
        return f"Ensemble: {members} members, temperature {self.temperature:.4g}"

    def predict(self, inputs: Any) -> Array:
        """Return every member's outputs for raw inputs, `(members, batch, outputs)`, in the targets' units."""
        prepared = each(self.preprocess, inputs)
        hyper, variables, rows = jax.tree.map(lambda leaf: leaf[0], (self.hyper, self.variables, prepared))
        check_inputs(self.fit, self.fit.bind(hyper).model, variables, rows)

        def apply(rows: Any) -> Array:
            return _apply(self.fit, tuple(map(np.shape, jax.tree.leaves(rows))), self.hyper, self.variables, rows)

        outputs = apply_padded(self.fit, apply, prepared, (self.hyper, self.variables), axis=1)
        return self.preprocess.raw_outputs(outputs, axis=1)

    def probabilities(self, inputs: ArrayLike) -> Array:
        """Return the ensemble's probabilities, `(batch, classes)`: `softmax(log E p / T)`, E over the members."""
        return uncertainty.probabilities(self._log_mean(inputs) / self.temperature)

    def spread(self, inputs: ArrayLike) -> uncertainty.Spread:
        """Return the members' predictions for raw inputs, and the spread among them; the temperature is not used."""
        return uncertainty.spread(uncertainty.probabilities(self.predict(inputs)))

    def calibrate(self, inputs: ArrayLike, labels: ArrayLike) -> "Ensemble":
        """Return a copy of the ensemble with the temperature that fits held-out data best.

        Args:
            inputs: raw inputs, `(batch, ...)`, used neither to train the members nor to select them.
            labels: integers `(batch,)`.

        Raises:
            ValueError: for labels out of range or given zero probability by all members, or a number of labels that
                differs from the number of inputs.

        References:
            Rahaman and Thiery, *Uncertainty quantification and deep ensembles*, NeurIPS 2021: pool, then calibrate.
        """
        temperature = uncertainty.fit_temperature(self._log_mean(inputs), _labels(labels))
        return dataclasses.replace(self, temperature=float(temperature))

    def score(self, inputs: ArrayLike, labels: ArrayLike) -> dict[str, float]:
        """Score the ensemble's probabilities on raw inputs with integer labels `(batch,)`.

        Returns:
            Accuracy, negative log-likelihood (nats), Brier score and expected calibration error, by name.

        Raises:
            ValueError: for labels out of range, or a number of labels that differs from the number of inputs.
        """
        scores = uncertainty.score(self.probabilities(inputs), _labels(labels))
        return {name: float(value) for name, value in scores.items()}

    def _log_mean(self, inputs: ArrayLike) -> Array:
        """Return the logarithm of the members' mean probabilities, −∞ if all members give a class zero probability."""
        of_members = uncertainty.log_probabilities(self.predict(inputs))
        return jax.nn.logsumexp(of_members, axis=0) - np.log(len(of_members))


def _labels(labels: Any) -> Array:
    return to_device("labels", as_numpy("labels", labels))


@memo.compiled(static=2)
def _apply(fit: Fit, shapes: tuple[tuple[int, ...], ...], hyper: Hyper, variables: Variables, inputs: Any) -> Array:
    del shapes  # one memo entry per number of rows, so that old programs are released if there are too many

    def member(hyper: Hyper, variables: Variables, inputs: Any) -> Array:
        return fit.bind(hyper).model.apply(variables, inputs)

    return jax.vmap(member)(hyper, variables, inputs)
