"""Run a benchmark by name: `python -m experiments.benchmarks fit --help`."""

import tyro

from experiments.benchmarks import cnn, first_call, fit, recurrent, sweep

if __name__ == "__main__":
    chosen = tyro.extras.subcommand_cli_from_dict(
        {module.__name__.rpartition(".")[2]: module.main for module in (cnn, first_call, fit, recurrent, sweep)}
    )
