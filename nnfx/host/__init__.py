"""What the host does during a run: sessions, with their logs, progress, signals and checkpoints."""
