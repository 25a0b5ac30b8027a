"""Scores of two classes on counts small enough to be done by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ki67.binary_scores import area_under_roc, best_threshold, level_counts, level_of, roc_curve, threshold_scores

# Levels 0-3 of a class and the rest: at level 2, 3 of 4 are found, and 1 of 6 is found wrongly.
COUNTS = np.array([[4, 1, 1, 0], [0, 1, 2, 1]])


def test_every_score_is_that_of_the_textbook() -> None:
    scores = threshold_scores(COUNTS, 2)
    sensitivity, specificity = 3 / 4, 5 / 6
    assert scores == pytest.approx(
        {
            "sensitivity": sensitivity,
            "specificity": specificity,
            "accuracy": 8 / 10,
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "dice": 2 * 3 / (2 * 3 + 1 + 1),
            "ppv": 3 / 4,
            "npv": 5 / 6,
            "positive_likelihood_ratio": 4.5,
            "negative_likelihood_ratio": 0.3,
            "youden": sensitivity + specificity - 1,
        }
    )


def test_the_area_counts_pairs_and_half_of_ties() -> None:
    # Of 24 pairs: 4 zeros below all 4; the one at 1 below 3, tied with 1; the one at 2 below 1, tied with 2.
    assert area_under_roc(COUNTS) == pytest.approx((16 + 3 + 0.5 + 1 + 1) / 24)
    truth, levels = np.repeat([0, 1], [6, 4]), np.array([0, 0, 0, 0, 1, 2, 1, 2, 2, 3])
    assert area_under_roc(COUNTS) == pytest.approx(roc_auc_score(truth, levels))
    np.testing.assert_array_equal(level_counts(levels, truth > 0, 4), COUNTS)


def test_the_curve_runs_from_all_to_nothing() -> None:
    false_positive, true_positive = roc_curve(COUNTS)
    np.testing.assert_allclose(false_positive, [1, 2 / 6, 1 / 6, 0, 0])
    np.testing.assert_allclose(true_positive, [1, 1, 3 / 4, 1 / 4, 0])


def test_the_best_threshold_lies_in_the_middle_of_those_as_good() -> None:
    threshold, youden = best_threshold(COUNTS)
    assert youden == pytest.approx(4 / 6)
    assert 0 < threshold <= 1 / 3  # level 1 of 3 and none other
    assert level_of(threshold, 4) == 1
    apart = np.zeros((2, 256), dtype=int)
    apart[0, 50], apart[1, 201] = 3, 5
    threshold, youden = best_threshold(apart)
    assert youden == 1
    assert threshold == pytest.approx((50 + 201) / 2 / 255, abs=1e-4)


@pytest.mark.parametrize("only", [0, 1])
def test_scores_that_need_both_classes_are_undefined_with_one(only: int) -> None:
    counts = np.zeros((2, 4), dtype=int)
    counts[only] = [1, 0, 0, 3]
    scores = threshold_scores(counts, 2)
    assert np.isnan(
        [scores["balanced_accuracy"], scores["youden"], area_under_roc(counts), *best_threshold(counts)]
    ).all()
    assert scores["accuracy"] == (0.25, 0.75)[only]
    assert scores["dice"] == pytest.approx((0.0, 6 / 7)[only])
    assert np.isnan(scores["sensitivity" if only == 0 else "specificity"])


def test_scores_of_nothing_are_not_a_number() -> None:
    assert np.isnan(list(threshold_scores(np.zeros((2, 4), dtype=int), 2).values())).all()


def test_a_perfect_answer_has_an_infinite_likelihood_ratio() -> None:
    scores = threshold_scores(np.array([[5, 0], [0, 5]]), 1)
    assert scores["positive_likelihood_ratio"] == float("inf")
    assert scores["negative_likelihood_ratio"] == 0.0
    assert scores["dice"] == scores["youden"] == 1.0


@pytest.mark.parametrize(("threshold", "level"), [(0.0, 0), (0.5, 128), (128 / 255, 128), (0.502, 129), (1.0, 255)])
def test_a_threshold_is_the_lowest_level_that_reaches_it(threshold: float, level: int) -> None:
    assert level_of(threshold, 256) == level
