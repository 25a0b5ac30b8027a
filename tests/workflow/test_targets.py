"""What would run: all slides, one slide, training; from elsewhere and as a part of another workflow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Workflow, clean_environment, job_counts
from tests.planner import run_forked

STAGES = ("check", "tumor", "register", "transfer", "nuclei", "index")
WHOLE = dict.fromkeys((*STAGES, "page"), 2) | {"cohort": 1, "report": 1}
HEADER = "slide | ki67 | he"


@pytest.fixture
def sheet(workflow: Workflow) -> Path:
    (workflow.folder / "a.svs").touch()
    return workflow.write_sheet(HEADER, "S01 | a.svs | b.svs", "S-2.b | | b.svs")


@pytest.mark.usefixtures("shipped_networks")
def test_all_slides_and_one_by_name(workflow: Workflow, sheet: Path) -> None:
    one = dict.fromkeys(STAGES, 1)
    assert workflow.planned("--config", f"slides={sheet.name}") == WHOLE
    assert workflow.planned("--config", f"slides={sheet.name}", "--", "results/S01/ki67.json") == one
    assert workflow.planned("--config", f"slides={sheet.name}", "--", "slide_S01") == one
    assert workflow.planned("--config", f"slides={sheet.name}", "--", "slide_S-2.b") == one


@pytest.mark.usefixtures("shipped_networks")
def test_very_many_slides_are_planned_in_parts(workflow: Workflow, sheet: Path) -> None:
    part = dict.fromkeys((*STAGES, "page"), 1)
    run = ("--config", f"slides={sheet.name}", "--batch")
    assert workflow.planned(*run, "slides=1/2", "--", "slides") == part
    assert workflow.planned(*run[:2], "--", "slides") == dict.fromkeys((*STAGES, "page"), 2)


@pytest.mark.usefixtures("shipped_networks")
def test_probabilities_of_nuclei_are_made_where_they_are_kept(workflow: Workflow, sheet: Path) -> None:
    wanted = ("--", "results/S01/nuclei_probabilities.ome.zarr")
    kept = workflow.planned("--config", f"slides={sheet.name}", "keep=probabilities", *wanted)
    assert kept == dict.fromkeys(STAGES[:-1], 1)
    refused = workflow.run("--dry-run", "--config", f"slides={sheet.name}", *wanted)
    assert refused.returncode != 0


@pytest.mark.usefixtures("shipped_networks")
def test_more_slides_than_one_file_holds_get_a_folder_of_pages(workflow: Workflow) -> None:
    (workflow.folder / "a.svs").touch()
    for count in (300, 301):
        workflow.write_sheet(HEADER, *(f"S{number} | a.svs |" for number in range(count)), name=f"{count}.tsv")
    folder = ("--", "results/cohort/report_pages")
    assert workflow.run("--dry-run", "--quiet", "--config", "slides=301.tsv", *folder).returncode == 0
    assert workflow.run("--dry-run", "--quiet", "--config", "slides=300.tsv", *folder).returncode != 0


def test_a_slide_that_is_not_in_the_sheet_is_named(workflow: Workflow, sheet: Path) -> None:
    result = workflow.run("--dry-run", "--config", f"slides={sheet.name}", "--", "results/S09/check.json")
    assert result.returncode != 0
    assert "there is no slide S09 in slides.tsv" in result.stdout


def test_the_shipped_sheet_asks_for_slides(workflow: Workflow) -> None:
    result = workflow.run("--dry-run")
    assert result.returncode != 0
    assert "config/slides.tsv lists no slide yet; add a row for each (see config/README.md)" in result.stdout


@pytest.mark.parametrize(
    ("target", "networks"),
    [
        ("train_nuclei", 1),
        ("train_nuclei_resnet50", 1),
        ("train_tumor_he", 1),
        ("train_tumor_he_coarse", 1),
        ("train_tumor", 3),
    ],
)
def test_networks_are_trained_by_name(workflow: Workflow, target: str, networks: int) -> None:
    jobs = workflow.planned(target)
    assert (jobs["draw_fields"], jobs["train"]) == (networks, networks)


@pytest.mark.parametrize("network", ["tumor_he_patches", pytest.param("tumor_ki67_patches", marks=pytest.mark.slow)])
def test_a_classifier_of_patches_is_trained_by_name(workflow: Workflow, network: str) -> None:
    assert workflow.planned(f"train_{network}") == {"draw_fields": 1, "train_patches": 1, f"train_{network}": 1}


@pytest.mark.usefixtures("shipped_networks")
def test_patch_pairs_of_all_slides_are_made_by_name(workflow: Workflow, sheet: Path) -> None:
    pairs = dict.fromkeys((*STAGES, "pairs"), 2)
    assert workflow.planned("--config", f"slides={sheet.name}", "--", "predict_pairs") == pairs | {"predict_pairs": 1}
    one = workflow.planned("--config", f"slides={sheet.name}", "--", "results/S01/pairs.json")
    assert one == dict.fromkeys((*STAGES, "pairs"), 1)


def test_patch_pairs_of_no_slide_ask_for_slides(workflow: Workflow) -> None:
    result = workflow.run("--dry-run", "--", "predict_pairs")
    assert result.returncode != 0
    assert "lists no slide yet; add a row for each (see config/README.md)" in result.stdout


def test_a_forest_is_trained_by_name(workflow: Workflow) -> None:
    assert workflow.planned("train_nuclei_forest") == {"draw_fields": 1, "train_forest": 1, "train_nuclei_forest": 1}


@pytest.mark.usefixtures("shipped_networks")
@pytest.mark.parametrize("method", ["color_threshold", "random_forest"])
def test_nuclei_are_found_with_the_model_of_the_method(workflow: Workflow, sheet: Path, method: str) -> None:
    others = 'models={"nuclei": "not_there", "nuclei_resnet50": "not_there"}'
    jobs = workflow.planned("--config", f"slides={sheet.name}", f'nuclei={{"method": "{method}"}}', others)
    assert jobs == WHOLE
    missing = workflow.run(
        "--dry-run", "--config", f"slides={sheet.name}", 'nuclei={"method": "unet_resnet50"}', others
    )
    assert "models.nuclei_resnet50 is not_there, but " in missing.stdout
    assert "train one with: snakemake train_nuclei_resnet50" in missing.stdout


def write_stardist(folder: Path, **described: object) -> Path:
    """A folder as StarDist itself writes it, whose weights nobody loads."""
    folder.mkdir(parents=True)
    config = {"n_dim": 2, "n_channel_in": 1, "n_rays": 32, "grid": [2, 2], "backbone": "unet", "unet_n_depth": 2}
    shape = {"unet_n_conv_per_depth": 2, "unet_kernel_size": [3, 3], "unet_pool": [2, 2]}
    (folder / "config.json").write_text(json.dumps(config | shape))
    (folder / "thresholds.json").write_text('{"prob": 0.5, "nms": 0.4}')
    (folder / "weights_best.h5").write_bytes(b"weights")
    if described:
        (folder / "model.json").write_text(json.dumps(described))
    return folder


@pytest.mark.usefixtures("shipped_networks")
def test_stardist_counts_instead_of_the_network_or_beside_it(workflow: Workflow, sheet: Path) -> None:
    write_stardist(workflow.folder / "mine" / "stardist")
    known = ("--config", f"slides={sheet.name}", 'models={"stardist": "mine/stardist"}')
    assert workflow.planned(*known) == WHOLE
    beside = workflow.run("--dry-run", *known, 'nuclei={"second_opinion": "stardist"}').stdout
    assert job_counts(beside) == WHOLE | {"second_opinion": 2}
    assert "results/S01/second_opinion.parquet, results/S01/second_opinion.geojson.gz" in beside
    unused = {"nuclei": "not_there", "stardist": "mine/stardist"}
    instead = workflow.run("--dry-run", *known[:2], f"models={unused}", 'nuclei={"method": "stardist"}').stdout
    assert job_counts(instead) == WHOLE
    assert "mine/stardist/config.json" in instead
    one = workflow.planned(*known, 'nuclei={"second_opinion": "stardist"}', "--", "results/S01/second_opinion.json")
    assert one == dict.fromkeys((*STAGES[:-2], "second_opinion"), 1)
    missing = workflow.run("--dry-run", *known[:2], 'nuclei={"method": "stardist"}', 'models={"stardist": "absent"}')
    assert "models.stardist is absent, but " in missing.stdout
    assert "train one with: snakemake train_stardist" in missing.stdout


@pytest.mark.usefixtures("shipped_networks")
def test_a_stardist_model_that_was_changed_stops_a_run_before_any_job(workflow: Workflow, sheet: Path) -> None:
    write_stardist(workflow.folder / "mine" / "stardist", mpp=0.5, sha256="0" * 64)
    settings = ('models={"stardist": "mine/stardist"}', 'nuclei={"second_opinion": "stardist"}')
    found = workflow.run("--config", f"slides={sheet.name}", *settings)
    assert found.returncode != 0
    assert "StarDist model stardist: weights_best.h5 has sha256" in found.stdout
    assert "Traceback" not in found.stdout
    assert not (workflow.folder / "results" / "S01").exists()


def test_stardist_is_trained_by_name(workflow: Workflow) -> None:
    assert workflow.planned("train_stardist") == {"draw_fields": 1, "train_stardist": 1}
    write_annotated(workflow.folder / "mine")
    (workflow.folder / "my.yaml").write_text("train: {stardist: {datasets: [mine], drawn: {count: 0}}}")
    assert workflow.planned("--configfile", "my.yaml", "--", "train_stardist") == {"train_stardist": 1}


def test_stardist_is_evaluated_in_an_environment_of_its_own(workflow: Workflow) -> None:
    write_annotated(workflow.folder / "fields")
    write_stardist(workflow.folder / "mine" / "stardist")
    methods = "evaluate={'nuclei': {'datasets': ['fields'], 'methods': ['color_threshold', 'stardist']}}"
    planned = workflow.planned("--config", methods, 'models={"stardist": "mine/stardist"}', "--", "evaluate")
    assert planned == {"evaluate": 1, "accuracy_table": 1, "evaluate_nuclei": 1, "evaluate_stardist": 1}


@pytest.mark.usefixtures("shipped_networks")
def test_tumour_is_found_with_the_models_of_the_method(workflow: Workflow, sheet: Path) -> None:
    settings = ("--config", f"slides={sheet.name}", 'tumor={"method": "patches_googlenet"}')
    missing = workflow.run("--dry-run", *settings, 'models={"tumor_he_patches": "not_there"}')
    assert "models.tumor_he_patches is not_there, but " in missing.stdout
    assert "train one with: snakemake train_tumor_he_patches" in missing.stdout
    for network in ("tumor_he_patches", "tumor_ki67_patches"):
        (workflow.folder / "mine" / network).mkdir(parents=True)
        for name in ("model.json", "weights.safetensors"):
            (workflow.folder / "mine" / network / name).touch()
    models = {"tumor_he_patches": "mine/tumor_he_patches", "tumor_ki67_patches": "mine/tumor_ki67_patches"}
    others = dict.fromkeys(("tumor_he", "tumor_he_coarse", "tumor_ki67"), "not_there")
    jobs = workflow.planned(*settings, f"models={models | others}")
    assert jobs == WHOLE


@pytest.mark.usefixtures("shipped_networks")
def test_a_network_that_is_not_there_is_named_with_the_way_to_get_it(workflow: Workflow, sheet: Path) -> None:
    result = workflow.run("--dry-run", "--config", f"slides={sheet.name}", 'models={"nuclei": "training/nuclei"}')
    assert result.returncode != 0
    assert "models.nuclei is training/nuclei, but " in result.stdout
    assert "name a folder of resources/models or train one with: snakemake train_nuclei" in result.stdout


@pytest.mark.usefixtures("shipped_networks")
def test_another_workflow_can_use_this_one_as_a_module(workflow: Workflow, sheet: Path) -> None:
    snakefile = workflow.folder / "Snakefile"
    snakefile.write_text(
        f"module scores:\n    snakefile: '{workflow.clone / 'Snakefile'}'\n    config: {{'slides': '{sheet.name}'}}\n\n"
        "use rule * from scores as scores_*\n\n"
        "rule wanted:\n    default_target: True\n    input: 'results/cohort/cohort.csv'\n"
    )
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--dry-run"]
    jobs = job_counts(planned_by(command, workflow.folder))
    assert {rule: count for rule, count in jobs.items() if rule != "wanted"} == {
        **{f"scores_{stage}": 2 for stage in STAGES},
        "scores_cohort": 1,
    }
    check = [*command[:-1], "results/S01/check.json"]
    run = subprocess.run(
        check, cwd=workflow.folder, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert (workflow.folder / "results" / "S01" / "check.json").is_file()


@pytest.mark.usefixtures("shipped_networks")
def test_the_snakefile_at_the_standard_place_plans_all_slides_with_the_same_profile(
    workflow: Workflow, sheet: Path
) -> None:
    command = workflow.command("--dry-run", "--config", f"slides={sheet.name}")
    command[command.index("--snakefile") + 1] = str(workflow.clone / "workflow" / "Snakefile")
    said = planned_by(command, workflow.folder)
    assert job_counts(said) == WHOLE | {"all_slides": 1}
    assert f"{workflow.clone}/workflow/profiles/default" in said


@pytest.mark.usefixtures("shipped_networks")
@pytest.mark.parametrize("name", [pytest.param("Snakefile", marks=pytest.mark.slow), "workflow/Snakefile"])
def test_rules_of_the_module_may_keep_their_names(workflow: Workflow, sheet: Path, name: str) -> None:
    (workflow.folder / "Snakefile").write_text(
        f"module ki67:\n    snakefile: '{workflow.clone / name}'\n    config: {{'slides': '{sheet.name}'}}\n\n"
        "use rule * from ki67\n\n"
        "rule wanted:\n    default_target: True\n    input: 'results/cohort/cohort.csv'\n"
    )
    said = planned_by([sys.executable, "-m", "snakemake", "--cores", "2", "--dry-run"], workflow.folder)
    assert job_counts(said) == dict.fromkeys(STAGES, 2) | {"cohort": 1, "wanted": 1}


@pytest.mark.usefixtures("shipped_networks")
def test_the_module_of_the_quick_start_plans_all_slides(workflow: Workflow, sheet: Path) -> None:
    text = (ROOT / "docs" / "quick_start.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (workflow.folder / "Snakefile").write_text(example)
    (workflow.folder / "ki67").symlink_to(workflow.clone)
    said = planned_by([sys.executable, "-m", "snakemake", "--cores", "2", "--dry-run"], workflow.folder)
    assert job_counts(said) == {f"ki67_{rule}": count for rule, count in WHOLE.items()}


def planned_by(command: list[str], folder: Path) -> str:
    """What a run says that must not fail."""
    found = run_forked(command, folder, clean_environment())
    assert found.returncode == 0, found.stdout
    return found.stdout


def write_annotated(folder: Path) -> None:
    """A dataset of one drawn field whose nuclei are known."""
    from ki67.training.drawn import FieldOptions, draw_fields

    draw_fields(FieldOptions("nuclei", 2, size_px=192, seed=3), folder, workers=1)


def test_evaluation_writes_a_table_and_pictures(workflow: Workflow) -> None:
    write_annotated(workflow.folder / "fields")
    settings = "evaluate={'nuclei': {'datasets': ['fields'], 'methods': ['color_threshold']}}"
    result = workflow.run("--config", settings, "--", "evaluate")
    assert result.returncode == 0, result.stdout
    folder = workflow.folder / "evaluation" / "nuclei"
    assert "| fields | color_threshold | 2 |" in (folder / "accuracy.md").read_text(encoding="utf-8")
    assert {path.name for path in (folder / "color_threshold").iterdir()} == {
        "fields.json",
        *(f"fields_{name}.png" for name in ("best", "median", "worst")),
    }


def test_evaluation_without_a_dataset_says_what_to_name(workflow: Workflow) -> None:
    result = workflow.run("--dry-run", "--", "evaluate")
    assert result.returncode != 0
    assert "evaluate.nuclei.datasets names no dataset yet; add a folder with a dataset.yaml" in result.stdout


def write_tumor(folder: Path, stain: str) -> None:
    """A dataset of one image whose tumour is its dark half."""
    import cv2
    import numpy as np

    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    (folder / "dataset.yaml").write_text(f"{{kind: tumor, mpp: 1.0, stain: {stain}}}", encoding="utf-8")
    mask = np.zeros((256, 256), dtype=np.uint8)
    mask[:, :128] = 255
    cv2.imwrite(str(folder / "masks" / "a.png"), mask)
    cv2.imwrite(str(folder / "images" / "a.png"), 255 - mask // 2)


@pytest.mark.usefixtures("shipped_networks")
def test_evaluation_of_tumour_writes_a_table_and_pictures(workflow: Workflow) -> None:
    write_tumor(workflow.folder / "regions", "he")
    settings = "evaluate={'tumor': {'datasets': ['regions'], 'models': ['tumor_he_coarse']}}"
    result = workflow.run("--config", settings, "--", "evaluate")
    assert result.returncode == 0, result.stdout
    folder = workflow.folder / "evaluation" / "tumor"
    assert "| regions | tumor_he_coarse | no | 1 |" in (folder / "accuracy.md").read_text(encoding="utf-8")
    assert {path.name for path in (folder / "tumor_he_coarse").iterdir()} == {
        "regions.json",
        *(f"regions_{name}.png" for name in ("roc", "best", "median", "worst")),
    }


@pytest.mark.usefixtures("shipped_networks")
def test_networks_look_at_the_datasets_of_their_stain(workflow: Workflow) -> None:
    write_tumor(workflow.folder / "a", "he")
    write_tumor(workflow.folder / "b", "ki67")
    write_annotated(workflow.folder / "fields")
    settings = "evaluate={'tumor': {'datasets': ['a', 'b']}, 'nuclei': {'datasets': ['fields']}}"
    planned = workflow.planned("--config", settings, "--", "evaluate")
    assert planned == {"evaluate": 1, "accuracy_table": 2, "evaluate_nuclei": 1, "evaluate_tumor": 3}
    settings = "evaluate={'tumor': {'datasets': ['a'], 'models': ['tumor_he', 'tumor_ki67']}}"
    planned = workflow.planned("--config", settings, "--", "evaluation/tumor/accuracy.md")
    assert planned == {"accuracy_table": 1, "evaluate_tumor": 1}


@pytest.mark.usefixtures("shipped_networks")
def test_evaluation_of_tumour_without_a_stain_says_what_to_write(workflow: Workflow) -> None:
    write_tumor(workflow.folder / "regions", "''")
    settings = "evaluate={'tumor': {'datasets': ['regions']}}"
    result = workflow.run("--dry-run", "--config", settings, "--", "evaluate")
    assert result.returncode != 0
    assert (
        "names regions, which holds no dataset.yaml with a stain; write stain: he or stain: ki67 into it"
        in result.stdout
    )
