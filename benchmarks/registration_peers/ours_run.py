"""Our registration over the jobs of a benchmark, as ``ki67 evaluate registration`` runs it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import ki67
from benchmarks.registration_peers.jobs import Found, Job, main
from ki67.geometry import RigidTransform
from ki67.registration_evaluation import register_images


def register(job: Job) -> Found:
    """The transform whatever the verdict on it, as the others give none; finding the tissue is part of the time."""
    fixed, moving = read_rgb(job.fixed), read_rgb(job.moving)
    started = time.perf_counter()
    found = register_images(fixed, moving, job.mpp)
    seconds = time.perf_counter() - started
    details = {"verdict": found.verdict, "estimated_error_um": found.estimated_error_um}
    if found.transform is None:
        return Found(None, seconds, details)
    if not isinstance(found.transform, RigidTransform):
        raise TypeError(f"{type(found.transform).__name__} is not a rigid transform")
    scale = np.diag([job.mpp, job.mpp, 1.0])
    return Found(np.linalg.inv(scale) @ found.transform.matrix @ scale, seconds, details)


def read_rgb(path: str) -> NDArray[np.uint8]:
    """uint8 ``(rows, columns, 3)``."""
    with Image.open(Path(path)) as image:
        return np.asarray(image.convert("RGB"))


if __name__ == "__main__":
    main("ki67", ki67.__version__, register)
