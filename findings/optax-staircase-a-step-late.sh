#!/usr/bin/env bash
# optax.exponential_decay(..., staircase=True) jumps one step late under jit for many lengths: XLA multiplies by the
# reciprocal of the length, and the floor of 41 * (1 / 41) in float32 is 0. Outside of jit the same schedule is on time.
#
# Versions: optax 0.2.8, jax 0.10.1 (CPU).
# Seen: 51 of the lengths from 2 to 399 are late at one of their first 40 jumps; first: 41, 47, 55, 61, 82, 83
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q optax==0.2.8 jax==0.10.1 jaxlib==0.10.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
import optax

halves, late = 0.5 ** np.arange(40), []
for length in range(2, 400):
    rate = optax.exponential_decay(1.0, length, 0.5, staircase=True)
    if not np.allclose(jax.jit(jax.vmap(rate))(jnp.arange(40) * length), halves, rtol=1e-3):
        late.append(length)
print(f"{len(late)} lengths are late under jit, the first {late[:6]}")
rate = optax.exponential_decay(1.0, 41, 0.5, staircase=True)
print("length 41, step 41:", "jit", float(jax.jit(rate)(41)), "outside", float(rate(41)))
assert late[:6] == [41, 47, 55, 61, 82, 83]
assert float(jax.jit(rate)(41)) == 1.0
assert float(rate(41)) == 0.5
PY
