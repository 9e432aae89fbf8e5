"""Sessions: programs looked after by the host, with their logs, progress bar, signals and checkpoints."""
