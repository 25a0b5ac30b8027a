"""Drawing a pair of slides with its truth into a folder, block by block in a pool of processes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from joblib import Parallel, cpu_count, delayed  # type: ignore[import-untyped]
from numpy.typing import NDArray

import ki67
from ki67.errors import Stain
from ki67.phantom.look import Look
from ki67.phantom.nuclei import REACH_UM, TUMOR, Section
from ki67.phantom.paint import Painting, expose, paint
from ki67.phantom.pair import BLOCK_HEIGHT_PX, BLOCK_WIDTH_PX, PairPlan, PhantomOptions, SlidePlan, plan_pair
from ki67.phantom.pyramid import Band, TileRow, encode_tiles, reduce_image, write_pyramid
from ki67.phantom.truth import NUCLEI_SCHEMA, nuclei_table, tumor_annotations


@dataclass(frozen=True)
class _Block:
    """A painted block, compressed, and the nuclei whose centres lie in it."""

    tile_rows: list[TileRow]
    reduced: NDArray[np.uint8]
    nuclei: pa.Table


def draw_slides(options: PhantomOptions, folder: Path, *, workers: int | None = None) -> None:
    """Write ``he.tif``, ``ki67.tif`` and ``truth/`` into a folder; nothing is there before everything is whole.

    The same options give the same bytes, whatever the number of workers.

    Parameters
    ----------
    workers
        Processes; the number of processors where it is ``None``.

    Raises
    ------
    Ki67Error
        If an option is out of its range.
    """
    plan = plan_pair(options)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".drawing-") as scratch_name:
        scratch = Path(scratch_name)
        (scratch / "truth").mkdir()
        truth = _write_truth(options, plan, scratch / "truth")
        # Not the pool of the standard library: its processes would run a Snakemake script, being __main__, once more.
        parallel = Parallel(n_jobs=workers or cpu_count(), return_as="generator", batch_size=1)
        for stain in options.stains:
            counts = _write_slide(plan.slides[stain], stain, scratch, parallel)
            truth |= counts if stain == "ki67" else {}
        (scratch / "truth" / "truth.json").write_text(json.dumps(truth, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder / "truth", ignore_errors=True)
        for made in [*(scratch / f"{stain}.tif" for stain in options.stains), scratch / "truth"]:
            made.replace(folder / made.name)


def _write_truth(options: PhantomOptions, plan: PairPlan, folder: Path) -> dict[str, Any]:
    """Write transform and outlines; return what truth.json says of them."""
    areas: dict[str, float] = {}
    for stain in options.stains:
        annotations, areas[f"tumor_{stain}_mm2"] = tumor_annotations(plan.slides[stain])
        (folder / f"tumor_{stain}.geojson").write_text(json.dumps(annotations), encoding="utf-8")
    (folder / "transform.json").write_text(json.dumps(plan.transform.to_json(), indent=2) + "\n", encoding="utf-8")
    return {
        "version": ki67.__version__,
        "options": asdict(options),
        "tissue_mm2": plan.tissue_mm2,
        **areas,
        "looks": {stain: asdict(plan.slides[stain].section.look) for stain in options.stains},
    }


def _write_slide(plan: SlidePlan, stain: Stain, folder: Path, parallel: Parallel) -> dict[str, Any]:
    """Write a slide and, for Ki-67, its nuclei; return counts for truth.json."""
    counts = {"tumor_nuclei": 0, "positive_tumor_nuclei": 0, "nuclei": 0}
    with (
        pq.ParquetWriter(folder / "truth" / "nuclei.parquet", NUCLEI_SCHEMA) if stain == "ki67" else _nowhere() as rows
    ):

        def bands() -> Iterator[Band]:
            for row in _painted_rows(plan, parallel):
                table = pa.concat_tables([block.nuclei for block in row])
                _count(counts, table)
                if rows is not None:
                    rows.write_table(table)
                tile_rows = [list(chain(*parts)) for parts in zip(*(block.tile_rows for block in row), strict=True)]
                yield Band(tile_rows, np.concatenate([block.reduced for block in row], axis=1))

        write_pyramid(folder / f"{stain}.tif", plan.width_px, plan.height_px, plan.mpp, bands(), folder)
    total = counts["tumor_nuclei"]
    return {**counts, "index": counts["positive_tumor_nuclei"] / total if total else None}


@contextmanager
def _nowhere() -> Iterator[None]:
    yield None


def _count(counts: dict[str, int], table: pa.Table) -> None:
    tumor = np.asarray(table["kind"].combine_chunks().indices) == TUMOR
    positive = np.asarray(table["positive"])
    counts["nuclei"] += len(table)
    counts["tumor_nuclei"] += int(tumor.sum())
    counts["positive_tumor_nuclei"] += int((tumor & positive).sum())


def _painted_rows(plan: SlidePlan, parallel: Parallel) -> Iterator[list[_Block]]:
    """Rows of blocks from top to bottom."""
    columns = range(0, plan.width_px, BLOCK_WIDTH_PX)
    tops = range(0, plan.height_px, BLOCK_HEIGHT_PX)
    blocks = iter(parallel(delayed(_draw_block)(plan, left, top) for top in tops for left in columns))
    for _ in tops:
        yield list(islice(blocks, len(columns)))


def _draw_block(plan: SlidePlan, left_px: int, top_px: int) -> _Block:
    """Paint and compress the block whose top-left pixel is given."""
    cv2.setNumThreads(1)  # blocks are drawn side by side
    section = plan.control if plan.control is not None and left_px < plan.control_px else plan.section
    width, height = min(BLOCK_WIDTH_PX, plan.width_px - left_px), min(BLOCK_HEIGHT_PX, plan.height_px - top_px)
    box = _stained_box(section, left_px, top_px, width, height, plan.mpp)
    if box is None:
        return _glass_block(section.look, width, height)
    x_um, y_um = (left_px + box.left) * plan.mpp, (top_px + box.top) * plan.mpp
    painting = paint(section, x_um, y_um, box.right - box.left, box.bottom - box.top, plan.mpp)
    rgb = _glass(section.look, width, height).copy()
    rgb[box.top : box.bottom, box.left : box.right] = painting.rgb
    return _Block(encode_tiles(rgb), reduce_image(rgb), _owned_nuclei(painting, x_um, y_um, plan.mpp))


def _owned_nuclei(painting: Painting, x_um: float, y_um: float, mpp: float) -> pa.Table:
    """Nuclei whose centres lie in a painted window with this corner."""
    nuclei, (height, width) = painting.nuclei, painting.labels.shape
    columns = np.floor((nuclei.x_um - x_um) / mpp).astype(np.int64)
    rows = np.floor((nuclei.y_um - y_um) / mpp).astype(np.int64)
    owned = (columns >= 0) & (rows >= 0) & (columns < width) & (rows < height)
    return nuclei_table(nuclei.take(owned), painting.tumor_um[rows[owned], columns[owned]] > 0)


@dataclass(frozen=True)
class _Box:
    """Part of a block in pixels; right and bottom are outside."""

    left: int
    top: int
    right: int
    bottom: int


def _stained_box(section: Section, left_px: int, top_px: int, width_px: int, height_px: int, mpp: float) -> _Box | None:
    """The part of a block that holds all its tissue and ink, ``None`` if it is empty glass."""
    step_px = round(16.0 / mpp)
    columns, rows = np.arange(0, width_px + step_px, step_px), np.arange(0, height_px + step_px, step_px)
    x, y = np.meshgrid((left_px + columns) * mpp, (top_px + rows) * mpp)
    ink = section.artifacts.pen(*section.layout_points(x, y))
    stained = (section.site(x, y).tissue_um > -2 * REACH_UM) | (ink > 0)
    if not stained.any():
        return None
    (left, right), (top, bottom) = (np.flatnonzero(stained.any(axis=axis))[[0, -1]] * step_px for axis in (0, 1))
    return _Box(
        max(0, int(left) - step_px),
        max(0, int(top) - step_px),
        min(width_px, int(right) + step_px),
        min(height_px, int(bottom) + step_px),
    )


@lru_cache(maxsize=8)
def _glass(look: Look, width_px: int, height_px: int) -> NDArray[np.uint8]:
    """Empty glass; all blocks of one size are alike, as they are whole tiles of the camera's noise."""
    light = np.empty((height_px, width_px, 3), dtype=np.float32)
    light[:] = look.white
    return expose(light, look, (0, 0))


@lru_cache(maxsize=8)
def _glass_block(look: Look, width_px: int, height_px: int) -> _Block:
    rgb = _glass(look, width_px, height_px)
    return _Block(encode_tiles(rgb), reduce_image(rgb), NUCLEI_SCHEMA.empty_table())
