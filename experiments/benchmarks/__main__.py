"""Run a benchmark by name: `python -m experiments.benchmarks fit --help`."""

import tyro

from experiments.benchmarks import cnn, first_call, fit, sweep

if __name__ == "__main__":
    chosen = tyro.extras.subcommand_cli_from_dict(
        {"cnn": cnn.main, "fit": fit.main, "first_call": first_call.main, "sweep": sweep.main}
    )
