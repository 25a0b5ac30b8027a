"""Writing a pyramidal, tiled, JPEG-compressed TIFF band by band, in memory that does not grow with its height."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

TILE_PX = 256
REDUCTION = 4
JPEG_QUALITY = 85
SMALLEST_LEVEL_PX = 128

TileRow = list[bytes]


@dataclass(frozen=True)
class Band:
    """Whole rows of tiles of the full resolution, and the same pixels ``REDUCTION`` times smaller.

    Attributes
    ----------
    tile_rows
        JPEG streams, left to right.
    reduced
        uint8 ``(rows, width / REDUCTION, 3)``.
    """

    tile_rows: list[TileRow]
    reduced: NDArray[np.uint8]


def encode_tiles(rgb: NDArray[np.uint8]) -> list[TileRow]:
    """JPEG streams of the tiles of an image ``(height, width, 3)``; its last pixels are repeated to fill tiles."""
    height, width = rgb.shape[:2]
    padded = cv2.copyMakeBorder(rgb, 0, -height % TILE_PX, 0, -width % TILE_PX, cv2.BORDER_REPLICATE)
    bgr = np.asarray(cv2.cvtColor(padded, cv2.COLOR_RGB2BGR), dtype=np.uint8)
    return [
        [_encode(bgr[top : top + TILE_PX, left : left + TILE_PX]) for left in range(0, width, TILE_PX)]
        for top in range(0, height, TILE_PX)
    ]


def _encode(bgr: NDArray[np.uint8]) -> bytes:
    _, stream = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return bytes(stream)


def reduce_image(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image ``REDUCTION`` times smaller, by area."""
    height, width = rgb.shape[0] // REDUCTION, rgb.shape[1] // REDUCTION
    cropped = rgb[: height * REDUCTION, : width * REDUCTION]
    return np.asarray(cv2.resize(cropped, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def write_pyramid(path: Path, width_px: int, height_px: int, mpp: float, bands: Iterable[Band], scratch: Path) -> None:
    """Write the TIFF; OpenSlide reads it as ``generic-tiff`` with mpp and levels.

    Parameters
    ----------
    width_px, height_px
        Multiples of ``TILE_PX``.
    bands
        From top to bottom.
    scratch
        Folder for the smaller levels while they are made; what is left there may be thrown away.
    """
    with tifffile.TiffWriter(path, bigtiff=width_px * height_px > 8e9) as tiff:
        spool = scratch / "level_1.raw"
        with spool.open("wb") as file:
            _write_level(tiff, _spooled(bands, file), width_px, height_px, mpp, is_first=True)
        width, height, level = width_px // REDUCTION, height_px // REDUCTION, 1
        while min(width, height) >= SMALLEST_LEVEL_PX:
            next_spool = scratch / f"level_{level + 1}.raw"
            with next_spool.open("wb") as file:
                tiles = _spooled(_bands_of(spool, width, height), file)
                _write_level(tiff, tiles, width, height, mpp * REDUCTION**level, is_first=False)
            spool.unlink()
            spool, level = next_spool, level + 1
            width, height = width // REDUCTION, height // REDUCTION
        spool.unlink()


def _write_level(
    tiff: tifffile.TiffWriter, tiles: Iterator[bytes], width_px: int, height_px: int, mpp: float, *, is_first: bool
) -> None:
    per_cm = 1e4 / mpp
    settings: dict[str, Any] = {"photometric": "ycbcr", "subsampling": (2, 2), "compression": "jpeg", "metadata": None}
    tiff.write(
        tiles,
        shape=(height_px, width_px, 3),
        dtype="uint8",
        tile=(TILE_PX, TILE_PX),
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
        subfiletype=0 if is_first else 1,
        software="ki67 phantom",
        **settings,
    )


def _spooled(bands: Iterable[Band], file: BinaryIO) -> Iterator[bytes]:
    """The tiles of the bands, whose reduced pixels go to the file on the way."""
    for band in bands:
        file.write(np.ascontiguousarray(band.reduced).data)
        for row in band.tile_rows:
            yield from row


def _bands_of(spool: Path, width_px: int, height_px: int) -> Iterator[Band]:
    """Bands of a level that lies as raw pixels in a file."""
    for top in range(0, height_px, 2 * TILE_PX):
        rows = min(2 * TILE_PX, height_px - top)
        pixels = np.fromfile(spool, dtype=np.uint8, count=rows * width_px * 3, offset=top * width_px * 3)
        rgb = pixels.reshape(rows, width_px, 3)
        yield Band(encode_tiles(rgb), reduce_image(rgb))
