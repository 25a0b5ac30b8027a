"""Reads windows of a slide with one reader and says what that took; run in the environment that has the reader.

Imports only what the reader needs, so that the peers can be measured without ``ki67``.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

RgbImage = NDArray[np.uint8]
ReadLevel = Callable[[int, int, int, int], Any]
"""Pixels ``(height, width, 3 or 4)`` of a level, from ``column, row, width, height`` in pixels of that level."""

CACHE_BYTES = 128 * 2**20
"""As much as ``ki67.slides`` keeps of decoded tiles; for the peers that keep no decoded tiles it says nothing."""


@dataclass(frozen=True)
class Plan:
    """Windows to read, and the level they come from.

    Attributes
    ----------
    level, downsample
        Pyramid level, and how many pixels of level 0 one of its pixels spans.
    factor
        Pixels of the level that are averaged, along each axis, into one of the result.
    level_mpp
        Microns per pixel of the level.
    width_px, height_px
        Of a window of the result.
    corners
        Column and row of each window, in pixels of the level.
    """

    level: int
    downsample: float
    factor: int
    level_mpp: float
    width_px: int
    height_px: int
    corners: tuple[tuple[int, int], ...]

    @property
    def megapixels(self) -> float:
        """Of all windows together, in pixels of the result."""
        return len(self.corners) * self.width_px * self.height_px / 1e6


@dataclass(frozen=True)
class Reader:
    """A reader, the package its version is that of, and how it opens a level."""

    package: str
    open_level: Callable[[Path, Plan], ReadLevel]


# ---------------------------------------------------------------------------------------------- the readers


def open_with_openslide(path: Path, plan: Plan) -> ReadLevel:
    """``openslide-python`` as its documentation uses it."""
    import openslide

    slide = openslide.OpenSlide(path)
    slide.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
    return lambda *box: slide.read_region(_at_level_0(box, plan), plan.level, box[2:]).convert("RGB")


def open_with_tiffslide(path: Path, plan: Plan) -> ReadLevel:
    """TiffSlide, which reads through tifffile, imagecodecs and zarr."""
    import tiffslide

    slide = tiffslide.TiffSlide(path)
    return lambda *box: slide.read_region(_at_level_0(box, plan), plan.level, box[2:], as_array=True)


def open_with_fastslide(path: Path, plan: Plan) -> ReadLevel:
    """FastSlide, whose positions are those of the level."""
    import fastslide

    slide = fastslide.FastSlide.from_file_path(path, cache=CACHE_BYTES)
    return lambda *box: slide.read_region(box[:2], plan.level, box[2:]).numpy()


def open_with_tifffile_zarr(path: Path, plan: Plan) -> ReadLevel:
    """The level as tifffile's zarr array; imagecodecs decodes."""
    import tifffile
    import zarr

    pixels = zarr.open(tifffile.TiffFile(path).aszarr(level=plan.level), mode="r")
    return lambda column, row, width, height: pixels[row : row + height, column : column + width]


def open_with_tifffile_tiles(path: Path, plan: Plan) -> ReadLevel:
    """The level's tiles one by one: tifffile knows where they are, imagecodecs decodes, nothing is kept."""
    import tifffile

    tiff = tifffile.TiffFile(path)
    page = tiff.series[0].levels[plan.level].keyframe
    lock = threading.Lock()
    return lambda *box: _from_tiles(page, tiff.filehandle, lock, *box)


def open_with_slideio(path: Path, plan: Plan) -> ReadLevel:
    """slideio, of level 0 only; other TIFF than Aperio's it reads through GDAL, which took minutes here."""
    import slideio

    if path.suffix.lower() != ".svs" or plan.level:
        raise ValueError("measured on level 0 of SVS only")
    scene = slideio.open_slide(str(path), "SVS").get_scene(0)
    return lambda *box: scene.read_block(box)


def open_with_pyvips(path: Path, plan: Plan) -> ReadLevel:
    """libvips' own TIFF loader; a region belongs to one thread."""
    import pyvips

    own = threading.local()

    def read(column: int, row: int, width: int, height: int) -> RgbImage:
        if not hasattr(own, "region"):
            own.image = pyvips.Image.tiffload(str(path), page=_vips_page(path, plan))
            own.region = pyvips.Region.new(own.image)
        data = own.region.fetch(column, row, width, height)
        return np.frombuffer(data, np.uint8).reshape(height, width, own.image.bands)

    return read


def open_with_cucim(path: Path, plan: Plan) -> ReadLevel:
    """cuCIM on the processor."""
    from cucim.clara import CuImage

    slide = CuImage(str(path))
    return lambda *box: slide.read_region(_at_level_0(box, plan), box[2:], plan.level)


READERS = {
    "OpenSlide": Reader("openslide-python", open_with_openslide),
    "tiffslide": Reader("tiffslide", open_with_tiffslide),
    "FastSlide": Reader("fastslide", open_with_fastslide),
    "tifffile, zarr": Reader("tifffile", open_with_tifffile_zarr),
    "tifffile, tiles": Reader("tifffile", open_with_tifffile_tiles),
    "slideio": Reader("slideio", open_with_slideio),
    "pyvips": Reader("pyvips", open_with_pyvips),
    "cuCIM": Reader("cucim-cu12", open_with_cucim),
}
OURS = "ki67"


def _at_level_0(box: tuple[int, ...], plan: Plan) -> tuple[int, int]:
    return round(box[0] * plan.downsample), round(box[1] * plan.downsample)


def _vips_page(path: Path, plan: Plan) -> int:
    """The page of the file that holds the level."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        return int(tiff.series[0].levels[plan.level].keyframe.index)


def _from_tiles(page: Any, file: Any, lock: threading.Lock, column: int, row: int, width: int, height: int) -> RgbImage:
    result = np.empty((height, width, 3), dtype=np.uint8)
    across = -(-page.imagewidth // page.tilewidth)
    for tile_row in range(row // page.tilelength, -(-(row + height) // page.tilelength)):
        for tile_column in range(column // page.tilewidth, -(-(column + width) // page.tilewidth)):
            index = tile_row * across + tile_column
            with lock:
                file.seek(page.dataoffsets[index])
                data = file.read(page.databytecounts[index])
            tile, (*_, top, left, _), _ = page.decode(data, index, jpegtables=page.jpegtables)
            _paste(result, tile[0], left - column, top - row)
    return result


def _paste(target: RgbImage, tile: RgbImage, left: int, top: int) -> None:
    """Put a tile where it belongs, as far as it is inside the target."""
    (height, width), (tile_height, tile_width) = target.shape[:2], tile.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + tile_width, width), min(top + tile_height, height)
    target[y0:y1, x0:x1] = tile[y0 - top : y1 - top, x0 - left : x1 - left]


# ---------------------------------------------------------------------------------------------- measuring


def open_windows(name: str, path: Path, plan: Plan) -> Callable[[tuple[int, int]], RgbImage]:
    """A function from a window's corner in pixels of the level to RGB at the wanted resolution."""
    if name == OURS:
        from ki67.slides import open_slide

        slide, mpp = open_slide(path, slide_id="slide", stain="he"), plan.level_mpp
        size_px = plan.width_px, plan.height_px
        return lambda corner: slide.read(corner[0] * mpp, corner[1] * mpp, *size_px, plan.factor * mpp)
    read_level = READERS[name].open_level(path, plan)
    size_px = plan.width_px * plan.factor, plan.height_px * plan.factor
    return lambda corner: _averaged(np.asarray(read_level(*corner, *size_px))[..., :3], plan)


def _averaged(pixels: RgbImage, plan: Plan) -> RgbImage:
    """The mean of every ``factor`` x ``factor`` pixels; contiguous, as a network or OpenCV takes it."""
    if plan.factor == 1:
        return np.ascontiguousarray(pixels)
    return np.asarray(cv2.resize(pixels, (plan.width_px, plan.height_px), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def measure(name: str, path: Path, plan: Plan, *, threads: int, repeats: int) -> dict[str, float]:
    """The least processor and wall time of ``repeats`` passes over all windows, each with a newly opened slide."""
    cpu_s, wall_s = zip(*(_one_pass(name, path, plan, threads) for _ in range(repeats)), strict=True)
    return {"cpu_s": min(cpu_s), "wall_s": min(wall_s)}


def _one_pass(name: str, path: Path, plan: Plan, threads: int) -> tuple[float, float]:
    """Processor time of the whole process, threads of the reader's own included, and wall time."""
    read = open_windows(name, path, plan)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(abs, range(threads)))  # the threads exist before the clock starts
        started = time.process_time(), time.perf_counter()
        for _ in pool.map(read, plan.corners):
            pass
        return time.process_time() - started[0], time.perf_counter() - started[1]


def _version(name: str) -> str:
    return version(READERS[name].package) if name in READERS else version("openslide-python")


def main() -> None:
    """Measure one reader; writes the windows' pixels if ``--pixels`` is given, and prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--reader", choices=[OURS, *READERS], required=True)
    parser.add_argument("--plan", type=json.loads, required=True, help="fields of Plan as JSON")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pixels", type=Path, help=".npy file for all windows, uint8 (N, H, W, 3)")
    arguments = parser.parse_args()
    if sorted(arguments.threads) != arguments.threads or any(a == b for a, b in pairwise(arguments.threads)):
        parser.error(f"--threads {arguments.threads} must rise")
    corners = tuple((column, row) for column, row in arguments.plan.pop("corners"))
    plan = Plan(corners=corners, **arguments.plan)
    cv2.setNumThreads(1)
    read = open_windows(arguments.reader, arguments.slide, plan)
    pixels = np.stack([read(corner) for corner in plan.corners])
    if arguments.pixels:
        np.save(arguments.pixels, pixels)
    runs = {
        threads: measure(arguments.reader, arguments.slide, plan, threads=threads, repeats=arguments.repeats)
        for threads in arguments.threads
    }
    print(json.dumps({"version": _version(arguments.reader), "runs": runs}))


if __name__ == "__main__":
    main()
