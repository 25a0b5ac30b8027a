"""JPEG tiles of a TIFF, decoded without OpenSlide to OpenSlide's pixels.

OpenSlide composes every window from its tiles with Cairo, which takes twice as long as decoding them. The decoder here
is as strict as OpenSlide's: it refuses what libjpeg warns about, so that damage is not taken for tissue.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import tifffile
from numpy.typing import NDArray

START_OF_IMAGE, END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
ADOBE_MARKER = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # a byte with the colour transform follows
COLOR_TRANSFORMS = {"RGB": b"\x00", "YCbCr": b"\x01"}
COLOR_SPACES: dict[int, str] = {tifffile.PHOTOMETRIC.RGB: "RGB", tifffile.PHOTOMETRIC.YCBCR: "YCbCr"}

RgbImage = NDArray[np.uint8]


@dataclass(frozen=True)
class TileLayout:
    """The JPEG tiles of one pyramid level, row by row.

    Attributes
    ----------
    width_px, height_px
        Size of the level.
    tile_width_px, tile_height_px
        Size of every tile; the last of a row or column may reach over the level's edge.
    offsets, byte_counts
        int64 ``(tiles,)``, where each tile is in the file and how long it is.
    head
        What stands for the first two bytes of each tile: the tables all tiles share, and the colour space.
    color_space
        ``"RGB"`` or ``"YCbCr"``, that of the pixels inside the JPEG.
    """

    width_px: int
    height_px: int
    tile_width_px: int
    tile_height_px: int
    offsets: NDArray[np.int64]
    byte_counts: NDArray[np.int64]
    head: bytes
    color_space: str

    @property
    def tiles_across(self) -> int:
        """Number of tiles in a row."""
        return -(-self.width_px // self.tile_width_px)

    @property
    def tiles_down(self) -> int:
        """Number of tiles in a column."""
        return -(-self.height_px // self.tile_height_px)

    @property
    def longest_tile(self) -> tuple[int, int, int, int]:
        """Column, row, width and height of the tile with the most bytes, and so the most to see, inside the level."""
        tile_row, tile_column = divmod(int(self.byte_counts.argmax()), self.tiles_across)
        column, row = tile_column * self.tile_width_px, tile_row * self.tile_height_px
        width, height = self.width_px - column, self.height_px - row
        return column, row, min(width, self.tile_width_px), min(height, self.tile_height_px)


def tile_layouts(
    pages: Sequence[tifffile.TiffPage], level_sizes_px: Sequence[tuple[int, int]]
) -> dict[int, TileLayout]:
    """The layout of each level, by its number, whose size is that of one page only, and this page a plain one."""
    page_sizes = Counter((page.imagewidth, page.imagelength) for page in pages)
    level_sizes = Counter(level_sizes_px)
    page_of_size = {(page.imagewidth, page.imagelength): page for page in pages}
    layouts = {
        level: tile_layout(page_of_size[size])
        for level, size in enumerate(level_sizes_px)
        if page_sizes[size] == level_sizes[size] == 1
    }
    return {level: layout for level, layout in layouts.items() if layout is not None}


def tile_layout(page: tifffile.TiffPage) -> TileLayout | None:
    """The layout of a page of 8-bit RGB or YCbCr in JPEG tiles without gaps; none for any other page."""
    if not _is_plain_jpeg(page):
        return None
    tables = page.jpegtables or START_OF_IMAGE + END_OF_IMAGE
    color_space = COLOR_SPACES[page.photometric]
    layout = TileLayout(
        page.imagewidth,
        page.imagelength,
        page.tilewidth,
        page.tilelength,
        np.asarray(page.dataoffsets, dtype=np.int64),
        np.asarray(page.databytecounts, dtype=np.int64),
        tables.removesuffix(END_OF_IMAGE) + ADOBE_MARKER + COLOR_TRANSFORMS[color_space],
        color_space,
    )
    tiles = layout.tiles_across * layout.tiles_down
    complete = len(layout.offsets) == len(layout.byte_counts) == tiles and layout.byte_counts.min() > 0
    return layout if complete and layout.offsets.min() > 0 else None


class JpegTiles:
    """Windows of the levels of one file; reads may come from many threads at once.

    Parameters
    ----------
    file
        The open TIFF, which is closed with this object.
    layouts
        The levels, by their number.
    cache_bytes
        Decoded tiles that are kept, as neighbouring windows share tiles.
    """

    def __init__(self, file: BinaryIO, layouts: Mapping[int, TileLayout], *, cache_bytes: int) -> None:
        self._file = file
        self.layouts = layouts
        tile_bytes = max((3 * layout.tile_width_px * layout.tile_height_px for layout in layouts.values()), default=1)
        self._tile = lru_cache(maxsize=cache_bytes // tile_bytes)(self._decoded)

    def close(self) -> None:
        """Close the file and let go of the tiles."""
        self._file.close()
        self._tile.cache_clear()

    def read(self, level: int, column: int, row: int, width: int, height: int) -> RgbImage:
        """Pixels of a window that lies inside the level.

        Raises
        ------
        ValueError
            If a tile is damaged, is not what the layout says or is of a kind the decoder lacks, or the file is closed.
        """
        layout = self.layouts[level]
        tile_width, tile_height = layout.tile_width_px, layout.tile_height_px
        result = np.empty((height, width, 3), dtype=np.uint8)
        for tile_row in range(row // tile_height, -(-(row + height) // tile_height)):
            for tile_column in range(column // tile_width, -(-(column + width) // tile_width)):
                tile = self._tile(level, tile_row * layout.tiles_across + tile_column)
                _paste(result, tile, tile_column * tile_width - column, tile_row * tile_height - row)
        return result

    def _decoded(self, level: int, index: int) -> RgbImage:
        layout = self.layouts[level]
        data = os.pread(self._file.fileno(), layout.byte_counts[index], layout.offsets[index])
        if not data.startswith(START_OF_IMAGE):
            raise ValueError(f"tile {index} of level {level} is no JPEG image")
        jpeg = layout.head + data[len(START_OF_IMAGE) :]
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(jpeg, strict=True)
        if (width, height) != (layout.tile_width_px, layout.tile_height_px):
            raise ValueError(f"tile {index} of level {level} has {width} x {height} px")
        if color_space != layout.color_space:  # a marker of the tile's own says so, and OpenSlide goes by the TIFF
            raise ValueError(f"tile {index} of level {level} is {color_space}, not {layout.color_space}")
        return np.asarray(simplejpeg.decode_jpeg(jpeg, "RGB", strict=True), dtype=np.uint8)


def _is_plain_jpeg(page: tifffile.TiffPage) -> bool:
    return bool(
        page.is_tiled
        and page.compression == tifffile.COMPRESSION.JPEG
        and page.photometric in COLOR_SPACES
        and page.dtype == np.uint8
        and page.bitspersample == 8
        and page.samplesperpixel == 3
        and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
        and page.imagedepth == 1
    )


def _paste(target: RgbImage, tile: RgbImage, left: int, top: int) -> None:
    """Put a tile where it belongs, as far as it is inside the target."""
    (height, width), (tile_height, tile_width) = target.shape[:2], tile.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + tile_width, width), min(top + tile_height, height)
    target[y0:y1, x0:x1] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
