#!/usr/bin/env bash
# In Optuna's ask-and-tell interface, GridSampler and BruteForceSampler raise a RuntimeError from study.tell() for the
# last point of their grid: they end the study by study.stop(), which is only allowed inside study.optimize(). Whoever
# trains a whole table of points before telling their losses meets it after all of the training; the losses are recorded.
#
# Versions: optuna 5.0.0, numpy 2.4.6.
# Seen, for both samplers: `Study.stop` is supposed to be invoked inside an objective function or a callback, at the last
# of four points, all of which are in the study as complete.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q optuna==5.0.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PY'
import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
RATES, WIDTHS = [0.1, 0.5], [8, 16]
for sampler in (optuna.samplers.GridSampler({"rate": RATES, "width": WIDTHS}), optuna.samplers.BruteForceSampler()):
    study = optuna.create_study(sampler=sampler)
    raised = []
    for number in range(4):
        trial = study.ask()
        loss = trial.suggest_categorical("rate", RATES) * trial.suggest_categorical("width", WIDTHS)
        try:
            study.tell(trial, loss)
        except RuntimeError as error:
            raised.append((number, str(error)))
    states = [trial.state.name for trial in study.trials]
    print(type(sampler).__name__, raised, states)
    ((number, words),) = raised
    assert number == 3
    assert "supposed to be invoked inside an objective function" in words
    assert states == ["COMPLETE"] * 4
PY
