"""One GPU for each process: which GPUs there are, and a lock on the one that a process computes on.

Snakemake counts GPUs and tells no job which is its own, and two runs know nothing of each other. So a process that is
about to start CUDA takes the first GPU that no other has, or waits for one. The lock is the kernel's (``flock``): it
goes when the process ends, however that comes about.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import MutableMapping
from pathlib import Path

log = logging.getLogger(__name__)

VISIBLE, CLAIMED = "CUDA_VISIBLE_DEVICES", "KI67_GPU"
_held: list[int] = []


def gpu_names(environment: MutableMapping[str, str] = os.environ, devices: Path = Path("/dev")) -> tuple[str, ...]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them; empty where there are none.

    Parameters
    ----------
    environment
        Its ``CUDA_VISIBLE_DEVICES`` (set by SLURM, or a person) limits them; as for CUDA, the first name that is
        neither a number nor an identifier ends the list.
    devices
        Folder of the device files; each NVIDIA GPU has one.

    Examples
    --------
    >>> gpu_names({}, Path("/nonexistent"))
    ()
    """
    files = sum(1 for _ in devices.glob("nvidia[0-9]*"))
    if not files or VISIBLE not in environment:
        return tuple(map(str, range(files)))
    names: list[str] = []
    for name in environment[VISIBLE].split(","):
        if not (name.strip().isdigit() or name.strip().startswith(("GPU-", "MIG-"))):
            break
        names.append(name.strip())
    return tuple(names)


def claim_gpu(
    names: tuple[str, ...],
    environment: MutableMapping[str, str] = os.environ,
    *,
    folder: Path | None = None,
    seconds_between: float = 1.0,
) -> str | None:
    """Take a GPU for this process until it ends, and let CUDA see no other; waits while all are taken.

    To be called before CUDA starts, which looks at the environment once. A process that has a GPU, or was started by
    one that has, keeps it.

    Parameters
    ----------
    names
        Those to choose from (``gpu_names``); with none, nothing happens.
    environment
        Where ``CUDA_VISIBLE_DEVICES`` is set.
    folder
        Where the locks are, one file a GPU. By default a folder of this account in the temporary folder, and inside a
        SLURM job one of that job: SLURM itself parts the jobs, and may call the GPU of each ``0``.
    seconds_between
        Between two looks at GPUs that are all taken.

    Returns
    -------
    Its name, None where there is none.
    """
    if CLAIMED in environment or not names:
        return environment.get(CLAIMED)
    folder = folder or _lock_folder(environment)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    waiting = False
    while (name := _take_free(names, folder)) is None:
        if not waiting:
            log.info("all %d GPUs are taken; waiting for one", len(names))
            waiting = True
        time.sleep(seconds_between)
    environment.update({VISIBLE: name, CLAIMED: name})
    return name


def _lock_folder(environment: MutableMapping[str, str]) -> Path:
    return Path(tempfile.gettempdir(), f"ki67-gpus-{os.getuid()}", environment.get("SLURM_JOB_ID", "local"))


def _take_free(names: tuple[str, ...], folder: Path) -> str | None:
    """The first GPU whose file could be locked; its descriptor stays open as long as the process lives."""
    for name in names:
        descriptor = os.open(folder / f"{name.replace('/', '-')}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        _held.append(descriptor)
        return name
    return None
