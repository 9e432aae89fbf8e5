"""Stateless training: the step, stopping rules, and the run as a pure function."""
