import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx.forecasting import Scaler, as_data, split, windows

RNG = np.random.default_rng(0)
Y = RNG.normal(size=(30, 2)).astype(np.float32)
PANEL = RNG.normal(size=(3, 30, 2)).astype(np.float32)


def by_hand(y, lookback, horizon, stride):
    starts = range(0, len(y) - lookback - horizon + 1, stride)
    inputs = np.stack([y[s : s + lookback] for s in starts])
    return inputs, np.stack([y[s + lookback : s + lookback + horizon] for s in starts])


@pytest.mark.parametrize(("lookback", "horizon", "stride"), [(4, 3, 1), (5, 1, 4), (1, 6, 2), (20, 10, 1)])
def test_windows_are_those_of_a_loop(lookback, horizon, stride):
    for ours, expected in zip(
        windows(Y, lookback, horizon, stride), by_hand(Y, lookback, horizon, stride), strict=True
    ):
        np.testing.assert_array_equal(ours, expected)


def test_windows_of_a_panel_follow_one_another_and_none_spans_two_series():
    inputs, targets = windows(PANEL, 4, 3, 2)
    expected = [by_hand(series, 4, 3, 2) for series in PANEL]
    np.testing.assert_array_equal(inputs, np.concatenate([each[0] for each in expected]))
    np.testing.assert_array_equal(targets, np.concatenate([each[1] for each in expected]))


def test_windows_within_jit_are_the_same():
    compiled = jax.jit(windows, static_argnums=(1, 2, 3))(PANEL, 4, 3, 2)
    jax.tree.map(np.testing.assert_array_equal, compiled, windows(PANEL, 4, 3, 2))


def test_exogenous_columns_stand_where_they_are_known():
    time = np.arange(30.0)[:, None]
    inputs, targets = windows(time, 5, 3, past=100 + time, future=200 + np.concatenate([time, -time], axis=1))
    assert inputs.shape == (23, 5, 4)
    assert targets.shape == (23, 3, 1)
    for window, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        np.testing.assert_array_equal(x[:, 0], window + np.arange(5))
        np.testing.assert_array_equal(x[:, 1], 100 + window + np.arange(5))
        np.testing.assert_array_equal(x[-3:, 2], 200 + y[:, 0])  # the last rows belong to the horizon
        np.testing.assert_array_equal(x[:, 3], 200 - (window + 3 + np.arange(5)))


def test_integers_become_floats_and_half_precision_stays():
    assert windows(np.arange(9)[:, None], 2, 1).inputs.dtype == jnp.float32
    assert windows(jnp.arange(9, dtype=jnp.bfloat16)[:, None], 2, 1).targets.dtype == jnp.bfloat16


# Order in time


def test_the_borders_are_those_of_the_published_protocol():
    hours = np.arange(17420)[:, None]
    train, valid, test = split(hours, lookback=336, sizes=(12 * 30 * 24, 4 * 30 * 24, 4 * 30 * 24))
    assert [(part[0, 0], part[-1, 0] + 1) for part in (train, valid, test)] == [
        (0, 8640),
        (8640 - 336, 11520),
        (11520 - 336, 14400),
    ]
    assert [len(part) - 336 - 96 + 1 for part in (train, valid, test)] == [8209, 2785, 2785]
    days = split(np.arange(7588)[:, None], lookback=336, sizes=(0.7, 0.1, 0.2))  # 5311.6, 758.8 and 1517.6 days
    assert [len(part) for part in days] == [5311, 760 + 336, 1517 + 336]
    assert days[-1][-1, 0] == 7587


def parts_of(y, sizes=(15, 6, 7), lookback=4):
    parts = split(y, lookback, sizes)
    scaler = Scaler.of(parts[0])
    return [windows(scaler(part), lookback, 3) for part in parts], scaler


@pytest.mark.parametrize("values", [Y, PANEL], ids=["series", "panel"])
@pytest.mark.parametrize(("border", "unaware"), [(15, 1), (21, 2), (28, 3)])
def test_no_part_knows_of_what_comes_after_it(values, border, unaware):
    future = np.arange(30)[:, None] >= border
    (before, scaler), (after, other) = parts_of(values), parts_of(np.where(future, values + 9, values))
    jax.tree.map(np.testing.assert_array_equal, (before[:unaware], scaler), (after[:unaware], other))
    for one, two in zip(before[unaware:], after[unaware:], strict=True):
        assert (one.targets != two.targets).all()  # every target of a later part is after the border


def test_every_step_of_a_later_part_is_a_target_of_that_part_alone():
    times = np.arange(30.0)[:, None]
    train, valid, test = (set(np.ravel(windows(part, 4, 3).targets)) for part in split(times, 4, (15, 6, 7)))
    assert (train, valid, test) == (set(range(4, 15)), set(range(15, 21)), set(range(21, 28)))


def test_fractions_leave_nothing_over():
    for sizes in ((0.7, 0.3), (0.6, 0.2, 0.2), (0.31, 0.29, 0.2, 0.2)):
        parts = split(Y, 4, sizes)
        assert len(parts) == len(sizes)
        assert sum(map(len, parts)) == 30 + 4 * (len(sizes) - 1)
        assert abs(len(parts[0]) - 30 * sizes[0]) < 1


# Data


def test_windows_become_data_as_they_are():
    train, valid = windows(Y[:20], 4, 3), windows(Y[16:], 4, 3)
    data = as_data(train, valid)
    np.testing.assert_array_equal(data.train.inputs, train.inputs)
    np.testing.assert_array_equal(data.valid.targets, valid.targets)
    np.testing.assert_array_equal(data.preprocess(valid.inputs), valid.inputs)
    assert data.train.weights.tolist() == [1.0] * 14


NAN = np.where(np.arange(30)[:, None] == 7, np.nan, Y)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: windows(Y, 0, 3), ValueError, "lookback: expected a positive integer, got 0"),
        (lambda: windows(Y, 4, 2.5), TypeError, "horizon: expected a positive integer, got 2.5"),
        (lambda: windows(Y, 4, 3, stride=True), TypeError, "stride: expected a positive integer, got True"),
        (lambda: windows(Y[:, 0], 4, 3), ValueError, r"values: expected \(time, channels\).*float32\[30\].*None"),
        (lambda: windows(Y[:, :0], 4, 3), ValueError, "values: expected at least one series"),
        (lambda: windows(Y, 28, 3), ValueError, r"values: expected at least lookback \+ horizon = 28 \+ 3 steps"),
        (lambda: windows(NAN, 4, 3), ValueError, r"values: expected finite.*2 not finite, the first at \(7, 0\)"),
        (lambda: windows(Y.astype(str), 4, 3), TypeError, "values: expected an array of real numbers"),
        (lambda: windows(Y, 4, 3, past=Y[1:]), ValueError, r"past: expected as many .*\[30,2\], got float32\[29,2\]"),
        (lambda: windows(PANEL, 4, 3, future=Y), ValueError, "future: expected as many steps and series as the values"),
        (lambda: windows(Y, 4, 3, future=NAN), ValueError, "future: expected finite"),
        (lambda: windows(Y, 2, 3, future=Y), ValueError, "lookback: expected at least the horizon, 3, .* got 2"),
        (lambda: split(Y[:, 0], 4, (0.5, 0.5)), ValueError, r"values: expected \(time, channels\)"),
        (lambda: split(Y, 4, 0.5), TypeError, "sizes: expected a sequence"),
        (lambda: split(Y, 4, (1.0,)), ValueError, "sizes: expected two or more"),
        (lambda: split(Y, 4, (0.7, 0.2)), ValueError, r"sizes: expected fractions that sum to 1, got \(0.7, 0.2\)"),
        (lambda: split(Y, 4, (0.9, 0.08, 0.02)), ValueError, "sizes: .* of 30 steps that leave no split empty"),
        (lambda: split(Y, 4, (20, 0.5)), TypeError, "sizes: expected all sizes in steps or all as fractions"),
        (lambda: split(Y, 4, (20, 11)), ValueError, r"sizes: expected at most the 30 steps .* got 20 \+ 11"),
        (lambda: split(Y, 4, (20, 0)), ValueError, r"sizes\[1\]: expected a finite number above 0, got 0"),
        (lambda: split(Y, 4, (20, -5)), ValueError, r"sizes\[1\]: expected a finite number above 0, got -5"),
        (lambda: split(Y, 9, (8, 8)), ValueError, "sizes: expected a first split of at least the lookback, 9 .* got 8"),
        (lambda: as_data(windows(Y, 4, 3), windows(Y, 5, 3)), ValueError, "valid: expected inputs of the same sizes"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()
