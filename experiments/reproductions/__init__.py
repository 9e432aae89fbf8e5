"""Reproductions of published results: `python -m experiments.reproductions.NAME`; records are next to the scripts."""
