"""How far single places of two registered sections lie from each other.

Squares of the H&E, spread over the tissue that both sections share, are sought again near where the transform puts them
on the Ki-67 section, by normalised cross-correlation of density and edges. Elastix compares grey values at single
pixels; this compares patterns, so it can judge what elastix found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.geometry import RigidTransform
from ki67.landmarks import fit_rigid
from ki67.section import FloatImage, Section, carry_back, edges

SQUARE_UM = 480.0
REACH_UM = 240.0  # serial sections differ by folds and stretch of up to about this
SQUARES_ACROSS = 24
FEWEST_TISSUE_SHARE = 0.5
DISTINCT_GAP = 0.03  # by how much the best match of a square must exceed the second best
DISTINCT_APART_UM = 64.0
PLANNING_MPP = 32.0
FINE_PATTERN_UM = 8.0
COARSE_PATTERN_UM = 16.0
FIT_ROUNDS = 20
FIT_SOFTNESS_UM = 5.0


@dataclass(frozen=True)
class LocalShifts:
    """What is left between the sections once a transform is applied.

    Attributes
    ----------
    places_um
        float64 ``(N, 2)``, centres of the squares in the H&E frame.
    shifts_um
        float64 ``(N, 2)``, Ki-67 frame: from where the transform puts each place to where its pattern was found.
    weights
        float64 ``(N,)``, by how much the best match exceeds the second best.
    held_out
        bool ``(N,)``, every other square, like the black ones of a chessboard: kept for judging a fit to the rest.
    """

    places_um: NDArray[np.float64]
    shifts_um: NDArray[np.float64]
    weights: NDArray[np.float64]
    held_out: NDArray[np.bool_]

    @property
    def distinct(self) -> NDArray[np.bool_]:
        """Squares found again without a doubt, ``(N,)``."""
        return self.weights > DISTINCT_GAP

    @property
    def lengths_um(self) -> NDArray[np.float64]:
        """Length of each shift, ``(N,)``."""
        return np.linalg.norm(self.shifts_um, axis=1)


def measure_local_shifts(he: Section, ki67: Section, transform: RigidTransform) -> LocalShifts:
    """Seek squares of the H&E section on the Ki-67 section near where ``transform`` puts them.

    Parameters
    ----------
    he, ki67
        At the same resolution.
    transform
        From the H&E to the Ki-67 frame.
    """
    found = []
    for x_um, y_um, held_out in _squares(he, ki67, transform):
        match = _match(he, ki67, transform, (x_um, y_um))
        if match is not None:
            found.append((x_um, y_um, *match, held_out))
    table = np.array(found, dtype=np.float64).reshape(-1, 6)
    return LocalShifts(
        places_um=table[:, :2],
        shifts_um=table[:, 2:4] @ transform.matrix[:2, :2].T,
        weights=table[:, 4],
        held_out=table[:, 5] > 0,
    )


def settle(transform: RigidTransform, shifts: LocalShifts) -> RigidTransform:
    """The rigid transform that fits the distinct squares that are not held out; the one given where they are few.

    Mutual information is satisfied with the part of the section that fits best; this spreads what a rigid transform
    cannot follow over the whole section. Squares found in the wrong place weigh little: the fit minimises the sum of
    distances, not of their squares, by iterative reweighting (Weiszfeld).
    """
    chosen = shifts.distinct & ~shifts.held_out
    if np.count_nonzero(chosen) < 4:
        return transform
    source, trust = shifts.places_um[chosen], shifts.weights[chosen]
    target = transform.apply(source) + shifts.shifts_um[chosen]
    fitted, weights = transform, trust
    for _ in range(FIT_ROUNDS):
        matrix = fit_rigid(source, target, weights=weights, mirror=transform.mirror)
        fitted = RigidTransform(matrix, transform.source, transform.target)
        rest_um = np.linalg.norm(fitted.apply(source) - target, axis=1)
        weights = trust / np.maximum(rest_um, FIT_SOFTNESS_UM)
    return fitted


def _squares(he: Section, ki67: Section, transform: RigidTransform) -> Iterator[tuple[float, float, bool]]:
    """Centres in µm and chessboard colour of squares on a grid over the tissue that both sections have."""
    he, ki67 = he.at(PLANNING_MPP), ki67.at(PLANNING_MPP)
    tissue = he.tissue & (carry_back(ki67.tissue, transform, he.mpp, he.tissue.shape) > 0.5)
    if not tissue.any():
        return
    side_px = round(SQUARE_UM / he.mpp)
    share = cv2.boxFilter(tissue.astype(np.float32), -1, (side_px, side_px), borderType=cv2.BORDER_CONSTANT)
    rows, columns = np.nonzero(tissue)
    step_px = max(side_px * 2 // 3, int(np.sqrt(len(rows)) / SQUARES_ACROSS))
    for i, row in enumerate(range(int(rows.min()) + step_px // 2, int(rows.max()) + 1, step_px)):
        for j, column in enumerate(range(int(columns.min()) + step_px // 2, int(columns.max()) + 1, step_px)):
            if share[row, column] >= FEWEST_TISSUE_SHARE:
                yield (column + 0.5) * he.mpp, (row + 0.5) * he.mpp, (i + j) % 2 == 1


def _match(
    he: Section, ki67: Section, transform: RigidTransform, centre_um: tuple[float, float]
) -> tuple[float, float, float] | None:
    """Shift in x and y in µm of the H&E frame and distinctness of the best match of a square; none if it is plain."""
    half, reach = round(SQUARE_UM / he.mpp / 2), round(REACH_UM / he.mpp)
    squares = _patterns(he, RigidTransform(np.eye(3), "he", "he"), centre_um, half)
    fields = _patterns(ki67, transform, centre_um, half + reach)
    if any(np.ptp(square) <= 0 for square in squares):
        return None
    by_pattern = [
        np.nan_to_num(cv2.matchTemplate(field, square, cv2.TM_CCOEFF_NORMED))
        for field, square in zip(fields, squares, strict=True)
    ]
    scores: FloatImage = np.stack(by_pattern).mean(axis=0)
    row, column = (int(index) for index in np.unravel_index(int(np.argmax(scores)), scores.shape))
    best = float(scores[row, column])
    x_px = column + _vertex(scores[row], column) - reach
    y_px = row + _vertex(scores[:, column], row) - reach
    apart = max(1, round(DISTINCT_APART_UM / he.mpp))
    scores[max(0, row - apart) : row + apart + 1, max(0, column - apart) : column + apart + 1] = -1
    return x_px * he.mpp, y_px * he.mpp, best - float(scores.max())


def _patterns(
    section: Section, transform: RigidTransform, centre_um: tuple[float, float], half_px: int
) -> list[FloatImage]:
    """Density and edges at two scales in a square of the H&E frame, ``half_px`` to each side of the centre's pixel."""
    margin = round(4 * COARSE_PATTERN_UM / section.mpp)
    side = 2 * (half_px + margin) + 1
    corner_x_um, corner_y_um = ((np.floor(value / section.mpp) - half_px - margin) * section.mpp for value in centre_um)
    density = carry_back(section.density, transform, section.mpp, (side, side), (corner_x_um, corner_y_um))
    inner = slice(margin, side - margin)
    fine, coarse = FINE_PATTERN_UM / section.mpp, COARSE_PATTERN_UM / section.mpp
    patterns = (cv2.GaussianBlur(density, (0, 0), fine), edges(density, fine), edges(density, coarse))
    return [np.ascontiguousarray(pattern[inner, inner], dtype=np.float32) for pattern in patterns]


def _vertex(values: NDArray[np.float32], peak: int) -> float:
    """Where the parabola through the peak and its neighbours is highest, in pixels from the peak."""
    if peak in (0, len(values) - 1):
        return 0.0
    before, top, after = (float(value) for value in values[peak - 1 : peak + 2])
    bend = before - 2 * top + after
    return 0.5 * (before - after) / bend if bend < 0 else 0.0
