"""What the runs of all tools share: the jobs they are given, how coordinates are counted, and the answers they write.

Imports no tool and not ``ki67``, so that it works in the environment of each peer.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Matrix = Any  # float64 (3, 3); the environments of the peers hold different versions of NumPy


@dataclass(frozen=True)
class Job:
    """A pair of images to register.

    Attributes
    ----------
    fixed, moving
        PNG files, RGB.
    mpp
        Microns per pixel of both.
    """

    fixed: str
    moving: str
    mpp: float


@dataclass(frozen=True)
class Found:
    """What a tool found.

    Attributes
    ----------
    matrix
        From pixels of the fixed image to pixels of the moving one, corners at whole numbers; ``None`` if the tool says
        that it found nothing.
    seconds
        Wall-clock time from the opened images to the matrix.
    details
        What else is worth keeping.
    """

    matrix: Matrix | None
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)


def main(tool: str, version: str, register: Callable[[Job], Found]) -> None:
    """Read the command line, do its jobs one after the other, and write all answers anew after each of them."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("jobs", type=Path, help="JSON list of jobs")
    parser.add_argument("out", type=Path, help="JSON file of the answers, in the order of the jobs")
    arguments = parser.parse_args()
    answers: list[dict[str, Any]] = []
    for record in json.loads(arguments.jobs.read_text(encoding="utf-8")):
        answers.append(answer(Job(**record), register))
        write_answers(arguments.out, {"tool": tool, "version": version, "answers": answers})


def answer(job: Job, register: Callable[[Job], Found]) -> dict[str, Any]:
    """The answer to a job: ``matrix, seconds, details``, and in ``error`` why there is no matrix."""
    try:
        found = register(job)
    except Exception as error:  # noqa: BLE001 - whatever a tool raises is its answer
        traceback.print_exc()
        return {"matrix": None, "seconds": None, "details": {}, "error": f"{type(error).__name__}: {error}".strip()}
    if found.matrix is None:
        return {"matrix": None, "seconds": found.seconds, "details": found.details, "error": "no transform found"}
    matrix = np.asarray(found.matrix, dtype=float).tolist()
    return {"matrix": matrix, "seconds": found.seconds, "details": found.details, "error": None}


def write_answers(path: Path, values: dict[str, Any]) -> None:
    """Write JSON whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


# ---------------------------------------------------------------------------------------------- coordinates


def from_centres(matrix: Matrix) -> Matrix:
    """A matrix between pixels whose centres are at whole numbers as one between pixels whose corners are.

    Examples
    --------
    Half a turn of an image of 10 x 10 pixels carries the centre of its first pixel to that of its last:

    >>> from_centres(np.array([[-1.0, 0, 9], [0, -1, 9], [0, 0, 1]])).tolist()
    [[-1.0, 0.0, 10.0], [0.0, -1.0, 10.0], [0.0, 0.0, 1.0]]
    """
    return shift(0.5) @ np.vstack([np.asarray(matrix, dtype=float)[:2], [0, 0, 1]]) @ shift(-0.5)


def shift(by_px: float) -> Matrix:
    """The matrix that adds to x and y."""
    return np.array([[1.0, 0.0, by_px], [0.0, 1.0, by_px], [0.0, 0.0, 1.0]])


def mirrored(width_px: int) -> Matrix:
    """The matrix from pixels of an image to those of its mirror image, corners at whole numbers, and back."""
    return np.array([[-1.0, 0.0, width_px], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
