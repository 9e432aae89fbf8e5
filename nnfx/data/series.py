"""Time series: packaged sunspots and airline passengers; transformers and exchange rates downloaded from the web."""

from importlib import resources

from nnfx import checks
from nnfx.data.download import File, fetch
from nnfx.data.series_files import Series, read_series, read_series_rows

__all__ = [
    "Series",
    "airline_passengers",
    "ett",
    "exchange_rate",
    "read_series",
    "read_series_rows",
    "sunspots",
]


def sunspots() -> Series:
    """The yearly mean number of sunspots from 1700 to 2008, whose cycle lasts about 11 years but varies in length.

    Example:
        >>> series = sunspots()
        >>> series.values.shape, str(series.times[-1]), series.values.argmax().item()
        ((309, 1), '2008', 257)

    References:
        See `sunspots.md`, next to the data file, for the source.
    """
    return _packaged("sunspots.csv", "year", period=1)


def airline_passengers() -> Series:
    """The monthly numbers of international airline passengers from 1949 to 1960, in thousands; the period is 12.

    Example:
        >>> series = airline_passengers()
        >>> series.values.shape, str(series.times[-1]), series.values[-1, 0].item()
        ((144, 1), '1960-12', 432.0)

    References:
        See `airline_passengers.md`, next to the data file, for the source.
    """
    return _packaged("airline_passengers.csv", "month", period=12)


def _packaged(name: str, time: str, period: int) -> Series:
    return read_series(resources.files("nnfx.data").joinpath(name).read_bytes(), time=time, period=period)


_ETT = {
    name: File(
        f"ett/{name}.csv", f"https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/{name}.csv", sha256
    )
    for name, sha256 in {
        "ETTh1": "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
        "ETTh2": "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",
    }.items()
}
_EXCHANGE_RATE = File(
    "exchange-rate/exchange_rate.txt.gz",
    "https://raw.githubusercontent.com/laiguokun/multivariate-time-series-data/master/exchange_rate/exchange_rate.txt.gz",
    "6a4fbb561dcdee43f071a83badbeec9223a335552278348656738b556f1c2e9d",
)


def ett(name: str) -> Series:
    """Hourly data of an electricity transformer from July 2016 to June 2018: six loads and the oil temperature, `OT`.

    The file is downloaded once into the folder that the environment variable `NNFX_DATA` names, or else the platform's
    cache, and verified by its checksum.

    Args:
        name: `"ETTh1"` or `"ETTh2"`, one transformer each.

    Returns:
        17,420 hours of 7 channels; the period is 24.

    Raises:
        ValueError: for an unknown name, or a file with the wrong checksum.
        OSError: for a file that is missing and cannot be downloaded.

    References:
        Zhou et al., *Informer: beyond efficient transformer for long sequence time-series forecasting*, AAAI 2021.
    """
    checks.choice("name", name, _ETT)
    return read_series(fetch(_ETT[name]), time="date", period=24)


def exchange_rate() -> Series:
    """The exchange rates of eight countries, daily from 1990 to 2016.

    The file is downloaded once, like the files of `ett`.

    Returns:
        7,588 days of 8 channels, without times; the period is 1, since no season is known.

    Raises:
        ValueError, OSError: as for `ett`.

    References:
        Lai, Chang, Yang and Liu, *Modeling long- and short-term temporal patterns with deep neural networks*,
        SIGIR 2018.
    """
    countries = ("Australia", "Britain", "Canada", "Switzerland", "China", "Japan", "New Zealand", "Singapore")
    return read_series(fetch(_EXCHANGE_RATE), names=countries)
