import json

import matplotlib.image
import numpy as np
import pytest

from experiments import backpropagation


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    summary = backpropagation.main(backpropagation.Config(out=tmp_path, epochs=20))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert {"passenger", "loss", "differences", "promised", "seed", "wall_s"} <= set(written)
    assert written["differences"]["float32"] < 1e-6
    assert written["differences"]["float64"] < 1e-12
    assert summary["promised"] > 0
    for name in ("graph_untrained", "graph_trained", "step"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    printed = capsys.readouterr().out
    assert printed.count("hidden_0: z = xW + b") == 2
    assert "largest difference" in printed


@pytest.mark.slow
def test_what_the_gradient_promises_is_kept_by_small_steps(tmp_path):
    from experiments.backpropagation import LOSS, Batch, follow, jax, jnp, nnfx

    model = nnfx.models.mlp((3,), activation="tanh")
    passenger = Batch(jnp.array([[1.0, -0.5]]), jnp.ones((1, 1)), jnp.ones(1))
    params = model.init(jax.random.key(0), passenger.inputs)["params"]
    steps = follow(
        model, params, passenger, backpropagation.backpropagation.lay_open(model, LOSS, {"params": params}, passenger)
    )
    small = slice(1, 3)
    fallen, promised = (steps["losses"][0] - steps[name][small] for name in ("losses", "line"))
    np.testing.assert_allclose(fallen, promised, rtol=0.15)
