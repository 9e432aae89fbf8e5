import gzip
import hashlib
import sys

import numpy as np
import pytest

import nnfx
from tests.data.test_series_files import TABLE

MODULE = sys.modules["nnfx.data.series"]


# Embedded


def test_sunspots_are_the_known_facts():
    series = nnfx.data.sunspots()
    assert (series.values.dtype, series.values.shape, series.names, series.period) == (
        np.float64, (309, 1), ("sunspots",), 1
    )  # fmt: skip
    np.testing.assert_array_equal(series.times.astype(int) + 1970, np.arange(1700, 2009))
    known = {1700: 5, 1712: 0, 1778: 154.4, 1957: 190.2, 2000: 119.6, 2008: 2.9}
    for year, number in known.items():
        assert series.values[year - 1700, 0] == number
    assert series.values.mean() == pytest.approx(49.7521, abs=1e-4)
    maxima = [1700 + t for t in range(1, 308) if series.values[t, 0] == series.values[max(t - 4, 0) : t + 5, 0].max()]
    assert 10.5 < np.diff(maxima).mean() < 11.5  # the length of a cycle in years


def test_airline_passengers_are_the_known_facts():
    series = nnfx.data.airline_passengers()
    assert (series.values.dtype, series.values.shape, series.names, series.period) == (
        np.float64, (144, 1), ("passengers",), 12
    )  # fmt: skip
    assert (str(series.times[0]), str(series.times[-1])) == ("1949-01", "1960-12")
    by_year = series.values.reshape(12, 12)
    assert by_year[0].tolist() == [112, 118, 132, 129, 121, 135, 148, 148, 136, 119, 104, 118]
    assert by_year[-1].tolist() == [417, 391, 419, 461, 472, 535, 622, 606, 508, 461, 390, 432]
    assert by_year.sum(1).tolist() == [1520, 1676, 2042, 2364, 2700, 2867, 3408, 3939, 4421, 4572, 5140, 5714]


def test_channels_are_selected_by_name():
    series = nnfx.data.airline_passengers()
    two = series._replace(values=np.concatenate([series.values, -series.values], axis=1), names=("air", "sea"))
    both = two.select("sea", "air")
    np.testing.assert_array_equal(both.values, two.values[:, ::-1])
    assert (both.names, both.period, both.times is series.times) == (("sea", "air"), 12, True)
    assert two.select("air").values.shape == (144, 1)
    with pytest.raises(ValueError, match=r"names\[1\]: expected one of 'air', 'sea', got 'rail'"):
        two.select("air", "rail")
    for names in ((), ("air", "air")):
        with pytest.raises(ValueError, match="names: expected one or more distinct names, got"):
            two.select(*names)


# From the web


def install(monkeypatch, folder, name, content):
    """Replace a file from the web by this content."""
    path = folder / name
    path.parent.mkdir()
    path.write_bytes(content)
    monkeypatch.setenv("NNFX_DATA", str(folder))
    return hashlib.sha256(content).hexdigest()


def test_transformers_and_exchange_rates_are_read_from_their_files(tmp_path, monkeypatch):
    sha256 = install(monkeypatch, tmp_path, "ett/ETTh2.csv", TABLE)
    monkeypatch.setitem(MODULE._ETT, "ETTh2", MODULE._ETT["ETTh2"]._replace(sha256=sha256))
    series = nnfx.data.ett("ETTh2")
    assert (series.names, series.period, str(series.times[1])) == (("load", "oil"), 24, "2016-07-01T01:00:00")
    content = gzip.compress(b"0.7855,1.611,0.861698,0.634196,0.211242,0.006838,0.525486,0.593\n")
    sha256 = install(monkeypatch, tmp_path, "exchange-rate/exchange_rate.txt.gz", content)
    monkeypatch.setattr(MODULE, "_EXCHANGE_RATE", MODULE._EXCHANGE_RATE._replace(sha256=sha256))
    rates = nnfx.data.exchange_rate()
    assert (rates.values.shape, rates.times, rates.period) == ((1, 8), None, 1)
    assert rates.values[0, rates.names.index("Japan")] == 0.006838


def test_another_file_than_the_known_one_is_refused(tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, "ett/ETTh1.csv", TABLE)
    with pytest.raises(ValueError, match="ETTh1.csv: expected a file with the SHA-256 checksum f18de3ad"):
        nnfx.data.ett("ETTh1")
    with pytest.raises(ValueError, match="name: expected one of 'ETTh1', 'ETTh2', got 'ETTm1'"):
        nnfx.data.ett("ETTm1")


@pytest.mark.usefixtures("etth1_file")
def test_the_transformer_is_as_published():
    series = nnfx.data.ett("ETTh1")
    assert series.values.shape == (17420, 7)
    assert series.names == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    assert (np.diff(series.times) == np.timedelta64(1, "h")).all()
    assert (str(series.times[0]), str(series.times[-1])) == ("2016-07-01T00:00:00", "2018-06-26T19:00:00")
    assert np.float32(series.values[0, -1]) == np.float32(30.531)
