"""Classes of nuclei by the DAB of their slide."""

import numpy as np
import pytest

from ki67.class_calibration import CalibrationOptions, dab_levels, uncertainty


def nuclei(negative: float, positive: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """DAB of 300 negative and 100 positive nuclei, with the truth."""
    random = np.random.default_rng(seed)
    dab = np.concatenate([random.normal(negative, 0.02, 300), random.normal(positive, 0.15 * positive, 100)])
    return dab, np.arange(400) >= 300


@pytest.mark.parametrize(("negative", "positive"), [(-0.08, 0.35), (0.1, 0.55), (0.3, 1.9)])
def test_nuclei_that_the_network_took_for_the_other_class_are_put_right(negative: float, positive: float) -> None:
    dab, truth = nuclei(negative, positive)
    called = truth.copy()
    called[:80] = True  # brown shade taken for positive
    called[-20:] = False
    levels = dab_levels(dab, called)
    assert levels is not None
    assert ((dab > levels.threshold) == truth).mean() > 0.99


def test_one_shade_is_negative_on_a_strong_slide_and_positive_on_a_pale_one() -> None:
    strong, pale = dab_levels(*nuclei(0.1, 1.9)), dab_levels(*nuclei(0.0, 0.5))
    assert strong is not None
    assert pale is not None
    assert pale.threshold < 0.3 < strong.threshold


def test_without_both_classes_there_is_nothing_to_measure_against() -> None:
    dab, truth = nuclei(0.1, 0.5)
    assert dab_levels(dab, np.zeros(400, dtype=bool)) is None
    assert dab_levels(dab, np.ones(400, dtype=bool)) is None
    assert dab_levels(dab, truth, CalibrationOptions(fewest=101)) is None
    assert dab_levels(np.zeros(0), np.zeros(0, dtype=bool)) is None


def test_a_few_false_positives_do_not_pull_the_threshold_into_the_negative_nuclei() -> None:
    random = np.random.default_rng(1)
    dab = random.normal(0.1, 0.03, 2000)
    called = dab > np.quantile(dab, 0.99)
    levels = dab_levels(dab, called)
    assert levels is not None
    assert (dab > levels.threshold).mean() < 0.02


def test_uncertainty_is_least_where_network_and_stain_agree_and_greatest_at_the_threshold() -> None:
    dab, truth = nuclei(0.1, 1.5)
    levels = dab_levels(dab, truth)
    assert levels is not None
    probability, called = np.full(4, 0.9), np.array([False, True, False, True])
    told = uncertainty(probability, called, np.array([0.1, 1.5, 1.5, levels.threshold]), levels)
    assert told[:2].max() < 0.25
    assert told[2] > 0.8
    assert 0.4 < told[3] < 1
    np.testing.assert_allclose(uncertainty(probability, called, dab[:4], None), 0.1, rtol=1e-5)


def test_black_nuclei_that_are_called_negative_do_not_tell_the_level_of_negative_nuclei() -> None:
    pale, dark = np.linspace(0.1, 0.3, 20), np.linspace(1.4, 2.2, 60)
    dab = np.concatenate([pale, dark])
    called = np.concatenate([np.zeros(50, dtype=bool), np.ones(30, dtype=bool)])  # half of the dark ones are missed
    trusting, doubting = dab_levels(dab, called), dab_levels(dab, called, CalibrationOptions(doubted=0.5))
    assert trusting is not None
    assert trusting.threshold > dark.max()
    assert doubting is not None
    assert (dab > doubting.threshold).tolist() == [False] * 20 + [True] * 60


def test_where_all_that_is_called_negative_is_black_the_classes_stay() -> None:
    called = np.arange(40) < 20
    assert dab_levels(np.linspace(1.5, 2.0, 40), called, CalibrationOptions(doubted=0.0)) is None
