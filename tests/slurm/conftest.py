"""A cluster for the tests that need one, and runs of the workflow on it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Workflow, clean_environment, run_in
from tests.slurm.cluster import Cluster, Job, why_not

# What differs from the profile as it ships: a node is near, jobs are looked at when they have had the time to end (the
# next look is ten seconds later), and a job has as many threads as locally.
TEST_SETTINGS = {
    "latency-wait": 10,
    "slurm-init-seconds-before-status-checks": 11,
    # Snakemake ends only when such a timespan is over.
    "max-jobs-per-timespan": "60/1s",
    "set-threads": {"tumor": 1, "transfer": 1, "nuclei": 1},
}
# Seconds until something must have happened; a machine may be busy with much other work.
PATIENCE_S = 3600.0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked as cluster run only when asked for, as they take minutes."""
    if "cluster" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("cluster"):
                item.add_marker(pytest.mark.skip(reason="takes minutes; run: make cluster"))


@dataclass
class Run:
    """The workflow at work on the cluster."""

    workflow: Workflow
    cluster: Cluster
    process: subprocess.Popen[bytes]
    report: Path
    earlier: frozenset[str]

    @property
    def said(self) -> str:
        """What Snakemake wrote so far."""
        return self.report.read_text(encoding="utf-8", errors="replace")

    def jobs(self, *states: str) -> list[Job]:
        """Its jobs of the given states (all without), the oldest first."""
        return [job for job in self.cluster.jobs(*states) if job.id not in self.earlier]

    def finish(self) -> str:
        """Wait for a good end, and give what Snakemake wrote."""
        assert self.process.wait(timeout=PATIENCE_S) == 0, self.said
        return self.said

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Wait until something is so while the run goes on, and give what it is."""

        def checked() -> Any:
            found = condition()
            assert found or self.process.poll() is None, self.said
            return found

        return self.cluster.wait(checked, PATIENCE_S)

    def interrupt(self) -> int:
        """Ctrl-C; gives the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=PATIENCE_S)


@dataclass(frozen=True)
class Submitter:
    """Starts runs of the workflow on the cluster, with the profile that ships."""

    cluster: Cluster
    clone: Path
    slides: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def folder(self, path: Path, *rows: str) -> Workflow:
        """A folder with links to the slides and a sheet of some of them."""
        return run_in(self.clone, self.slides, path, rows)

    def start(self, workflow: Workflow, *arguments: str, **settings: Any) -> Run:
        """Start a run, with settings of the profile changed."""
        profile = workflow.folder / "profile"
        profile.mkdir(exist_ok=True)
        shipped = yaml.safe_load((self.clone / "profiles" / "slurm" / "config.yaml").read_text(encoding="utf-8"))
        changed = merged(merged(shipped, TEST_SETTINGS), settings)
        (profile / "config.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
        partitions = (self.clone / "profiles" / "slurm" / "partitions.yaml").read_text(encoding="utf-8")
        (profile / "partitions.yaml").write_text(partitions, encoding="utf-8")
        known = ["--snakefile", self.clone / "Snakefile", "--directory", workflow.folder, "--workflow-profile", profile]
        command = [sys.executable, "-m", "snakemake", *map(str, known), *arguments, "--config", "slides=slides.tsv"]
        report = workflow.folder / "said"
        earlier = frozenset(job.id for job in self.cluster.jobs())
        with report.open("wb") as said:
            process = subprocess.Popen(
                command,
                cwd=workflow.folder,
                env=clean_environment(),
                stdout=said,
                stderr=subprocess.STDOUT,
                preexec_fn=heed_ctrl_c,
            )
        self.started.append(process)
        return Run(workflow, self.cluster, process, report, earlier)


def heed_ctrl_c() -> None:
    """Shells start what goes on in the background with Ctrl-C ignored, which the tests and their runs would inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The settings with the changes, in sections as well."""
    both = settings | changes
    return both | {
        key: merged(settings[key], value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(settings.get(key), dict)
    }


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one node; without the programs for it the tests are skipped."""
    if reason := why_not():
        pytest.skip(reason)
    started = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        started.start()
        yield started
        started.cancel_all()
    finally:
        started.stop()


@pytest.fixture(scope="session")
def submitter(cluster: Cluster, clone: Path, slides: Path) -> Iterator[Submitter]:
    """Starts runs, and ends those that a failed test left."""
    submitter = Submitter(cluster, clone, slides)
    yield submitter
    for process in submitter.started:
        if process.poll() is None:
            process.kill()
            process.wait()
