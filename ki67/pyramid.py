"""Images as plain OME-Zarr 0.5: sharded levels, each the mean over squares of the one before, made through dask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.errors import Stain

if TYPE_CHECKING:
    import zarr

LARGEST_COARSE_LEVEL_PX = 2048
MOST_LEVELS = 3
LEVEL_FACTOR = 4
COARSE_SHARD_PX = 2048
Coarsen = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def create_level(
    group: zarr.Group,
    number: int,
    shape: tuple[int, int, int],
    *,
    chunk_px: int,
    shard_px: tuple[int, int],
    zstd_level: int,
) -> zarr.Array[Any]:
    """An empty level ``s<number>`` of an image, axes c, y, x, uint8; what is not written is 0 and takes no file.

    Parameters
    ----------
    shape
        Channels, rows, columns.
    chunk_px
        Side of what a viewer reads at once.
    shard_px
        Height and width of what lies in one file, in whole chunks; no larger than the level needs.
    zstd_level
        Of the compression.
    """
    from zarr.codecs import ZstdCodec

    chunks = tuple(min(chunk_px, size) for size in shape[1:])
    shards = (
        side if size > side else -(-size // chunk) * chunk
        for side, size, chunk in zip(shard_px, shape[1:], chunks, strict=True)
    )
    return group.create_array(
        f"s{number}",
        shape=shape,
        dtype=np.uint8,
        chunks=(1, *chunks),
        shards=(shape[0], *shards),
        compressors=ZstdCodec(level=zstd_level),
        fill_value=0,
        dimension_names=("c", "y", "x"),
    )


def shards_of(array: zarr.Array[Any]) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of every shard, cut off at the edges."""
    assert array.shards is not None
    (height, width), (rows, columns) = array.shape[1:], array.shards[1:]
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield slice(top, min(top + rows, height)), slice(left, min(left + columns, width))


def shrink(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mean of each block of LEVEL_FACTOR² pixels; blocks at the lower and right edge are filled up by repetition.

    Parameters
    ----------
    image
        uint8 ``(C, H, W)``.
    """
    rows, columns = (-(-size // LEVEL_FACTOR) for size in image.shape[1:])
    margins = [(0, rows * LEVEL_FACTOR - image.shape[1]), (0, columns * LEVEL_FACTOR - image.shape[2])]
    coarse = np.empty((len(image), rows, columns), dtype=np.uint8)
    for channel, plane in enumerate(image):
        padded = np.pad(plane, margins, mode="edge") if margins != [(0, 0), (0, 0)] else plane
        cv2.resize(padded, (columns, rows), dst=coarse[channel], interpolation=cv2.INTER_AREA)
    return coarse


def add_coarser_levels(
    group: zarr.Group, *, chunk_px: int, zstd_level: int, coarsen: Coarsen = shrink, workers: int = 1
) -> int:
    """Write the coarser levels of an image whose level ``s0`` is whole; returns the number of levels.

    Levels are added until one is at most ``LARGEST_COARSE_LEVEL_PX`` on its longer side, up to ``MOST_LEVELS``. Dask
    reads, coarsens and writes a shard at a time, so that memory does not grow with the image: each worker holds
    ``LEVEL_FACTOR``² shards of ``COARSE_SHARD_PX``² pixels in every channel.

    Parameters
    ----------
    chunk_px, zstd_level
        As for ``create_level``.
    coarsen
        What makes of an image uint8 ``(C, H, W)`` one that is ``LEVEL_FACTOR`` times smaller.
    workers
        Threads; the result does not depend on them.
    """
    finer: Any = group["s0"]
    levels = 1
    while max(finer.shape[1:]) > LARGEST_COARSE_LEVEL_PX and levels < MOST_LEVELS:
        rows, columns = (-(-size // LEVEL_FACTOR) for size in finer.shape[1:])
        shape = (finer.shape[0], rows, columns)
        # The more channels, the smaller what a worker holds of each.
        side = max(chunk_px, COARSE_SHARD_PX // (2 if finer.shape[0] > 2 else 1))
        coarser = create_level(group, levels, shape, chunk_px=chunk_px, shard_px=(side, side), zstd_level=zstd_level)
        _coarsen_into(coarser, finer, coarsen, workers)
        finer, levels = coarser, levels + 1
    return levels


def _coarsen_into(coarser: zarr.Array[Any], finer: zarr.Array[Any], coarsen: Coarsen, workers: int) -> None:
    """Fill a level from the finer one, a dask block a shard."""
    import dask
    import dask.array as da

    assert coarser.shards is not None
    block = (coarser.shape[0], *(side * LEVEL_FACTOR for side in coarser.shards[1:]))
    image = da.from_array(finer, chunks=block, name=False, inline_array=True)
    chunks = (image.chunks[0], *(tuple(-(-size // LEVEL_FACTOR) for size in sizes) for sizes in image.chunks[1:]))
    smaller = image.map_blocks(coarsen, dtype=np.uint8, chunks=chunks, meta=np.empty((0, 0, 0), dtype=np.uint8))
    with dask.config.set(scheduler="threads", num_workers=workers):
        target: Any = coarser
        da.store(smaller, target, lock=False)


def ome_attributes(name: str, frame: Stain, mpp: float, channels: Mapping[str, str], levels: int) -> dict[str, Any]:
    """Metadata of an OME-Zarr 0.5 image (https://ngff.openmicroscopy.org/0.5), and of this project beside it.

    Parameters
    ----------
    name
        Of the image.
    mpp
        Microns per pixel of the finest level; every next one is ``LEVEL_FACTOR`` times coarser.
    channels
        Label to colour, in order.
    levels
        Number of levels, at the paths ``s0``, ``s1``, ...
    """
    space = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    scales = [[1.0, *[mpp * LEVEL_FACTOR**number] * 2] for number in range(levels)]
    # an image coarsened by block means has its first pixel's centre half a block further in
    shifts = [[0.0, *[(scale[-1] - mpp) / 2] * 2] for scale in scales]
    datasets = [
        {"path": f"s{number}", "coordinateTransformations": _scale_and_shift(scale, shift)}
        for number, (scale, shift) in enumerate(zip(scales, shifts, strict=True))
    ]
    multiscale = {"name": name, "axes": [{"name": "c", "type": "channel"}, *space], "datasets": datasets}
    shown = [_channel(label, color) for label, color in channels.items()]
    ome = {"version": "0.5", "multiscales": [multiscale], "omero": {"channels": shown}}
    return {"ome": ome, "ki67": {"frame": frame, "channels": list(channels)}}


def _scale_and_shift(scale: list[float], shift: list[float]) -> list[dict[str, Any]]:
    moved = [{"type": "translation", "translation": shift}] if any(shift) else []
    return [{"type": "scale", "scale": scale}, *moved]


def _channel(label: str, color: str) -> dict[str, Any]:
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    return {"label": label, "color": color, "active": True, "window": window}
