"""Pairs, models, their evaluation and predictions of slides with an H&E alone, by one command; and nothing of it unasked."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks.report_size import drawn_records
from ki67.prediction.drawn_cohort import draw_cohort
from ki67.prediction.patch_pairs import PatchPairs, write_patch_pairs
from ki67.storage import write_json
from tests.conftest import Workflow

HEADER = "slide | ki67 | he | patient"
ROWS = [f"S{number:02d} | a.svs | b.svs | P{number:02d}" for number in range(12)]
PAGE: dict[str, Any] = {"overview": None, "heatmaps": [], "registration": None, "fields": [], "absent": {}}


@pytest.fixture(autouse=True)
def sheet(workflow: Workflow) -> None:
    """Twelve slides with both stains and two with an H&E alone."""
    for name in ("a.svs", "b.svs"):
        (workflow.folder / name).touch()
    workflow.write_sheet(HEADER, *ROWS, "H1 | | b.svs | P90", "H2 | | b.svs | P91")


def asked(workflow: Workflow, **predict: Any) -> tuple[str, ...]:
    """Options of a run with settings of its own."""
    settings = {"slides": "slides.tsv", "predict": predict}
    (workflow.folder / "asked.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return ("--configfile", "asked.yaml")


@pytest.mark.usefixtures("shipped_networks")
def test_nothing_is_predicted_unless_it_is_asked_for(workflow: Workflow) -> None:
    jobs = workflow.planned(*asked(workflow))
    assert not [rule for rule in jobs if "pair" in rule or "predict" in rule]
    refused = workflow.run("--dry-run", *asked(workflow), "--", "predict_train")
    assert refused.returncode != 0
    assert "predict.method is null, so nothing is predicted from H&E; name a method such as forest" in refused.stdout


@pytest.mark.usefixtures("shipped_networks")
def test_a_method_predicts_the_slides_with_an_he_alone(workflow: Workflow) -> None:
    settings = asked(workflow, method="mean_pooling", folds=2)
    jobs = workflow.planned(*settings)
    wanted = {
        "pairs": 14,
        "predict_train_model": 1,
        "predict_evaluate_model": 1,
        "predict": 2,
        "cohort": 1,
        "report": 1,
    }
    assert {rule: jobs[rule] for rule in wanted} == wanted
    trained = workflow.planned(*settings, "--", "predict_train")
    assert (trained["pairs"], trained["predict_train_model"], trained["predict_train"]) == (12, 1, 1)
    assert "predict" not in trained
    other = workflow.planned(*settings, "--", "prediction/attention/evaluation.json")
    assert other["predict_train_model"] == 1


@pytest.mark.usefixtures("shipped_networks")
def test_a_model_of_another_run_is_used_as_it_is(workflow: Workflow) -> None:
    (workflow.folder / "mine").mkdir()
    (workflow.folder / "mine" / "model.json").write_text(json.dumps({"method": "forest"}))
    jobs = workflow.planned(*asked(workflow, method="forest", model="mine"))
    assert (jobs["predict"], jobs["predict_evaluate_model"], jobs["pairs"]) == (2, 1, 2)
    assert "predict_train_model" not in jobs
    for settings, said in (
        ({"method": "attention", "model": "mine"}, "but the model mine is of the method forest; set one to fit"),
        ({"method": "forest", "model": "not_there"}, "predict.model is not_there, but "),
    ):
        refused = workflow.run("--dry-run", *asked(workflow, **settings))
        assert refused.returncode != 0
        assert said in refused.stdout


@pytest.mark.usefixtures("shipped_networks")
def test_too_few_patients_are_refused_before_any_job(workflow: Workflow) -> None:
    workflow.write_sheet(HEADER, *ROWS[:9], "H1 | | b.svs | P90")
    refused = workflow.run("--dry-run", *asked(workflow, method="forest", folds=2))
    assert refused.returncode != 0
    assert (
        "learns from slides with both stains of at least 10 patients for 2 folds, and slides.tsv has 9"
        in refused.stdout
    )


def of_stages_before(workflow: Workflow, slide: str, pairs: PatchPairs) -> None:
    """What the stages before would have left of a slide: pairs, its record, and what the report shows of it."""
    folder = workflow.folder / "results" / slide
    write_patch_pairs(folder / "pairs.zarr", pairs)
    number = int(slide[1:])
    record = drawn_records(number + 1)[number] | {"slide": slide, "patient": pairs.patient}
    index = pairs.slide_index
    if index is None:
        record |= dict.fromkeys(("index", "index_low", "index_high", "category", "reference_index"))
        record |= {"positive": 0, "total": 0, "flags": ["no_ki67"]}
    else:
        record |= {"index": index, "index_low": 0.9 * index, "index_high": min(1.0, 1.1 * index)}
    write_json(folder / "ki67.json", record)
    write_json(folder / "page.json", PAGE)


def without_ki67(pairs: PatchPairs, slide: str, patches: int) -> PatchPairs:
    """The first patches of a slide, as of one that has an H&E alone."""
    columns = ("he", "center_um", "positive", "negative", "label", "nuclei_he")
    cut = {name: getattr(pairs, name)[:patches] for name in columns}
    unknown = {"positive": 0 * cut["positive"], "negative": 0 * cut["negative"], "label": np.nan * cut["label"]}
    return replace(pairs, **cut | unknown, slide=slide, patient=slide, slide_index=None)  # type: ignore[arg-type]


def test_from_pairs_to_predictions_in_the_tables_by_one_command(workflow: Workflow) -> None:
    # The stages before the pairs have tests of their own; what they would have left comes from a drawn cohort.
    cohort = [one.pairs for one in draw_cohort(14, 5, carries=True, patches=6, size_px=64)]
    for number, pairs in enumerate(cohort[:12]):
        of_stages_before(workflow, f"S{number:02d}", replace(pairs, slide=f"S{number:02d}", patient=f"P{number:02d}"))
    of_stages_before(workflow, "H1", without_ki67(cohort[12], "H1", 6))
    of_stages_before(workflow, "H2", without_ki67(cohort[13], "H2", 2))
    rules = ("predict_train_model", "predict_evaluate_model", "predict", "cohort", "report")
    run = (*asked(workflow, method="mean_pooling", folds=2), "--allowed-rules", *rules)
    result = workflow.run(*run, "--", "results/cohort/cohort.csv", "results/cohort/report.html")
    assert result.returncode == 0, result.stdout
    results = workflow.folder / "results"

    evaluation = json.loads((workflow.folder / "prediction/mean_pooling/evaluation.json").read_text(encoding="utf-8"))
    assert (evaluation["slide"]["slides"], evaluation["slide"]["patients"]) == (12, 12)
    assert set(evaluation["slide"]["scores"]["spearman"]) == {"value", "low", "high"}
    for name in ("slides", "patches", "correlations"):
        assert (workflow.folder / f"prediction/mean_pooling/evaluation_{name}.png").stat().st_size > 2000

    table = pd.read_csv(results / "cohort" / "cohort.csv").set_index("slide")
    assert table["predicted_index"].notna().to_dict() == {slide: slide == "H1" for slide in table.index}
    assert table["index"].isna().to_dict() == {slide: slide.startswith("H") for slide in table.index}
    one = table.loc["H1"]
    assert 0 <= one["predicted_low"] <= one["predicted_index"] <= one["predicted_high"] <= 1
    assert pd.isna(one["category"])
    assert table.loc["H2", "predicted_reason"].startswith("H2: 2 patches of tumour on the H&E are too few")
    assert "predicted_index" not in pd.read_csv(results / "cohort" / "patients.csv").columns
    assert '"predicted_index":' in (results / "cohort" / "report.html").read_text(encoding="utf-8")

    record = json.loads((results / "H1" / "prediction.json").read_text(encoding="utf-8"))
    assert set(record) == {
        *("slide", "predicted_index", "predicted_low", "predicted_high", "reason", "patches", "model"),
        *("seconds", "versions", "settings", "code"),
    }
    again = workflow.run("--dry-run", *run, "--", "results/cohort/cohort.csv", "results/cohort/report.html")
    assert "Nothing to be done" in again.stdout, again.stdout
