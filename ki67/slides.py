"""Whole-slide files and plain images behind one reader that takes microns and gives RGB pixels.

Three scales meet in a read. *Wanted*: the caller's ``mpp``, and a position in microns of the slide's frame. *Level*:
the pyramid level that is read, the coarsest that is not coarser than wanted. *Level 0*: the pixels OpenSlide counts
positions in. Pixels of level and level 0 exist only inside this module.
"""

from __future__ import annotations

import logging
import math
import re
import stat
import struct
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray
from PIL import Image

from ki67.checksum import file_checksum
from ki67.errors import STAIN_NAMES, ChangedSlideError, Finding, Flag, SlideError, Stain
from ki67.jpeg_tiles import JpegTiles, TileLayout, tile_layouts

FINEST_MPP = 0.05
COARSEST_MPP = 1.1  # nuclei are scored at 0.5 µm/px; from more than about twice that they cannot be told apart
LARGEST_MPP_RATIO = 1.1
LARGEST_IMAGE_MEGAPIXELS = 150
MOST_PAGES = 10_000
LARGEST_SIDE_MM = 300  # the largest glass in use, for whole prostates and brains, has 200 mm
LEVEL_TOLERANCE = 1.02  # a level this little coarser than wanted is read rather than the next finer one
BLOCK_PX = 4096  # a read is cut so that no piece decodes more than about this many level pixels squared
CACHE_BYTES = 128 * 2**20  # holds a row of tiles of a 40x slide, which the next row of tiles shares in part
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PLAIN_TILE_VENDORS = ("aperio", "generic-tiff")  # their levels are TIFF pages without overlap or offsets
PICTURE_FORMATS = ("PNG", "JPEG", "BMP")

RgbImage = NDArray[np.uint8]


def slide_error(flag: Flag, slide_id: str, stain: Stain, text: str) -> SlideError:
    """The error ``"<id>: the <stain> slide <text>"`` with its finding."""
    return SlideError(Finding(flag, f"{slide_id}: the {STAIN_NAMES[stain]} slide {text}", stain))


class Slide(ABC):
    """One stained section, read by microns; reads may come from many threads at once.

    Attributes
    ----------
    slide_id, stain
        What the sample sheet calls it.
    mpp, mpp_source
        Microns per pixel of level 0, and whether the ``"file"`` or the sample ``"sheet"`` said so.
    reader
        What reads it, such as ``"openslide:aperio"`` or ``"image:png"``.
    width_px, height_px
        Size of level 0.
    """

    def __init__(
        self,
        *,
        slide_id: str,
        stain: Stain,
        mpp: float,
        mpp_source: str,
        reader: str,
        size_px: tuple[int, int],
        level_downsamples: tuple[float, ...] = (1.0,),
    ) -> None:
        self.slide_id = slide_id
        self.stain = stain
        self.mpp = mpp
        self.mpp_source = mpp_source
        self.reader = reader
        self.width_px, self.height_px = size_px
        self._level_mpps = tuple(mpp * downsample for downsample in level_downsamples)

    @property
    def size_um(self) -> tuple[float, float]:
        """Width and height in µm."""
        return self.width_px * self.mpp, self.height_px * self.mpp

    def read(self, x_um: float, y_um: float, width_px: int, height_px: int, mpp: float) -> RgbImage:
        """Pixels of any window at any scale, averaged over area when reduced, white outside the slide.

        Parameters
        ----------
        x_um, y_um
            Top-left corner in the slide's frame; need not lie on a pixel or inside the slide.
        width_px, height_px
            Size of the result.
        mpp
            Microns per pixel of the result.

        Returns
        -------
        uint8 ``(height_px, width_px, 3)``, RGB.

        Raises
        ------
        SlideError
            With flag ``unreadable`` if the file is damaged there.
        """
        level = self._best_level(mpp)
        result = np.empty((height_px, width_px, 3), dtype=np.uint8)
        side_px = max(1, int(BLOCK_PX * self._level_mpps[level] / mpp))
        for column, row, width, height in _blocks(width_px, height_px, side_px):
            block = self._read_block(level, x_um + column * mpp, y_um + row * mpp, width, height, mpp)
            result[row : row + height, column : column + width] = block
        return result

    def thumbnail(self, mpp: float) -> RgbImage:
        """The whole slide at ``mpp``, uint8 ``(ceil(height_um / mpp), ceil(width_um / mpp), 3)``."""
        width, height = (max(1, math.ceil(size / mpp - 1e-6)) for size in self.size_um)
        return self.read(0.0, 0.0, width, height, mpp)

    def close(self) -> None:
        """Let go of the file; the slide cannot be read afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abstractmethod
    def _level_size_px(self, level: int) -> tuple[int, int]:
        """Width and height of a level."""

    @abstractmethod
    def _read_level(self, level: int, column: int, row: int, width: int, height: int) -> RgbImage:
        """Pixels of a window that lies inside the level."""

    def _best_level(self, mpp: float) -> int:
        """The coarsest level that is not coarser than ``mpp``, else level 0."""
        fine_enough = [level for level, size in enumerate(self._level_mpps) if size <= mpp * LEVEL_TOLERANCE]
        return max(fine_enough, key=lambda level: self._level_mpps[level], default=0)

    def _read_block(self, level: int, x_um: float, y_um: float, width: int, height: int, mpp: float) -> RgbImage:
        level_mpp = self._level_mpps[level]
        scale = mpp / level_mpp
        left, top = x_um / level_mpp, y_um / level_mpp
        if _is_whole(scale, 1e-5) and _is_whole(left, 1e-3) and _is_whole(top, 1e-3):
            factor = round(scale)
            pixels = self._read_padded(level, round(left), round(top), width * factor, height * factor)
            return _reduce(pixels, width, height)
        margin = math.ceil(scale) + 2
        column, row = math.floor(left) - margin, math.floor(top) - margin
        read_width, read_height = (math.ceil(size * scale) + 2 * margin + 1 for size in (width, height))
        pixels = self._read_padded(level, column, row, read_width, read_height)
        return _resample(pixels, left - column, top - row, scale, width, height)

    def _read_padded(self, level: int, column: int, row: int, width: int, height: int) -> RgbImage:
        level_width, level_height = self._level_size_px(level)
        left, right = max(column, 0), min(column + width, level_width)
        top, bottom = max(row, 0), min(row + height, level_height)
        if (left, top, right, bottom) == (column, row, column + width, row + height):
            return self._read_level(level, column, row, width, height)
        result = np.full((height, width, 3), 255, dtype=np.uint8)
        if left < right and top < bottom:
            inside = self._read_level(level, left, top, right - left, bottom - top)
            result[top - row : bottom - row, left - column : right - column] = inside
        return result


class OpenSlideReader(Slide):
    """Every format OpenSlide opens; label and macro images are never touched.

    Plain JPEG tiles are decoded past OpenSlide, in a quarter of its time, where that gives its very pixels. OpenSlide
    has the last word on a tile that the decoder refuses, and reads every level on which the two differ.
    """

    def __init__(
        self, handle: openslide.OpenSlide, path: Path, vendor: str, *, mpp: float, mpp_source: str, **names: Any
    ) -> None:
        super().__init__(
            mpp=mpp,
            mpp_source=mpp_source,
            reader=f"openslide:{vendor}",
            size_px=handle.dimensions,
            level_downsamples=handle.level_downsamples,
            **names,
        )
        self._handle = handle
        self._path = path
        self._level_sizes_px = handle.level_dimensions
        self._downsamples = handle.level_downsamples
        handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
        self._tiles = _jpeg_tiles(path, vendor, handle)
        self._reads_tiles = {level: False for level in range(handle.level_count) if level not in self._tiles.layouts}
        self._choice = threading.Lock()

    def close(self) -> None:
        """Close the OpenSlide handle and the file."""
        self._leave_to_openslide()
        self._handle.close()
        self._tiles.close()

    def _level_size_px(self, level: int) -> tuple[int, int]:
        return self._level_sizes_px[level]

    def _read_level(self, level: int, column: int, row: int, width: int, height: int) -> RgbImage:
        if self._chooses_tiles(level):
            with suppress(Exception):  # whatever the reason, OpenSlide has the last word
                return self._tiles.read(level, column, row, width, height)
        location = self._location(level, column, row)
        try:
            return _read_region(self._handle, location, level, (width, height))
        except openslide.OpenSlideError as error:
            # OpenSlide keeps failing on a handle after its first error, so every later read ends here as well.
            self._leave_to_openslide()
            x_mm, y_mm = (position * self.mpp / 1000 for position in location)
            place = f"cannot be decoded near x {x_mm:.2f} mm, y {y_mm:.2f} mm"
            text = f"{place}, so the file is damaged or incomplete; copy it again from its source"
            raise slide_error(Flag.UNREADABLE, self.slide_id, self.stain, text) from error

    def _chooses_tiles(self, level: int) -> bool:
        """Whether the level's tiles are decoded here, which is found out when the level is first read."""
        if level not in self._reads_tiles:
            with self._choice:
                if level not in self._reads_tiles:
                    self._reads_tiles[level] = self._tiles_are_right(level)
        return self._reads_tiles[level]

    def _tiles_are_right(self, level: int) -> bool:
        """Whether a tile with much to see has OpenSlide's pixels."""
        column, row, width, height = self._tiles.layouts[level].longest_tile
        try:
            tile = self._tiles.read(level, column, row, width, height)
            with openslide.OpenSlide(self._path) as handle:  # damage that nobody asked for spoils no read of the slide
                expected = _read_region(handle, self._location(level, column, row), level, (width, height))
        except Exception:  # noqa: BLE001 - damaged or of another kind: not known to be right
            return False
        return np.array_equal(tile, expected)

    def _leave_to_openslide(self) -> None:
        """Decode no more tiles here."""
        with self._choice:
            self._reads_tiles = dict.fromkeys(range(len(self._level_sizes_px)), False)

    def _location(self, level: int, column: int, row: int) -> tuple[int, int]:
        """A position of the level in pixels of level 0."""
        return round(column * self._downsamples[level]), round(row * self._downsamples[level])


class ImageReader(Slide):
    """A plain image without a pyramid, held in memory as one level."""

    def __init__(self, pixels: RgbImage, kind: str, *, mpp: float, **names: Any) -> None:
        size_px = pixels.shape[1], pixels.shape[0]
        super().__init__(mpp=mpp, mpp_source="sheet", reader=f"image:{kind}", size_px=size_px, **names)
        self._pixels = pixels

    def _level_size_px(self, level: int) -> tuple[int, int]:
        return self.width_px, self.height_px

    def _read_level(self, level: int, column: int, row: int, width: int, height: int) -> RgbImage:
        return self._pixels[row : row + height, column : column + width].copy()


def open_slide(path: Path | str, *, slide_id: str, stain: Stain, mpp: float | None = None) -> Slide:
    """Open a slide or a plain image; what the file holds decides, not its suffix.

    Parameters
    ----------
    path
        The file.
    slide_id, stain
        As in the sample sheet; every message names them, and never the path.
    mpp
        Microns per pixel of level 0 from the sample sheet, which go before the file's own.

    Raises
    ------
    SlideError
        With flag ``missing_file``, ``unreadable``, ``no_mpp`` or ``implausible_mpp``.
    """
    path = Path(path)
    _check_file(path, slide_id, stain)
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor is None:
        return _open_image(path, slide_id, stain, mpp)
    _check_complete(path, slide_id, stain)
    try:
        handle = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        if vendor == "generic-tiff":  # a tiled TIFF of a kind OpenSlide lacks (16 bit, say) is still a plain image
            return _open_image(path, slide_id, stain, mpp)
        text = f"is a damaged or incomplete {vendor} file; copy it again from its source"
        raise slide_error(Flag.UNREADABLE, slide_id, stain, text) from error
    try:
        size, source = (mpp, "sheet") if mpp is not None else (_file_mpp(handle, slide_id, stain), "file")
        _check_mpp(size, source, slide_id, stain)
        _check_extent(handle.dimensions, size, slide_id, stain)
    except SlideError:
        handle.close()
        raise
    return OpenSlideReader(handle, path, vendor, mpp=size, mpp_source=source, slide_id=slide_id, stain=stain)


@contextmanager
def open_checked_slide(
    path: Path | str | Sequence[str], checked: Mapping[str, Any] | None, *, slide_id: str, stain: Stain
) -> Iterator[Slide]:
    """Open a slide as ``open_slide`` does, if it still is what the stage check saw, and stays so.

    Parameters
    ----------
    path
        The file; empty where there was none when the job was made.
    checked
        What ``check.json`` says of it, or None where the sheet gives no such slide.

    Raises
    ------
    SlideError
        As ``open_slide``; also if the stage check could not read the file.
    ChangedSlideError
        If the file is gone or has another content than in the stage check, or changes before the block ends.
    """
    file = Path(str(path or "absent"))
    known, mpp = (checked.get("file"), checked.get("mpp")) if checked else (None, None)
    with unchanging(file if known else None, slide_id=slide_id, stain=stain):
        if known and slide_checksum(file) != known:
            raise _changed(slide_id, stain, "is not the file that the stage check saw")
        with open_slide(file, slide_id=slide_id, stain=stain, mpp=mpp) as slide:
            yield slide


@contextmanager
def unchanging(path: Path | str | None, *, slide_id: str, stain: Stain) -> Iterator[None]:
    """Raise ``ChangedSlideError`` if a file is not there, or not the same any more when the block ends.

    None is a file that is known to be absent; nothing is expected of it.
    """
    if not path:
        yield
        return
    before = _file_state(path)
    if before is None:
        raise _changed(slide_id, stain, "was there when the run began and is gone")
    try:
        yield
    except SlideError as error:
        if _file_state(path) != before:
            raise _changed(slide_id, stain, "changed while it was read") from error
        raise
    if _file_state(path) != before:
        raise _changed(slide_id, stain, "changed while it was read")


def _file_state(path: Path | str) -> tuple[int, int] | None:
    """What differs as soon as a file is replaced or written to; None where it cannot be asked."""
    try:
        state = Path(path).stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def _changed(slide_id: str, stain: Stain, what: str) -> ChangedSlideError:
    remedy = "nothing is written of it; put the slide in place and run the workflow again"
    return ChangedSlideError(f"{slide_id}: the {STAIN_NAMES[stain]} slide {what}; {remedy}")


def companion_files(path: Path | str) -> list[Path]:
    """All further files of a slide that consists of many (MRXS, VMS/VMU, DICOM), sorted; empty for all others.

    Goes by the suffix, as it is asked for every slide of a cohort before any job starts.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        return sorted(file for file in path.with_suffix("").rglob("*") if file.is_file())
    if suffix in {".vms", ".vmu"}:
        return _hamamatsu_companions(path)
    if suffix == ".dcm":
        return _dicom_companions(path)
    return []


def slide_checksum(path: Path | str) -> dict[str, Any] | None:
    """Size and checksum of the samples of a slide, with all files that it consists of (``ki67.checksum``)."""
    return file_checksum(path, companion_files(path))


def _check_file(path: Path, slide_id: str, stain: Stain) -> None:
    column = f"column {stain} of {slide_id} in the sample sheet"
    try:
        state = path.stat()
        if stat.S_ISREG(state.st_mode):
            path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise slide_error(Flag.MISSING_FILE, slide_id, stain, f"does not exist; correct {column}") from error
    except OSError as error:
        text = f"cannot be opened ({error.strerror}); give this account the right to read it"
        raise slide_error(Flag.UNREADABLE, slide_id, stain, text) from error
    if not stat.S_ISREG(state.st_mode):  # opening a pipe would wait for ever
        what = "a folder" if stat.S_ISDIR(state.st_mode) else "a pipe or a device"
        raise slide_error(Flag.UNREADABLE, slide_id, stain, f"is {what}, not a file; correct {column}")
    if not state.st_size:
        text = "is an empty file of 0 bytes; copy it again from its source"
        raise slide_error(Flag.UNREADABLE, slide_id, stain, text)


def _check_complete(path: Path, slide_id: str, stain: Stain) -> None:
    """Refuse a TIFF whose own tables point behind the end of the file, which OpenSlide would notice only on reading."""
    needed, found = _tiff_bytes(path), path.stat().st_size
    if needed is None:  # libraries would follow them for ever
        text = "is damaged (its tables lead in a circle); copy it again from its source"
        raise slide_error(Flag.UNREADABLE, slide_id, stain, text)
    if needed > found:
        size = f"{found:,} of at least {needed:,} bytes"
        text = f"is incomplete or damaged (the file holds {size}); copy it again from its source"
        raise slide_error(Flag.UNREADABLE, slide_id, stain, text)


def _tiff_bytes(path: Path) -> int | None:
    """Size that a TIFF file must have by its own tables; 0 where these cannot be understood, or for other files.

    None where a table comes twice or there are more than any slide has.
    """
    try:
        with _opened_tiff(path) as tiff:
            page_offset = _last_page_offset(tiff)
            if page_offset is None or page_offset >= tiff.filehandle.size:
                return page_offset and page_offset + 1
            pieces = [piece for page in tiff.pages for piece in zip(page.dataoffsets, page.databytecounts, strict=True)]
    except Exception:  # noqa: BLE001 - vendors bend TIFF in ways only OpenSlide knows: no evidence, no verdict
        return 0
    return max((offset + count for offset, count in pieces if count), default=0)


def _last_page_offset(tiff: tifffile.TiffFile) -> int | None:
    """Where the last page's table starts, or the first table that would start behind the end of the file.

    None where a damaged chain runs in a circle.
    """
    file, layout = tiff.filehandle, tiff.tiff
    position, offset, met = (8 if layout.is_bigtiff else 4), 0, set[int]()
    while len(met) < MOST_PAGES:
        file.seek(position)
        (following,) = struct.unpack(layout.offsetformat, file.read(layout.offsetsize))
        if following == 0 or following >= file.size:
            return max(offset, following)
        if following in met:
            return None
        met.add(following)
        offset = following
        file.seek(offset)
        (tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
        position = offset + layout.tagnosize + tags * layout.tagsize
    return None


@contextmanager
def _opened_tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    """The TIFF, without a log line for each of thousands of damaged tags."""
    logger = logging.getLogger("tifffile")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with tifffile.TiffFile(path) as tiff:
            yield tiff
    finally:
        logger.setLevel(level)


def _file_mpp(handle: openslide.OpenSlide, slide_id: str, stain: Stain) -> float:
    keys = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
    values = [float(handle.properties[key]) for key in keys if key in handle.properties]
    if not values:
        raise _no_mpp(slide_id, stain)
    if max(values) > LARGEST_MPP_RATIO * min(values):
        text = f"gives {values[0]:.4g} microns per pixel across and {values[1]:.4g} down; {_set_mpp(slide_id, stain)}"
        raise slide_error(Flag.IMPLAUSIBLE_MPP, slide_id, stain, text)
    return float(np.mean(values))


def _jpeg_tiles(path: Path, vendor: str, handle: openslide.OpenSlide) -> JpegTiles:
    """The levels whose tiles can be decoded without OpenSlide, which may be none."""
    layouts: dict[int, TileLayout] = {}
    if vendor in PLAIN_TILE_VENDORS:
        with suppress(Exception), _opened_tiff(path) as tiff:  # vendors bend TIFF in ways only OpenSlide knows
            layouts = tile_layouts([page.aspage() for page in tiff.pages], handle.level_dimensions)
    # A position times another downsample may lie between pixels of the level, where OpenSlide interpolates.
    whole = {level for level, downsample in enumerate(handle.level_downsamples) if downsample == int(downsample)}
    layouts = {level: layout for level, layout in layouts.items() if level in whole}
    return JpegTiles(path.open("rb"), layouts, cache_bytes=CACHE_BYTES)


def _read_region(
    handle: openslide.OpenSlide, location: tuple[int, int], level: int, size_px: tuple[int, int]
) -> RgbImage:
    return _on_white(np.asarray(handle.read_region(location, level, size_px)))


def _set_mpp(slide_id: str, stain: Stain) -> str:
    return f"set mpp_{stain} for {slide_id} in the sample sheet"


def _no_mpp(slide_id: str, stain: Stain) -> SlideError:
    return slide_error(Flag.NO_MPP, slide_id, stain, f"gives no microns per pixel; {_set_mpp(slide_id, stain)}")


def _check_mpp(mpp: float, source: str, slide_id: str, stain: Stain) -> None:
    if FINEST_MPP <= mpp <= COARSEST_MPP:
        return
    by = "in the sample sheet" if source == "sheet" else "in its file"
    remedy = f"correct mpp_{stain} for {slide_id}" if source == "sheet" else _set_mpp(slide_id, stain)
    text = f"has {mpp:.4g} microns per pixel {by}, and only {FINEST_MPP} to {COARSEST_MPP} can be scored; {remedy}"
    raise slide_error(Flag.IMPLAUSIBLE_MPP, slide_id, stain, text)


def _check_extent(size_px: tuple[int, int], mpp: float, slide_id: str, stain: Stain) -> None:
    """Refuse what no glass slide can be, before memory is asked for it."""
    width_mm, height_mm = (side * mpp / 1000 for side in size_px)
    if max(width_mm, height_mm) > LARGEST_SIDE_MM:
        size = f"{width_mm:.0f} x {height_mm:.0f} mm, by its pixels of {mpp:.4g} microns"
        text = f"is {size}, and no slide is larger than {LARGEST_SIDE_MM} mm; copy it again from its source"
        raise slide_error(Flag.UNREADABLE, slide_id, stain, f"{text}, or {_set_mpp(slide_id, stain)}")


def _open_image(path: Path, slide_id: str, stain: Stain, mpp: float | None) -> ImageReader:
    with path.open("rb") as file:
        is_tiff = file.read(4) in TIFF_MAGIC
    _check_complete(path, slide_id, stain)
    try:
        megapixels = (_tiff_pixels(path) if is_tiff else _picture_pixels(path)) / 1e6
        if megapixels > LARGEST_IMAGE_MEGAPIXELS:
            raise slide_error(Flag.UNREADABLE, slide_id, stain, _too_large(megapixels))
        pixels, kind = (_tiff_rgb(path), "tiff") if is_tiff else _picture_rgb(path)
    except SlideError:
        raise
    except Exception as error:  # decoders raise many kinds on damaged files
        readers = "is not an image that OpenSlide, tifffile or Pillow can decode"
        text = f"{readers}; copy it again from its source or convert it to a pyramidal TIFF"
        raise slide_error(Flag.UNREADABLE, slide_id, stain, text) from error
    if mpp is None:
        raise _no_mpp(slide_id, stain)
    _check_mpp(mpp, "sheet", slide_id, stain)
    return ImageReader(pixels, kind, mpp=mpp, slide_id=slide_id, stain=stain)


def _too_large(megapixels: float) -> str:
    limit = f"more than the {LARGEST_IMAGE_MEGAPIXELS} that are held in memory"
    return f"is a plain image of {megapixels:.0f} megapixels, {limit}; convert it to a pyramidal tiled TIFF"


def _tiff_pixels(path: Path) -> int:
    with _opened_tiff(path) as tiff:
        page = tiff.series[0].levels[0].keyframe
        return int(page.imagewidth * page.imagelength)


def _tiff_rgb(path: Path) -> RgbImage:
    with _opened_tiff(path) as tiff:
        series = tiff.series[0].levels[0]
        pixels, page = np.squeeze(series.asarray()), series.keyframe
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
            return _to_8_bit(np.moveaxis(page.colormap[:, pixels], 0, -1))
        if pixels.ndim == 3 and pixels.shape[0] in (3, 4) and pixels.shape[-1] not in (3, 4):
            pixels = np.moveaxis(pixels, 0, -1)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = pixels.max() - pixels
    return _to_rgb(_to_8_bit(pixels))


def _picture_pixels(path: Path) -> int:
    try:
        with _opened_picture(path) as picture:
            return picture.width * picture.height
    except Image.DecompressionBombError:
        return 2 * int(Image.MAX_IMAGE_PIXELS or 0)  # Pillow opens nothing larger, and does not say how large it is


def _picture_rgb(path: Path) -> tuple[RgbImage, str]:
    with _opened_picture(path) as picture:
        kind = str(picture.format).lower()
        if picture.mode.startswith(("I", "F")):
            return _to_rgb(_to_8_bit(np.asarray(picture))), kind
        if picture.mode in {"LA", "PA", "P", "RGBA"} or "transparency" in picture.info:
            return _on_white(np.asarray(picture.convert("RGBA"))), kind
        return np.array(picture.convert("RGB")), kind


def _opened_picture(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size has a limit and a message of its own
        return Image.open(path, formats=PICTURE_FORMATS)


def _to_8_bit(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale to 8 bits by the smallest usual bit depth that holds the largest value (cameras put 12 bits into 16)."""
    if pixels.dtype == np.uint8:
        return np.asarray(pixels)
    if pixels.dtype == bool:
        return np.where(pixels, 255, 0).astype(np.uint8)
    largest = float(pixels.max(initial=0))
    if np.issubdtype(pixels.dtype, np.floating) and largest <= 1.0:
        return np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    bits = next((bits for bits in (8, 10, 12, 14, 16) if largest < 2**bits), 32)
    return np.round(np.clip(pixels, 0, None) * (255 / (2**bits - 1))).astype(np.uint8)


def _to_rgb(pixels: NDArray[np.uint8]) -> RgbImage:
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return _on_white(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        return pixels
    raise ValueError(f"pixels of shape {pixels.shape} are no RGB image")


def _on_white(rgba: NDArray[np.uint8]) -> RgbImage:
    """RGBA over white."""
    rgb = np.asarray(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), dtype=np.uint8)
    alpha = rgba[..., 3]
    if alpha.min(initial=255) == 255:
        return rgb
    share = alpha[..., None].astype(np.uint16)
    return ((rgb * share + 255 * (255 - share) + 127) // 255).astype(np.uint8)


def _reduce(pixels: RgbImage, width: int, height: int) -> RgbImage:
    """Average whole blocks of pixels."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _resample(pixels: RgbImage, left: float, top: float, scale: float, width: int, height: int) -> RgbImage:
    """The box that starts at (left, top) and takes ``scale`` pixels for each pixel of the result."""
    box = (left, top, left + width * scale, top + height * scale)
    kind = Image.Resampling.HAMMING if scale > 1 else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(pixels).resize((width, height), kind, box=box))


def _blocks(width: int, height: int, side: int) -> Iterator[tuple[int, int, int, int]]:
    for row in range(0, height, side):
        for column in range(0, width, side):
            yield column, row, min(side, width - column), min(side, height - row)


def _is_whole(value: float, tolerance: float) -> bool:
    return abs(value - round(value)) < tolerance


def _hamamatsu_companions(path: Path) -> list[Path]:
    if not path.is_file():
        return []
    names = re.findall(
        r"^(?:ImageFile|MapFile|OptimisationFile|MacroImage)[^=]*=(.+)$", path.read_text("latin-1"), re.MULTILINE
    )
    files = {path.parent / Path(name.strip()).name for name in names if name.strip()}
    return sorted(file for file in files if file.is_file())


def _dicom_companions(path: Path) -> list[Path]:
    if not path.is_file():
        return []
    series = _dicom_series(path)
    return sorted(file for file in path.parent.glob("*.dcm") if file != path and _dicom_series(file) == series)


def _dicom_series(path: Path) -> bytes:
    """SeriesInstanceUID of a DICOM file in explicit VR little endian, as OpenSlide groups the files of a slide."""
    with path.open("rb") as file:
        found = re.search(rb"\x20\x00\x0e\x00UI..([0-9.]+)", file.read(2**16), re.DOTALL)
    return found.group(1) if found else b""
