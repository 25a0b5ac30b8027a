"""Nuclei counted in the squares of a grid that begins at the origin of their frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class TumorNuclei:
    """The tumour nuclei of a slide, as what is counted reads them.

    Attributes
    ----------
    points_um
        float64 ``(N, 2)``, x and y of the centres in µm of the Ki-67 frame.
    positive
        bool ``(N,)``.
    """

    points_um: NDArray[np.float64]
    positive: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.positive)


def tumor_nuclei(nuclei: pandas.DataFrame) -> TumorNuclei:
    """The nuclei of a table that lie in the tumour."""
    inside = nuclei["in_tumor"].to_numpy(dtype=bool)
    points = np.column_stack([nuclei[name].to_numpy(dtype=np.float64)[inside] for name in ("x_um", "y_um")])
    return TumorNuclei(points, nuclei["positive"].to_numpy(dtype=bool)[inside])


@dataclass(frozen=True)
class SquareCounts:
    """Nuclei in the squares of a grid, of which the smallest rectangle that holds all nuclei is kept.

    Attributes
    ----------
    positive, total
        int64 ``(rows, columns)``.
    side_um
        Of a square.
    first
        Row and column, counted from the origin of the frame, of the first square.
    """

    positive: NDArray[np.int64]
    total: NDArray[np.int64]
    side_um: float
    first: tuple[int, int]


def squares_of(points_um: NDArray[np.float64], side_um: float) -> NDArray[np.int64]:
    """Row and column ``(N, 2)`` of the square in which each point ``(N, 2)`` (x, y in µm) lies."""
    return np.floor(points_um[:, ::-1] / side_um).astype(np.int64)


def count_squares(nuclei: TumorNuclei, side_um: float) -> SquareCounts:
    """Count nuclei in squares; their order does not matter, as only whole numbers are added up.

    Examples
    --------
    >>> nuclei = TumorNuclei(np.array([[5.0, 5.0], [15.0, 5.0], [16.0, 6.0]]), np.array([True, True, False]))
    >>> count_squares(nuclei, 10.0).total.tolist(), count_squares(nuclei, 10.0).positive.tolist()
    ([[1, 2]], [[1, 1]])
    """
    if len(nuclei) == 0:
        nothing = np.zeros((1, 1), dtype=np.int64)
        return SquareCounts(nothing, nothing.copy(), side_um, (0, 0))
    squares = squares_of(nuclei.points_um, side_um)
    first = squares.min(axis=0)
    rows, columns = squares.max(axis=0) - first + 1
    flat = (squares[:, 0] - first[0]) * columns + (squares[:, 1] - first[1])
    total, positive = (
        np.bincount(which, minlength=rows * columns).reshape(rows, columns) for which in (flat, flat[nuclei.positive])
    )
    return SquareCounts(positive, total, side_um, (int(first[0]), int(first[1])))


def coarser(counts: SquareCounts, factor: int) -> SquareCounts:
    """The same nuclei in squares that are ``factor`` times as wide, on the grid that begins at the same origin.

    Examples
    --------
    >>> counts = SquareCounts(np.zeros((1, 3), int), np.array([[1, 2, 4]]), 10.0, (0, 1))
    >>> coarser(counts, 2).total.tolist(), coarser(counts, 2).first
    ([[1, 6]], (0, 0))
    """
    first = (counts.first[0] // factor, counts.first[1] // factor)
    before = [at - factor * start for at, start in zip(counts.first, first, strict=True)]
    after = [-(start + size) % factor for start, size in zip(before, counts.total.shape, strict=True)]
    padded = [np.pad(image, list(zip(before, after, strict=True))) for image in (counts.positive, counts.total)]
    rows, columns = (size // factor for size in padded[0].shape)
    positive, total = (image.reshape(rows, factor, columns, factor).sum(axis=(1, 3)) for image in padded)
    return SquareCounts(positive, total, counts.side_um * factor, first)


def with_touching(image: NDArray[Any]) -> NDArray[Any]:
    """Sum of each square ``(rows, columns)`` and the eight that touch it.

    >>> with_touching(np.array([[1, 2, 4, 8]])).tolist()
    [[3, 7, 14, 12]]
    """
    padded = np.pad(image, 1)
    rows, columns = image.shape
    shifted = [padded[down : down + rows, right : right + columns] for down in range(3) for right in range(3)]
    return np.sum(shifted, axis=0)
