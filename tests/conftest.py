"""What the tests share: the clone's folder, a way to run the workflow as a person would, and small slides scored once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import tifffile
from PIL import Image

from tests.planner import run_forked

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("tumor_he", "tumor_ki67", "nuclei")
MARK = "KI67_TEST_RUN"
PARTS = ("Snakefile", "config", "ki67", "profiles", "workflow", "envs")
HEADER = "slide | ki67 | he | mpp_ki67 | patient | reference_index"
GOOD = (
    "G1 | Präparat 1/Ki 67.tif | Präparat 1/H&E.tif | | P1 | 0.25",
    "G2 | ihc/ki67.tif | | | P1 |",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first."""
    items.sort(key=lambda item: "unit" in item.path.parts)  # keeps the order otherwise


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file at a time for each process of pytest-xdist; files that go on from one run are like one file."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRun(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return "scored" if "scored: Finished" in (ROOT / file).read_text(encoding="utf-8") else file

    return ByRun(config, log)


@dataclass(frozen=True)
class Workflow:
    """A clone of the workflow, and a folder in which it runs."""

    clone: Path
    folder: Path

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line of a run."""
        known = ["--snakefile", self.clone / "Snakefile", "--directory", self.folder, "--cores", "2"]
        return [sys.executable, "-m", "snakemake", *map(str, known), *map(str, arguments)]

    def run(self, *arguments: str | Path, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
        """Run the workflow to its end; what it says is in ``stdout``."""
        if "--dry-run" in arguments:
            return self.ask(*arguments)
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def ask(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """The same for what starts no job, sooner."""
        return run_forked(self.command(*arguments), self.folder, clean_environment())

    @contextmanager
    def started(self, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
        """A run in a session of its own, which ``kill_all`` ends at the latest; what it says goes to the file ``said``."""
        with (self.folder / "said").open("wb") as said:
            run = subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                env=clean_environment() | {MARK: str(self.folder)},
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield run
            finally:
                kill_all(self.folder)
                run.wait(timeout=60)

    def planned(self, *arguments: str | Path) -> dict[str, int]:
        """How many jobs of each rule a run would start."""
        return job_counts(self.run("--dry-run", *arguments).stdout)

    def write_sheet(self, header: str, *rows: str, name: str = "slides.tsv") -> Path:
        """Write a sample sheet, columns separated by ``|``."""
        path = self.folder / name
        lines = ["\t".join(cell.strip() for cell in line.split("|")) for line in (header, *rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


def clean_environment() -> dict[str, str]:
    """The environment without what a developer's shell may set for Snakemake."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SNAKEMAKE_")}


def job_counts(text: str) -> dict[str, int]:
    """The table of jobs by rule that Snakemake prints, without targets; empty where there was nothing to do."""
    found = re.search(r"^job +count\n[- ]+\n(.*?)^total", text, re.MULTILINE | re.DOTALL)
    if found is None:
        assert "Nothing to be done" in text, text
        return {}
    rows = (line.split() for line in found.group(1).splitlines())
    return {rule: int(count) for rule, count in rows if rule not in ("all", "slides") and not rule.startswith("slide_")}


def kill_all(folder: Path) -> None:
    """SIGKILL for everything that ``Workflow.started`` started in a folder, found by the mark in its environment."""
    for _ in range(3):
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(folder):
                    process.kill()
            except (psutil.AccessDenied, psutil.NoSuchProcess):
                continue
        time.sleep(0.2)


def copy_clone(target: Path) -> Path:
    """A copy of the workflow that a test may change; the networks are the clone's own."""
    target.mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target / part)
    (target / "resources").mkdir()
    (target / "resources" / "models").symlink_to(ROOT / "resources" / "models")
    return target


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the workflow for tests that run it."""
    return copy_clone(tmp_path_factory.mktemp("copy") / "clone")


@pytest.fixture
def workflow(clone: Path, tmp_path: Path) -> Workflow:
    """The workflow in an empty folder."""
    return Workflow(clone, tmp_path)


@pytest.fixture(scope="session")
def shipped_networks() -> None:
    """Skip where the networks are not there."""
    for network in NETWORKS:
        if not (ROOT / "resources" / "models" / network / "weights.safetensors").is_file():
            pytest.skip(
                f"resources/models/{network} holds no weights; train them with: snakemake train_tumor train_nuclei"
            )


@pytest.fixture(scope="session")
def tiny_stardist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small StarDist model that learned drawn discs, beside what it answered; skips without TensorFlow."""
    for name in ("tensorflow", "stardist"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed; install requirements-test.lock")
    folder = tmp_path_factory.mktemp("stardist")
    made = subprocess.run(
        [sys.executable, "-m", "tests.unit.tiny_stardist", folder],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert made.returncode == 0, made.stdout
    return folder / "model"


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
