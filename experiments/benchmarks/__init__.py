"""Speed against peers, measured in one process: `python -m experiments.benchmarks NAME`."""
