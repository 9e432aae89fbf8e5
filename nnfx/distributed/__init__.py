"""One program run by several processes, on one machine or many: `jax.distributed`, with additions for training.

Every process runs the same program on the same values. Arrays that are spread over the devices of all processes are
computed jointly. Everything else is computed identically by each process. Only the first process writes files.
Sessions, checkpoints, sweeps and the experiments follow these rules automatically.

`python -m nnfx.distributed MODULE` runs any module in this way, such as an experiment.
"""

from nnfx.distributed.processes import agree, alone, everywhere, from_shares, is_first, local, share, start, wait

__all__ = ["agree", "alone", "everywhere", "from_shares", "is_first", "local", "share", "start", "wait"]
