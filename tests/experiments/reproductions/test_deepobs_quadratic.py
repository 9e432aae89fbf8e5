import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.reproductions import deepobs_quadratic as quadratic

SMALL = quadratic.Config(seeds=2, epochs=3, batch_size=4, dimensions=10, rows=10)


def test_the_loss_before_training_is_the_published_one():
    config = quadratic.Config()
    test = np.float64(quadratic.examples(43, config).inputs[: 7 * 128])
    curvature = quadratic.hessian(100)
    loss = np.mean([(1 - x) @ curvature @ (1 - x) / 2 for x in test])
    assert loss == pytest.approx(quadratic.INITIAL, rel=1e-7)


def test_the_spectrum_is_that_of_the_paper():
    eigenvalues = np.linalg.eigvalsh(quadratic.hessian(100))
    assert ((eigenvalues > 0) & (eigenvalues < 1)).sum() == 90
    assert ((eigenvalues > 30) & (eigenvalues < 60)).sum() == 10


@pytest.mark.parametrize("name", quadratic.OPTIMIZERS)
def test_runs_equal_a_loop_in_numpy(name):
    """One seed's order, the incomplete batch dropped, in float64 with the update rules written out."""
    losses = quadratic.train(quadratic.OPTIMIZERS[name], SMALL)
    curvature = quadratic.hessian(10)
    data, test = (np.float64(quadratic.examples(seed, SMALL).inputs) for seed in (42, 43))
    for number, key in enumerate(jax.random.split(jax.random.key(0), SMALL.seeds)):
        order_key = quadratic.nnfx.split_key(key).order
        rows = quadratic.nnfx.data.shuffled(order_key, 0, 10, 4).rows[:2]
        theta, first, second, steps = np.ones(10), np.zeros(10), np.zeros(10), 0
        expected = [((theta - test[:8]) @ curvature * (theta - test[:8])).sum(1).mean() / 2]
        for _ in range(SMALL.epochs):
            for batch in np.asarray(rows):
                gradient, steps = curvature @ (theta - data[batch]).mean(0), steps + 1
                if name == "sgd":
                    theta = theta - 1.5848931925e-2 * gradient
                elif name == "momentum":
                    first = 0.99 * first + gradient
                    theta = theta - 2.5118864315e-3 * first
                else:
                    first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
                    scaled = first / (1 - 0.9**steps) / (np.sqrt(second / (1 - 0.999**steps)) + 1e-8)
                    theta = theta - 3.9810717055e-2 * scaled
            expected.append(((theta - test[:8]) @ curvature * (theta - test[:8])).sum(1).mean() / 2)
        np.testing.assert_allclose(losses[number], expected, rtol=2e-5)


def test_reshuffling_changes_the_later_epochs_alone():
    optimizer = quadratic.OPTIMIZERS["sgd"]
    config = quadratic.dataclasses.replace(SMALL, reshuffle=True)
    same, reshuffled = quadratic.train(optimizer, SMALL), quadratic.train(optimizer, config)
    assert same.shape == reshuffled.shape == (2, 4)
    np.testing.assert_array_equal(same[:, 0], reshuffled[:, 0])
    assert (jnp.abs(same - reshuffled)[:, 2:] > 1e-4).all()


def test_published_numbers_are_ten_seeds(tmp_path):
    curves = {name: [[0.0] * 101] * 3 for name in quadratic.OPTIMIZERS}
    rows = quadratic.compare(curves)
    assert len(rows) == 15
    assert rows[0].published == quadratic.Sample(105.3304, 0.1659, 10)
    assert [row.result for row in rows if row.published.mean == 134.2614] == ["momentum, epoch 10, test loss"]
    assert len(quadratic.compare({name: [[0.0] * 3] for name in quadratic.OPTIMIZERS})) == 6, "epochs 1 and 2"
    error = rows[0].errors[1]
    assert stats.norm(0, 0.1659 / 10**0.5).std() == pytest.approx(error)
