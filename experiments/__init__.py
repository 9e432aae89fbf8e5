"""Experiments, one script per question; `python -m experiments.NAME --help` explains each of them."""

import os

# XLA logs an error for each program read from disk, about compiler preferences that are not CPU features.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
