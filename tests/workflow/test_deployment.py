"""The three ways to get the libraries: an activated environment, --sdm conda and --sdm apptainer.

Neither a conda channel nor a container registry is needed: stand-ins for both programs write down how they are called.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, Workflow, clean_environment, job_counts
from tests.workflow.conftest import GOOD, Finished, run_in

pytestmark = pytest.mark.usefixtures("shipped_networks")

STACKS = ("registration", "torch", "report")
# What a job takes from the environment of whoever started it: Snakemake itself.
OF_SNAKEMAKE = {
    "snakemake",
    *(f"snakemake_interface_{part}" for part in ("common", "logger_plugins", "storage_plugins")),
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
            timeout=int(os.environ.get("E8_TIMEOUT", 900)),
            check=False,
        )

    def calls(self, command: str) -> list[list[str]]:
        """The calls that begin with a command."""
        lines = (self.folder / "calls").read_text(encoding="utf-8").splitlines()
        return [call for call in map(json.loads, lines) if call[:1] == [command]]


@pytest.fixture(scope="module")
def with_conda(
    scored: Finished, slides: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StandIn, Workflow, str]:
    """One slide scored with ``--sdm conda`` from the environment of the driver: the stand-in, the run, what it said."""
    folder = tmp_path_factory.mktemp("conda")
    conda = StandIn("conda", folder / "stand-in")
    driver = ("--file", str(ROOT / "envs" / "driver.yaml"), "--prefix", str(folder / "driver"))
    made = conda.run([str(conda.folder / "bin" / "conda"), "env", "create", *driver], folder)
    assert made.returncode == 0, made.stdout
    workflow = run_in(scored.workflow.clone, slides, folder / "run", GOOD[1:])
    _, *command = workflow.command("--sdm", "conda", "--config", "slides=slides.tsv")
    result = conda.run([str(folder / "driver" / "bin" / "python"), *command], workflow.folder)
    assert result.returncode == 0, result.stdout
    return conda, workflow, result.stdout


def test_conda_makes_each_environment_once_from_its_file(with_conda: tuple[StandIn, Workflow, str]) -> None:
    conda, workflow, _ = with_conda
    made = [Path(call[call.index("--file") + 1]) for call in conda.calls("env")[1:]]
    found = {path.read_text(encoding="utf-8") for path in made}
    assert found == {(ROOT / "envs" / f"{name}.yaml").read_text(encoding="utf-8") for name in STACKS}
    assert len(made) == len(STACKS)
    assert {path.parent for path in made} == {workflow.folder / ".snakemake" / "conda"}


def test_every_job_finds_what_it_imports_in_its_own_environment(with_conda: tuple[StandIn, Workflow, str]) -> None:
    conda, _, said = with_conda
    foreign = set((conda.folder / "foreign").read_text(encoding="utf-8").split())
    assert "snakemake" in foreign
    assert foreign == OF_SNAKEMAKE, foreign - OF_SNAKEMAKE
    assert said.count("Activating conda environment: ") >= sum(job_counts(said).values())


def test_the_table_is_the_same_with_conda_and_in_an_activated_environment(
    scored: Finished, with_conda: tuple[StandIn, Workflow, str]
) -> None:
    _, workflow, _ = with_conda
    table = (workflow.folder / "results" / "cohort" / "cohort.csv").read_bytes().splitlines()
    assert table == [scored.table.splitlines()[0], scored.table.splitlines()[2]]
    assert table[1].startswith(b"G2,")


def test_jobs_run_in_the_images_that_the_settings_name(scored: Finished, slides: Path, tmp_path: Path) -> None:
    apptainer = StandIn("apptainer", tmp_path / "stand-in")
    workflow = run_in(scored.workflow.clone, slides, tmp_path / "run", GOOD[1:])
    (tmp_path / "torch.sif").touch()
    images = {"registration": "docker://example.org/ki67-registration:1", "torch": str(tmp_path / "torch.sif")}
    (workflow.folder / "images.yaml").write_text(
        yaml.safe_dump(
            {"slides": "slides.tsv", "containers": images | {"report": "docker://example.org/ki67-report:1"}}
        )
    )
    wanted = ("results/G2/tumor_he.json", "--configfile", "images.yaml")
    result = apptainer.run(workflow.command("--sdm", "apptainer", *wanted), workflow.folder)
    assert result.returncode == 0, result.stdout
    assert (workflow.folder / "results" / "G2" / "tumor_he.json").is_file()
    assert [call[-1] for call in apptainer.calls("pull")] == [images["registration"]]
    runs = apptainer.calls("exec")
    assert any(images["torch"] in call for call in runs)
    assert all(str(workflow.folder) in call for call in runs)
    clone = str(workflow.clone)
    assert all(any(argument.startswith(f"{clone}:") for argument in call) for call in runs)


def test_apptainer_without_images_is_refused(workflow: Workflow) -> None:
    (workflow.folder / "a.svs").touch()
    workflow.write_sheet("slide | ki67", "S01 | a.svs")
    result = workflow.run("--dry-run", "--sdm", "apptainer", "--config", "slides=slides.tsv")
    assert result.returncode != 0
    assert (
        "--sdm apptainer needs an image of every software stack, and containers.registration names none"
        in result.stdout
    )
    assert "Traceback" not in result.stdout


def test_a_remote_snakefile_is_refused(tmp_path: Path) -> None:
    """As a clone of git that is no folder, since this needs no network."""
    subprocess.run(["git", "init", "--quiet", tmp_path / "remote"], check=True)
    git = ["git", "-C", str(tmp_path / "remote"), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    (tmp_path / "remote" / "Snakefile").write_bytes((ROOT / "Snakefile").read_bytes())
    subprocess.run([*git, "add", "Snakefile"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "Snakefile"], check=True)
    (tmp_path / "Snakefile").write_text(
        f"module ki67:\n    snakefile: gitfile({str(tmp_path / 'remote')!r}, path='Snakefile', tag='HEAD')\n\n"
        "use rule * from ki67\n"
    )
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run"]
    found = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert "clone the repository and name the Snakefile of the clone" in found.stderr
