"""Tools for inspecting any model, loss and data of this library.

- `audit`: is the gradient right? `backpropagation`, `graph`: its factors. `flow`: how gradients reach the layers.
- `landscape`, `curvature`: what the loss looks like around a solution, between solutions and along a path.
- `features`: what a network responds to. `lags`: how far back in time the gradient of a recurrent network reaches.
- `tangent`: a network linearised in its parameters. `trajectory`: what changes in the course of gradient descent.
- `summary`: the layers of a model, and what a step costs.
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
