"""What the host does while a run goes on: sessions, with their logs, progress, signals and checkpoints."""
