"""A researcher's microscope for any model, loss and data of this library.

- `audit`: is the gradient right? `backpropagation`, `graph`: which factors is it made of? `flow`: where does it go?
- `landscape`, `curvature`: what the loss looks like around a solution, between solutions and along a path.
- `features`: what a network has learned to see. `lags`: how far back a recurrent one learns.
- `tangent`: a network to first order in its parameters. `trajectory`: what changes along the way of gradient descent.
- `summary`: what a model is made of, and what it costs.
"""

from nnfx.insight import (
    audit,
    backpropagation,
    curvature,
    features,
    flow,
    graph,
    lags,
    landscape,
    summary,
    tangent,
    trajectory,
)

__all__ = [
    "audit",
    "backpropagation",
    "curvature",
    "features",
    "flow",
    "graph",
    "lags",
    "landscape",
    "summary",
    "tangent",
    "trajectory",
]
