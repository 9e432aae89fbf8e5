#!/usr/bin/env bash
# With XLA_FLAGS=--xla_backend_optimization_level=0 (a way to compile faster, in test suites for instance) XLA on CPUs
# computes an infinite gradient of a maximum over a group behind a small matrix product. At level 1 it is right.
#
# Versions: jax 0.10.1 (CPU); also 0.9.2 and 0.12.0.1.
# Seen: level 0: [inf 0. 0. 0. 0. 0.]; level 1: [1.934667 0. 0. 0. 0. 0.]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.1 jaxlib==0.10.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import os
import subprocess
import sys

script = """
import jax, numpy as np
x = np.linspace(-1, 1, 201)[:, None].astype(np.float32)
kernel, bias = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
def loss(kernel, bias):
    return (((x @ kernel[None] + bias[None]).reshape(-1, 1, 6).max(-1) - x**2) ** 2).mean()
print(np.asarray(jax.jit(jax.grad(loss, argnums=1))(kernel, bias)))
"""
seen = {}
for level in (0, 1):
    environment = {**os.environ, "XLA_FLAGS": f"--xla_backend_optimization_level={level}", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    seen[level] = run.stdout.strip()
    print(f"level {level}: {seen[level]}")
assert "inf" in seen[0]
assert "1.93" in seen[1]
PY
