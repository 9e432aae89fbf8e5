"""Training without state of its own: the step, stopping rules, and the run as a pure function."""
