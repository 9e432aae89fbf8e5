"""Stateless training: the step, the loop over epochs, and the run as a pure function."""
