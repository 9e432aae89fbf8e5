import json

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest

import nnfx
from experiments import loss_landscape
from nnfx.insight import landscape

TINY = loss_landscape.Config(hidden=3, epochs=3, points=5)


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    summary = loss_landscape.main(loss_landscape.Config(out=tmp_path, hidden=3, epochs=3, points=5))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert {"parameters", "rows", "solutions", "walls", "distances", "path_captured", "seed", "wall_s"} <= set(written)
    assert written["parameters"] == 65 * 3 + 4 * 10
    assert list(written["walls"]) == ["1 to 2", "1 to 3", "2 to 3"]
    for name, wall in summary["walls"].items():
        ends = [summary["solutions"][int(i) - 1]["train_loss"] for i in name.split(" to ")]
        assert wall >= max(ends) * 0.999
    assert 0 < sum(written["path_captured"]) <= 1
    for name in ("three_minima", "between_minima", "path", "random_plane"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    assert not list(tmp_path.glob(".*")), "nothing is left written aside"
    assert "highest train loss" in capsys.readouterr().out


@pytest.mark.slow
def test_a_path_is_that_of_a_run(key):
    data = nnfx.data.digits()
    model = nnfx.models.mlp((3,), 10)
    path = loss_landscape.descend(key, data.train, model, TINY)
    train = nnfx.fit(model, loss_landscape.LOSS, optax.adam, epochs=3, batch_size=64)
    run = train(key, data, learning_rate=TINY.learning_rate)
    start = nnfx.init_state(key, model, optax.adam(0.1), data.train.inputs).params
    for place, params in ((0, start), (-1, run.state.params)):
        jax.tree.map(
            lambda a, b, place=place: np.testing.assert_allclose(a[place], b, rtol=1e-3, atol=1e-4), path, params
        )


def test_what_lies_in_a_plane_is_projected_onto_itself():
    three = [{"w": jax.random.normal(jax.random.key(i), (4, 3))} for i in range(3)]
    plane = landscape.through(*three)
    path = jax.tree.map(lambda *leaves: jnp.stack(leaves), *three)
    np.testing.assert_allclose(loss_landscape.project(plane, path), plane.places, atol=1e-5)
