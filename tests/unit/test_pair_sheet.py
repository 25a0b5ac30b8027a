from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ki67.cli import app
from ki67.errors import Ki67Error
from ki67.prediction.pair_sheet import find_pairs, write_pair_sheet
from ki67.sheet import read_rows
from tests.conftest import ROOT


def folder_of(tmp_path: Path, *names: str) -> Path:
    folder = tmp_path / "published"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"slide")
    return folder


@pytest.mark.parametrize(
    ("he", "ki67", "slide"),
    [
        ("01_HE.tif", "01_Ki67.tif", "01"),
        ("case 7 H&E.svs", "case 7 Ki-67.svs", "case-7"),
        ("HE/P12.ndpi", "KI67/P12.ndpi", "P12"),
        ("P12/he.mrxs", "P12/ki67.mrxs", "P12"),
        ("a/HE_3.tif", "a/MIB-1_3.tif", "3"),
        ("wsi_he_5.tiff", "wsi_ihc_5.tiff", "wsi-5"),
        ("12HE.tif", "12ki67.tif", "12"),
        ("he slides/the third.tif", "Ki67 slides/the third.tif", "the-third"),
    ],
)
def test_pairs_are_known_by_the_names_of_files_or_folders(tmp_path: Path, he: str, ki67: str, slide: str) -> None:
    folder = folder_of(tmp_path, he, ki67)
    found = find_pairs(folder)
    assert found.pairs == {slide: {"he": folder / he, "ki67": folder / ki67}}
    assert found.single == found.unknown == []


def test_names_used_in_several_folders_get_the_folder_into_their_id(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "A/HE/1.tif", "A/Ki67/1.tif", "B/HE/1.tif", "B/Ki67/1.tif")
    assert list(find_pairs(folder).pairs) == ["A-1", "B-1"]


def test_what_has_no_partner_or_no_stain_is_told_and_left_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "1_HE.tif", "1_Ki67.tif", "2_HE.tif", "3.tif", "notes.txt", "1_HE.json")
    found = find_pairs(folder)
    assert list(found.pairs) == ["1"]
    assert found.single == [folder / "2_HE.tif"]
    assert found.unknown == [folder / "3.tif"]


def test_another_marker_is_known_by_its_name(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "1_HE.tif", "1_ER.tif")
    assert list(find_pairs(folder, marker="ER").pairs) == ["1"]
    with pytest.raises(Ki67Error, match=r"holds no H&E slide with a Ki-67 slide of the same name"):
        find_pairs(folder)


def test_two_slides_of_one_stain_and_name_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "1_HE.tif", "1_he.svs", "1_Ki67.tif")
    with pytest.raises(Ki67Error, match=r"1_HE.tif and 1_he.svs are both the H&E slide of 1; move one of them away"):
        find_pairs(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Ki67Error, match=r"absent is no folder; name the one that holds the H&E and Ki-67 slides"):
        find_pairs(tmp_path / "absent")


def test_the_sheet_is_one_that_the_workflow_reads(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "02_HE.tif", "02_Ki67.tif", "01_HE.tif", "01_Ki67.tif", "05_HE.tif")
    sheet = tmp_path / "slides.tsv"
    done = CliRunner().invoke(app, ["import-pairs", str(folder), "--out", str(sheet), "--mpp-ki67", "0.25"])
    assert done.exit_code == 0, done.output
    assert "2 pairs of slides" in done.output
    assert "1 files without a partner were left out: 05_HE.tif" in done.output
    schema = yaml.safe_load((ROOT / "workflow" / "schemas" / "slides.schema.yaml").read_text(encoding="utf-8"))
    rows = read_rows(sheet.read_text(encoding="utf-8"), schema, name="slides.tsv")
    assert [row.slide for row in rows] == ["01", "02"]
    assert rows[0].files == {"he": "published/01_HE.tif", "ki67": "published/01_Ki67.tif"}
    assert rows[0].mpp == {"ki67": 0.25}


def test_paths_outside_of_the_folder_of_the_sheet_are_whole_and_no_sheet_is_overwritten(tmp_path: Path) -> None:
    found = find_pairs(folder_of(tmp_path, "1_HE.tif", "1_Ki67.tif"))
    sheet = tmp_path / "elsewhere" / "slides.tsv"
    write_pair_sheet(sheet, found)
    cells = sheet.read_text(encoding="utf-8").splitlines()[1].split("\t")
    assert cells == ["1", *(str((tmp_path / "published" / f"1_{stain}.tif").resolve()) for stain in ("HE", "Ki67"))]
    with pytest.raises(Ki67Error, match=r"slides.tsv exists; name a new file or remove it first"):
        write_pair_sheet(sheet, found)
