"""Small drawn slides, good and bad, a cohort of the good ones that was scored once, and one scored with conda."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from tests.conftest import ROOT, Workflow, clean_environment, copy_clone

HEADER = "slide | ki67 | he | mpp_ki67 | patient | reference_index"
GOOD = (
    "G1 | Präparat 1/Ki 67.tif | Präparat 1/H&E.tif | | P1 | 0.25",
    "G2 | ihc/ki67.tif | | | P1 |",
)

BAD = {
    "truncated": (
        "B1 | truncated.tif | | | |",
        "unreadable",
        "B1: the Ki-67 slide is incomplete or damaged (the file holds ",
    ),
    "empty": (
        "B2 | empty.svs | | | |",
        "unreadable",
        "B2: the Ki-67 slide is an empty file of 0 bytes; copy it again from its source",
    ),
    "text": (
        "B3 | text.svs | | | |",
        "unreadable",
        "B3: the Ki-67 slide is not an image that OpenSlide, tifffile or Pillow can decode; copy it again",
    ),
    "missing": (
        "B4 | missing.svs | | | |",
        "missing_file",
        "B4: the Ki-67 slide does not exist; correct column ki67 of B4 in the sample sheet",
    ),
    "without mpp": (
        "B5 | plain.png | | | |",
        "no_mpp",
        "B5: the Ki-67 slide gives no microns per pixel; set mpp_ki67 for B5 in the sample sheet",
    ),
    "blank": (
        "B6 | blank.tif | | 0.5 | |",
        "no_tissue",
        "B6: no tissue was found on the Ki-67 slide; look at its thumbnail and check column ki67 of B6",
    ),
    "wrong stain": (
        "B7 | Präparat 1/H&E.tif | | | |",
        "wrong_stain",
        "B7: the Ki-67 slide looks like H&E (confidence ",
    ),
}


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


class StandIn:
    """A program in a folder of its own, and what it was called with."""

    def __init__(self, program: str, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        script = ROOT / "tests" / "workflow" / "stand_ins" / f"{program}.py"
        executable = folder / "bin" / program
        executable.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n', encoding="utf-8")
        executable.chmod(0o755)
        (folder / "bin" / "activate").write_text('export PATH="$1/bin:$PATH"\n', encoding="utf-8")

    def run(self, command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a command with the stand-in first on the path, and the command's own Python behind it."""
        python = Path(command[0]).parent
        environment = clean_environment() | {
            "KI67_STAND_IN": str(self.folder),
            "KI67_DRIVER": str(python.parent),
            "PATH": os.pathsep.join([str(self.folder / "bin"), str(python), os.environ["PATH"]]),
        }
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )

    def calls(self, command: str) -> list[list[str]]:
        """The calls that begin with a command."""
        lines = (self.folder / "calls").read_text(encoding="utf-8").splitlines()
        return [call for call in map(json.loads, lines) if call[:1] == [command]]


@dataclass(frozen=True)
class WithConda:
    """A finished run with ``--sdm conda``: the stand-in, the run, and what it said."""

    conda: StandIn
    workflow: Workflow
    said: str


@pytest.fixture(scope="session")
def with_conda(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> WithConda:
    """A good slide, one without tissue and one without a file, with everything kept and every library from its file.

    Snakemake runs in the environment of the driver, each job in that of its stack.
    """
    folder = tmp_path_factory.mktemp("conda")
    conda = StandIn("conda", folder / "stand-in")
    driver = ("--file", str(ROOT / "envs" / "driver.yaml"), "--prefix", str(folder / "driver"))
    made = conda.run([str(conda.folder / "bin" / "conda"), "env", "create", *driver], folder)
    assert made.returncode == 0, made.stdout
    rows = (GOOD[0], BAD["blank"][0], BAD["missing"][0])
    workflow = run_in(copy_clone(folder / "clone"), slides, folder / "run", rows)
    _, *command = workflow.command("--sdm", "conda", "--config", "slides=slides.tsv", "keep=probabilities")
    result = conda.run([str(folder / "driver" / "bin" / "python"), *command], workflow.folder)
    assert result.returncode == 0, result.stdout
    return WithConda(conda, workflow, result.stdout)
