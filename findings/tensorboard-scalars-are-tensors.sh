#!/usr/bin/env bash
# tensorboard.summary.Writer.add_scalar writes tensors. TensorBoard's own EventAccumulator then finds no scalar, and
# keeps 10 of 30 points of a tensor unless it is told otherwise (it keeps 10,000 of a scalar).
#
# Versions: tensorboard 2.21.0.
# Seen: scalars [], tensors ['loss'], kept 10 of 30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tensorboard==2.21.0
"$folder/venv/bin/python" - <<'PY'
import tempfile

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary import Writer

folder = tempfile.mkdtemp()
writer = Writer(folder)
for step in range(30):
    writer.add_scalar("loss", 1 / (step + 1), step)
writer.close()
events = EventAccumulator(folder).Reload()
scalars, tensors = events.Tags()["scalars"], events.Tags()["tensors"]
print(f"scalars {scalars}, tensors {tensors}, kept {len(events.Tensors('loss'))} of 30")
assert scalars == []
assert tensors == ["loss"]
assert len(events.Tensors("loss")) == 10
PY
