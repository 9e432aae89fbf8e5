#!/usr/bin/env bash
# jax.closure_convert keeps every function that it is given, and all that the function refers to, for as long as its cache
# does: a model that a training step closes over is not freed with the step. jax.jit of the same function lets it go.
#
# Versions: jax 0.10.1 (CPU).
# Seen: still alive: jit 0 of 3, closure_convert 3 of 3
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.1 jaxlib==0.10.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import gc
import weakref

import jax


class Model:
    scale = 2.0


def use(transform):
    model = Model()
    transform(lambda x: x * model.scale)
    return weakref.ref(model)


def alive(transform):
    references = [use(transform) for _ in range(3)]
    gc.collect()
    return sum(reference() is not None for reference in references)


by_jit = alive(lambda function: jax.jit(function)(1.0))
by_closure_convert = alive(lambda function: jax.closure_convert(function, 1.0))
print(f"still alive: jit {by_jit} of 3, closure_convert {by_closure_convert} of 3")
assert by_jit == 0
assert by_closure_convert == 3
PY
