"""Intervals of predictions from errors out of fold."""

from __future__ import annotations

import numpy as np

from ki67.prediction.conformal import cv_plus, left_out_limits


def test_errors_and_the_spread_of_models_both_widen_an_interval() -> None:
    folds, patients = np.arange(40) % 5, [f"P{number}" for number in range(40)]
    errors = np.linspace(0, 1, 40)
    agree = cv_plus(np.zeros(5), folds, errors, patients)
    # The 39th of 40 errors, as (1 - 0.05) of 41 patients are 38.95.
    np.testing.assert_allclose(agree, (-errors[38], errors[38]))
    apart = cv_plus(np.array([-1.0, 0, 0, 0, 1.0]), folds, errors, patients)
    assert apart[0] < agree[0]
    assert apart[1] > agree[1]
    wide = cv_plus(np.zeros(5), folds, 2 * errors, patients)
    np.testing.assert_allclose(wide, 2 * np.array(agree))


def test_few_patients_allow_no_limit() -> None:
    folds, errors = np.arange(18) % 2, np.ones(18)
    assert cv_plus(np.zeros(2), folds, errors, [f"P{n}" for n in range(18)]) == (-np.inf, np.inf)
    folds, errors = np.arange(38) % 2, np.ones(38)
    assert cv_plus(np.zeros(2), folds, errors, [f"P{n}" for n in range(38)]) == (-1, 1)
    # Twice the slides of the same patients are no more patients.
    assert cv_plus(np.zeros(2), folds, errors, [f"P{n // 2 if n < 34 else 17}" for n in range(38)]) == (-np.inf, np.inf)


def test_about_95_of_100_new_slides_are_within() -> None:
    random = np.random.default_rng(0)
    held = []
    for _ in range(400):
        errors, new = np.abs(random.normal(size=40)), random.normal()
        low, high = cv_plus(np.zeros(5), np.arange(40) % 5, errors, [f"P{n}" for n in range(40)])
        held.append(low <= new <= high)
    assert 0.92 <= np.mean(held) <= 0.98


def test_the_interval_of_a_slide_knows_nothing_of_its_own_patient() -> None:
    known, said = np.zeros(40), np.linspace(0.1, 0.5, 40)
    said[7] = 9.0
    patients = [f"P{number}" for number in range(40)]
    low, high = left_out_limits(said, known, patients)
    assert high[7] - said[7] < 0.6
    assert high[0] - said[0] > 0.49
    np.testing.assert_allclose(high - said, said - low)
