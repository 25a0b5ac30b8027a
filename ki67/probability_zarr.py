"""Probabilities of a network as OME-Zarr, written block by block while the network runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from ki67.errors import Stain
from ki67.inference import Block
from ki67.storage import LARGEST_COARSE_LEVEL_PX, LEVEL_FACTOR, MOST_LEVELS, ome_attributes, shrink, whole
from ki67.tiles import TilePlan

CHUNK_PX = 256
CLASS_COLORS: dict[str, str] = {
    "background": "FFFFFF",
    "positive_nucleus": "D52020",
    "positive_membrane": "FF9090",
    "negative_nucleus": "005CD6",
    "negative_membrane": "90C0FF",
}


class ProbabilityWriter:
    """An image of probabilities that is still being written; blocks may come in any order and from many threads.

    Parameters
    ----------
    group
        Empty group of the store.
    plan
        Its blocks become the shards of the finest level.
    classes
        Names of the channels, in order.
    """

    def __init__(self, group: zarr.Group, plan: TilePlan, classes: tuple[str, ...]) -> None:
        self._group, self._plan, self._channels = group, plan, len(classes)
        self._levels = [self._array("s0", (plan.height_px, plan.width_px))]

    def write(self, block: Block) -> None:
        """Write the answers of a block, uint8 ``(C, h, w)``; the plan's grid must begin at the slide's corner."""
        top, left = self._plan.block_corner_px(block.row, block.column)
        height, width = self._plan.block_px
        # A whole shard at once: a part of one would have zarr read back what is there.
        shard = np.zeros((self._channels, height, width), dtype=np.uint8)
        rows, columns = block.row_px - top, block.column_px - left
        shard[:, rows : rows + block.rgb.shape[0], columns : columns + block.rgb.shape[1]] = block.probabilities
        bottom, right = min(top + height, self._plan.height_px), min(left + width, self._plan.width_px)
        self._levels[0][:, top:bottom, left:right] = shard[:, : bottom - top, : right - left]

    def write_coarser_levels(self) -> int:
        """Write the coarser levels, each the mean over squares of the one before; returns the number of levels."""
        while max(self._levels[-1].shape[1:]) > LARGEST_COARSE_LEVEL_PX and len(self._levels) < MOST_LEVELS:
            finer = self._levels[-1]
            size = tuple(-(-length // LEVEL_FACTOR) for length in finer.shape[1:])
            coarser = self._array(f"s{len(self._levels)}", (size[0], size[1]))
            for rows, columns in _shards(coarser):
                finer_rows, finer_columns = (
                    slice(part.start * LEVEL_FACTOR, part.stop * LEVEL_FACTOR) for part in (rows, columns)
                )
                planes = [_plane(finer, channel, finer_rows, finer_columns) for channel in range(self._channels)]
                coarser[:, rows, columns] = np.stack([shrink(plane) for plane in planes])
            self._levels.append(coarser)
        return len(self._levels)

    def _array(self, name: str, size: tuple[int, int]) -> zarr.Array[Any]:
        return self._group.create_array(
            name,
            shape=(self._channels, *size),
            dtype=np.uint8,
            chunks=(1, CHUNK_PX, CHUNK_PX),
            shards=(self._channels, *self._plan.block_px),
            compressors=ZstdCodec(level=1),
            fill_value=0,
            dimension_names=("c", "y", "x"),
        )


def _plane(array: zarr.Array[Any], channel: int, rows: slice, columns: slice) -> NDArray[np.uint8]:
    return np.asarray(array[channel, rows, columns], dtype=np.uint8)


def _shards(array: zarr.Array[Any]) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of every shard, cut off at the edges."""
    assert array.shards is not None
    (height, width), (rows, columns) = array.shape[1:], array.shards[1:]
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield slice(top, min(top + rows, height)), slice(left, min(left + columns, width))


@contextmanager
def probability_zarr(
    path: str | Path, plan: TilePlan, classes: tuple[str, ...], frame: Stain, colors: Mapping[str, str] = CLASS_COLORS
) -> Iterator[ProbabilityWriter]:
    """Open an OME-Zarr 0.5 image to be filled by the block; it appears when it is whole, or not at all.

    Axes c, y, x, uint8, 255 for a probability of 1 and 0 where no window was, channels in the order of ``classes``,
    up to three levels, each four times coarser; one file for each block of the plan, and for as many pixels of the
    coarser levels.

    Parameters
    ----------
    path
        Folder of the store.
    plan
        Of the network's run: resolution, size and blocks.
    frame
        Of the slide.
    colors
        RGB of a class in hexadecimal, for viewers; white where none is given.
    """
    with whole(path) as partial:
        group = zarr.create_group(partial, zarr_format=3)
        writer = ProbabilityWriter(group, plan, classes)
        yield writer
        levels = writer.write_coarser_levels()
        channels = {name: colors.get(name, "FFFFFF") for name in classes}
        group.update_attributes(ome_attributes("probability", frame, plan.mpp, channels, levels))
