"""How far landmarks lie apart after registration, beside the best that any rigid or affine transform could do."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from ki67.errors import Ki67Error, Stain
from ki67.geometry import Mask
from ki67.landmarks import distances, fit_affine, fit_rigid
from ki67.perturbation import perturb
from ki67.registration import FINEST_MPP, Refine, Registration, register
from ki67.slides import ImageReader
from ki67.tissue import find_tissue

COLUMNS = ("pair", "fixed", "moving", "fixed_landmarks", "moving_landmarks", "landmark_scale", "mpp")
FEWEST_LANDMARKS = 3
NEAR = 1.15  # times the best rigid fit
CLOSE_UM = 10.0
IMAGE_ERRORS = (OSError, UnidentifiedImageError, Image.DecompressionBombError)


@dataclass(frozen=True)
class LandmarkPair:
    """Images of two stained sections with the same landmarks on both.

    Attributes
    ----------
    name
        Of the pair.
    fixed_rgb, moving_rgb
        uint8 ``(rows, columns, 3)``; the fixed one takes the place of the H&E, the moving one that of the Ki-67 slide.
    fixed_landmarks_px, moving_landmarks_px
        float64 ``(N, 2)``, x and y in pixels of the images, from the top-left corner.
    mpp
        Microns per pixel of both images.
    """

    name: str
    fixed_rgb: NDArray[np.uint8]
    moving_rgb: NDArray[np.uint8]
    fixed_landmarks_px: NDArray[np.float64]
    moving_landmarks_px: NDArray[np.float64]
    mpp: float


def read_landmark_pairs(table: Path) -> Iterator[LandmarkPair]:
    """The pairs of ``pairs.csv``, one after the other; paths in it start at its folder.

    Raises
    ------
    Ki67Error
        If a column, a file or a number is missing or cannot be read.
    """
    for record in _read_table(table, COLUMNS):
        scale = _number(table, record, "landmark_scale")
        fixed, moving = (
            _read_points(table.parent / record[f"{image}_landmarks"]) * scale for image in ("fixed", "moving")
        )
        count = min(len(fixed), len(moving))  # sets of landmarks may differ in length, but start alike
        yield LandmarkPair(
            record["pair"],
            _read_image(table.parent / record["fixed"]),
            _read_image(table.parent / record["moving"]),
            fixed[:count],
            moving[:count],
            _number(table, record, "mpp"),
        )


def evaluate_registration(
    pairs: Iterable[LandmarkPair],
    *,
    perturbations: int = 0,
    refine: Refine = "none",
    workers: int = 1,
) -> dict[str, Any]:
    """Register every pair and measure the distance between its landmarks.

    Parameters
    ----------
    perturbations
        How often each pair is registered again after its moving image was made harder
        (:func:`ki67.perturbation.perturb`).
    refine
        What follows the rigid transform.
    workers
        Processes. Seconds are those of one registration among as many at a time.

    Returns
    -------
    ``{"pairs": [...], "perturbed": {...}}``: a record a pair as :func:`evaluate_pair` gives it, with those of its
    perturbations as ``"perturbed"``; and how many of all perturbations did well.
    """
    records = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_use_one_thread) as pool:
        for pair in pairs:
            jobs = [pool.submit(evaluate_pair, pair, number, refine) for number in (None, *range(perturbations))]
            shown = tqdm(jobs, desc=f"registering {pair.name}", unit="run", disable=perturbations == 0)
            whole, *perturbed = [job.result() for job in shown]
            records.append(whole | {"perturbed": perturbed})
    return {"pairs": records, "perturbed": summarize([run for record in records for run in record["perturbed"]])}


def evaluate_pair(pair: LandmarkPair, perturbation: int | None = None, refine: Refine = "none") -> dict[str, Any]:
    """Register one pair; distances between landmarks in px and µm, null where registration gave no transform.

    Only landmarks inside both images count. The best rigid (mirror image allowed) and affine transforms are
    least-squares fits to these very landmarks, so no registration can be much better.

    Parameters
    ----------
    perturbation
        Number of the perturbation of the moving image; none for the image as it is.
    """
    moving_rgb, moving_px = pair.moving_rgb, pair.moving_landmarks_px
    inside = _inside(pair.fixed_landmarks_px, pair.fixed_rgb) & _inside(moving_px, moving_rgb)
    harder: dict[str, Any] = {}
    if perturbation is not None:
        perturbed = perturb(moving_rgb, moving_px, pair.mpp, (perturbation,))
        moving_rgb, inside = perturbed.rgb, inside & perturbed.kept
        moving_px = moving_px @ perturbed.matrix[:2, :2].T + perturbed.matrix[:2, 2]
        names = ("angle_deg", "mirror", "cropped_share", "control_tissue")
        harder = {"number": perturbation, **{f"given_{name}": getattr(perturbed, name) for name in names}}
    fixed, moving = pair.fixed_landmarks_px[inside], moving_px[inside]
    if len(fixed) < FEWEST_LANDMARKS:
        raise Ki67Error(f"{pair.name}: {len(fixed)} landmarks lie inside both images; {FEWEST_LANDMARKS} are needed")
    found = register_images(pair.fixed_rgb, moving_rgb, pair.mpp, refine=refine)
    diagonal_px = float(np.hypot(*pair.fixed_rgb.shape[:2]))
    return {
        "pair": pair.name,
        **harder,
        **_errors(found, fixed, moving, pair.mpp, diagonal_px),
        "best_rigid_median_px": float(np.median(distances(fit_rigid(fixed, moving), fixed, moving))),
        "best_affine_median_px": float(np.median(distances(fit_affine(fixed, moving), fixed, moving))),
        "initial_median_px": float(np.median(distances(np.eye(3), fixed, moving))),
        "landmarks": len(fixed),
        **found.to_json(),
    }


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of many registrations: which share came near the best rigid fit, and how the verdict fared.

    A run is right if its median error is at most 1.15 times that of the best rigid fit. The estimated error is close if
    it lies within a factor of 2, or 10 µm, of the median error.
    """
    right = [run["median_px"] is not None and run["median_px"] <= NEAR * run["best_rigid_median_px"] for run in runs]
    accepted = [run["verdict"] == "accepted" for run in runs]
    judged = [run for run in runs if run["median_um"] is not None and run["estimated_error_um"] is not None]
    return {
        "runs": len(runs),
        "right": sum(right),
        "not_right_but_accepted": sum(a and not r for a, r in zip(accepted, right, strict=True)),
        "right_but_rejected": sum(r and run["verdict"] == "rejected" for r, run in zip(right, runs, strict=True)),
        "right_but_doubtful": sum(r and run["verdict"] == "doubtful" for r, run in zip(right, runs, strict=True)),
        "judged": len(judged),
        "estimate_close": sum(_is_close(run["estimated_error_um"], run["median_um"]) for run in judged),
    }


def _is_close(estimate_um: float, error_um: float) -> bool:
    return abs(estimate_um - error_um) <= CLOSE_UM or error_um / 2 <= estimate_um <= 2 * error_um


def _use_one_thread() -> None:
    cv2.setNumThreads(1)


def register_images(
    fixed_rgb: NDArray[np.uint8],
    moving_rgb: NDArray[np.uint8],
    mpp: float,
    *,
    mirror: bool = True,
    refine: Refine = "none",
) -> Registration:
    """Register two images as the workflow registers the thumbnails of two slides."""
    at_mpp = max(mpp, FINEST_MPP)
    fixed, fixed_tissue = seen_as_slide(fixed_rgb, mpp, at_mpp, "he")
    moving, moving_tissue = seen_as_slide(moving_rgb, mpp, at_mpp, "ki67")
    return register(fixed, fixed_tissue, moving, moving_tissue, mpp=at_mpp, mirror=mirror, refine=refine)


def seen_as_slide(rgb: NDArray[np.uint8], mpp: float, at_mpp: float, stain: Stain) -> tuple[NDArray[np.uint8], Mask]:
    """Thumbnail of an image at ``at_mpp`` and its tissue, as the workflow makes them of a slide."""
    thumbnail = ImageReader(rgb, "array", mpp=mpp, slide_id="", stain=stain).thumbnail(at_mpp)
    return thumbnail, find_tissue(thumbnail, at_mpp, stain).mask


def _errors(
    found: Registration, fixed: NDArray[np.float64], moving: NDArray[np.float64], mpp: float, diagonal_px: float
) -> dict[str, float | None]:
    names = ("median_px", "p90_px", "max_px", "median_um", "median_percent_of_diagonal")
    if found.transform is None:
        return dict.fromkeys(names)
    errors_px = np.linalg.norm(found.transform.apply(fixed * mpp) / mpp - moving, axis=1)
    median_px = float(np.median(errors_px))
    values = (median_px, np.percentile(errors_px, 90), errors_px.max(), median_px * mpp, 100 * median_px / diagonal_px)
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _inside(points_px: NDArray[np.float64], image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    height, width = image.shape[:2]
    return np.all((points_px >= 0) & (points_px < [width, height]), axis=1)


def _read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Ki67Error(f"{path.name} cannot be read as a table: {error}") from error
    lacking = [name for name in columns if not records or records[0].get(name) is None]
    if lacking:
        raise Ki67Error(f"{path.name} has no row with {', '.join(lacking)}; it needs the columns {', '.join(columns)}")
    return records


def _number(table: Path, record: dict[str, str], column: str) -> float:
    try:
        value = float(record[column])
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise Ki67Error(f"{table.name}, pair {record['pair']}: {column} is {record[column]!r}; it must be above 0")
    return value


def _read_points(path: Path) -> NDArray[np.float64]:
    """Columns X and Y of a table of landmarks."""
    records = _read_table(path, ("X", "Y"))
    try:
        return np.array([[float(record["X"]), float(record["Y"])] for record in records])
    except (TypeError, ValueError) as error:
        raise Ki67Error(f"{path.name}: a landmark is not a number ({error})") from error


def _read_image(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except IMAGE_ERRORS as error:
        raise Ki67Error(f"{path.name} cannot be read as an image; check the paths in the table of pairs") from error
