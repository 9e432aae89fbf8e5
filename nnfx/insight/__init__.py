"""What a trained network has learned, and how: its features."""

from nnfx.insight import features

__all__ = ["features"]
