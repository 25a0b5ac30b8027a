"""Hot spots: the places where the share of positive nuclei is highest, each large enough to hold 500 nuclei."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ki67.nucleus_squares import SquareCounts, TumorNuclei, coarser, count_squares

if TYPE_CHECKING:
    import shapely

HOT_SPOT_NUCLEI = 500
STEP_UM = 50.0
WIDEST_UM = 2050.0
MOST_SPOTS = 3

HOTTEST_SHARE = 0.1
DRIVEN_SHARE = 0.5
DRIVEN_GAP = 0.05


@dataclass(frozen=True)
class HotSpot:
    """A square window.

    Attributes
    ----------
    x_um, y_um
        Upper left corner, in µm of the Ki-67 frame.
    side_um
        Of the square.
    positive, total
        Tumour nuclei in it.
    """

    x_um: float
    y_um: float
    side_um: float
    positive: int
    total: int

    @property
    def index(self) -> float:
        """Fraction of positive nuclei."""
        return self.positive / self.total

    @property
    def outline(self) -> shapely.Polygon:
        """The square as a polygon, in µm of the Ki-67 frame."""
        import shapely

        return shapely.box(self.x_um, self.y_um, self.x_um + self.side_um, self.y_um + self.side_um)

    def to_json(self) -> dict[str, Any]:
        """What the record of a slide says of a hot spot."""
        return {
            "index": self.index,
            "positive": self.positive,
            "total": self.total,
            "x_um": self.x_um,
            "y_um": self.y_um,
            "side_um": self.side_um,
        }


def find_hot_spots(nuclei: TumorNuclei, *, most: int = MOST_SPOTS) -> tuple[HotSpot, ...]:
    """The windows of the highest positive fraction, none of which overlaps one before it, the highest first.

    A window is the smallest square around the middle of a cell of ``STEP_UM``, made of whole cells (an odd number
    across), that holds at least ``HOT_SPOT_NUCLEI`` tumour nuclei; every cell with nuclei is tried as the middle of
    one. A square of 500 nuclei is about what a reader sees at a magnification of 40; what would have to be wider than
    ``WIDEST_UM`` is no spot. Of windows that are equal the first from the top, then from the left counts.

    Parameters
    ----------
    nuclei
        Of the tumour, in any order.
    most
        How many are returned at most.

    Returns
    -------
    Hot spots; none where no window holds enough nuclei.
    """
    if len(nuclei) < HOT_SPOT_NUCLEI:
        return ()
    counts = count_squares(nuclei, STEP_UM)
    reach, positive, total = _smallest_windows(counts)
    middles = np.flatnonzero((reach >= 0) & (counts.total > 0))
    order = middles[np.argsort(-positive.flat[middles] / total.flat[middles], kind="stable")]
    rows, columns = np.unravel_index(order, total.shape)
    reaches = reach.flat[order]
    found: list[HotSpot] = []
    free = np.ones(len(order), dtype=bool)
    while free.any() and len(found) < most:
        at = int(np.argmax(free))
        row, column, half = int(rows[at]), int(columns[at]), int(reaches[at])
        found.append(
            HotSpot(
                x_um=(counts.first[1] + column - half) * STEP_UM,
                y_um=(counts.first[0] + row - half) * STEP_UM,
                side_um=(2 * half + 1) * STEP_UM,
                positive=int(positive[row, column]),
                total=int(total[row, column]),
            )
        )
        free &= np.maximum(np.abs(rows - row), np.abs(columns - column)) > reaches + half
    return tuple(found)


def _smallest_windows(counts: SquareCounts) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of the window around each cell: how many cells it reaches to each side (-1: there is none), positive, and all."""
    shape = counts.total.shape
    reach = np.full(shape, -1)
    positive, total = (np.zeros(shape, dtype=np.int64) for _ in range(2))
    sums = [np.pad(image, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1) for image in (counts.positive, counts.total)]
    rows, columns = np.nonzero(counts.total)
    for half in range(int(WIDEST_UM / STEP_UM - 1) // 2 + 1):
        top, left = np.maximum(rows - half, 0), np.maximum(columns - half, 0)
        bottom, right = np.minimum(rows + half + 1, shape[0]), np.minimum(columns + half + 1, shape[1])
        inside, held = (
            image[bottom, right] - image[top, right] - image[bottom, left] + image[top, left] for image in sums
        )
        full = held >= HOT_SPOT_NUCLEI
        at = rows[full], columns[full]
        reach[at], positive[at], total[at] = half, inside[full], held[full]
        rows, columns = rows[~full], columns[~full]
    return reach, positive, total


def share_in_hottest(nuclei: TumorNuclei) -> float:
    """Share of the positive nuclei that lie in the tenth of the tumour nuclei where the index is highest.

    Nuclei are ranked by the index of the square in which they lie; the squares hold about 500 nuclei, and those with
    fewer than half as many come last. 0.1 is an even tumour. NaN without positive nuclei, or with fewer than 500.
    """
    if len(nuclei) < HOT_SPOT_NUCLEI or not nuclei.positive.any():
        return float("nan")
    counts = _squares_of_500(nuclei)
    total, positive = (image[counts.total > 0].astype(float) for image in (counts.total, counts.positive))
    order = np.lexsort((-positive / total, total < HOT_SPOT_NUCLEI / 2))
    reached = np.cumsum(total[order]) / total.sum()
    held = np.cumsum(positive[order]) / positive.sum()
    return float(np.interp(HOTTEST_SHARE, [0.0, *reached], [0.0, *held]))


def _squares_of_500(nuclei: TumorNuclei) -> SquareCounts:
    """The grid whose squares hold 500 nuclei where nuclei are as dense as the median nucleus has it around."""
    fine = count_squares(nuclei, STEP_UM)
    for factor in range(1, int(WIDEST_UM / STEP_UM) + 1):
        counts = coarser(fine, factor)
        if np.median(np.repeat(counts.total, counts.total.ravel())) >= HOT_SPOT_NUCLEI:
            break
    return counts


def is_hot_spot_driven(share: float, gap: float) -> bool:
    """Whether the index rests on hot spots: half of the positive nuclei in a tenth of all, and 5 points of difference.

    Parameters
    ----------
    share
        See ``share_in_hottest``.
    gap
        Between the index of the hottest spot and that of the tumour.
    """
    return share > DRIVEN_SHARE and gap >= DRIVEN_GAP
