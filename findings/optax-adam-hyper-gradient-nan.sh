#!/usr/bin/env bash
# jax.grad through an update of optax.adam is NaN where a parameter's gradient is exactly zero, as behind a pixel that is
# always blank: the root of its second moment has no derivative at 0. Only eps_root > 0, which changes the update, is finite.
#
# Versions: optax 0.2.8, jax 0.10.1 (CPU).
# Seen: derivative of the update by a factor on the gradient (0, 1): default nan, eps_root=1e-8 -1.5e-08
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q optax==0.2.8 jax==0.10.1 jaxlib==0.10.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import optax


def moved(factor, optimizer):
    gradient = factor * jnp.array([0.0, 1.0])
    updates, _ = optimizer.update(gradient, optimizer.init(gradient))
    return updates.sum()


plain = jax.grad(moved)(0.5, optax.adam(0.1))
with_root = jax.grad(moved)(0.5, optax.adam(0.1, eps_root=1e-8))
print(f"default {plain}, eps_root=1e-8 {with_root}")
assert jnp.isnan(plain)
assert jnp.isfinite(with_root)
PY
