"""The slide of the benchmark: fields of Ki-67 tissue laid edge to edge, and cut-outs of a slide."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from joblib import Parallel, cpu_count, delayed  # type: ignore[import-untyped]
from numpy.typing import NDArray

from ki67.phantom.pyramid import TILE_PX, Band, reduce_image, write_pyramid
from ki67.slides import open_slide
from ki67.storage import whole
from ki67.training.drawn import FieldOptions, draw_field

MPP = 0.5
FIELD_PX = 512
JPEG_QUALITY = 90
FEWEST_NUCLEI_PER_MM2 = 2000
"""Fields with fewer nuclei hold much glass, fat or blood, and would make the slide cheaper than tissue is."""


def make_slide(path: Path, *, side_px: int, fields: int, seed: int, workers: int | None = None) -> None:
    """Write a square slide full of Ki-67 tissue, a tiled pyramidal TIFF.

    Parameters
    ----------
    side_px
        A multiple of the side of a field, 512.
    fields
        How many distinct fields are painted; they are laid out in random order, each turned and mirrored at random.
    seed
        Of the fields and their order.
    workers
        Processes that paint.
    """
    if side_px % FIELD_PX:
        raise ValueError(f"the side is {side_px} px; give a multiple of {FIELD_PX}")
    painted = paint_fields(fields, seed, workers)
    _write(path, side_px, side_px, MPP, laid_out(painted, side_px // FIELD_PX, seed))


def paint_fields(number: int, seed: int, workers: int | None = None) -> list[NDArray[np.uint8]]:
    """Distinct fields uint8 ``(512, 512, 3)`` that hold at least ``FEWEST_NUCLEI_PER_MM2``."""
    options = FieldOptions(kind="nuclei", count=number, size_px=FIELD_PX, mpp=MPP, seed=seed)
    parallel = Parallel(n_jobs=workers or cpu_count(), return_as="generator")
    result: list[NDArray[np.uint8]] = []
    for first in count(step=number):
        drawn = parallel(delayed(_dense_field)(options, index) for index in range(first, first + number))
        result += [field for field in drawn if field is not None]
        if len(result) >= number:
            return result[:number]
    raise AssertionError("unreachable")


def _dense_field(options: FieldOptions, index: int) -> NDArray[np.uint8] | None:
    cv2.setNumThreads(1)  # fields are drawn side by side
    field = draw_field(options, index)
    assert field.labels is not None
    area_mm2 = (options.size_px * options.mpp / 1000) ** 2
    return field.rgb if int(field.labels.max()) >= FEWEST_NUCLEI_PER_MM2 * area_mm2 else None


def laid_out(fields: list[NDArray[np.uint8]], across: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Rows of fields from top to bottom, ``(512, 512 * across, 3)``; all fields come equally often, or once more."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(fields)) for _ in range(-(-(across**2) // len(fields)))])
    for row in order[: across**2].reshape(across, across):
        turned = (np.rot90(fields[index], rng.integers(4)) for index in row)
        yield np.concatenate([field[:, ::-1] if rng.random() < 0.5 else field for field in turned], axis=1)


def crop_slide(source: Path, path: Path, *, side_px: int, mpp: float = MPP) -> None:
    """Write the top-left square of a slide as a slide of its own.

    Parameters
    ----------
    side_px
        In pixels at ``mpp``, a multiple of 512.
    """
    with open_slide(source, slide_id=source.stem, stain="ki67") as slide:
        step_um = FIELD_PX * mpp
        bands = (slide.read(0.0, row * step_um, side_px, FIELD_PX, mpp) for row in range(side_px // FIELD_PX))
        _write(path, side_px, side_px, mpp, bands)


def _write(path: Path, width_px: int, height_px: int, mpp: float, rows: Iterator[NDArray[np.uint8]]) -> None:
    bands = (Band(_encoded(rgb), reduce_image(rgb)) for rgb in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial, tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        write_pyramid(partial, width_px, height_px, mpp, bands, Path(scratch))


def _encoded(rgb: NDArray[np.uint8]) -> list[list[bytes]]:
    """JPEG streams of the tiles of whole rows of tiles."""
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    settings = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]

    def encode(top: int, left: int) -> bytes:
        return bytes(cv2.imencode(".jpg", bgr[top : top + TILE_PX, left : left + TILE_PX], settings)[1])

    height, width = rgb.shape[:2]
    return [[encode(top, left) for left in range(0, width, TILE_PX)] for top in range(0, height, TILE_PX)]
