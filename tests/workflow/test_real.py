"""The same workflow on real files: an SVS, three Ki-67 fields, and two files that cannot be scored."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import ROOT, Workflow

DATA = ROOT / ".." / "shared" / "data"
REAL = ROOT / "tests" / "workflow" / "real"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, shipped_networks: None) -> tuple[Path, pd.DataFrame]:
    """Folder and table of one run on all real files."""
    if not (DATA / "slides").is_dir():
        pytest.skip("the real files of ../shared/data are not here")
    workflow = Workflow(ROOT, tmp_path_factory.mktemp("real"))
    result = workflow.run("--configfile", REAL / "config.yaml", timeout_s=1500)
    assert result.returncode == 0, result.stdout
    table = pd.read_csv(workflow.folder / "results" / "cohort" / "cohort.csv", index_col="slide", keep_default_na=False)
    return workflow.folder, table


def test_every_real_file_is_a_row(real: tuple[Path, pd.DataFrame]) -> None:
    _, table = real
    sheet = pd.read_csv(REAL / "slides.tsv", sep="\t", comment="#")
    assert list(table.index) == list(sheet["slide"])
    assert len(table) == 6


def test_fields_of_ki67_are_scored_and_recognised(real: tuple[Path, pd.DataFrame]) -> None:
    _, table = real
    fields = table[table.index.str.match("dcis_|bcdata_")]
    assert len(fields) == 3
    assert not fields["flags"].str.contains("wrong_stain|no_mpp|unreadable|no_tissue").any()
    assert fields["flags"].str.contains("tumor_from_ki67").all()
    assert (fields["tumor_source"] == "ki67").all()


def test_an_he_alone_gets_a_tumour_mask_and_no_index(real: tuple[Path, pd.DataFrame]) -> None:
    folder, table = real
    row = table.loc["svs_he"]
    assert row["index"] == ""
    assert row["flags"].split(";") == ["no_ki67"]
    assert float(row["tumor_he_mm2"]) >= 0
    assert (folder / "results" / "svs_he" / "tumor_he.ome.zarr" / "zarr.json").is_file()


def test_files_that_cannot_be_scored_say_why(real: tuple[Path, pd.DataFrame]) -> None:
    _, table = real
    fluorescence, plain = table.loc["ndpi_fluorescence"], table.loc["tiff_without_mpp"]
    assert "wrong_stain" in fluorescence["flags"]
    assert "so it is no brightfield scan of that stain" in fluorescence["reasons"]
    assert "no_mpp" in plain["flags"]
    assert "tiff_without_mpp: the H&E slide gives no microns per pixel; set mpp_he" in plain["reasons"]
    assert fluorescence["index"] == plain["index"] == ""


def test_the_comparison_with_the_annotations_is_printed(real: tuple[Path, pd.DataFrame]) -> None:
    folder, _ = real
    found = subprocess.run(
        [sys.executable, REAL / "compare.py", folder], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert found.returncode == 0, found.stderr
    assert len(found.stdout.splitlines()) == 6
    print(found.stdout)
