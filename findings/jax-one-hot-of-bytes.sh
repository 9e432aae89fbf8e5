#!/usr/bin/env bash
# jax.nn.one_hot compares labels with the numbers of the classes in the dtype of the labels. With more classes than that
# dtype has values, such as 256 bytes and three special tokens, the numbers begin again: a row of uint8 labels then holds
# two ones, and the cross-entropy of such rows counts two classes. Nothing is raised. Optax's loss of integer labels,
# which does not encode them, is right.
#
# Versions: jax 0.10.1, optax 0.2.8 (CPU).
# Seen: classes of byte 1 among 259: uint8 [1, 257], int32 [1]
#       loss of equal logits: one-hot of uint8 11.114, of int32 5.557, optax with integer labels of uint8 5.557
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.1 jaxlib==0.10.1 optax==0.2.8
"$folder/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import optax

CLASSES = 259  # bytes, and tokens for the beginning, the end and padding
logits, label = jnp.zeros((1, CLASSES)), jnp.array([1])
found, losses = {}, {}
for dtype in (jnp.uint8, jnp.int32):
    encoded = jax.nn.one_hot(label.astype(dtype), CLASSES)
    found[dtype] = jnp.flatnonzero(encoded[0]).tolist()
    losses[dtype] = float(optax.losses.softmax_cross_entropy(logits, encoded)[0])
right = float(optax.losses.softmax_cross_entropy_with_integer_labels(logits, label.astype(jnp.uint8))[0])
print(f"classes of byte 1 among {CLASSES}: uint8 {found[jnp.uint8]}, int32 {found[jnp.int32]}")
print(
    f"loss of equal logits: one-hot of uint8 {losses[jnp.uint8]:.3f}, of int32 {losses[jnp.int32]:.3f},"
    f" optax with integer labels of uint8 {right:.3f}"
)
assert found == {jnp.uint8: [1, 257], jnp.int32: [1]}
assert abs(losses[jnp.uint8] - 2 * right) < 1e-3
assert abs(losses[jnp.int32] - right) < 1e-3
PY
