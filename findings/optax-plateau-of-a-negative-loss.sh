#!/usr/bin/env bash
# optax.contrib.reduce_on_plateau never shrinks the scale of a negative loss, such as a log density: "below
# (1 - rtol) * best" is above a negative best, so that a loss that stands still, or rises a little, counts as an improvement.
#
# Versions: optax 0.2.8, jax 0.10.1 (CPU).
# Seen: constant 1: 1.0 1.0 0.5 0.5 0.25 0.25; constant -1: 1.0 six times
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q optax==0.2.8 jax==0.10.1 jaxlib==0.10.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import jax.numpy as jnp
import optax


def scales(losses):
    plateau = optax.contrib.reduce_on_plateau(patience=2, factor=0.5)
    state, seen = plateau.init(jnp.zeros(1)), []
    for loss in losses:
        _, state = plateau.update(jnp.ones(1), state, value=jnp.float32(loss))
        seen.append(float(state.scale))
    return seen


print("constant 1:", *scales([1.0] * 6))
print("constant -1:", *scales([-1.0] * 6))
assert scales([1.0] * 6) == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
assert scales([-1.0] * 6) == [1.0] * 6
PY
