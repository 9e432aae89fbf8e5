"""One script per question: `python -m experiments.NAME --help`."""

import os

# XLA reports an error for each program read from disk, over preferences of its compiler that are no CPU features.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
