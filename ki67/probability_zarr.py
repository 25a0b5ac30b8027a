"""Probabilities of a network as OME-Zarr, written block by block while the network runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import zarr

from ki67.errors import Stain
from ki67.inference import Block
from ki67.pyramid import add_coarser_levels, create_level, ome_attributes
from ki67.storage import NUCLEUS_CHANNELS, STAIN_CHANNELS, whole
from ki67.tiles import TilePlan

CHUNK_PX = 256
_ZSTD_LEVEL = 1
COLORS: Mapping[str, str] = {**NUCLEUS_CHANNELS, **STAIN_CHANNELS}


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
        shape = (len(classes), plan.height_px, plan.width_px)
        how = {"chunk_px": CHUNK_PX, "zstd_level": _ZSTD_LEVEL}
        self._finest = create_level(group, 0, shape, shard_px=plan.block_px, **how)

    def write(self, block: Block) -> None:
        """Write the answers of a block, uint8 ``(C, h, w)``; the plan's grid must begin at the slide's corner."""
        top, left = self._plan.block_corner_px(block.row, block.column)
        height, width = self._plan.block_px
        # A whole shard at once: a part of one would have zarr read back what is there.
        shard = np.zeros((self._channels, height, width), dtype=np.uint8)
        rows, columns = block.row_px - top, block.column_px - left
        shard[:, rows : rows + block.rgb.shape[0], columns : columns + block.rgb.shape[1]] = block.probabilities
        bottom, right = min(top + height, self._plan.height_px), min(left + width, self._plan.width_px)
        self._finest[:, top:bottom, left:right] = shard[:, : bottom - top, : right - left]


@contextmanager
def probability_zarr(
    path: str | Path,
    plan: TilePlan,
    classes: tuple[str, ...],
    frame: Stain,
    colors: Mapping[str, str] = COLORS,
) -> Iterator[ProbabilityWriter]:
    """Open an OME-Zarr 0.5 image to be filled by the block; it appears when it is whole, or not at all.

    Axes c, y, x, uint8, 255 for a probability of 1 and 0 where no window was, channels in the order of ``classes``,
    up to three levels, each four times coarser; one file for each block of the plan, and for each megapixel of the
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
        levels = add_coarser_levels(group, chunk_px=CHUNK_PX, zstd_level=_ZSTD_LEVEL)
        channels = {name: colors.get(name, "FFFFFF") for name in classes}
        group.update_attributes(ome_attributes("probability", frame, plan.mpp, channels, levels))
