"""Which tiles of a slide a network has to look at.

Three sizes matter, all in pixels at the network's resolution. *Core*: what a tile answers for; cores lie edge to edge
on a grid that starts at the origin of the slide's frame. *Halo*: what the network sees besides on every side, as its
answers are worse at the edge of what it sees. *Window*: core and both halos, which is what is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ki67.errors import Ki67Error
from ki67.geometry import Mask


@dataclass(frozen=True)
class TilePlan:
    """The tiles to analyse.

    Attributes
    ----------
    mpp
        Microns per pixel of all sizes here.
    core_px, halo_px
        See the module.
    width_px, height_px
        Of the slide.
    tiles
        int64 ``(N, 2)``: row and column in the grid of cores, sorted.
    """

    mpp: float
    core_px: int
    halo_px: int
    width_px: int
    height_px: int
    tiles: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tiles)

    @property
    def window_px(self) -> int:
        """Side of what is read for a tile."""
        return self.core_px + 2 * self.halo_px

    @property
    def first_column_px(self) -> int:
        """Left edge of the leftmost tile's core."""
        return int(self.tiles[:, 1].min()) * self.core_px if len(self) else 0

    @property
    def end_column_px(self) -> int:
        """Right edge of the rightmost tile's core, not beyond the slide."""
        return min(self.width_px, (int(self.tiles[:, 1].max()) + 1) * self.core_px) if len(self) else 0

    @property
    def area_mm2(self) -> float:
        """Area of all cores inside the slide."""
        size = np.array([self.height_px, self.width_px])
        start = self.tiles * self.core_px
        covered = np.minimum(start + self.core_px, size) - start
        return float(covered.prod(axis=1).sum()) * self.mpp**2 / 1e6


def plan_tiles(
    mask: Mask,
    slide_size_um: tuple[float, float],
    *,
    mpp: float,
    core_px: int = 448,
    halo_px: int = 32,
    margin_um: float = 0.0,
) -> TilePlan:
    """The tiles whose cores, widened by a margin, touch the mask.

    Parameters
    ----------
    mask
        In the slide's frame.
    slide_size_um
        Width and height.
    mpp
        Microns per pixel at which tiles are read.
    core_px, halo_px
        See the module.
    margin_um
        Tiles up to this far from the mask count too, so that what lies on the mask's edge is seen whole.

    Raises
    ------
    Ki67Error
        If sizes are not positive.
    """
    if core_px <= 0 or halo_px < 0:
        raise Ki67Error(f"tiles need a core above 0 px and a halo of at least 0 px, got {core_px} and {halo_px}")
    width_px, height_px = (max(1, int(np.ceil(size / mpp - 1e-6))) for size in slide_size_um)
    core_um = core_px * mpp
    columns = _spans(-(-width_px // core_px), core_um, margin_um, mask.mpp, mask.pixels.shape[1])
    rows = _spans(-(-height_px // core_px), core_um, margin_um, mask.mpp, mask.pixels.shape[0])
    tiles = [
        (row, column) for row, (top, bottom) in enumerate(rows) for column in _touched(mask.pixels[top:bottom], columns)
    ]
    return TilePlan(mpp, core_px, halo_px, width_px, height_px, np.array(tiles, dtype=np.int64).reshape(-1, 2))


def _spans(count: int, core_um: float, margin_um: float, mask_mpp: float, length: int) -> NDArray[np.int64]:
    """First and past-the-last mask pixel ``(count, 2)`` that the cores of one axis cover at least in part."""
    start_um = np.arange(count) * core_um
    # A thousandth of a mask pixel is rounding, not overlap.
    first = np.floor((start_um - margin_um) / mask_mpp + 1e-3)
    end = np.ceil((start_um + core_um + margin_um) / mask_mpp - 1e-3)
    return np.clip(np.column_stack([first, end]), 0, length).astype(np.int64)


def _touched(strip: NDArray[np.bool_], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of the column spans hold a true pixel of the strip ``(rows, columns)``."""
    before = np.concatenate([[0], np.cumsum(strip.any(axis=0))])
    return np.flatnonzero(before[columns[:, 1]] > before[columns[:, 0]])
