from dataclasses import asdict, replace

import numpy as np
import pytest

from ki67.detection import Detector
from ki67.errors import Ki67Error
from ki67.evaluation_fields import EvaluationField
from ki67.familiarity import joined_ranges
from ki67.nucleus_review import REVIEW_FILE, ReviewOptions, read_review
from ki67.storage import to_plain, write_json
from ki67.training import review_fitting
from ki67.training.review_fitting import Candidates, class_f1, fit_review, fitted_odds
from ki67.training.targets import NEGATIVE, OTHER, POSITIVE
from tests.unit.drawn_networks import COLOURS, PaintedNuclei


def found(seed: int, count: int = 400, lowest: float = 0.3, middle: float = 0.6) -> Candidates:
    """Nuclei of which the improbable are mostly none, and the brown ones positive from a DAB of 0.5."""
    random = np.random.default_rng(seed)
    probability = random.uniform(lowest, 1, count).astype(np.float32)
    is_nucleus = random.random(count) < 1 / (1 + np.exp(-12 * (probability - middle)))
    dab = np.where(random.random(count) < 0.3, random.normal(0.9, 0.2, count), random.normal(0.1, 0.03, count))
    positive = dab > 0.5
    truth = np.where(is_nucleus, np.where(positive, POSITIVE, NEGATIVE), 0)
    known = int(np.sum(truth == POSITIVE)) + 5, int(np.sum(truth == NEGATIVE)) + 10
    return Candidates(probability, positive, random.uniform(40, 60, count), dab, truth, known)


def test_odds_rise_with_what_tells_nuclei_apart():
    odds = fitted_odds([[found(0), found(1)]])
    assert odds.probability_weight == pytest.approx(12, rel=0.4)
    assert abs(odds.size_weight) < 2
    assert -odds.offset / odds.probability_weight == pytest.approx(0.6, abs=0.05)


def test_sets_weigh_the_same_however_large():
    few, many = [found(0)], [replace(found(seed), truth=np.zeros(400, dtype=np.int64)) for seed in range(1, 9)]
    together = fitted_odds([few, many])
    as_one = fitted_odds([[*few, *many]])
    share = {odds.offset + odds.probability_weight * 0.9 for odds in (together, as_one)}
    assert max(share) == together.offset + together.probability_weight * 0.9


def test_f1_counts_classes_and_leaves_out_what_is_not_told():
    truth = np.array([POSITIVE, NEGATIVE, 0, -1])
    field = Candidates(
        np.full(4, 0.9, np.float32), np.array([True, True, False, False]), np.full(4, 50.0), np.zeros(4), truth, (2, 1)
    )
    positive, negative, both = class_f1([field], ReviewOptions())
    assert positive == pytest.approx(2 * 1 / (2 + 2))
    assert negative == 0
    assert both == pytest.approx(2 * 2 / (3 + 3))


def test_the_fitted_review_does_better_than_the_usual_one(monkeypatch, tmp_path):
    fields = [found(seed, middle=0.85) for seed in range(3)]
    monkeypatch.setattr(review_fitting, "read_dataset", lambda path: path)
    monkeypatch.setattr(review_fitting, "read_evaluation_fields", lambda dataset, mpp: iter(()))
    monkeypatch.setattr(review_fitting, "candidates", lambda fields_of, detector: iter(fields))
    detector = Detector("unet_resnet34", PaintedNuclei(), {})
    fitted = fit_review([tmp_path], detector)
    assert fitted is not None
    assert sum(class_f1(fields, fitted)[:2]) > sum(class_f1(fields, ReviewOptions())[:2])
    fields[:] = [replace(fields[0], known=(10, 20))]
    assert fit_review([tmp_path], detector) is None, "too few nuclei to fit anything"


def test_candidates_know_what_is_annotated_at_them():
    detector = Detector("unet_resnet34", PaintedNuclei(), {}, review=ReviewOptions(least_plausible=1.1))
    rgb = np.full((160, 160, 3), 255, dtype=np.uint8)
    for row, column in ((40, 40), (40, 100), (100, 40), (100, 100)):
        rows, columns = np.indices((160, 160))
        rgb[(rows - row) ** 2 + (columns - column) ** 2 < 81] = COLOURS[1]
    nuclei = np.array([[40.0, 40.0, POSITIVE], [100.0, 40.0, NEGATIVE], [40.0, 100.0, OTHER]])
    (field,) = review_fitting.candidates([EvaluationField("f", rgb, nuclei)], detector)
    assert sorted(field.truth.tolist()) == [-1, 0, POSITIVE, NEGATIVE]
    assert field.known == (1, 1)


def test_review_is_read_back_and_a_damaged_one_refused(tmp_path):
    assert read_review(tmp_path) == ReviewOptions()
    options = ReviewOptions(probability_weight=3.0, calibration=replace(ReviewOptions().calibration, share=0.4))
    write_json(tmp_path / REVIEW_FILE, to_plain(asdict(options)))
    assert read_review(tmp_path) == options
    (tmp_path / REVIEW_FILE).write_text("[]")
    with pytest.raises(Ki67Error, match=r"review.json is damaged; delete it or fine-tune again"):
        read_review(tmp_path)


def test_what_is_familiar_from_either_training_is_familiar():
    joined = joined_ranges({"a": (1, 2), "b": (0, 1)}, {"a": (0.5, 1.5), "c": (7, 8)})
    assert joined == {"a": (0.5, 2), "b": (0, 1), "c": (7, 8)}
