"""Which GPUs there are, and that no two processes compute on the same one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yte

from ki67.devices import claim_gpu, gpu_names
from tests.conftest import ROOT

HOLD = """
import sys, time
from pathlib import Path
from ki67.devices import claim_gpu
environment = {}
name = claim_gpu(("0", "1"), environment, folder=Path(sys.argv[1]), seconds_between=0.05)
print(name, environment["CUDA_VISIBLE_DEVICES"], flush=True)
time.sleep(60)
"""


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """A folder of device files as a machine with two GPUs has them."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_machine_without_device_files_has_no_gpu(tmp_path: Path) -> None:
    assert gpu_names({}, tmp_path) == ()
    assert gpu_names({"CUDA_VISIBLE_DEVICES": "0"}, tmp_path) == ()


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ("0", "1")),
        ("1", ("1",)),
        ("3, 1", ("3", "1")),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("0,-1,1", ("0",)),
        ("GPU-5ebe9f43,MIG-1", ("GPU-5ebe9f43", "MIG-1")),
    ],
)
def test_gpus_are_those_that_cuda_would_see(devices: Path, visible: str | None, names: tuple[str, ...]) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpu_names(environment, devices) == names


def holder(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_each_process_has_a_gpu_of_its_own_and_a_third_waits_until_one_is_killed(tmp_path: Path) -> None:
    running = [holder(tmp_path), holder(tmp_path)]
    try:
        taken = [process.stdout.readline().split() for process in running if process.stdout]
        assert sorted(taken) == [["0", "0"], ["1", "1"]]
        running.append(holder(tmp_path))
        time.sleep(1)
        os.set_blocking(running[2].stdout.fileno(), False)
        assert not running[2].stdout.readline()
        running[0].send_signal(signal.SIGKILL)
        os.set_blocking(running[2].stdout.fileno(), True)
        assert running[2].stdout.readline().split() == taken[0]
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_a_process_and_what_it_starts_keep_their_gpu(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    first = claim_gpu(("4", "7"), environment, folder=tmp_path)
    assert first == environment["CUDA_VISIBLE_DEVICES"] == "4"
    assert claim_gpu(("4", "7"), environment, folder=tmp_path) == "4"
    assert claim_gpu(("4", "7"), {}, folder=tmp_path) == "7"


def test_without_a_gpu_nothing_is_taken(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    assert claim_gpu((), environment, folder=tmp_path / "locks") is None
    assert not environment
    assert not (tmp_path / "locks").exists()


def test_jobs_of_a_cluster_do_not_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM may call the GPU of each job 0."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for job in ("17", "18"):
        assert claim_gpu(("0",), environment := {"SLURM_JOB_ID": job}) == "0"
        assert environment["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize("visible", [None, "0,1,2"])
def test_the_profile_of_one_machine_counts_the_same_gpus(monkeypatch: pytest.MonkeyPatch, visible: str | None) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with (ROOT / "profiles" / "default" / "config.yaml").open() as file:
        profile = yte.process_yaml(file, require_use_yte=True)
    assert profile["resources"]["gpu"] == (3 if visible else max(1, len(gpu_names({}))))
    assert profile["resources"]["mem_mb"] > 1000
