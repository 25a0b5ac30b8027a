"""Bad rows and why they have no index, and slides that were scored once with conda."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import GOOD, ROOT, Workflow, clean_environment, copy_clone, run_in

BAD = {
    "truncated": (
        "B1 | truncated.tif | | | |",
        "unreadable",
        "B1: the Ki-67 slide is incomplete or damaged (the file holds ",
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
