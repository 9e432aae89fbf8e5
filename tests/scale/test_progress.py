import pytest

from nnfx.scale.progress import Progress, bar


def test_the_bar_says_how_far_a_sweep_has_come(capsys):
    pytest.importorskip("tqdm")
    show = bar("rates")
    for epoch, running in ((5, 64), (10, 3)):
        show(Progress(epoch, 10, running, 64))
    shown = capsys.readouterr().err
    assert "rates" in shown
    assert "10/10" in shown
    assert "3 of 64 members running" in shown


def test_the_bar_ends_when_nothing_runs_any_more(capsys):
    pytest.importorskip("tqdm")
    bar()(Progress(4, 10, 0, 8))
    assert "4/10" in capsys.readouterr().err
