"""Forecasting: every forecaster is a `Model` from past windows of a series to future ones."""

from nnfx.forecasting import backtest, baselines, conformal, forecasters, heads, scores
from nnfx.forecasting.windows import Scaler, Windows, as_data, split, windows

__all__ = [
    "Scaler",
    "Windows",
    "as_data",
    "backtest",
    "baselines",
    "conformal",
    "forecasters",
    "heads",
    "scores",
    "split",
    "windows",
]
