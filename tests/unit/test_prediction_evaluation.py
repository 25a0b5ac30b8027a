"""Scores of predictions: right on known answers, and 0 for models that learned nothing, whatever the folds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from ki67.errors import ConfigError
from ki67.prediction.cohort_columns import with_predictions
from ki67.prediction.conformal import left_out_limits
from ki67.prediction.evaluation import (
    evaluate_patches,
    evaluate_prediction,
    evaluate_slides,
    score_lines,
    within_folds,
)
from ki67.prediction.evaluation_figures import correlation_picture, patch_picture, slide_picture
from ki67.prediction.splits import patient_folds


def table(index: np.ndarray, predicted: np.ndarray, *, folds: int = 5, half: float = 0.1) -> pd.DataFrame:
    patients = [f"P{number}" for number in range(len(index))]
    return pd.DataFrame(
        {
            "slide": [f"S{number}" for number in range(len(index))],
            "patient": patients,
            "fold": patient_folds(patients, index, folds, seed=0),
            "index": index,
            "predicted": predicted,
            "predicted_low": predicted - half,
            "predicted_high": predicted + half,
        }
    )


def told(record: dict, name: str) -> float:
    return record["scores"][name]["value"]


def test_a_model_that_says_the_mean_of_its_training_has_learned_nothing() -> None:
    random = np.random.default_rng(0)
    within, pooled = [], {"dealt": [], "at random": []}
    for _ in range(40):
        index = random.beta(1.5, 5, 40)
        dealt = patient_folds([f"P{n}" for n in range(40)], index, 5, seed=int(random.integers(1000)))
        for name, folds in (("dealt", dealt), ("at random", random.permutation(40) % 5)):
            means = np.array([index[folds != fold].mean() for fold in folds])
            within.append(within_folds(means, index, folds, ranks=True))
            pooled[name].append(spearmanr(means, index).statistic)
    assert np.mean(within) == 0
    # What is taken out here; folds that are dealt out by the index take out most of it as well.
    assert np.mean(pooled["at random"]) < -0.2
    assert np.mean(pooled["at random"]) < np.mean(pooled["dealt"]) < 0


@pytest.mark.parametrize("ranks", [True, False])
def test_a_model_that_learned_noise_is_zero_on_average(ranks: bool) -> None:
    random = np.random.default_rng(1)
    found = []
    for _ in range(200):
        index, features = random.beta(1.5, 5, 40), random.normal(size=(40, 30))
        folds = patient_folds([f"P{n}" for n in range(40)], index, 5, seed=int(random.integers(1000)))
        said = np.empty(40)
        for fold in range(5):
            seen, new = folds != fold, folds == fold
            mean = index[seen].mean()
            weights = np.linalg.solve(features[seen].T @ features[seen] + 30 * np.eye(30), features[seen].T)
            said[new] = mean + features[new] @ (weights @ (index[seen] - mean))
        found.append(within_folds(said, index, folds, ranks=ranks))
    assert abs(np.mean(found)) < 3 * np.std(found) / len(found) ** 0.5
    assert np.std(found) < 0.25


def test_within_folds_is_the_correlation_where_folds_do_not_matter() -> None:
    random = np.random.default_rng(2)
    index = random.uniform(size=200)
    said = index + random.normal(0, 0.2, 200)
    folds = patient_folds([f"P{n}" for n in range(200)], index, 5, seed=0)
    assert within_folds(said, index, folds, ranks=True) == pytest.approx(spearmanr(said, index).statistic, abs=0.02)
    assert within_folds(index, index, folds, ranks=False) == pytest.approx(1)
    assert within_folds(-index, index, folds, ranks=True) == pytest.approx(-1)
    # Constants of a fold change nothing, one fold that says nothing counts as 0.
    assert within_folds(said + folds, index, folds, ranks=False) == pytest.approx(
        within_folds(said, index, folds, ranks=False)
    )
    assert within_folds(np.where(folds == 0, 0.2, index), index, folds, ranks=True) == pytest.approx(0.8, abs=0.01)
    assert np.isnan(within_folds(said[:4], index[:4], np.arange(4), ranks=True))


def test_scores_of_slides_on_a_known_answer() -> None:
    index = np.linspace(0.02, 0.6, 40)
    record = evaluate_slides(table(index, index + 0.04))
    assert told(record, "spearman") == told(record, "pearson") == pytest.approx(1)
    assert told(record, "bias") == told(record, "mae") == told(record, "rmse") == pytest.approx(0.04)
    assert told(record, "mae_of_mean") > 0.1
    assert record["scores"]["mae"]["low"] == pytest.approx(0.04)
    assert told(record, "interval_coverage") == 1
    assert record["interval_width"] == pytest.approx(0.2)
    assert np.sum(record["confusion"]) == 40
    perfect = evaluate_slides(table(index, index))
    assert told(perfect, "kappa_linear") == told(perfect, "same_category") == 1


def test_intervals_hold_the_score_and_narrow_with_patients() -> None:
    random = np.random.default_rng(3)
    widths = []
    for count in (30, 240):
        index = random.uniform(0, 0.6, count)
        score = evaluate_slides(table(index, index + random.normal(0, 0.15, count)))["scores"]["spearman"]
        assert score["low"] < score["value"] < score["high"]
        widths.append(score["high"] - score["low"])
    assert widths[1] < 0.6 * widths[0]


def test_slides_of_one_patient_count_as_one_in_the_intervals() -> None:
    random = np.random.default_rng(4)
    index = random.uniform(0, 0.6, 30)
    once = table(index, index + random.normal(0, 0.15, 30))
    thrice = pd.concat([once, once.assign(slide=once["slide"] + "b"), once.assign(slide=once["slide"] + "c")])
    one, three = (evaluate_slides(one)["scores"]["mae"] for one in (once, thrice.reset_index(drop=True)))
    assert three["value"] == pytest.approx(one["value"])
    assert three["high"] - three["low"] == pytest.approx(one["high"] - one["low"], rel=0.1)


@pytest.mark.parametrize(
    ("count", "folds", "told_of"),
    [(10, 5, ["fold with at least 3", "10 patients"]), (12, 3, ["12 patients"]), (20, 5, [])],
)
def test_what_the_slides_are_too_few_for_is_said(count: int, folds: int, told_of: list[str]) -> None:
    index = np.linspace(0.05, 0.6, count)
    slides = table(index, index, folds=folds)
    record = evaluate_prediction(slides, patches_of(slides, 1, 1))
    assert len(record["notes"]) == len(told_of)
    assert all(words in note for words, note in zip(told_of, record["notes"], strict=True))
    score = record["slide"]["scores"]["spearman"]
    assert len({bool(np.isfinite(one)) for one in score.values()}) == 1
    assert bool(np.isfinite(score["value"])) == (count > 10)
    # What the report calls too few patients is what the intervals themselves hold to be too few.
    low, _ = left_out_limits(index, index, slides["patient"].tolist())
    assert bool(np.isfinite(low).all()) == (count >= 20)


def test_slides_without_a_prediction_are_counted_apart() -> None:
    index = np.linspace(0.02, 0.6, 40)
    slides = table(index, np.where(np.arange(40) < 3, np.nan, index))
    record = evaluate_slides(slides)
    assert (record["slides"], record["without_prediction"]) == (37, 3)
    with pytest.raises(ConfigError, match="said nothing of any slide"):
        evaluate_prediction(slides.assign(predicted=np.nan), patches_of(slides, 0, 0))


def patches_of(slides: pd.DataFrame, between: float, within: float, seed: int = 0) -> pd.DataFrame:
    """Patches whose prediction follows the mean of their slide, and their place in it, this strongly."""
    random = np.random.default_rng(seed)
    rows = []
    for slide, index in zip(slides["slide"], slides["index"], strict=True):
        apart = random.normal(0, 0.1, 12)
        rows.append(
            {
                "slide": slide,
                "label": index + apart,
                "predicted": between * index + within * apart + random.normal(0, 0.02, 12),
            }
        )
    return pd.concat([pd.DataFrame(row) for row in rows]).assign(x_um=0.0, y_um=0.0, nuclei_he=1.0, counted=50)


@pytest.mark.parametrize(("between", "within"), [(1.0, 0.0), (0.0, 1.0)])
def test_what_is_between_slides_is_kept_apart_from_what_is_within(between: float, within: float) -> None:
    index = np.linspace(0.05, 0.6, 40)
    slides = table(index, index)
    record = evaluate_patches(patches_of(slides, between, within), slides)
    assert record is not None
    scores = {name: told(record, name) for name in record["scores"]}
    assert (scores["spearman_between_slides"] > 0.9) == bool(between)
    assert (scores["spearman_within_slides"] > 0.9) == bool(within)
    assert (scores["pearson_within_slides"] > 0.9) == bool(within)
    assert min(abs(scores["spearman_between_slides"]), abs(scores["spearman_within_slides"])) < 0.35


def test_a_method_of_slides_has_no_scores_of_patches() -> None:
    slides = table(np.linspace(0.05, 0.6, 40), np.linspace(0.05, 0.6, 40))
    assert evaluate_patches(patches_of(slides, 1, 1).assign(predicted=np.nan), slides) is None


def test_pictures_show_what_there_is() -> None:
    index = np.linspace(0.05, 0.6, 40)
    slides = table(index, index[::-1])
    patches = patches_of(slides, 1, 1)
    record = evaluate_prediction(slides, patches)
    assert {level for level, _, _ in score_lines(record)} == {"slide", "patch"}
    silent = record | {"patch": None}
    pictures = [
        slide_picture(slides, record, "forest"),
        patch_picture(patches, record, "forest"),
        patch_picture(patches.assign(predicted=np.nan), silent, "attention"),
        correlation_picture(record, "forest"),
        correlation_picture(silent, "attention"),
    ]
    assert all(picture.ndim == 3 and picture.min() < 60 for picture in pictures)
    assert pictures[3].shape[0] > pictures[4].shape[0]


def test_predictions_stand_beside_the_index_and_change_nothing_of_it() -> None:
    slides = pd.DataFrame(
        {"slide": ["A", "B", "C"], "index": [0.2, np.nan, np.nan], "category": ["10-20%", None, None]}
    )
    told = {"predicted_index": 0.3, "predicted_low": 0.1, "predicted_high": 0.5, "reason": ""}
    refused = dict.fromkeys(("predicted_index", "predicted_low", "predicted_high")) | {"reason": "C: too few"}
    joined = with_predictions(slides, [{"slide": "B", **told}, {"slide": "C", **refused}])
    pd.testing.assert_frame_equal(joined[list(slides.columns)], slides)
    assert joined["predicted_index"].tolist()[1] == 0.3
    assert joined["predicted_index"].isna().tolist() == [True, False, True]
    assert joined["predicted_reason"].tolist() == [None, None, "C: too few"]
