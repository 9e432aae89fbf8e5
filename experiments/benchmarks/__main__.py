"""Run a benchmark by name: `python -m experiments.benchmarks fit --help`."""

import tyro

from experiments.benchmarks import cnn, first_call, fit, landscape, recurrent, search, session, sweep

BENCHMARKS = (cnn, first_call, fit, landscape, recurrent, search, session, sweep)

if __name__ == "__main__":
    chosen = tyro.extras.subcommand_cli_from_dict({each.__name__.rpartition(".")[2]: each.main for each in BENCHMARKS})
