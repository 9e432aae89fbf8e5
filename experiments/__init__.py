"""One script per question: `python -m experiments.NAME --help`."""

import os

# XLA logs an error for each program read from disk, about compiler preferences that are not CPU features.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
