"""A researcher's microscope for any model, loss and data of this library.

- `audit`: is the gradient right? `backpropagation`, `graph`: what is it made of? `flow`: how does it reach the layers?
- `landscape`, `curvature`: what the loss looks like around a solution, between solutions and along a path.
- `features`: what a network has learned to see. `lags`: how far back in time a recurrent network learns.
- `tangent`: a network linearised in its parameters. `trajectory`: what changes in the course of gradient descent.
- `summary`: what a model consists of, and what it costs.
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
