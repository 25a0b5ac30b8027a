"""Folds of patients: nothing of a patient on both sides, whatever the sheet holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ki67.errors import ConfigError, Ki67Error
from ki67.prediction import cross_validation
from ki67.prediction.cross_validation import cross_validate
from ki67.prediction.methods import PredictOptions
from ki67.prediction.splits import check_apart, check_slides, fold_counts, patient_folds, patient_key
from tests.unit.drawn_examples import drawn_slide, drawn_slides


def random_cohort(seed: int) -> tuple[list[str], np.ndarray]:
    """Patients with one to three slides each, in any order, their ids written in more than one way."""
    random = np.random.default_rng(seed)
    patients = [f"p{number}" for number in range(25) for _ in range(random.integers(1, 4))]
    patients = [patient.upper() if random.random() < 0.3 else f" {patient}" for patient in patients]
    order = random.permutation(len(patients))
    return [patients[place] for place in order], random.uniform(size=len(patients))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("folds", [2, 5])
def test_all_slides_of_a_patient_are_in_one_fold(seed: int, folds: int) -> None:
    patients, indices = random_cohort(seed)
    found = patient_folds(patients, indices, folds, seed=seed)
    for key in set(map(patient_key, patients)):
        own = [fold for fold, patient in zip(found, patients, strict=True) if patient_key(patient) == key]
        assert len(set(own)) == 1
    for fold in range(folds):
        check_apart(
            [p for p, f in zip(patients, found, strict=True) if f != fold],
            [p for p, f in zip(patients, found, strict=True) if f == fold],
        )
    counts = fold_counts(found, patients)
    assert sorted(counts) == list(range(folds))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_every_fold_has_low_and_high_indices() -> None:
    indices = np.linspace(0.02, 0.8, 40)
    folds = patient_folds([f"P{n}" for n in range(40)], indices, 5, seed=3)
    means = [indices[folds == fold].mean() for fold in range(5)]
    assert np.ptp(means) < 0.1
    # One of each run of five neighbours is in every fold.
    assert all(len(set(folds[start : start + 5])) == 5 for start in range(0, 40, 5))


def test_the_order_of_slides_changes_no_fold() -> None:
    patients, indices = random_cohort(1)
    folds = dict(zip(map(patient_key, patients), patient_folds(patients, indices, 5, seed=7), strict=True))
    order = np.random.default_rng(0).permutation(len(patients))
    shuffled = [patients[place] for place in order]
    again = dict(zip(map(patient_key, shuffled), patient_folds(shuffled, indices[order], 5, seed=7), strict=True))
    assert folds == again
    assert folds != dict(zip(map(patient_key, patients), patient_folds(patients, indices, 5, seed=8), strict=True))


def test_too_few_patients_are_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match="pairs of at least 10 patients .* 5 folds, and there are 9; add slides"):
        patient_folds([f"P{number}" for number in range(9)] * 2, np.linspace(0, 1, 18), 5)


def test_a_patient_on_both_sides_is_refused() -> None:
    with pytest.raises(Ki67Error, match="patient p2 is on both sides of a split"):
        check_apart(["P1", "P2"], ["P3", "p2 "])


def test_no_model_is_trained_where_a_split_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    slides = drawn_slides(12)
    slides[1] = replace(slides[1], patient=slides[0].patient)
    monkeypatch.setattr(cross_validation, "patient_folds", lambda *args, **more: np.arange(12) % 2)
    with pytest.raises(Ki67Error, match="on both sides of a split"):
        cross_validate(slides, PredictOptions("mean_pooling"), folds=2)


def test_a_slide_without_a_patient_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="S00: its pairs name no patient.*fill the column patient"):
        check_slides([drawn_slide(0, 0.2, patient=" ")])


def test_a_slide_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="S00 is there twice"):
        check_slides([drawn_slide(0, 0.2), drawn_slide(0, 0.2)])


def test_the_same_slide_under_two_patients_is_refused() -> None:
    one = drawn_slide(0, 0.2)
    copy = replace(one, slide="S77", patient="P77", he=np.concatenate([drawn_slide(5, 0.3).he[:5], one.he[:1]]))
    with pytest.raises(ConfigError, match="S00 of patient P00 and S77 of patient P77 show the same H&E"):
        check_slides([one, copy])
    check_slides([one, replace(copy, patient="p00")])


def test_patches_of_one_colour_are_no_sign_of_the_same_slide() -> None:
    white = np.full((6, 48, 48, 3), 255, np.uint8)
    check_slides([replace(drawn_slide(0, 0.2), he=white), replace(drawn_slide(1, 0.2), he=white)])
