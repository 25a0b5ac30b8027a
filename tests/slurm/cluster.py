"""A SLURM cluster of one node on this machine: real daemons, a partition of processors and one of pretended GPUs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
# The driver's inner srun keeps no SLURM_CONF, so the configuration must lie where SLURM itself looks.
SYSTEM_CONFIGURATION = Path("/etc/slurm/slurm.conf")
# A GPU needs a device file; these exist everywhere.
DEVICES = ("/dev/null", "/dev/zero")

CONFIGURATION = """\
ClusterName=ki67test
SlurmctldHost={node}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
# No control groups, which need a system's own daemons; memory is looked at every second instead.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
# No database: squeue remembers jobs for MinJobAge seconds.
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MinJobAge=86400
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
MpiDefault=none
SwitchType=switch/none
GresTypes=gpu
NodeName={node} NodeAddr=127.0.0.1 CPUs=64 RealMemory=200000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=cpu Nodes={node} Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes={node} Default=NO MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it."""

    id: str
    state: str
    partition: str
    comment: str
    gpus: int
    cpus: int
    memory_mb: int

    @property
    def stage(self) -> str:
        """Rule or group, as in ``tumor`` or ``prepare``; the driver adds the rules to the name of a group."""
        return self.comment.removeprefix("rule_").split("_")[0]


def why_not() -> str | None:
    """Why no cluster can be started on this machine; None where it can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} are not installed; as root on Debian: make slurm"
    if os.geteuid() != 0:
        return "the daemons of SLURM are started as root only"
    if SYSTEM_CONFIGURATION.exists() and not SYSTEM_CONFIGURATION.is_symlink():
        return f"this machine belongs to a cluster already ({SYSTEM_CONFIGURATION})"
    if SYSTEM_CONFIGURATION.is_symlink() and daemons(SYSTEM_CONFIGURATION.readlink().parent):
        return f"another run of the tests has its cluster on this machine ({SYSTEM_CONFIGURATION.readlink()})"
    return None


def daemons(folder: Path) -> list[psutil.Process]:
    """The daemons that were started in a folder and still run, in the order in which they are to be ended."""
    found = []
    for name in ("slurmd", "slurmctld", "munged"):
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            process = psutil.Process(int((folder / f"{name}.pid").read_text()))
            found.extend([process] if process.name() == name else [])
    return found


class Cluster:
    """The daemons, and questions to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node = socket.gethostname().split(".")[0]

    def start(self) -> None:
        """Start the daemons and wait until the node takes jobs."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        configuration = self.folder / "slurm.conf"
        configuration.write_text(CONFIGURATION.format(node=self.node, folder=self.folder, gpus=len(DEVICES)))
        (self.folder / "gres.conf").write_text("".join(f"NodeName={self.node} Name=gpu File={d}\n" for d in DEVICES))
        SYSTEM_CONFIGURATION.parent.mkdir(exist_ok=True)
        SYSTEM_CONFIGURATION.unlink(missing_ok=True)
        SYSTEM_CONFIGURATION.symlink_to(configuration)
        files = {
            name: f"--{name}-file={self.folder}/munge{end}"
            for name, end in (("key", ".key"), ("pid", "d.pid"), ("log", "d.log"), ("seed", ".seed"))
        }
        self._run("munged", *files.values(), f"--socket={self.folder}/munge.socket", "--force")
        self._run("slurmctld", "-f", configuration, "-i")
        self._run("slurmd", "-f", configuration, "-N", self.node)
        self.wait(self._is_idle, 120)

    def _is_idle(self) -> bool:
        """Whether the node takes jobs; a controller that is still starting gives no answer."""
        asked = subprocess.run(["sinfo", "--noheader", "--format=%t"], capture_output=True, text=True, check=False)
        return asked.returncode == 0 and set(asked.stdout.split()) == {"idle"}

    def stop(self) -> None:
        """End what was started, by its recorded process id."""
        for daemon in daemons(self.folder):
            daemon.terminate()
            psutil.wait_procs([daemon], timeout=20)
        if SYSTEM_CONFIGURATION.is_symlink() and SYSTEM_CONFIGURATION.readlink().parent == self.folder:
            SYSTEM_CONFIGURATION.unlink()

    def jobs(self, *states: str) -> list[Job]:
        """Jobs of the given states (all without), the oldest first."""
        fields = "JobID,State,Partition,Comment,tres-alloc,tres-per-job"
        text = self._run(
            "squeue",
            "--noheader",
            f"--states={','.join(states) or 'all'}",
            "--sort=i",
            f"--Format={','.join(f'{name}:200' for name in fields.split(','))}",
        )
        found = []
        for line in text.splitlines():
            number, state, partition, comment, allocated, per_job = (
                line[start : start + 200].strip() for start in range(0, 1200, 200)
            )
            given = dict(part.split("=") for part in allocated.split(",") if "=" in part)
            gpus = int(per_job.rpartition(":")[2]) if "gpu" in per_job else 0
            amounts = int(given.get("cpu", 0)), megabytes(given.get("mem", "0M"))
            found.append(Job(number, state, partition, comment, gpus, *amounts))
        return found

    def commands(self, job: Job) -> dict[psutil.Process, str]:
        """What runs of a job on its node, but for SLURM's own daemon, and its command line."""
        found = {}
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURM_JOB_ID") == job.id and process.name() != "slurmstepd":
                    found[process] = " ".join(process.cmdline())
            except (psutil.AccessDenied, psutil.NoSuchProcess):
                continue
        return found

    def kill(self, job: Job) -> None:
        """SIGKILL for every process of a job."""
        for process in self.commands(job):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def cancel_all(self) -> None:
        """As a person would who wants everything to stop."""
        self._run("scancel", "--user=root")

    @staticmethod
    def wait(condition: Callable[[], Any], seconds: float) -> Any:
        """Wait until something is so, and give what it is."""
        until = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < until, f"not so after {seconds} s"
            time.sleep(0.2)
        return found

    @staticmethod
    def _run(*command: str | Path) -> str:
        return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout


def megabytes(text: str) -> int:
    """An amount of memory as SLURM writes it: 4000M, 3.5G."""
    return round(float(text[:-1]) * {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}[text[-1]])
