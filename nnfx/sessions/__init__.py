"""Sessions: long runs with checkpoints, logs, a progress bar and signal handling by the host."""
