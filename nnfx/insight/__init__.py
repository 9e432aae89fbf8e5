"""The researcher's microscope, for any model, loss and data of this library.

- `audit`: is the gradient right? `backpropagation`: which factors is it made of? `flow`: where does it reach?
- `landscape`, `curvature`: what the loss looks like around a solution, between solutions and along a path.
- `features`: what a network has learned to see. `summary`: what it is made of, and what it costs.
"""

from nnfx.insight import audit, backpropagation, curvature, features, flow, landscape, summary

__all__ = ["audit", "backpropagation", "curvature", "features", "flow", "landscape", "summary"]
