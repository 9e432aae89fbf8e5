"""Run a module in several processes as one program; only the first process prints.

Under Slurm, run `srun python -m nnfx.distributed MODULE ...`; Open MPI, Cloud TPU and Kubernetes are detected in the
same way. Elsewhere, start N processes yourself, with I from 0 to N − 1:
`python -m nnfx.distributed --coordinator HOST:PORT --processes N --process I MODULE ...`.
"""

import argparse
import os
import runpy
import sys

from nnfx import distributed


def main() -> None:
    """Join the other processes, and run the module."""
    parser = argparse.ArgumentParser(prog="python -m nnfx.distributed", description=__doc__)
    parser.add_argument("--coordinator", help="host:port of the first process")
    parser.add_argument("--processes", type=int, help="the number of processes")
    parser.add_argument("--process", type=int, help="the index of this process, from 0")
    parser.add_argument("module", help="the module to run, as with python -m")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the arguments of the module")
    given = parser.parse_args()
    distributed.start(given.coordinator, given.processes, given.process)
    if not distributed.is_first():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # also silences output of libraries
    sys.argv = [given.module, *given.arguments]
    runpy.run_module(given.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
