import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx.data.permutation import permutation


def orders(key, rows, epochs=20_000):
    draw = jax.jit(jax.vmap(lambda epoch: permutation(jax.random.fold_in(key, epoch), rows)))
    return np.asarray(draw(jnp.arange(epochs)))


def deviation(counts, expected, freedom):
    """Return the distance of chi-square from its expectation, in standard deviations."""
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "rows", [2, 3, 16, 17, *(pytest.param(rows, marks=pytest.mark.slow) for rows in (15, 18, 33, 101, 128, 257, 714))]
)
def test_orders_are_uniform(key, rows):
    drawn = orders(key, rows)
    assert (np.sort(drawn, axis=1) == np.arange(rows)).all()

    positions = np.stack([np.bincount(column, minlength=rows) for column in drawn.T])
    assert abs(deviation(positions, len(drawn) / rows, (rows - 1) ** 2)) < 5

    other_row = ~np.eye(rows, dtype=bool)
    for i, j in [(0, 1), (0, rows // 2), (rows // 3, rows - 1)]:
        if i != j:
            pairs = np.zeros((rows, rows))
            np.add.at(pairs, (drawn[:, i], drawn[:, j]), 1)
            freedom = rows * (rows - 1) - 1
            assert abs(deviation(pairs[other_row], len(drawn) / (freedom + 1), freedom)) < 5

    ascents = (drawn[:, 1:] > drawn[:, :-1]).sum(1)
    assert abs(ascents.mean() - (rows - 1) / 2) < 5 * np.sqrt((rows + 1) / 12 / len(drawn))
    if rows > 2:
        assert abs(ascents.var() / ((rows + 1) / 12) - 1) < 0.1
    fixed = (drawn == np.arange(rows)).sum(1)
    assert abs(fixed.mean() - 1) < 5 / np.sqrt(len(drawn))


def test_the_largest_orders_are_orders_too(key):
    assert np.array_equal(np.sort(permutation(key, 1_000_003)), np.arange(1_000_003))
