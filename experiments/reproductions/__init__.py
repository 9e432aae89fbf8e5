"""Published results made again: `python -m experiments.reproductions.NAME`; the records lie beside the scripts."""
