"""Trained models saved with everything needed to predict, or exported as one portable program."""

from nnfx.saving.saved import Predictor, load

__all__ = ["Predictor", "load"]
