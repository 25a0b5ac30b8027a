from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.stats import spearmanr

from ki67.phantom.look import random_look
from ki67.phantom.proliferation import proliferating
from ki67.prediction.drawn_cohort import DrawnPatient, draw_cohort, draw_factors
from ki67.stain import separate_hed


@pytest.fixture(scope="module", params=[True, False], ids=["carries", "carries nothing"])
def cohort(request: pytest.FixtureRequest) -> tuple[bool, list[DrawnPatient]]:
    return request.param, draw_cohort(24, 3, request.param, patches=6)


def nuclear_depth(patient: DrawnPatient) -> float:
    """How deep stained pixels lie in nuclei on average, which grows with the nuclei."""
    hematoxylin = cv2.GaussianBlur(separate_hed(np.concatenate(list(patient.pairs.he)))[..., 0], (0, 0), 1.0)
    scaled = np.clip(hematoxylin / np.quantile(hematoxylin, 0.99) * 255, 0, 255).astype(np.uint8)
    _, nuclei = cv2.threshold(scaled, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return float(cv2.distanceTransform(nuclei, cv2.DIST_L2, 5)[nuclei > 0].mean())


@pytest.mark.parametrize("seed", range(5))
def test_factor_and_index_go_together_as_strongly_as_said(seed: int) -> None:
    rank = spearmanr(*draw_factors(40, seed, True))[0]
    assert 0.79 < rank < 0.91


def test_factor_tells_nothing_in_a_cohort_that_carries_nothing() -> None:
    factor, index = draw_factors(4000, 0, False)
    assert abs(spearmanr(factor, index)[0]) < 0.06
    assert np.median(index) == pytest.approx(0.2, abs=0.02)


def test_labels_are_counts_around_the_true_index(cohort: tuple[bool, list[DrawnPatient]]) -> None:
    for patient in cohort[1]:
        pairs = patient.pairs
        total = (pairs.positive + pairs.negative)[pairs.labelled]
        assert pairs.label[pairs.labelled] == pytest.approx(pairs.positive[pairs.labelled] / total)
        spread = np.sqrt(patient.index * (1 - patient.index) / total.sum())
        assert abs(pairs.positive.sum() / total.sum() - patient.index) < 4.5 * spread
        assert pairs.rejected["few_nuclei"] == (~pairs.labelled).sum()


def test_the_picture_shows_the_factor_and_the_index_only_where_it_is_carried(
    cohort: tuple[bool, list[DrawnPatient]],
) -> None:
    carries, patients = cohort
    depth = [nuclear_depth(patient) for patient in patients]
    assert spearmanr(depth, [patient.factor for patient in patients])[0] > 0.5
    found = spearmanr(depth, [patient.index for patient in patients])[0]
    assert found > 0.45 if carries else abs(found) < 0.4


def test_stains_differ_between_laboratories_more_than_within() -> None:
    patients = draw_cohort(16, 0, True, patches=2, size_px=64)
    colours = np.array([patient.pairs.he.reshape(-1, 3).mean(axis=0) for patient in patients])
    of = np.array([patient.laboratory for patient in patients])
    within = np.mean([colours[of == one].std(axis=0).mean() for one in np.unique(of)])
    assert colours.std(axis=0).mean() > 1.5 * within


def test_the_same_seed_gives_the_same_cohort_with_any_number_of_processes() -> None:
    once, again = (draw_cohort(3, 5, True, patches=2, size_px=64, workers=workers) for workers in (1, 2))
    for first, second in zip(once, again, strict=True):
        np.testing.assert_array_equal(first.pairs.he, second.pairs.he)
        np.testing.assert_array_equal(first.pairs.label, second.pairs.label)
        assert (first.factor, first.index) == (second.factor, second.index)
    assert not np.array_equal(once[0].pairs.he, draw_cohort(3, 6, True, patches=2, size_px=64)[0].pairs.he)


def test_tumour_that_proliferates_has_larger_nuclei_and_more_mitoses() -> None:
    look = random_look(np.random.default_rng(0), "he")
    low, high = (proliferating(look, factor) for factor in (-1.5, 1.5))
    assert high.nucleus_um > low.nucleus_um + 2.5
    assert high.mitoses > 5 * low.mitoses
    assert high.hematoxylin_vector == look.hematoxylin_vector
