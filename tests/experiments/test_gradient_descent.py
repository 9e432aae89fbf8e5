import json

import jax
import matplotlib.image
import numpy as np
import optax
import pytest

import nnfx
from experiments import gradient_descent


@pytest.mark.slow
def test_the_experiment_writes_what_it_says(tmp_path, capsys):
    config = gradient_descent.Config(
        out=tmp_path, full_batch_epochs=20, minibatch_epochs=2, stochastic_epochs=1, repeats=1
    )
    summary = gradient_descent.main(config)
    assert json.loads((tmp_path / "summary.json").read_text())["paths"] == summary["paths"]
    assert {"rows", "minimum", "start", "learning_rate", "paths", "seed", "wall_s"} <= set(summary)
    paths = summary["paths"]
    assert [paths[name]["steps"] for name in ("full batch", "minibatch", "stochastic")] == [20, 2 * 23, 714]
    assert [paths[name]["visited"] for name in ("full batch", "minibatch", "stochastic")] == [20 * 714, 2 * 714, 714]
    assert paths["full batch"]["largest_rise"] <= 0
    assert paths["stochastic"]["largest_rise"] > 0
    for numbers in paths.values():
        assert summary["minimum"]["loss"] <= numbers["loss"] < summary["start"]["loss"]
        assert numbers["seconds_per_step"] > 0
    for name in ("paths", "cost"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    assert not list(tmp_path.glob(".*")), "nothing is left written aside"
    assert "stochastic" in capsys.readouterr().out


@pytest.mark.slow
def test_the_minimum_is_that_of_newtons_method():
    weights, bias = gradient_descent.find_minimum()
    passengers = nnfx.data.titanic("fare", "age")
    raw, raw_bias = passengers.preprocess.raw_units(weights[:, None], bias[None])
    # an unregularised logistic regression on the raw features, by Newton's method in double precision
    np.testing.assert_allclose([*raw[:, 0], *raw_bias], [0.0172584, -0.0175784, -0.417055], rtol=5e-4)


@pytest.mark.parametrize(
    ("batch_size", "epochs"), [(714, 3), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((32, 2), (1, 1)))]
)
def test_a_path_ends_where_a_run_does(key, batch_size, epochs):
    data = nnfx.data.titanic("fare", "age")
    model = gradient_descent.two_weights(jax.numpy.float32(-0.3))
    train = nnfx.fit(model, nnfx.losses.binary_cross_entropy, optax.sgd(0.1), epochs=epochs, batch_size=batch_size)
    path = gradient_descent.descend(
        key, data.train, model=model, optimizer=optax.sgd(0.1), epochs=epochs, batch_size=batch_size
    )
    np.testing.assert_allclose(path[0], gradient_descent.START, rtol=1e-6)
    np.testing.assert_allclose(path[-1], train(key, data).state.params["weights"], rtol=1e-5, atol=1e-6)
