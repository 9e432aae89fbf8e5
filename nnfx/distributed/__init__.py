"""Several processes, on one machine or many, that run one program together: `jax.distributed`, with what a run needs.

Every process runs the same program on the same numbers. What is spread over the devices of all is computed together,
and whatever else is computed by each alike; files are written by the first. Sessions, checkpoints, sweeps and the
experiments keep to that by themselves.

`python -m nnfx.distributed MODULE` runs any module so, such as an experiment.
"""

from nnfx.distributed.processes import agree, everywhere, from_shares, is_first, local, share, start, wait

__all__ = ["agree", "everywhere", "from_shares", "is_first", "local", "share", "start", "wait"]
