"""The workflow run for real on small drawn slides, good and bad, undisturbed and killed."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely

from ki67.provenance import import_closure
from tests.conftest import GOOD, HEADER, ROOT, Finished, Workflow, finish, job_counts, kill_all, run_in
from tests.workflow.conftest import BAD, WithConda

pytestmark = pytest.mark.usefixtures("shipped_networks")

STAGES = ("check", "tumor", "register", "transfer", "nuclei", "index")
ONCE = ("cohort", "report")


@pytest.fixture(scope="session")
def with_bad_rows(scored: Finished) -> Finished:
    """The same cohort after bad rows were added to its sheet."""
    scored.workflow.write_sheet(HEADER, *GOOD, *(row for row, _, _ in BAD.values()))
    return finish(scored.workflow)


def test_the_index_of_drawn_slides_is_right(scored: Finished, slides: Path) -> None:
    rows = scored.rows()
    assert list(rows.index) == ["G1", "G2"]
    for slide, folder in (("G1", "pair"), ("G2", "ihc")):
        truth = json.loads((slides / folder / "truth" / "truth.json").read_text())["index"]
        assert float(rows.loc[slide, "index"]) == pytest.approx(truth, abs=0.05), slide
    assert rows.loc["G1", "tumor_source"] == "he"
    assert rows.loc["G2", "tumor_source"] == "ki67"
    assert "tumor_from_ki67" in rows.loc["G2", "flags"].split(";")
    assert "no_he" in rows.loc["G2", "flags"].split(";")
    assert float(rows.loc["G1", "reference_index"]) == 0.25


def test_patients_pool_the_counts_of_their_slides(scored: Finished) -> None:
    slide_rows = scored.rows()
    patients = pd.read_csv(scored.workflow.folder / "results" / "cohort" / "patients.csv", index_col="patient")
    assert int(patients.loc["P1", "total"]) == slide_rows["total"].astype(int).sum()
    assert int(patients.loc["P1", "positive"]) == slide_rows["positive"].astype(int).sum()


def test_a_slide_leaves_few_files_and_all_that_are_promised(scored: Finished) -> None:
    for slide in ("G1", "G2"):
        folder = scored.workflow.folder / "results" / slide
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert len(files) <= 50
        assert not [path for path in files if ".partial" in path.name]
        names = (
            "check.json tissue_he.png tissue_ki67.png thumbnail_he.jpg thumbnail_ki67.jpg tumor_he.ome.zarr tumor_he.json "
            "tumor_he.geojson tumor_he.png transform.json transform.tfm transform_3d.tfm registration.png tumor_ki67.ome.zarr "
            "tumor_ki67.geojson tumor_ki67.png transfer.json "
            "nuclei.parquet nuclei.geojson.gz nuclei.json ki67.json ki67.zarr overlay.png fields.png "
            "local_index.png hot_spots.geojson page.json"
        )
        assert {path.name for path in folder.iterdir()} == set(names.split())


def test_the_report_shows_every_slide_and_names_no_file(scored: Finished, slides: Path) -> None:
    html = (scored.workflow.folder / "results" / "cohort" / "report.html").read_text(encoding="utf-8")
    for slide in ("G1", "G2"):
        page = json.loads((scored.workflow.folder / "results" / slide / "page.json").read_text())
        assert page["overview"]["tumor"]
        assert len(page["fields"]) == 3
        assert f'"slide":"{slide}"' in html
        assert page["overview"]["picture"]["src"] in html
    assert json.loads((scored.workflow.folder / "results" / "G1" / "page.json").read_text())["registration"]
    for name in (str(slides), str(scored.workflow.folder), "Präparat", "ihc/ki67"):
        assert name not in html


def test_detections_for_qupath_are_the_counted_nuclei(scored: Finished) -> None:
    folder = scored.workflow.folder / "results" / "G1"
    record = json.loads((folder / "ki67.json").read_text())
    features = json.loads(gzip.decompress((folder / "nuclei.geojson.gz").read_bytes()))["features"]
    names = [feature["properties"]["classification"]["name"] for feature in features]
    assert len(names) == record["total"]
    assert names.count("Positive") == record["positive"]
    assert {feature["properties"]["objectType"] for feature in features} == {"detection"}


@pytest.fixture(scope="session")
def with_probabilities(with_conda: WithConda) -> Path:
    """Results of a good slide, one without tissue and one without a file, with everything kept."""
    return with_conda.workflow.folder / "results"


@pytest.mark.parametrize("slide", ["G1", "B4", "B6"])
def test_every_image_of_a_slide_is_valid_ome_zarr(with_probabilities: Path, slide: str) -> None:
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader
    from ome_zarr_models import open_ome_zarr
    from ome_zarr_models.v05 import Image as OmeImage

    stores = sorted((with_probabilities / slide).glob("*.ome.zarr"))
    assert [path.name.split(".")[0] for path in stores] == ["nuclei_probabilities", "tumor_he", "tumor_ki67"]
    for path in stores:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert isinstance(open_ome_zarr(path, version="0.5"), OmeImage)
        (node,) = Reader(parse_url(path))()  # as napari reads it
        assert [level.dtype for level in node.data] == [np.uint8] * len(node.data)
        assert np.asarray(node.data[-1]).any() == (slide == "G1")


@pytest.mark.parametrize("slide", ["G1", "B4", "B6"])
def test_spatialdata_opens_every_slide_in_microns(with_probabilities: Path, slide: str) -> None:
    import spatialdata
    from spatialdata.transformations import get_transformation

    data = spatialdata.read_zarr(with_probabilities / slide / "ki67.zarr")
    record = json.loads((with_probabilities / slide / "ki67.json").read_text())
    assert data.coordinate_systems == ["ki67"]
    assert data.attrs["ki67"] == record
    index = data.tables["index"].to_df().loc[slide, "index"]
    assert index == pytest.approx(record["index"]) if record["index"] is not None else np.isnan(index)
    assert ("nuclei" in data.shapes) == (slide == "G1")
    if slide == "G1":
        nuclei = data.shapes["nuclei"]
        assert {"positive", "probability", "uncertainty", "area_um2", "in_tumor"} <= set(nuclei.columns)
        assert (nuclei["in_tumor"].sum(), (nuclei["in_tumor"] & nuclei["positive"]).sum()) == (
            record["total"],
            record["positive"],
        )
        # nuclei in the tumour lie on its label, through the coordinate transformation of each
        tumor = np.asarray(data.labels["tumor"])
        to_microns = get_transformation(data.labels["tumor"], "ki67").to_affine_matrix(("x", "y"), ("x", "y"))
        inside = nuclei[nuclei["in_tumor"]]
        columns, rows = (np.linalg.inv(to_microns)[:2, :2] @ inside[["x_um", "y_um"]].to_numpy().T).astype(int)
        assert (tumor[rows, columns] == 1).all()


def test_outlines_are_valid_closed_polygons_of_twelve_vertices_or_more(with_probabilities: Path) -> None:
    features = json.loads(gzip.decompress((with_probabilities / "G1" / "nuclei.geojson.gz").read_bytes()))["features"]
    assert features
    for feature in features:
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert len({tuple(point) for point in ring}) >= 12
        assert shapely.Polygon(ring).is_valid


def test_the_cohort_opens_as_anndata_with_what_made_it(with_probabilities: Path) -> None:
    import anndata

    table = anndata.read_zarr(with_probabilities / "cohort" / "cohort.zarr")
    rows = pd.read_csv(with_probabilities / "cohort" / "cohort.csv", index_col="slide")
    assert list(table.obs_names) == ["G1", "B6", "B4"] == list(rows.index)
    assert {*table.var_names, *table.obs.columns} == {*rows.columns, "sha256_he", "sha256_ki67"}
    assert np.allclose(table.to_df()["index"], rows["index"], rtol=1e-5, equal_nan=True)
    assert list(table.obs["flags"]) == list(rows["flags"].fillna(""))
    provenance = json.loads(table.uns["provenance"])
    assert list(table.obs["sha256_ki67"].str.len()) == [64, 64, 0]
    assert list(table.obs["sha256_he"].str.len()) == [64, 0, 0]
    assert set(provenance["slides"]["settings"]) == {*STAGES}
    assert provenance["slides"]["models"]["nuclei"][0]["sha256"]


def test_every_stage_left_a_log_line_and_a_benchmark(scored: Finished) -> None:
    for stage in STAGES:
        log = (scored.workflow.folder / "logs" / stage / "G1.log").read_text(encoding="utf-8")
        assert f"G1 {stage}: " in log
        assert (scored.workflow.folder / "logs" / stage / "G1.tsv").is_file()


def test_a_finished_run_has_nothing_to_do(scored: Finished) -> None:
    sheet = scored.workflow.write_sheet(HEADER, *GOOD, name="same.tsv")
    assert scored.workflow.planned("--config", f"slides={sheet.name}") == {}


def test_a_new_row_runs_only_its_slide(scored: Finished) -> None:
    sheet = scored.workflow.write_sheet(HEADER, *GOOD, "G3 | ihc/ki67.tif | | | |", name="more.tsv")
    expected = dict.fromkeys((*STAGES, "page", *ONCE), 1)
    assert scored.workflow.planned("--config", f"slides={sheet.name}") == expected


def test_a_changed_reference_runs_only_the_index(scored: Finished) -> None:
    sheet = scored.workflow.write_sheet(HEADER, GOOD[0].replace("0.25", "0.35"), GOOD[1], name="other.tsv")
    assert scored.workflow.planned("--config", f"slides={sheet.name}") == dict.fromkeys(("index", "page", *ONCE), 1)


def test_a_slide_can_be_forced(scored: Finished) -> None:
    sheet = scored.workflow.write_sheet(HEADER, *GOOD, name="same.tsv")
    run = ("--config", f"slides={sheet.name}")
    assert scored.workflow.planned(*run, "--force", "--", "results/G1/ki67.json") == {"index": 1}
    assert scored.workflow.planned(*run, "--forcerun", "check", "--", "slide_G1") == dict.fromkeys(STAGES, 1)


@pytest.mark.parametrize(
    ("module", "rules"),
    [
        ("registration", ("register", "transfer", "nuclei", "index", "page", *ONCE)),
        ("nuclei", ("nuclei", "index", "page", *ONCE)),
        ("index", ("index", "page", *ONCE)),
        ("report_pictures", ("page", "report")),
        ("report", ("report",)),
        ("training/fit", ()),
    ],
)
def test_a_change_in_a_module_runs_the_rules_that_use_it_and_what_follows(
    scored: Finished, module: str, rules: tuple[str, ...]
) -> None:
    sheet = scored.workflow.write_sheet(HEADER, *GOOD, name="same.tsv")
    path = scored.workflow.clone / "ki67" / f"{module}.py"
    before = path.read_text(encoding="utf-8")
    try:
        path.write_text(before + "\nCHANGED = True\n", encoding="utf-8")
        planned = scored.workflow.planned("--config", f"slides={sheet.name}")
    finally:
        path.write_text(before, encoding="utf-8")
    assert planned == {rule: 1 if rule in ONCE else len(GOOD) for rule in rules}


LEARNING = ("train", "train_forest", "draw_fields")
STARDIST = ("stardist", "train_stardist", "evaluate_stardist")
TUMOR_EVALUATION = ("evaluate_tumor", "evaluate")
NUCLEI_EVALUATION = ("evaluate_nuclei", "evaluate_stardist")
PREDICTION = ("predict_train", "predict_evaluate", "predict")


@pytest.mark.parametrize(
    ("module", "scripts"),
    [
        ("tissue", {"check", *TUMOR_EVALUATION}),
        ("registration", {"register"}),
        ("tumor", {"tumor", "transfer", *TUMOR_EVALUATION}),
        ("tumor_mask", {"tumor", "transfer"}),
        ("tumor_methods", {"tumor", "transfer"}),
        ("networks", {"tumor", "transfer", "nuclei", *LEARNING, *PREDICTION, "evaluate_nuclei", "evaluate_tumor"}),
        ("nuclei", {"nuclei", "train", "draw_fields", *STARDIST, *PREDICTION, "evaluate_nuclei"}),
        ("index", {"index", *ONCE, "predict_evaluate"}),
        ("prediction/training", {"predict_train"}),
        ("categories", {"index", *ONCE, *NUCLEI_EVALUATION, "evaluate", "predict_evaluate"}),
        ("cohort", {"cohort"}),
        ("agreement", {"cohort", "predict_evaluate"}),
        (
            "figures",
            {"tumor", "transfer", "register", "index", "page", *ONCE, *TUMOR_EVALUATION, "pairs", "predict_evaluate"},
        ),
        ("phantom/draw", {"draw_fields", "train_stardist"}),
        ("sheet", set()),
    ],
)
def test_a_script_uses_the_modules_of_its_stage_alone(module: str, scripts: set[str]) -> None:
    path = ROOT / "ki67" / f"{module}.py"
    assert path.is_file()
    using = {
        script.stem for script in (ROOT / "workflow" / "scripts").glob("*.py") if path in import_closure(script, ROOT)
    }
    assert using == scripts


def test_a_report_holds_the_tables_and_pictures_but_no_path(scored: Finished, slides: Path) -> None:
    sheet = scored.workflow.write_sheet(HEADER, *GOOD, name="same.tsv")
    result = scored.workflow.run("--config", f"slides={sheet.name}", "--report", "report.html")
    assert result.returncode == 0, result.stdout
    html = (scored.workflow.folder / "report.html").read_text(encoding="utf-8")
    cohort = ("overview.png", "cohort.csv", "agreement.csv", "agreement.png", "report.html")
    for name in ("overlay.png", "fields.png", "registration.png", *cohort):
        assert name in html
    assert str(slides) not in html
    assert "Präparat" not in html


def test_bad_rows_are_flagged_and_the_cohort_finishes(with_bad_rows: Finished) -> None:
    assert job_counts(with_bad_rows.said) == dict.fromkeys((*STAGES, "page"), len(BAD)) | dict.fromkeys(ONCE, 1)
    assert list(with_bad_rows.rows().index) == ["G1", "G2", *(row.split(" ")[0] for row, _, _ in BAD.values())]


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_says_why_it_has_no_index(with_bad_rows: Finished, case: str) -> None:
    row, flag, message = BAD[case]
    found = with_bad_rows.rows().loc[row.split(" ")[0]]
    assert found["index"] == ""
    assert flag in found["flags"].split(";")
    assert message in found["reasons"]


def test_good_rows_are_the_same_beside_bad_ones(scored: Finished, with_bad_rows: Finished) -> None:
    assert with_bad_rows.table.splitlines()[: len(GOOD) + 1] == scored.table.splitlines()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_table(scored: Finished, slides: Path, tmp_path: Path) -> None:
    """Both parts keep nothing but tables, so that what one stage leaves for the next survives the kill as well."""
    workflow = run_in(scored.workflow.clone, slides, tmp_path / "killed", GOOD)
    settings = ("--config", "slides=slides.tsv", "keep=tables")
    run, slide = kill_in_the_nuclei_stage(workflow, settings)
    assert run.returncode == -signal.SIGKILL
    assert not (workflow.folder / "results" / slide / "nuclei.json").exists()
    done = {path: path.stat().st_mtime_ns for path in workflow.folder.glob("results/*/t*.json")}
    assert done
    assert "--unlock" in workflow.run(*settings).stdout
    assert workflow.run("--unlock", *settings).returncode == 0
    finished = workflow.run(*settings)
    assert finished.returncode == 0, finished.stdout
    assert (workflow.folder / "results" / "cohort" / "cohort.csv").read_bytes() == scored.table
    assert {path: path.stat().st_mtime_ns for path in done} == done
    repeated = job_counts(finished.stdout)
    assert "check" not in repeated
    assert 1 <= repeated["nuclei"] <= len(GOOD)
    assert not list(workflow.folder.glob("results/*/*.ome.zarr"))


def kill_in_the_nuclei_stage(workflow: Workflow, settings: tuple[str, ...]) -> tuple[subprocess.Popen[bytes], str]:
    """Start a run, kill all of it, and name the slide whose nuclei were being looked for."""
    with workflow.started(*settings) as run:
        slide = wait_for_nuclei(workflow.folder, run)
        kill_all(workflow.folder)
        run.wait(timeout=60)
    return run, slide


def wait_for_nuclei(folder: Path, run: subprocess.Popen[bytes]) -> str:
    """Wait until the nuclei stage of a slide is under way, and name the slide."""
    for _ in range(3000):
        started = list(folder.glob("logs/nuclei/*.log"))
        if started:
            time.sleep(0.3)
            return started[0].stem
        assert run.poll() is None, "the run ended before its nuclei stage"
        time.sleep(0.1)
    raise AssertionError("the nuclei stage did not start")
