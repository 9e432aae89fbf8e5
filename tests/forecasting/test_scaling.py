import jax
import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from nnfx.forecasting import Scaler

RNG = np.random.default_rng(0)
Y = RNG.normal(size=(30, 2)).astype(np.float32)
PANEL = RNG.normal(size=(3, 30, 2)).astype(np.float32)
NAN = np.where(np.arange(30)[:, None] == 7, np.nan, Y)


def test_scales_are_those_of_scikit_learn():
    values = (Y * [1e-3, 50] + [7, -1e3]).astype(np.float32)
    theirs = StandardScaler().fit(values.astype(np.float64))
    ours = Scaler.of(values)
    np.testing.assert_allclose(ours.mean[0], theirs.mean_, rtol=1e-6)
    np.testing.assert_allclose(ours.scale[0], theirs.scale_, rtol=1e-4)  # a spread of 7,000 rounding errors
    np.testing.assert_allclose(ours(values), theirs.transform(values), atol=2e-3)
    np.testing.assert_allclose(ours.inverse(ours(values)), values, rtol=1e-6)


def test_a_long_series_far_from_zero_is_scaled_precisely():
    values = (RNG.normal(size=(20_000, 1)) + 300).astype(np.float32)
    theirs = StandardScaler().fit(values.astype(np.float64))
    ours = jax.jit(Scaler.of)(values)
    assert float(ours.mean[0, 0]) == pytest.approx(theirs.mean_[0], rel=1e-7)
    assert float(ours.scale[0, 0]) == pytest.approx(theirs.scale_[0], rel=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3e8, 1e-30])
def test_a_constant_channel_is_only_moved(constant):
    values = np.stack([np.full(999, constant), np.arange(999)], axis=1).astype(np.float32)
    scaler = Scaler.of(values)
    assert scaler.scale[0, 0] == 1
    np.testing.assert_array_equal(scaler(values)[:, 0], 0)


@pytest.mark.parametrize("values", [Y, PANEL], ids=["series", "panel"])
def test_the_scale_of_chosen_steps_is_that_of_a_series_of_them(values):
    values = values + np.float32(1000)
    where = np.arange(30) % 3 == 1
    found = jax.jit(lambda values, where: Scaler.of(values, where))(values, where)
    for ours, expected in zip(found, Scaler.of(values[..., where, :]), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_each_series_of_a_panel_has_a_scale_of_its_own():
    scaler = Scaler.of(PANEL)
    assert scaler.mean.shape == (3, 1, 2)
    for i, series in enumerate(PANEL):
        np.testing.assert_allclose(scaler(PANEL)[i], Scaler.of(series)(series), rtol=1e-5, atol=1e-6)
    forecasts = RNG.normal(size=(3, 5, 4, 2)).astype(np.float32)
    expected = np.stack([Scaler.of(series).inverse(each) for series, each in zip(PANEL, forecasts, strict=True)])
    np.testing.assert_allclose(scaler.inverse(forecasts), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Scaler.of(NAN), ValueError, "values: expected finite"),
        (lambda: Scaler.of(Y + 1e6), ValueError, "values: .*got channel 0 with a mean of over 100,000"),
        (lambda: Scaler.of(Y, np.ones(30)), ValueError, r"where: expected booleans \[30\], one for each"),
        (lambda: Scaler.of(Y, np.zeros(30, bool)), ValueError, "where: expected at least one step to measure"),
        (lambda: Scaler.of(Y)(Y[:, :1]), ValueError, r"values: expected \(\.\.\., 2\), as measured"),
        (lambda: Scaler.of(PANEL).inverse(PANEL[:2]), ValueError, r"values: expected \(3, \.\.\., 2\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()
