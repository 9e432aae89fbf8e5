#!/usr/bin/env bash
# XLA on CPUs, up to jaxlib 0.10.1: in float32 the gradient of a convolution by its inputs is wrong where the padding
# reaches beyond the kernel on one side of an axis only, as causal convolutions with a gap have it. In float64 it is right,
# and so it is from jaxlib 0.12 on.
#
# Versions: jax 0.10.1 (CPU).
# Seen: largest difference between float32 and float64: 7.0, of values up to 15.4
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.1 jaxlib==0.10.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np

x = np.random.default_rng(0).normal(size=(3, 5, 6, 2))


def value(x):
    kernel, layouts = jnp.ones((3, 2, 2, 3), x.dtype), ("NHWC", "HWIO", "NHWC")
    padding = [(3, 3), (4, 0)]
    return jnp.sin(jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=layouts)).sum()


single = np.asarray(jax.grad(value)(jnp.asarray(x, jnp.float32)))
with jax.enable_x64(True):
    double = np.asarray(jax.grad(value)(jnp.asarray(x, jnp.float64)))
error = abs(single - double).max()
print(f"largest difference between float32 and float64: {error:.1f}, of values up to {abs(double).max():.1f}")
assert error > 0.1
PY
