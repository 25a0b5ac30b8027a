"""How far landmarks lie apart after registration, beside the best that any rigid or affine transform could do."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ki67.errors import Ki67Error, Stain
from ki67.geometry import Mask
from ki67.landmarks import distances, fit_affine, fit_rigid
from ki67.registration import FINEST_MPP, Registration, register
from ki67.slides import ImageReader
from ki67.tissue import find_tissue

COLUMNS = ("pair", "fixed", "moving", "fixed_landmarks", "moving_landmarks", "landmark_scale", "mpp")
FEWEST_LANDMARKS = 3
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


def evaluate_registration(pairs: Iterable[LandmarkPair]) -> dict[str, Any]:
    """Register every pair and measure the distance between its landmarks.

    Returns
    -------
    ``{"pairs": [...]}``, one record a pair as :func:`evaluate_pair` gives it.
    """
    return {"pairs": [evaluate_pair(pair) for pair in pairs]}


def evaluate_pair(pair: LandmarkPair) -> dict[str, Any]:
    """Register one pair; distances between landmarks in px and µm, null where registration gave no transform.

    Only landmarks inside both images count. The best rigid (mirror image allowed) and affine transforms are
    least-squares fits to these very landmarks, so no registration can be much better.
    """
    found = register_images(pair.fixed_rgb, pair.moving_rgb, pair.mpp)
    inside = _inside(pair.fixed_landmarks_px, pair.fixed_rgb) & _inside(pair.moving_landmarks_px, pair.moving_rgb)
    fixed, moving = pair.fixed_landmarks_px[inside], pair.moving_landmarks_px[inside]
    if len(fixed) < FEWEST_LANDMARKS:
        raise Ki67Error(f"{pair.name}: {len(fixed)} landmarks lie inside both images; {FEWEST_LANDMARKS} are needed")
    diagonal_px = float(np.hypot(*pair.fixed_rgb.shape[:2]))
    return {
        "pair": pair.name,
        **_errors(found, fixed, moving, pair.mpp, diagonal_px),
        "best_rigid_median_px": float(np.median(distances(fit_rigid(fixed, moving), fixed, moving))),
        "best_affine_median_px": float(np.median(distances(fit_affine(fixed, moving), fixed, moving))),
        "initial_median_px": float(np.median(distances(np.eye(3), fixed, moving))),
        "landmarks": len(fixed),
        **found.to_json(),
        "perturbed": [],
    }


def register_images(fixed_rgb: NDArray[np.uint8], moving_rgb: NDArray[np.uint8], mpp: float) -> Registration:
    """Register two images as the workflow registers the thumbnails of two slides."""
    at_mpp = max(mpp, FINEST_MPP)
    fixed, fixed_tissue = _seen_as_slide(fixed_rgb, mpp, at_mpp, "he")
    moving, moving_tissue = _seen_as_slide(moving_rgb, mpp, at_mpp, "ki67")
    return register(fixed, fixed_tissue, moving, moving_tissue, mpp=at_mpp)


def _seen_as_slide(rgb: NDArray[np.uint8], mpp: float, at_mpp: float, stain: Stain) -> tuple[NDArray[np.uint8], Mask]:
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
