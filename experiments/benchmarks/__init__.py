"""Speed compared with other libraries, in the same process: `python -m experiments.benchmarks NAME`."""
