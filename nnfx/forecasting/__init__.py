"""Forecasting: every forecaster is a `Model` that maps past windows of a series to future windows."""

from nnfx.forecasting import backtest, baselines, conformal, forecasters, heads, scores
from nnfx.forecasting.forecast import Forecast, forecast
from nnfx.forecasting.prepare import SeriesData, prepare
from nnfx.forecasting.scaling import Scaler
from nnfx.forecasting.windows import Windows, as_data, split, windows

__all__ = [
    "Forecast",
    "Scaler",
    "SeriesData",
    "Windows",
    "as_data",
    "backtest",
    "baselines",
    "conformal",
    "forecast",
    "forecasters",
    "heads",
    "prepare",
    "scores",
    "split",
    "windows",
]
