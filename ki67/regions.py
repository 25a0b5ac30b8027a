"""Masks as polygons and polygons as masks, so that one gives the other back.

A pixel belongs to a polygon where its centre lies inside; an outline runs halfway between the centres of pixels inside
and outside. Whatever moves an outline by less than the distance to the nearest centre changes no pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import shapely

TOLERANCE_PX = 0.3
"""How far an outline may be simplified: less than the √⅛ px between it and the nearest centre of a pixel."""

_PIXELS_AT_ONCE = 4_000_000

Ring = NDArray[np.float64]


def outline_mask(pixels: NDArray[np.bool_], *, tolerance_px: float = TOLERANCE_PX) -> list[shapely.Polygon]:
    """The connected parts of a mask as valid polygons with their holes, from top to bottom.

    Contours by marching squares (Lorensen & Cline 1987, in two dimensions), thinned as Douglas & Peucker 1973 describe
    it. Different parts of the contours are √½ px apart at least, so that rings that move by less than half of it do not
    cross.

    Parameters
    ----------
    pixels
        bool ``(rows, columns)``.
    tolerance_px
        How far a simplified outline may lie from the contour. With the default ``fill_polygons`` gives the same mask.

    Returns
    -------
    Polygons in pixels of the mask, x to the right and y down from the corner of its first pixel; no polygon of an
    empty mask.

    Examples
    --------
    >>> [polygon.wkt for polygon in outline_mask(np.ones((1, 1), dtype=bool))]
    ['POLYGON ((0.5 0, 1 0.5, 0.5 1, 0 0.5, 0.5 0))']
    """
    if not pixels.any():
        return []
    import shapely
    from contourpy import FillType, contour_generator

    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    top, left = rows[0], columns[0]
    # Pixels outside all around, so that every ring closes.
    framed = np.pad(pixels[top : rows[-1] + 1, left : columns[-1] + 1], 1).astype(np.float32)
    found: Any = contour_generator(z=framed, fill_type=FillType.OuterOffset).filled(0.5, np.inf)
    corner = np.array([left, top]) - 0.5
    polygons = [
        shapely.Polygon(rings[0], rings[1:])
        for points, offsets in zip(*found, strict=True)
        for rings in [[points[first:last] + corner for first, last in pairwise(offsets)]]
    ]
    simplified = [_valid(polygon) for polygon in shapely.simplify(polygons, tolerance_px, preserve_topology=False)]
    return sorted((part for parts in simplified for part in parts), key=lambda part: part.bounds[1::-1])


def _valid(shape: Any) -> list[shapely.Polygon]:
    """The polygons of a shape, none of which crosses or touches itself along a line."""
    import shapely

    if not shape.is_valid:
        shape = shapely.make_valid(shape, method="structure", keep_collapsed=False)
    return [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon" and not part.is_empty]


def fill_polygons(polygons: Iterable[Sequence[Ring]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose centres lie in at least one of some polygons.

    Parameters
    ----------
    polygons
        Of each its rings ``(N, 2)``, x and y in pixels from the corner of the first one: the outline, then the holes.
        What lies within an even number of rings is outside. A ring that is not closed is closed.
    shape
        Rows and columns of the result.

    Examples
    --------
    >>> fill_polygons([[np.array([[1.0, 0.0], [3.0, 0.0], [3.0, 1.0], [1.0, 1.0]])]], (2, 4)).astype(int)
    array([[0, 1, 1, 0],
           [0, 0, 0, 0]])
    """
    filled = np.zeros(shape, dtype=bool)
    for rings in polygons:
        crossings = np.concatenate([_crossings(ring, shape[0]) for ring in rings], axis=1)
        rows, columns = crossings[:, np.argsort(crossings[0], kind="stable")]
        columns = np.clip(columns, 0, shape[1])
        if len(rows) == 0 or columns.min() == columns.max():
            continue
        left, width = columns.min(), columns.max() - columns.min() + 1
        rows_at_once = min(max(1, _PIXELS_AT_ONCE // width), rows[-1] + 1 - rows[0])
        for top in range(rows[0], rows[-1] + 1, rows_at_once):
            here = slice(*np.searchsorted(rows, [top, top + rows_at_once]))
            places = (rows[here] - top) * width + columns[here] - left
            passed = np.bincount(places, minlength=rows_at_once * width).reshape(-1, width).cumsum(axis=1)
            room = filled[top : top + rows_at_once, left : left + width - 1]
            room |= passed[: len(room), :-1] % 2 == 1
    return filled


def _crossings(ring: Ring, height: int) -> NDArray[np.int64]:
    """Where a ring crosses the lines through the centres of rows: rows, and first columns to the right, ``(2, N)``."""
    start = np.asarray(ring, dtype=np.float64)
    end = np.roll(start, -1, axis=0)
    lower, upper = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first, last = (np.clip(np.ceil(y - 0.5), 0, height).astype(np.int64) for y in (lower, upper))
    crossed = last - first
    edge = np.repeat(np.arange(len(start)), crossed)
    rows = np.arange(crossed.sum()) - np.repeat(np.cumsum(crossed) - crossed, crossed) + first[edge]
    (x, y), (other_x, other_y) = start[edge].T, end[edge].T
    at = x + (rows + 0.5 - y) / (other_y - y) * (other_x - x)
    return np.stack([rows, np.ceil(at - 0.5).astype(np.int64)])
