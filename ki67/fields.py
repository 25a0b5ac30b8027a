"""Fields of a slide in which nuclei are looked for, put together from answers of the network that come block by block.

Fields lie at fixed places of the slide, so nothing that is found in one depends on how the answers came: in bands of
any height, in blocks beside each other, with parts left out. *Own* pixels of a field are those it answers for; the
*margin* around them is what else it looks at, so that what lies on the edge is seen whole. Where no answers were the
probabilities are 0 and the slide is white.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OWN_ROWS_PX, OWN_COLUMNS_PX = 512, 768
"""Arrays of this size stay in a processor's cache."""

Place = tuple[int, int]


@dataclass(frozen=True)
class Band:
    """The network's answers on a rectangle of the slide.

    Attributes
    ----------
    first_row_px, first_column_px
        Position of its top-left corner in the slide, in pixels at the network's resolution.
    probabilities
        uint8 ``(C, rows, columns)``, 255 for 1.
    rgb
        uint8 ``(rows, columns, 3)``, the pixels the network saw.
    """

    first_row_px: int
    first_column_px: int
    probabilities: NDArray[np.uint8]
    rgb: NDArray[np.uint8]

    @property
    def end_row_px(self) -> int:
        """Row after the band's last."""
        return self.first_row_px + self.rgb.shape[0]

    @property
    def end_column_px(self) -> int:
        """Column after the band's last."""
        return self.first_column_px + self.rgb.shape[1]

    def from_row(self, row_px: int) -> Band:
        """Its rows from one of the slide's, copied so that the others can be forgotten."""
        skipped = row_px - self.first_row_px
        return Band(row_px, self.first_column_px, self.probabilities[:, skipped:].copy(), self.rgb[skipped:].copy())


@dataclass(frozen=True)
class Field:
    """A part of the slide: own pixels and the margin around them.

    Attributes
    ----------
    first_row_px, first_column_px
        Position of the first own pixel in the slide.
    margin_px
        Width of the margin; the arrays begin so far above and left of the first own pixel.
    bands
        All answers on it, and perhaps others.
    """

    first_row_px: int
    first_column_px: int
    margin_px: int
    bands: tuple[Band, ...]

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Probabilities ``(C, H, W)`` and pixels ``(H, W, 3)``, own size and twice the margin high and wide."""
        top, left = self.first_row_px - self.margin_px, self.first_column_px - self.margin_px
        height, width = OWN_ROWS_PX + 2 * self.margin_px, OWN_COLUMNS_PX + 2 * self.margin_px
        probabilities = np.zeros((len(self.bands[0].probabilities), height, width), dtype=np.uint8)
        rgb = np.full((height, width, 3), 255, dtype=np.uint8)
        for band in self.bands:
            rows, band_rows = _common(top, height, band.first_row_px, band.rgb.shape[0])
            columns, band_columns = _common(left, width, band.first_column_px, band.rgb.shape[1])
            probabilities[:, rows, columns] = band.probabilities[:, band_rows, band_columns]
            rgb[rows, columns] = band.rgb[band_rows, band_columns]
        return probabilities, rgb


def _common(first: int, length: int, other_first: int, other_length: int) -> tuple[slice, slice]:
    """What two spans have in common, counted from the beginning of each."""
    start = max(first, other_first)
    end = max(start, min(first + length, other_first + other_length))
    return slice(start - first, end - first), slice(start - other_first, end - other_first)


@dataclass(frozen=True)
class Progress:
    """How far answers have come, row of blocks by row of blocks and in each from left to right.

    Attributes
    ----------
    row_px
        All answers above are there.
    next_row_px, column_px
        So are those between this row and ``row_px`` that lie left of this column.
    """

    row_px: int
    next_row_px: int
    column_px: int

    def covers(self, bottom_px: int, right_px: int) -> bool:
        """Whether all answers above and left of a corner are there."""
        return bottom_px <= self.row_px or (bottom_px <= self.next_row_px and right_px <= self.column_px)


class FieldAssembly:
    """Puts fields together, each as soon as all answers on it are there; holds no more than it still needs.

    Fields begin a margin above and left of multiples of their size, so that they are complete together with blocks of
    answers that begin at such multiples.

    Parameters
    ----------
    margin_px
        Of every field.

    Examples
    --------
    >>> answers = np.zeros((5, 600, 700), dtype=np.uint8), np.zeros((600, 700, 3), dtype=np.uint8)
    >>> assembly = FieldAssembly(48)
    >>> assembly.add(Band(0, 0, *answers))
    >>> [(field.first_row_px, field.first_column_px) for field in assembly.fields()]
    [(-48, -48), (464, -48)]
    """

    def __init__(self, margin_px: int) -> None:
        self._margin_px = margin_px
        self._bands: list[Band] = []
        self._given: set[Place] = set()

    def add(self, band: Band) -> None:
        """Add answers that touch no field that was given before."""
        self._bands.append(band)

    def fields(self, progress: Progress | None = None) -> Iterator[Field]:
        """The fields that no more answers will touch, row by row.

        Parameters
        ----------
        progress
            What is there; ``None`` if there will be no more.
        """
        places = sorted(set().union(*(self._places(band) for band in self._bands)) - self._given)
        for place in places:
            row_px, column_px = self._corner_px(place)
            bottom, right = row_px + OWN_ROWS_PX + self._margin_px, column_px + OWN_COLUMNS_PX + self._margin_px
            if progress is None or progress.covers(bottom, right):
                self._given.add(place)
                yield Field(row_px, column_px, self._margin_px, self._touching(place))
        self._forget()

    def _corner_px(self, place: Place) -> tuple[int, int]:
        return place[0] * OWN_ROWS_PX - self._margin_px, place[1] * OWN_COLUMNS_PX - self._margin_px

    def _places(self, band: Band) -> set[Place]:
        """The fields that see a band."""
        reach = 2 * self._margin_px
        rows = range(band.first_row_px // OWN_ROWS_PX, -(-(band.end_row_px + reach) // OWN_ROWS_PX))
        columns = range(band.first_column_px // OWN_COLUMNS_PX, -(-(band.end_column_px + reach) // OWN_COLUMNS_PX))
        return set(itertools.product(rows, columns))

    def _touching(self, place: Place) -> tuple[Band, ...]:
        return tuple(band for band in self._bands if place in self._places(band))

    def _forget(self) -> None:
        """Forget bands that no field needs any more; of one that few rows are needed of only these are kept."""
        kept = []
        for band in self._bands:
            if waiting := self._places(band) - self._given:
                needed = max(band.first_row_px, self._corner_px(min(waiting))[0] - self._margin_px)
                spared = needed - band.first_row_px
                kept.append(band.from_row(needed) if 2 * spared > band.rgb.shape[0] else band)
        self._bands = kept
        first_row = min((self._corner_px(place)[0] for band in kept for place in self._places(band)), default=None)
        if first_row is not None:
            self._given = {place for place in self._given if self._corner_px(place)[0] >= first_row}


def fields_of_bands(bands: Iterable[Band], *, margin_px: int) -> Iterator[Field]:
    """The fields of bands that come from top to bottom, each as soon as it is complete."""
    assembly = FieldAssembly(margin_px)
    for band in bands:
        yield from assembly.fields(Progress(band.first_row_px, band.first_row_px, 0))
        assembly.add(band)
    yield from assembly.fields()
