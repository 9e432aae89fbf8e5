"""Sessions: programs run by the host with logs, a progress bar, signal handling and checkpoints."""
