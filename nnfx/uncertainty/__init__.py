"""Uncertainty of predictions: estimates, calibration and scores.

Ensembles, `mc_dropout` and `laplace` all give outputs `(members, batch, outputs)`: `probabilities` converts them to
class probabilities, and `spread` computes the mean of these and how closely the members agree. `fit_temperature`
calibrates probabilities on held-out data, `conformal` turns any predictions into sets or intervals with guaranteed
coverage, and `score` measures the quality of probabilities.
"""

from nnfx.uncertainty import conformal, laplace
from nnfx.uncertainty.dropout import mc_dropout
from nnfx.uncertainty.predictions import Spread, log_probabilities, probabilities, spread
from nnfx.uncertainty.scores import (
    Reliability,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
    score,
)
from nnfx.uncertainty.temperature import fit_temperature

__all__ = [
    "Reliability",
    "Spread",
    "brier_score",
    "conformal",
    "expected_calibration_error",
    "fit_temperature",
    "laplace",
    "log_probabilities",
    "mc_dropout",
    "negative_log_likelihood",
    "probabilities",
    "reliability",
    "score",
    "spread",
]
