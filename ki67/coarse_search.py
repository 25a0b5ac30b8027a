"""Where one section lies on the other, searched over the full circle, both mirror images and every shift.

At a coarse resolution every rotation of the H&E section is correlated with the Ki-67 section through Fourier
transforms, which tries all shifts at once. Two pictures vote: tissue with edges, which are alike in both stains even
where contrast is reversed, and tissue with density, which is better where tissue is uniform.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ki67.geometry import RigidTransform
from ki67.section import FloatImage, Section, edges

FINEST_MPP = 32.0
LONGEST_SIDE_PX = 200
ANGLE_STEP_DEG = 4.0
PEAKS_AN_ANGLE = 2
DISTINCT_ANGLE_DEG = 10.0
DISTINCT_SHIFT_PX = 8.0


@dataclass(frozen=True)
class Candidate:
    """A place where the H&E section may lie on the Ki-67 section; the higher the score the better, 1 at the most."""

    transform: RigidTransform
    score: float


@dataclass(frozen=True)
class _Template:
    """The H&E section cut out around its tissue, so that it can turn within a square of ``side_px``."""

    layers: tuple[FloatImage, ...]
    centre_px: NDArray[np.float64]
    side_px: int

    def turned(self, angle_deg: float, mirror: bool) -> tuple[NDArray[np.float64], list[FloatImage]]:
        """The affine ``(2, 3)`` from the section's pixels to the square's, and the layers in the square."""
        turn = RigidTransform.from_parameters(
            angle_deg=angle_deg, shift_um=(0.0, 0.0), mirror=mirror, source="he", target="ki67"
        ).matrix[:2, :2]
        middle = np.full(2, (self.side_px - 1) / 2)
        affine = np.column_stack([turn, middle - turn @ self.centre_px])
        size = (self.side_px, self.side_px)
        layers = [cv2.warpAffine(layer, affine, size, flags=cv2.INTER_LINEAR) for layer in self.layers]
        return affine, [layer.astype(np.float32, copy=False) for layer in layers]


def find_candidates(he: Section, ki67: Section, *, count: int, mirror: bool = True) -> list[Candidate]:
    """Places where the H&E section may lie on the Ki-67 section, best first, no two of them alike.

    Parameters
    ----------
    he, ki67
        Both with tissue, at the same resolution.
    count
        How many places at most.
    mirror
        Whether mirror images are tried as well.
    """
    mpp = search_mpp(he, ki67)
    he, ki67 = he.at(mpp), ki67.at(mpp)
    ballots: tuple[list[Candidate], ...] = ([], [])
    for found in _all_turns(he, ki67, (False, True) if mirror else (False,)):
        for ballot, candidates in zip(ballots, found, strict=True):
            ballot.extend(candidates)
    chosen = [_distinct(sorted(ballot, key=lambda c: -c.score), he, count) for ballot in ballots]
    in_turn = [candidate for rank in range(count) for best in chosen for candidate in best[rank : rank + 1]]
    return _distinct(in_turn, he, count)


def search_mpp(he: Section, ki67: Section) -> float:
    """Microns per pixel of the search: fine for a small piece of tissue, coarse enough for a slide to be quick."""
    longest_um = max(he.longest_side_um, ki67.longest_side_um)
    return max(FINEST_MPP, longest_um / LONGEST_SIDE_PX, he.mpp)


def _all_turns(
    he: Section, ki67: Section, mirrors: tuple[bool, ...]
) -> Iterator[tuple[list[Candidate], list[Candidate]]]:
    """Best shifts of every turn and mirror image: by tissue and edges, and by tissue and density."""
    template, still = _template(he), _layers(ki67)
    height, width = ki67.tissue.shape
    shape = (
        scipy.fft.next_fast_len(height + template.side_px, real=True),
        scipy.fft.next_fast_len(width + template.side_px, real=True),
    )
    still_spectra = [scipy.fft.rfft2(layer, shape) for layer in still]
    for mirror in mirrors:
        for angle_deg in np.arange(0.0, 360.0, ANGLE_STEP_DEG):
            affine, turned = template.turned(float(angle_deg), mirror)
            tissue, outlines, density = (
                fixed * np.conj(scipy.fft.rfft2(layer, shape))
                for fixed, layer in zip(still_spectra, turned, strict=True)
            )
            by_edges = scipy.fft.irfft2(tissue + outlines, shape) / 2
            by_density = scipy.fft.irfft2(tissue + density, shape) / 2
            yield (
                [_candidate(affine, *peak, he.mpp) for peak in _peaks(by_edges, (height, width))],
                [_candidate(affine, *peak, he.mpp) for peak in _peaks(by_density, (height, width))],
            )


def _template(he: Section) -> _Template:
    rows, columns = np.nonzero(he.tissue)
    extent = np.hypot(np.ptp(rows), np.ptp(columns))
    centre = np.array([columns.min() + columns.max(), rows.min() + rows.max()]) / 2
    return _Template(_layers(he), centre, 2 * int(np.ceil(extent / 2)) + 5)


def _layers(section: Section) -> tuple[FloatImage, FloatImage, FloatImage]:
    """Tissue, edges and density, the latter two about their mean within the tissue; each of length 1."""
    return (
        _unit(section.tissue.astype(np.float32)),
        _unit(_centred(edges(section.density, 1.0), section.tissue)),
        _unit(_centred(section.density, section.tissue)),
    )


def _centred(image: FloatImage, tissue: NDArray[np.bool_]) -> FloatImage:
    values = image[tissue]
    spread = 2.5 * float(values.std())
    return np.where(tissue, np.clip(image - values.mean(), -spread, spread), np.float32(0)).astype(np.float32)


def _unit(image: FloatImage) -> FloatImage:
    length = float(np.linalg.norm(image))
    return image / np.float32(length) if length > 0 else image


def _peaks(correlation: FloatImage, size: tuple[int, int]) -> list[tuple[float, float, float]]:
    """Height, column shift and row shift in pixels of the highest peaks of a circular correlation.

    Shifts are those of the turned square's corner; beyond ``size`` they wrap around to the negative ones.
    """
    rest, found = correlation.copy(), []
    reach = int(DISTINCT_SHIFT_PX)
    for _ in range(PEAKS_AN_ANGLE):
        row, column = np.unravel_index(int(np.argmax(rest)), rest.shape)
        height = float(rest[row, column])
        row_shift = row if row < size[0] else row - rest.shape[0]
        column_shift = column if column < size[1] else column - rest.shape[1]
        found.append((height, float(column_shift), float(row_shift)))
        around = np.arange(-reach, reach + 1)
        rest[np.ix_((row + around) % rest.shape[0], (column + around) % rest.shape[1])] = -np.inf
    return found


def _candidate(
    affine: NDArray[np.float64], score: float, column_shift: float, row_shift: float, mpp: float
) -> Candidate:
    linear = affine[:, :2]
    half = np.array([0.5, 0.5])  # pixel indices count centres, microns count from the corner
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = (affine[:, 2] + [column_shift, row_shift] + half - linear @ half) * mpp
    return Candidate(RigidTransform(matrix, "he", "ki67"), score)


def _distinct(candidates: list[Candidate], he: Section, count: int) -> list[Candidate]:
    """The first ``count`` candidates that differ from those before them by angle, mirror or place."""
    kept: list[Candidate] = []
    for candidate in candidates:
        if len(kept) == count:
            break
        if not any(_alike(candidate.transform, other.transform, he) for other in kept):
            kept.append(candidate)
    return kept


def _alike(one: RigidTransform, other: RigidTransform, he: Section) -> bool:
    turn_deg = (one.angle_deg - other.angle_deg + 180) % 360 - 180
    centre = he.centre_um[None]
    apart_um = float(np.linalg.norm(one.apply(centre) - other.apply(centre)))
    return one.mirror == other.mirror and abs(turn_deg) < DISTINCT_ANGLE_DEG and apart_um < DISTINCT_SHIFT_PX * he.mpp
