"""A slide on a cluster: same results as locally, jobs where they belong, and what is killed is done again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
import yaml

from tests.conftest import GOOD, ROOT, Finished, Workflow
from tests.slurm.cluster import Cluster, Job
from tests.slurm.conftest import Run, Submitter

pytestmark = pytest.mark.usefixtures("shipped_networks", "cluster")

BLANK = "B6 | blank.tif | | 0.5 | |"
NETWORK_JOBS = ("tumor", "score")


@pytest.fixture(scope="module")
def cancelled(submitter: Submitter, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Job]:
    """A run that Ctrl-C ended while its job was at work."""
    run = submitter.start(submitter.folder(tmp_path_factory.mktemp("cancelled") / "run", BLANK))
    (job,) = run.wait(lambda: run.jobs("RUNNING"))
    run.wait(lambda: any("check.py" in command for command in run.cluster.commands(job).values()))
    assert run.interrupt() != 0
    return run, job


def test_ctrl_c_ends_the_jobs_and_leaves_no_lock(cancelled: tuple[Run, Job]) -> None:
    run, job = cancelled
    folder = run.workflow.folder
    run.cluster.wait(lambda: not run.jobs("PENDING", "RUNNING"), 600)
    run.cluster.wait(lambda: not any("check.py" in command for command in run.cluster.commands(job).values()), 600)
    # Snakemake on the node lost its parent with the job. Control groups would find it; this cluster has none.
    run.cluster.kill(job)
    assert [found.id for found in run.jobs()] == [job.id]
    assert not [path for path in (folder / ".snakemake" / "locks").rglob("*") if path.is_file()]
    assert not (folder / "results" / "B6" / "tumor_he.json").exists()


@dataclass(frozen=True)
class OnCluster:
    """A run that was finished on the cluster, and its jobs."""

    workflow: Workflow
    said: str
    jobs: list[Job]

    def of(self, stage: str) -> list[Job]:
        return [job for job in self.jobs if job.stage == stage]


@pytest.fixture(scope="module")
def on_cluster(
    scored: Finished, cluster: Cluster, submitter: Submitter, tmp_path_factory: pytest.TempPathFactory
) -> OnCluster:
    """A good slide; the first job is killed on its node, and the cohort's gets too little memory at first."""
    workflow = submitter.folder(tmp_path_factory.mktemp("cluster") / "run", GOOD[0])
    run = submitter.start(workflow, **{"set-resources": {"cohort": {"mem_mb": "250 * attempt ** 3"}}})
    victim = run.wait(lambda: run.jobs("RUNNING"))[0]
    run.wait(lambda: any("check.py" in command for command in cluster.commands(victim).values()))
    cluster.kill(victim)
    said = run.finish()
    return OnCluster(workflow, said, run.jobs())


def test_tables_are_the_same_bytes_as_those_of_a_local_run(on_cluster: OnCluster, scored: Finished) -> None:
    results, local = on_cluster.workflow.folder / "results", scored.workflow.folder / "results"
    assert (results / "cohort" / "cohort.csv").read_bytes().splitlines() == scored.table.splitlines()[:2]
    for name in ("G1/nuclei.parquet", "G1/nuclei.geojson.gz"):
        assert (results / name).read_bytes() == (local / name).read_bytes(), name


def test_each_stage_is_one_job_a_slide_and_cheap_ones_are_together(on_cluster: OnCluster) -> None:
    done = Counter(job.stage for job in on_cluster.jobs if job.state == "COMPLETED")
    assert done == dict.fromkeys(("prepare", "tumor", "score", "present", "cohort", "report"), 1)


def test_jobs_with_a_network_have_one_gpu_in_its_partition_and_no_others_have(on_cluster: OnCluster) -> None:
    for job in on_cluster.jobs:
        wanted = ("gpu", 1) if job.stage in NETWORK_JOBS else ("cpu", 0)
        assert (job.partition, job.gpus) == wanted, job


def test_requests_follow_the_rules(on_cluster: OnCluster) -> None:
    assert {job.cpus for job in on_cluster.of("tumor")} == {1}
    assert {job.cpus for job in on_cluster.of("prepare")} == {2}
    # 3000 MB and 600 for the thread; the drawn slides have a few MB
    assert {job.memory_mb // 100 for job in on_cluster.of("tumor")} == {36}


def test_a_job_killed_on_its_node_is_done_again_with_more_memory(on_cluster: OnCluster) -> None:
    first, second = on_cluster.of("prepare")
    assert (first.state, second.state) == ("FAILED", "COMPLETED")
    assert second.memory_mb in range(2 * first.memory_mb - 20, 2 * first.memory_mb + 20)
    assert "Trying to restart job" in on_cluster.said


def test_a_job_over_its_memory_is_done_again_with_more(on_cluster: OnCluster) -> None:
    first, second = on_cluster.of("cohort")
    assert first.state in ("OUT_OF_MEMORY", "FAILED")
    assert (first.memory_mb, second.memory_mb) == (250, 2000)
    assert second.state == "COMPLETED"
    (log,) = on_cluster.workflow.folder.glob(f".snakemake/slurm_logs/rule_cohort/**/{first.id}.log")
    assert "memory" in log.read_text(encoding="utf-8")


@pytest.mark.usefixtures("on_cluster")
def test_slurm_calls_what_ctrl_c_ended_cancelled(cancelled: tuple[Run, Job]) -> None:
    """It says so a minute later, for which the other run is used."""
    run, job = cancelled
    run.cluster.wait(lambda: not run.jobs("COMPLETING"), 600)
    assert [found.state for found in run.jobs() if found.id == job.id] == ["CANCELLED"]


def test_no_profile_switches_the_folder_lock_off() -> None:
    for path in (ROOT / "profiles").glob("*/config.yaml"):
        text = path.read_text(encoding="utf-8")
        assert "nolock" not in {key.lstrip("-") for key in yaml.safe_load(text)}, path
