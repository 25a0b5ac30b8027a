"""StarDist in a real run: as a second opinion, and for the index itself."""

from __future__ import annotations

import gzip
import json
import shutil
from typing import Any

import geopandas
import pandas as pd
import pytest
import yaml

from ki67.nucleus_table import COLUMNS
from tests.conftest import GOOD, HEADER, Finished, Workflow, job_counts

pytestmark = pytest.mark.usefixtures("shipped_networks")


@pytest.fixture(scope="module")
def copied(scored: Finished) -> Workflow:
    """A run that is finished without StarDist, to go on with; the networks are as far away as before, and so the same."""
    folder = scored.workflow.folder.with_name("with StarDist")
    shutil.copytree(scored.workflow.folder, folder, symlinks=True)
    Workflow(scored.workflow.clone, folder).write_sheet(HEADER, *GOOD)
    return Workflow(scored.workflow.clone, folder)


def run(workflow: Workflow, settings: dict[str, Any], *targets: str) -> dict[str, int]:
    """Jobs by rule of a run that reaches its targets."""
    settings = {"slides": "slides.tsv"} | settings
    path = workflow.folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    found = workflow.run("--configfile", path, "--", *targets)
    assert found.returncode == 0, found.stdout
    return job_counts(found.stdout)


def record_of(workflow: Workflow, name: str, slide: str = "G1") -> dict[str, Any]:
    return json.loads((workflow.folder / "results" / slide / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def asked(copied: Workflow) -> Workflow:
    """The same run with a second opinion on one slide, and with what ``ki67.json`` was before."""
    shutil.copy2(copied.folder / "results" / "G1" / "ki67.json", copied.folder / "before.json")
    jobs = run(copied, {"nuclei": {"second_opinion": "stardist"}}, "results/G1/ki67.json")
    assert jobs == {"second_opinion": 1, "index": 1}
    return copied


def test_a_second_opinion_is_counted_beside_the_index(asked: Workflow) -> None:
    folder, record = asked.folder / "results" / "G1", record_of(asked, "second_opinion.json")
    nuclei = geopandas.read_parquet(folder / "second_opinion.parquet")
    assert list(nuclei.columns) == [*COLUMNS, "geometry"]
    counted = nuclei[nuclei["in_tumor"]]
    assert (record["total"], record["positive"]) == (len(counted), counted["positive"].sum())
    assert record["total"] > 100
    assert record["index"] == pytest.approx(record["positive"] / record["total"])
    brown = counted["area_um2"][counted["positive"]].astype(float).sum()
    assert record["index_area"] == pytest.approx(brown / counted["area_um2"].astype(float).sum())
    assert record["nuclei"] == len(nuclei)
    assert (record["model"]["method"], record["model"]["name"]) == ("stardist", "stardist")
    assert record["settings"]["second_opinion"] == "stardist"
    assert {"tensorflow", "stardist"} <= set(record["versions"])
    assert "torch" not in record["versions"]
    features = json.loads(gzip.decompress((folder / "second_opinion.geojson.gz").read_bytes()))["features"]
    assert len(features) == record["total"]


def test_a_second_opinion_changes_no_number_of_the_index(asked: Workflow) -> None:
    before, after = json.loads((asked.folder / "before.json").read_text()), record_of(asked, "ki67.json")
    told = record_of(asked, "second_opinion.json")
    assert after["second_opinion"] == {"method": "stardist"} | {
        name: told[name] for name in ("index", "index_area", "positive", "total")
    }
    assert before["second_opinion"] is None
    different = {name for name in before if before[name] != after[name]}
    assert different <= {
        "second_opinion", "models", "settings", "code", "versions", "seconds", "flags", "findings"
    }  # fmt: skip
    assert after["models"]["second_opinion"]["sha256"] == told["model"]["sha256"]


def test_another_limit_runs_the_index_alone_and_decides_on_the_flag(asked: Workflow) -> None:
    for limit, flagged in ((1e-6, True), (1.0, False)):
        settings = {"nuclei": {"second_opinion": "stardist"}, "index": {"second_opinion_differs": limit}}
        assert run(asked, settings, "results/G1/ki67.json") == {"index": 1}
        record = record_of(asked, "ki67.json")
        assert ("second_opinion_differs" in record["flags"]) == flagged
    sentences = [item["message"] for item in record["findings"]]
    assert not any("second opinion" in sentence for sentence in sentences)


def test_the_tables_tell_the_second_opinion_and_the_report_is_made(asked: Workflow) -> None:
    settings = {"nuclei": {"second_opinion": "stardist"}, "index": {"second_opinion_differs": 1e-6}}
    jobs = run(asked, settings, "results/cohort/cohort.csv", "results/cohort/report.html")
    assert jobs["second_opinion"] == 1, "of the other slide"
    table = pd.read_csv(asked.folder / "results" / "cohort" / "cohort.csv", index_col="slide")
    for slide in ("G1", "G2"):
        record = record_of(asked, "second_opinion.json", slide)
        assert table.loc[slide, "index_second_opinion"] == pytest.approx(record["index"], abs=1e-6)
        assert table.loc[slide, "index_area_second_opinion"] == pytest.approx(record["index_area"], abs=1e-6)
        assert "second_opinion_differs" in table.loc[slide, "flags"].split(";")
        assert f"{slide}: the second opinion (stardist) " in table.loc[slide, "reasons"]


def test_stardist_finds_the_nuclei_of_the_index(asked: Workflow) -> None:
    assert run(asked, {"nuclei": {"method": "stardist"}}, "results/G1/ki67.json") == {"nuclei": 1, "index": 1}
    record, told = record_of(asked, "ki67.json"), record_of(asked, "nuclei.json")
    assert told["model"]["method"] == "stardist"
    assert (record["total"], record["positive"]) == (told["total"], told["positive"])
    assert record["index"] == pytest.approx(told["index"])
    assert record["index_area"] == pytest.approx(told["index_area"])
    assert record["second_opinion"] is None
    nuclei = geopandas.read_parquet(asked.folder / "results" / "G1" / "nuclei.parquet")
    other = geopandas.read_parquet(asked.folder / "results" / "G1" / "second_opinion.parquet")
    assert nuclei.equals(other), "the same nuclei, by either rule"
