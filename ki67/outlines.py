"""Outlines of nuclei: polygons of few vertices around the pixels of each."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from ki67.compiled import compiled
from ki67.extraction import Nuclei

OUTLINE_VERTICES = 20
"""Of every outline: a vertex for about every 1.5 µm."""

# Coordinates of outlines are multiples of this: 0.016 µm is far below a pixel, and halves the size of the table.
_OUTLINE_STEP_UM = 1 / 64
_LEFTWARDS = 4


def outline_nuclei(nuclei: Nuclei) -> NDArray[np.float64]:
    """Outlines ``(N, OUTLINE_VERTICES, 2)`` of nuclei, x and y in pixels from the image's top-left corner.

    The border of each nucleus is followed as Suzuki & Abe, Topological structural analysis of digitized binary images
    by border following, 1985, describe it; of a nucleus in several pieces, that of the piece with the longest border.
    """
    middles = np.column_stack([nuclei.x_px, nuclei.y_px])[:, None]
    # With a frame of 0 all neighbours of a pixel lie within the image.
    framed = np.pad(nuclei.labels, 1)
    width = framed.shape[1]
    places = np.zeros((len(middles), OUTLINE_VERTICES), dtype=np.int64)
    # From the right over the top to the left and back over the bottom.
    steps = np.array([1, 1 - width, -width, -1 - width, -1, width - 1, width, width + 1])
    _follow_borders(framed.ravel(), steps, np.zeros(len(middles), dtype=np.int64), places)
    border = np.stack(np.divmod(places, width)[::-1], axis=2) - 0.5
    # Border pixels are known by their middles: the outline lies half a pixel further out.
    outwards = border - middles
    length = np.sqrt((outwards**2).sum(axis=2, keepdims=True))
    return border + 0.5 * outwards / np.maximum(length, 0.5)


@compiled
def _follow_borders(
    labels: NDArray[np.int32], steps: NDArray[np.int64], longest: NDArray[np.int64], places: NDArray[np.int64]
) -> None:
    """Fill ``places`` with those at even distances along the longest border of each number, and its length.

    Parameters
    ----------
    labels
        int32 ``(H * W,)`` with a frame of 0; a place is an index.
    steps
        int64 ``(8,)``, from a place to its neighbours, against the clock.
    longest
        int64 ``(N,)``, 0.
    places
        int64 ``(N, V)``.
    """
    for place in range(len(labels)):
        number = labels[place]
        # The border of a piece can begin at its topmost pixels: those without any neighbour before them.
        if (
            number
            and labels[place + steps[4]] != number
            and labels[place + steps[3]] != number
            and labels[place + steps[2]] != number
            and labels[place + steps[1]] != number
        ):
            length = _follow(labels, place, steps, np.int64(0), places[number - 1])
            if length > longest[number - 1]:
                longest[number - 1] = length
                _follow(labels, place, steps, np.int64(length), places[number - 1])


@compiled
def _follow(
    labels: NDArray[np.int32], start: int, steps: NDArray[np.int64], length: np.int64, chosen: NDArray[np.int64]
) -> int:
    """Follow a border from a topmost pixel until it closes; returns its length in pixels.

    If that is already known, as ``length``, places at even distances are written to ``chosen``.
    """
    number = labels[start]
    away = _LEFTWARDS
    for _ in range(8):
        if labels[start + steps[away]] == number:
            break
        away = (away - 1) & 7
    else:
        if length:
            chosen[:] = start
        return 1
    # The border closes with the step from the pixel found here back to the first one.
    last = start + steps[away]
    place, walked, written = start, 0, 0
    while True:
        while length and written < len(chosen) and written * length // len(chosen) == walked:
            chosen[written] = place
            written += 1
        walked += 1
        came_from = place
        away = (away + 1) & 7
        while labels[place + steps[away]] != number:
            away = (away + 1) & 7
        place += steps[away]
        if came_from == last and place == start:
            return walked
        away = (away + 4) & 7


def polygons(outlines_um: NDArray[np.float64]) -> NDArray[np.object_]:
    """Shapely polygons of outlines ``(N, V, 2)``; one that crosses itself gets its vertices in order of direction."""
    rounded = np.rint(outlines_um / _OUTLINE_STEP_UM) * _OUTLINE_STEP_UM
    result = shapely.polygons(rounded)
    for index in np.flatnonzero(~shapely.is_valid(result)):
        x, y = (rounded[index] - rounded[index].mean(axis=0)).T
        ordered = shapely.Polygon(rounded[index][np.argsort(np.arctan2(y, x), kind="stable")])
        result[index] = ordered if ordered.is_valid else shapely.MultiPoint(rounded[index]).buffer(0.25).convex_hull
    return result
