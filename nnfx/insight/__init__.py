"""The researcher's microscope: what a network has learned, whether its gradient is right, and what its loss looks like.

Everything takes any model, loss and data of this library.
"""

from nnfx.insight import audit, backpropagation, curvature, features, flow, landscape

__all__ = ["audit", "backpropagation", "curvature", "features", "flow", "landscape"]
