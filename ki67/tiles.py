"""Which parts of a slide a network has to look at, and in which pieces.

All sizes are in pixels at the network's resolution. *Cell*: the unit in which the plan counts; cells lie edge to edge
on a grid, and one is analysed where the mask touches it. *Window*: a rectangle of cells that the network answers for
at once. *Halo*: what the network is shown besides on every side, as its answers are worse at the edge of what it sees;
halos are computed twice, so windows are as large as cells allow. *Block*: a fixed rectangle of the grid of cells that
no window leaves, so that answers can be put together, used and forgotten block by block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ki67.errors import Ki67Error
from ki67.geometry import Mask

CELL_PX = 256
HALO_PX = 32


@dataclass(frozen=True)
class Window:
    """A rectangle that the network answers for at once, without its halo.

    Attributes
    ----------
    row_px, column_px
        Top-left corner in the slide; may be negative where the grid is offset.
    height_px, width_px
        Size.
    """

    row_px: int
    column_px: int
    height_px: int
    width_px: int


@dataclass(frozen=True)
class BlockPlan:
    """The windows of one block.

    Attributes
    ----------
    row, column
        In the grid of blocks.
    windows
        They do not overlap.
    """

    row: int
    column: int
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class TilePlan:
    """What to analyse.

    Attributes
    ----------
    mpp
        Microns per pixel of all sizes here.
    cell_px, halo_px, block_cells
        See the module; rows and columns of cells in a block.
    width_px, height_px
        Of the slide.
    offset_px
        How far the grid's origin lies up and left of the slide's corner: rows, columns.
    cells
        int64 ``(N, 2)``: row and column of the cells that the mask touches, sorted.
    """

    mpp: float
    cell_px: int
    halo_px: int
    block_cells: tuple[int, int]
    width_px: int
    height_px: int
    offset_px: tuple[int, int]
    cells: NDArray[np.int64]

    @property
    def block_px(self) -> tuple[int, int]:
        """Height and width of a block."""
        return self.block_cells[0] * self.cell_px, self.block_cells[1] * self.cell_px

    def block_corner_px(self, row: int, column: int) -> tuple[int, int]:
        """Row and column in the slide of a block's top-left pixel."""
        height, width = self.block_px
        return row * height - self.offset_px[0], column * width - self.offset_px[1]

    def __len__(self) -> int:
        return len(self.cells)

    def blocks(self) -> Iterator[BlockPlan]:
        """The blocks that have cells, row by row."""
        place = self.cells // self.block_cells
        order = np.lexsort((place[:, 1], place[:, 0]))
        for (row, column), group in itertools.groupby(order, key=lambda index: tuple(place[index].tolist())):
            touched = np.zeros(self.block_cells, dtype=bool)
            touched[tuple((self.cells[list(group)] - np.multiply((row, column), self.block_cells)).T)] = True
            yield BlockPlan(row, column, tuple(self._window(row, column, part) for part in _rectangles(touched, self)))

    def _window(self, row: int, column: int, part: _Rectangle) -> Window:
        top, left = self.block_corner_px(row, column)
        return Window(
            top + part.top * self.cell_px,
            left + part.left * self.cell_px,
            (part.bottom - part.top) * self.cell_px,
            (part.right - part.left) * self.cell_px,
        )

    def area_px(self, windows: tuple[Window, ...]) -> int:
        """Pixels of windows that lie on the slide."""
        return sum(
            (min(w.row_px + w.height_px, self.height_px) - max(w.row_px, 0))
            * (min(w.column_px + w.width_px, self.width_px) - max(w.column_px, 0))
            for w in windows
        )


def cells_of(block_px: tuple[int, int], cell_px: int) -> tuple[int, int]:
    """How many rows and columns of cells fit into a block of that height and width, at least one."""
    return max(1, block_px[0] // cell_px), max(1, block_px[1] // cell_px)


def plan_tiles(
    mask: Mask,
    slide_size_um: tuple[float, float],
    *,
    mpp: float,
    cell_px: int = CELL_PX,
    halo_px: int = HALO_PX,
    block_cells: tuple[int, int] = (4, 6),
    margin_um: float = 0.0,
    offset_px: tuple[int, int] = (0, 0),
) -> TilePlan:
    """The cells that, widened by a margin, touch the mask.

    Parameters
    ----------
    mask
        In the slide's frame.
    slide_size_um
        Width and height.
    mpp
        Microns per pixel at which windows are read.
    cell_px, halo_px, block_cells
        See the module. The whole block with its halo is the most that the network is shown at once.
    margin_um
        Cells up to this far from the mask count too, so that what lies on the mask's edge is seen whole.
    offset_px
        How far the grid's origin lies up and left of the slide's corner.

    Raises
    ------
    Ki67Error
        If sizes are not positive, or the grid starts inside the slide.
    """
    if cell_px <= 0 or halo_px < 0 or min(block_cells) <= 0:
        raise Ki67Error(
            f"tiles need cells above 0 px, a halo of at least 0 px and blocks of at least one cell, got {cell_px}, "
            f"{halo_px} and {block_cells}"
        )
    if min(offset_px) < 0:
        raise Ki67Error(f"the grid of tiles must not start inside the slide, got an offset of {offset_px} px")
    width_px, height_px = (max(1, int(np.ceil(size / mpp - 1e-6))) for size in slide_size_um)
    rows = _spans(height_px, offset_px[0], cell_px, mpp, margin_um, mask.mpp, mask.pixels.shape[0])
    columns = _spans(width_px, offset_px[1], cell_px, mpp, margin_um, mask.mpp, mask.pixels.shape[1])
    cells = [
        (row, column) for row, (top, bottom) in enumerate(rows) for column in _touched(mask.pixels[top:bottom], columns)
    ]
    listed = np.array(cells, dtype=np.int64).reshape(-1, 2)
    return TilePlan(mpp, cell_px, halo_px, block_cells, width_px, height_px, offset_px, listed)


def _spans(
    length_px: int, offset_px: int, cell_px: int, mpp: float, margin_um: float, mask_mpp: float, mask_length: int
) -> NDArray[np.int64]:
    """First and past-the-last mask pixel ``(count, 2)`` that the cells of one axis cover at least in part."""
    start_um = (np.arange(-(-(length_px + offset_px) // cell_px)) * cell_px - offset_px) * mpp
    # A thousandth of a mask pixel is rounding, not overlap.
    first = np.floor((start_um - margin_um) / mask_mpp + 1e-3)
    end = np.ceil((start_um + cell_px * mpp + margin_um) / mask_mpp - 1e-3)
    return np.clip(np.column_stack([first, end]), 0, mask_length).astype(np.int64)


def _touched(strip: NDArray[np.bool_], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of the column spans hold a true pixel of the strip ``(rows, columns)``."""
    before = np.concatenate([[0], np.cumsum(strip.any(axis=0))])
    return np.flatnonzero(before[columns[:, 1]] > before[columns[:, 0]])


# ---------------------------------------------------------------------------------------------- windows of a block


@dataclass(frozen=True)
class _Rectangle:
    """Cells of a block, ends not included."""

    top: int
    left: int
    bottom: int
    right: int

    def around(self, other: _Rectangle) -> _Rectangle:
        """The smallest rectangle that holds both."""
        return _Rectangle(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    def meets(self, other: _Rectangle) -> bool:
        """Whether they share a cell."""
        return (
            self.top < other.bottom and other.top < self.bottom and self.left < other.right and other.left < self.right
        )


def _rectangles(touched: NDArray[np.bool_], plan: TilePlan) -> list[_Rectangle]:
    """Rectangles that hold all touched cells ``(rows, columns)`` of a block, with as few pixels to compute as found.

    Runs of cells, those above one another joined, and then any two wherever one window around both costs less than two
    windows with a halo each.
    """
    parts = _joined_runs(touched)
    while len(parts) > 1:
        saved, joined = max(
            ((_saved_px(around, parts, plan), around) for around in _surroundings(parts)), key=lambda item: item[0]
        )
        if saved <= 0:
            break
        parts = sorted(
            [part for part in parts if not part.meets(joined)] + [joined], key=lambda part: (part.top, part.left)
        )
    return parts


def _surroundings(parts: list[_Rectangle]) -> Iterator[_Rectangle]:
    """Around every two, grown until it cuts no other in part."""
    for one, other in itertools.combinations(parts, 2):
        around = one.around(other)
        while (grown := _around_all(around, parts)) != around:
            around = grown
        yield around


def _around_all(around: _Rectangle, parts: list[_Rectangle]) -> _Rectangle:
    for part in parts:
        if part.meets(around):
            around = around.around(part)
    return around


def _saved_px(around: _Rectangle, parts: list[_Rectangle], plan: TilePlan) -> int:
    return sum(_cost_px(part, plan) for part in parts if part.meets(around)) - _cost_px(around, plan)


def _cost_px(part: _Rectangle, plan: TilePlan) -> int:
    height, width = (part.bottom - part.top) * plan.cell_px, (part.right - part.left) * plan.cell_px
    return (height + 2 * plan.halo_px) * (width + 2 * plan.halo_px)


def _joined_runs(touched: NDArray[np.bool_]) -> list[_Rectangle]:
    done: list[_Rectangle] = []
    growing: dict[tuple[int, int], int] = {}
    for row in range(len(touched) + 1):
        runs = _runs(touched[row]) if row < len(touched) else []
        done += [
            _Rectangle(top, left, row, right) for (left, right), top in growing.items() if (left, right) not in runs
        ]
        growing = {run: growing.get(run, row) for run in runs}
    return sorted(done, key=lambda part: (part.top, part.left))


def _runs(cells: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], cells, [False]]).astype(np.int8)))
    return [(int(left), int(right)) for left, right in edges.reshape(-1, 2)]
