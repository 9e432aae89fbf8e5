#!/usr/bin/env bash
# flax.linen.BatchNorm computes the variance as E[x^2] - E[x]^2 in float32 by default. Of a feature whose mean is 10,000
# standard deviations, nothing is left of it: the outputs have a standard deviation of some hundreds in place of one.
# use_fast_variance=False is right.
#
# Versions: flax 0.12.8, jax 0.10.1 (CPU).
# Seen: standard deviation of the outputs: default 319.3, use_fast_variance=False 1.000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q flax==0.12.8 jax==0.10.1 jaxlib==0.10.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import flax.linen as nn
import jax
import numpy as np

x = np.float32(1e4) + np.random.default_rng(0).normal(size=(512, 1)).astype(np.float32)
spread = {}
for fast in (True, False):
    layer = nn.BatchNorm(use_running_average=False, use_fast_variance=fast)
    outputs, _ = layer.apply(layer.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    spread[fast] = float(outputs.std())
print(f"standard deviation of the outputs: default {spread[True]:.1f}, use_fast_variance=False {spread[False]:.3f}")
assert spread[True] > 100
assert abs(spread[False] - 1) < 0.01
PY
