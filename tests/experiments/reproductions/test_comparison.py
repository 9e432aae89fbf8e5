"""Comparisons with published numbers against SciPy, and the files in which runs are kept."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from experiments.reproductions.comparison import Comparison, Sample, finished


def test_the_difference_is_welchs_statistic():
    rng = np.random.default_rng(0)
    ours, published = rng.normal(0.3, 1, 7), rng.normal(0, 2, 12)
    found = Comparison("loss", Sample.of(ours), Sample.of(published)).standard_errors
    assert found == pytest.approx(stats.ttest_ind(ours, published, equal_var=False).statistic)


def test_paired_differences_are_students_statistic():
    rng = np.random.default_rng(0)
    ours = rng.normal(0, 1, 20)
    published = ours + rng.normal(0.1, 0.1, 20)
    paired = Sample.of(ours - published).error
    found = Comparison("loss", Sample.of(ours), Sample.of(published), paired=paired)
    assert found.standard_errors == pytest.approx(stats.ttest_rel(ours, published).statistic)
    assert abs(found.standard_errors) > 3 * abs(stats.ttest_ind(ours, published).statistic)


@pytest.mark.parametrize("is_ours", [False, True])
def test_a_single_number_varies_as_those_of_the_other_side(is_ours):
    rng = np.random.default_rng(0)
    drawn = rng.normal(5, 3, (2000, 11))
    pairs = [(Sample(row[0], None, 1), Sample.of(row[1:])) for row in drawn]
    found = [Comparison("loss", *(pair if is_ours else reversed(pair))) for pair in pairs]
    agreeing = np.mean([each.agrees for each in found])
    assert agreeing == pytest.approx(1 - 2 * stats.t(9).sf(2), abs=0.02)  # Student's distribution, from ten numbers


@pytest.mark.parametrize(("published", "agrees"), [(1.295, True), (1.294, False), (1.296, False)])
def test_rounding_counts_as_an_error(published, agrees):
    assert Comparison("MSE", Sample(1.2946, None, 1), Sample(published, None, 1), unit=0.001).agrees is agrees
    assert math.isnan(Comparison("MSE", Sample(1.2946, None, 1), Sample(published, None, 1)).standard_errors)


def test_two_standard_errors_are_the_limit():
    for difference, agrees in ((1.99, True), (2.01, False), (-1.99, True), (-2.01, False)):
        assert Comparison("loss", Sample(difference, 3.0, 25), Sample(0.0, 0.8, 1)).agrees is agrees


def test_finished_runs_are_kept_and_other_settings_run_anew(tmp_path):
    path, made = tmp_path / "run.json", []

    def run():
        made.append(len(made))
        return made

    assert finished(path, {"epochs": 2}, run) == [0]
    assert finished(path, {"epochs": 2}, run) == [0]
    assert finished(path, {"epochs": 3}, run) == [0, 1]
    assert json.loads(path.read_text()) == {"settings": {"epochs": 3}, "run": [0, 1]}
