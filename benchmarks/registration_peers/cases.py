"""The cases of a benchmark of registration: pairs with landmarks, as they are and made harder, as files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.registration_peers.jobs import Job
from ki67.errors import Ki67Error
from ki67.perturbation import PerturbedImage, perturb
from ki67.registration_evaluation import FEWEST_LANDMARKS, LandmarkPair

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A job with the landmarks that a tool is measured at.

    Attributes
    ----------
    pair
        Name of the pair it was made of.
    perturbation
        Number of the perturbation, from 0; ``None`` for the pair as it is.
    job
        What the tools are given.
    fixed_px, moving_px
        ``(N, 2)``, the same landmarks in both images, inside both, from the top-left corner.
    details
        What was done to the moving image.
    """

    pair: str
    perturbation: int | None
    job: Job
    fixed_px: Points
    moving_px: Points
    details: dict[str, Any]


def make_cases(pairs: Iterable[LandmarkPair], perturbations: int, folder: Path) -> Iterator[Case]:
    """Every pair as it is and so many times perturbed, with its images written into folders of their own."""
    for pair in pairs:
        inside = inside_of(pair.fixed_landmarks_px, pair.fixed_rgb) & inside_of(
            pair.moving_landmarks_px, pair.moving_rgb
        )
        fixed, moving = pair.fixed_landmarks_px[inside], pair.moving_landmarks_px[inside]
        for number in (None, *range(perturbations)):
            place = folder / pair.name / ("as_it_is" if number is None else str(number))
            if number is None:
                job = write_images(place, pair.fixed_rgb, pair.moving_rgb, pair.mpp)
                yield checked(Case(pair.name, number, job, fixed, moving, {}))
                continue
            image = perturb(pair.moving_rgb, moving, pair.mpp, (number,))
            job = write_images(place, pair.fixed_rgb, image.rgb, pair.mpp)
            moved = moved_by(image.matrix, moving[image.kept])
            yield checked(Case(pair.name, number, job, fixed[image.kept], moved, details_of(image)))


def checked(case: Case) -> Case:
    """The case.

    Raises
    ------
    Ki67Error
        If it has too few landmarks to be measured at.
    """
    if len(case.fixed_px) < FEWEST_LANDMARKS:
        raise Ki67Error(
            f"{case.pair}, perturbation {case.perturbation}: {len(case.fixed_px)} landmarks lie inside both images; "
            f"{FEWEST_LANDMARKS} are needed"
        )
    return case


def write_images(folder: Path, fixed_rgb: NDArray[np.uint8], moving_rgb: NDArray[np.uint8], mpp: float) -> Job:
    """Write both images as PNG."""
    folder.mkdir(parents=True)
    fixed, moving = folder / "fixed.png", folder / "moving.png"
    Image.fromarray(fixed_rgb).save(fixed, compress_level=1)
    Image.fromarray(moving_rgb).save(moving, compress_level=1)
    return Job(str(fixed), str(moving), mpp)


def details_of(image: PerturbedImage) -> dict[str, Any]:
    """What was done to an image."""
    names = ("angle_deg", "mirror", "cropped_share", "control_tissue")
    return {name: getattr(image, name) for name in names}


def inside_of(points_px: Points, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which points ``(N, 2)`` lie in the image."""
    height, width = image.shape[:2]
    return np.all((points_px >= 0) & (points_px < [width, height]), axis=1)


def moved_by(matrix: Points, points_px: Points) -> Points:
    """Points ``(N, 2)`` after a matrix ``(3, 3)``."""
    return points_px @ matrix[:2, :2].T + matrix[:2, 2]
