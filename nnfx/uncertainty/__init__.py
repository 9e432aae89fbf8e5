"""How far predictions can be trusted: estimates of uncertainty, calibration and scores.

The members of an ensemble and the draws of `mc_dropout` and `laplace` are all outputs `(members, batch, outputs)`:
`probabilities` turns them into probabilities of classes, and `spread` into their mean and how closely they agree.
`fit_temperature` calibrates probabilities on held-out data, `conformal` turns any predictions into sets or intervals
with a stated coverage, and `score` measures how good probabilities are.
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
