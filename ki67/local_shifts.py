"""How far single places of two registered sections lie from each other, measured where no fit has looked.

The tissue is divided into squares like a chessboard, and two fits are made, each of which sees the squares of one
colour only. Each square is sought on the Ki-67 section near where the fit that has not seen it puts it, by normalised
cross-correlation of density and edges. Elastix compares grey values at single pixels; this compares patterns, so it can
judge what elastix found.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.geometry import Points, Transform
from ki67.section import BoolImage, FloatImage, Section, carry_back, edges

SIDE_UM = 480.0  # smaller squares are found again less often, larger ones are too few
MOST_SQUARES = 200
REACH_UM = 240.0  # serial sections differ by folds and stretch of up to about this
MANY_PLACES = 16
CLOSE_AGREEMENT_UM = 45.0  # wrong partners agreed to 90 µm in 6 of 10 places, in 1 of 4 at most of 16 or more
FEWEST_TISSUE_SHARE = 0.5
AGREEMENT_UM = 90.0  # by chance one place in nine is found this close to where it is expected
FINE_PATTERN_UM = 8.0
COARSE_PATTERN_UM = 16.0


@dataclass(frozen=True)
class Chessboard:
    """A division of the H&E frame into squares of two colours, 0 and 1.

    Attributes
    ----------
    side_um
        Of a square.
    """

    side_um: float = SIDE_UM

    def squares(self, colour: int, shape: tuple[int, ...], mpp: float) -> BoolImage:
        """Pixels of the squares of one colour, ``(rows, columns)``."""
        rows, columns = (np.floor((np.arange(length) + 0.5) * mpp / self.side_um).astype(int) for length in shape[:2])
        return np.asarray((rows[:, None] + columns) % 2 == colour)

    def centres_um(self, colour: int, tissue: BoolImage, mpp: float) -> Points:
        """Centres ``(N, 2)`` of squares of one colour with enough tissue; evenly fewer where there are very many."""
        height, width = (int(np.ceil(length * mpp / self.side_um)) for length in tissue.shape)
        columns, rows = (grid.ravel() for grid in np.meshgrid(np.arange(width), np.arange(height)))
        centres = (np.column_stack([columns, rows])[(rows + columns) % 2 == colour] + 0.5) * self.side_um
        side_px = max(1, round(self.side_um / mpp))
        share = cv2.boxFilter(tissue.astype(np.float32), -1, (side_px, side_px), borderType=cv2.BORDER_CONSTANT)
        column, row = np.minimum((centres / mpp).astype(int), [tissue.shape[1] - 1, tissue.shape[0] - 1]).T
        centres = centres[share[row, column] >= FEWEST_TISSUE_SHARE]
        return centres[:: -(-len(centres) // MOST_SQUARES)] if len(centres) else centres


@dataclass(frozen=True)
class LocalShifts:
    """What is left between the sections once a transform is applied.

    Attributes
    ----------
    places_um
        float64 ``(N, 2)``, centres of the squares in the H&E frame.
    shifts_um
        float64 ``(N, 2)``, H&E frame: from where a square lies to where its pattern was found on the Ki-67 section
        carried back.
    """

    places_um: Points
    shifts_um: Points


@dataclass(frozen=True)
class PlaceCheck:
    """Where patterns of the tissue were found, against where fits that have not seen them expect them.

    Attributes
    ----------
    places_um
        float64 ``(N, 2)``, H&E frame.
    expected_um, found_um
        float64 ``(N, 2)``, Ki-67 frame: by the fit that has not seen the place, and by its pattern.
    """

    places_um: Points
    expected_um: Points
    found_um: Points

    @property
    def agree(self) -> BoolImage:
        """Places found where they were expected, ``(N,)``; nearer to that where places are few."""
        near_um = AGREEMENT_UM if len(self.places_um) >= MANY_PLACES else CLOSE_AGREEMENT_UM
        return np.asarray(np.linalg.norm(self.found_um - self.expected_um, axis=1) < near_um)

    def errors_um(self, transform: Transform) -> NDArray[np.float64]:
        """How far ``transform`` puts the agreeing places from where they were found, ``(number of them,)``."""
        agree = self.agree
        return np.linalg.norm(transform.apply(self.places_um[agree]) - self.found_um[agree], axis=1)

    def to_json(self) -> list[dict[str, float | bool]]:
        """A record a place, in microns."""
        columns = np.round(np.hstack([self.places_um, self.found_um]), 1).tolist()
        names = ("he_x", "he_y", "ki67_x", "ki67_y")
        return [
            dict(zip(names, row, strict=True)) | {"agrees": bool(agrees)}
            for row, agrees in zip(columns, self.agree, strict=True)
        ]


def measure_local_shifts(
    he: Section, ki67: Section, transform: Transform, colour: int, board: Chessboard
) -> LocalShifts:
    """Seek the black squares of the H&E section on the Ki-67 section near where ``transform`` puts them.

    Parameters
    ----------
    he, ki67
        At the same resolution.
    transform
        From the H&E to the Ki-67 frame.
    board
        Which squares are sought.
    """
    reach, half = round(REACH_UM / he.mpp), round(board.side_um / he.mpp / 2)
    carried = carry_back(ki67.density, transform, he.mpp, he.tissue.shape)
    there = carry_back(ki67.tissue, transform, he.mpp, he.tissue.shape) > 0.5
    wide = half + reach + 1
    squares, fields = (
        [np.pad(pattern, wide) for pattern in _patterns(density, he.mpp)] for density in (he.density, carried)
    )
    found = []
    for x_um, y_um in board.centres_um(colour, he.tissue & there, he.mpp):
        row, column = int(y_um / he.mpp) + wide, int(x_um / he.mpp) + wide
        match = _match(squares, fields, (row, column), half, reach)
        if match is not None:
            found.append((x_um, y_um, match[0] * he.mpp, match[1] * he.mpp))
    table = np.array(found, dtype=np.float64).reshape(-1, 4)
    return LocalShifts(table[:, :2], table[:, 2:])


def _patterns(density: FloatImage, mpp: float) -> list[FloatImage]:
    """Density and edges at two scales."""
    fine, coarse = FINE_PATTERN_UM / mpp, COARSE_PATTERN_UM / mpp
    smooth = cv2.GaussianBlur(density, (0, 0), fine).astype(np.float32, copy=False)
    return [smooth, edges(density, fine), edges(density, coarse)]


def _match(
    squares: list[FloatImage], fields: list[FloatImage], centre: tuple[int, int], half: int, reach: int
) -> tuple[float, float] | None:
    """Shift in x and y in pixels of the best match of a square; none if it is plain."""
    row, column = centre
    wide = half + reach
    square = [image[row - half : row + half + 1, column - half : column + half + 1] for image in squares]
    field = [image[row - wide : row + wide + 1, column - wide : column + wide + 1] for image in fields]
    if any(np.ptp(pattern) <= 0 for pattern in square):
        return None
    by_pattern = [
        np.nan_to_num(cv2.matchTemplate(f, s, cv2.TM_CCOEFF_NORMED)) for f, s in zip(field, square, strict=True)
    ]
    scores: FloatImage = np.stack(by_pattern).mean(axis=0)
    y, x = (int(index) for index in np.unravel_index(int(np.argmax(scores)), scores.shape))
    return x + _vertex(scores[y], x) - reach, y + _vertex(scores[:, x], y) - reach


def _vertex(values: NDArray[np.float32], peak: int) -> float:
    """Where the parabola through the peak and its neighbours is highest, in pixels from the peak."""
    if peak in (0, len(values) - 1):
        return 0.0
    before, top, after = (float(value) for value in values[peak - 1 : peak + 2])
    bend = before - 2 * top + after
    return 0.5 * (before - after) / bend if bend < 0 else 0.0
