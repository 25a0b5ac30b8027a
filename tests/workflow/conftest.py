"""Small drawn slides, good and bad, and a cohort of the good ones that was scored once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from tests.conftest import ROOT, Workflow, copy_clone

HEADER = "slide | ki67 | he | mpp_ki67 | patient | reference_index"
GOOD = (
    "G1 | Präparat 1/Ki 67.tif | Präparat 1/H&E.tif | | P1 | 0.25",
    "G2 | ihc/ki67.tif | | | P1 |",
)


@dataclass(frozen=True)
class Finished:
    """A finished run: what it said, and the table as it was then."""

    workflow: Workflow
    said: str
    table: bytes

    def rows(self) -> pd.DataFrame:
        """The table, by slide; empty cells are empty texts."""
        path = self.workflow.folder / f"table-{len(self.table)}.csv"
        path.write_bytes(self.table)
        return pd.read_csv(path, index_col="slide", keep_default_na=False)


def draw(folder: Path, *options: str) -> None:
    command = [sys.executable, "-m", "ki67", "phantom", "--area-mm2", "1", "--workers", "1", "--out", str(folder)]
    subprocess.run([*command, *options], cwd=ROOT, check=True, capture_output=True)


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad slides."""
    folder = tmp_path_factory.mktemp("slides")
    draw(folder / "pair", "--seed", "11", "--ki67-fraction", "0.3", "--tumor-share", "0.6", "--flip")
    draw(folder / "ihc", "--seed", "12", "--ki67-fraction", "0.1", "--tumor-share", "0.6", "--stains", "ki67")
    named = folder / "Präparat 1"
    named.mkdir()
    (folder / "pair" / "ki67.tif").rename(named / "Ki 67.tif")
    (folder / "pair" / "he.tif").rename(named / "H&E.tif")
    whole = (named / "Ki 67.tif").read_bytes()
    (folder / "truncated.tif").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "empty.svs").touch()
    (folder / "text.svs").write_text("This is no slide.\n" * 100)
    Image.fromarray(np.random.default_rng(0).integers(120, 240, (300, 300, 3), dtype=np.uint8)).save(
        folder / "plain.png"
    )
    blank = np.full((2048, 2048, 3), 244, dtype=np.uint8)
    tifffile.imwrite(folder / "blank.tif", blank, tile=(256, 256), photometric="rgb")
    return folder


def run_in(clone: Path, slides: Path, folder: Path, rows: tuple[str, ...]) -> Workflow:
    """A folder with links to the slides and a sheet of some of them, ready to run."""
    folder.mkdir(exist_ok=True)
    for path in slides.iterdir():
        (folder / path.name).symlink_to(path)
    workflow = Workflow(clone, folder)
    workflow.write_sheet(HEADER, *rows)
    return workflow


def finish(workflow: Workflow) -> Finished:
    result = workflow.run("--config", "slides=slides.tsv")
    assert result.returncode == 0, result.stdout
    return Finished(workflow, result.stdout, (workflow.folder / "results" / "cohort" / "cohort.csv").read_bytes())


@pytest.fixture(scope="session")
def scored(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two good slides, scored without disturbance, in a clone of their own."""
    folder = tmp_path_factory.mktemp("run")
    return finish(run_in(copy_clone(folder / "clone"), slides, folder / "results of a run", GOOD))
