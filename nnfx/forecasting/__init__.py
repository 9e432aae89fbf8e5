"""Forecasting: every forecaster is a `Model` from past windows of a series to future ones."""

from nnfx.forecasting import baselines, scores
from nnfx.forecasting.windows import Scaler, Windows, as_data, split, windows

__all__ = ["Scaler", "Windows", "as_data", "baselines", "scores", "split", "windows"]
