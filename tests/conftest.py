"""What the tests share: the clone's folder, and a way to run the workflow as a person would."""

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
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("tumor_he", "tumor_ki67", "nuclei")
MARK = "KI67_TEST_RUN"
PARTS = ("Snakefile", "config", "ki67", "profiles", "workflow", "envs")


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
