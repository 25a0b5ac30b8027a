"""A cohort on a cluster, and runs that are stopped and started again; minutes long, so only on demand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import GOOD, Finished, job_counts
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Submitter

pytestmark = [pytest.mark.usefixtures("shipped_networks", "cluster"), pytest.mark.cluster]

ROWS = ("B6 | blank.tif | | 0.5 | |", "B7 | blank.tif | | 0.5 | |")


def test_a_cohort_has_the_bytes_of_a_local_run(submitter: Submitter, scored: Finished, tmp_path: Path) -> None:
    workflow = submitter.folder(tmp_path / "run", *GOOD)
    submitter.start(workflow).finish()
    results, local = workflow.folder / "results", scored.workflow.folder / "results"
    names = ["cohort/cohort.csv", "cohort/patients.csv"]
    names += [path.relative_to(local).as_posix() for path in local.glob("*/nuclei.parquet")]
    names += [path.relative_to(local).as_posix() for path in local.glob("*/nuclei.geojson.gz")]
    assert len(names) == 2 + 2 * len(GOOD)
    for name in names:
        assert (results / name).read_bytes() == (local / name).read_bytes(), name


def test_one_slide_by_name_then_everything_cancelled_then_the_rest(
    cluster: Cluster, submitter: Submitter, tmp_path: Path
) -> None:
    workflow = submitter.folder(tmp_path / "results of a run", *ROWS)
    results = workflow.folder / "results"
    submitter.start(workflow, "slide_B6").finish()
    assert (results / "B6" / "ki67.json").is_file()
    assert not (results / "B7").exists()

    run = submitter.start(workflow)
    run.wait(lambda: [job for job in run.jobs("PENDING", "RUNNING") if job.stage == "tumor"])
    while run.process.poll() is None:  # what is cancelled is submitted again, as often as the profile says
        cluster.cancel_all()
        cluster.wait(lambda: run.process.poll() is not None or run.jobs("PENDING", "RUNNING"), 600)
    assert run.process.returncode != 0
    assert not (results / "cohort" / "cohort.csv").exists()
    done = {path: path.stat().st_mtime_ns for path in results.glob("*/*.json")}
    assert {results / "B6" / "ki67.json", results / "B7" / "transform.json"} <= set(done)

    said = submitter.start(workflow).finish()
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert {"check", "register"}.isdisjoint(job_counts(said))
    assert (results / "cohort" / "cohort.csv").is_file()


def test_a_job_that_slurm_queues_again_is_done(submitter: Submitter, tmp_path: Path) -> None:
    """As it does when a node is lost or a job preempted."""
    workflow = submitter.folder(tmp_path / "run", ROWS[0])
    run = submitter.start(workflow, "results/B6/transform.json")
    (job,) = run.wait(lambda: run.jobs("RUNNING"))
    subprocess.run(["scontrol", "requeue", job.id], check=True)
    run.finish()
    assert (workflow.folder / "results" / "B6" / "transform.json").is_file()
    assert "Trying to restart job" not in run.said
