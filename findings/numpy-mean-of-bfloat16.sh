#!/usr/bin/env bash
# NumPy averages an array of bfloat16 in bfloat16, whose sums stop growing at 256: the mean of 3,000 ones is 0.085.
# Arrays that JAX hands to NumPy keep that dtype. NumPy's own half precision is averaged in float32, and JAX averages
# bfloat16 in float32 as well.
#
# Versions: numpy 2.4.6, ml_dtypes 0.5.4, jax 0.10.1 (CPU).
# Seen: numpy bfloat16 0.0854492, numpy float16 1.0, jax bfloat16 1.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 ml_dtypes==0.5.4 jax==0.10.1 jaxlib==0.10.1
"$folder/venv/bin/python" - <<'PY'
import jax.numpy as jnp
import numpy as np

ones = jnp.ones(3000, jnp.bfloat16)
on_host, half, on_device = np.asarray(ones).mean(), np.ones(3000, np.float16).mean(), ones.mean()
print(f"numpy bfloat16 {on_host}, numpy float16 {half}, jax bfloat16 {on_device}")
assert 0.08 < float(on_host) < 0.09
assert float(half) == float(on_device) == 1
PY
