"""Run a benchmark by name, `python -m experiments.benchmarks fit --help`; or write the page, `--write-readme`."""

import sys

import tyro

from experiments.benchmarks import cnn, first_call, fit, growth, landscape, readme, recurrent, search, session, sweep

BENCHMARKS = (cnn, first_call, fit, growth, landscape, recurrent, search, session, sweep)

if __name__ == "__main__":
    if sys.argv[1:2] == ["--write-readme"]:
        readme.main(tyro.cli(readme.Config, description=readme.__doc__, args=sys.argv[2:]))
    else:
        commands = {each.__name__.rpartition(".")[2]: each.main for each in BENCHMARKS}
        tyro.extras.subcommand_cli_from_dict(commands)
