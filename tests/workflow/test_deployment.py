"""The three ways to get the libraries: an activated environment, --sdm conda and --sdm apptainer.

Neither a conda channel nor a container registry is needed: stand-ins for both programs write down how they are called.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import GOOD, ROOT, Finished, Workflow, clean_environment, job_counts, run_in
from tests.workflow.conftest import StandIn, WithConda

pytestmark = pytest.mark.usefixtures("shipped_networks")

STACKS = ("registration", "torch", "report")  # of a run without StarDist
# What a job takes from the environment of whoever started it: Snakemake itself.
OF_SNAKEMAKE = {
    "snakemake",
    *(f"snakemake_interface_{part}" for part in ("common", "logger_plugins", "storage_plugins")),
}
# What NumPy, Dask and PyTorch look for and do without; Snakemake needs them, so they are there.
OPTIONAL = {"charset_normalizer", "psutil", "tabulate"}


def test_conda_makes_each_environment_once_from_its_file(with_conda: WithConda) -> None:
    made = [Path(call[call.index("--file") + 1]) for call in with_conda.conda.calls("env")[1:]]
    found = {path.read_text(encoding="utf-8") for path in made}
    assert found == {(ROOT / "envs" / f"{name}.yaml").read_text(encoding="utf-8") for name in STACKS}
    assert len(made) == len(STACKS)
    assert {path.parent for path in made} == {with_conda.workflow.folder / ".snakemake" / "conda"}


def test_every_job_finds_what_it_imports_in_its_own_environment(with_conda: WithConda) -> None:
    told = (with_conda.conda.folder / "foreign").read_text(encoding="utf-8").split()
    assert set(told) - OPTIONAL == OF_SNAKEMAKE
    assert told.count("snakemake") == sum(job_counts(with_conda.said).values()) > 0


def test_the_table_is_the_same_with_conda_and_in_an_activated_environment(
    scored: Finished, with_conda: WithConda
) -> None:
    table = (with_conda.workflow.folder / "results" / "cohort" / "cohort.csv").read_bytes().splitlines()
    assert table[:2] == scored.table.splitlines()[:2]
    assert table[1].startswith(b"G1,")


def test_jobs_run_in_the_images_that_the_settings_name(clone: Path, slides: Path, tmp_path: Path) -> None:
    apptainer = StandIn("apptainer", tmp_path / "stand-in")
    workflow = run_in(clone, slides, tmp_path / "run", GOOD[1:])
    (tmp_path / "torch.sif").touch()
    images = {"registration": "docker://example.org/ki67-registration:1", "torch": str(tmp_path / "torch.sif")}
    (workflow.folder / "images.yaml").write_text(
        yaml.safe_dump(
            {"slides": "slides.tsv", "containers": images | {"report": "docker://example.org/ki67-report:1"}}
        )
    )
    wanted = ("--configfile", "images.yaml", "--", "results/G2/tumor_he.json")
    result = apptainer.run(workflow.command("--sdm", "apptainer", *wanted), workflow.folder)
    assert result.returncode == 0, result.stdout
    assert (workflow.folder / "results" / "G2" / "tumor_he.json").is_file()
    assert [call[-1] for call in apptainer.calls("pull")] == [images["registration"]]
    runs = apptainer.calls("exec")
    assert any(images["torch"] in call for call in runs)
    assert all(str(workflow.folder) in call for call in runs)
    assert all(any(argument.startswith(f"{clone}:") for argument in call) for call in runs)


def test_apptainer_without_images_is_refused(workflow: Workflow) -> None:
    (workflow.folder / "a.svs").touch()
    workflow.write_sheet("slide | ki67", "S01 | a.svs")
    settings = ["--config", "slides=slides.tsv"]
    some = ["containers={registration: a.sif, torch: b.sif, report: c.sif}"]
    for given, lacking in (
        (settings, "registration"),
        ([*settings, *some, "nuclei={second_opinion: stardist}"], "tensorflow"),
        ([*settings, *some, "evaluate={nuclei: {methods: [stardist]}}"], "tensorflow"),
    ):
        result = workflow.run("--dry-run", "--sdm", "apptainer", *given)
        assert result.returncode != 0
        assert (
            f"--sdm apptainer needs an image of every software stack in use, and containers.{lacking} names none"
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
    assert "clone the repository and name the Snakefile of the clone" in found.stdout + found.stderr
