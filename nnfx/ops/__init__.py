"""The few primitives whose formulation matters, each differentiable and mappable."""

from nnfx.ops.dropout import dropout

__all__ = ["dropout"]
