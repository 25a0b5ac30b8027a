"""Parts of the tissue that nothing should be counted in: folds, what is out of focus, control tissue."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.geometry import Mask
from ki67.slides import Slide

# Folds. The tissue lies double or more, so they are denser than its densest tenth, and they are bands.
FOLD_DENSITY = 1.35
FOLD_EDGE_DENSITY = 1.15
FOLD_SMOOTHING_UM = 12.0
FOLD_GAP_UM = 480.0
FOLD_LINES = 12
LONGEST_FOLD_WIDTH_UM = 260.0
SHORTEST_FOLD_UM = 350.0
LEAST_FOLD_ELONGATION = 4.0
LEAST_DENSE_SHARE = 0.25
LARGEST_FOLD_SHARE = 0.12
FOLD_MARGIN_UM = 20.0
# Against what is around: drawn folds are 1.5 to 2 times as dense and differ by 0.04 in hue; a row of aggregates of
# lymphocytes is 1.26 times as dense, the rest of a pen stroke differs by 0.13.
FOLD_RING_UM = (30.0, 200.0)
LEAST_FOLD_RATIO = 1.4
LARGEST_FOLD_HUE = 0.06

# Focus, in squares. Sharp fields of real tissue have 0.53 to 4.6, blurred by a gaussian of 2.4 µm at most 0.35. In one
# field the least sharp square has a third of the upper quartile or more: neither limit is enough alone.
FOCUS_MPP = 1.0
FOCUS_SQUARE_UM = 64.0
BLURRED_RATIO = 0.52
BLURRED_EDGE_RATIO = 0.68
BLURRED_SHARPNESS = 0.38
BLURRED_EDGE_SHARPNESS = 0.45
LEAST_CONTRAST = 2.0
LEAST_BLURRED_MM2 = 0.03
LEAST_SQUARE_TISSUE = 0.5
_BLOCK_PX = 1024

# Control tissue.
CONTROL_SHARE = 0.35
CONTROL_DISTANCE_UM = 500.0
COUNTERPART_AREAS = (0.4, 2.5)
SMALLEST_PIECE_MM2 = 0.05

Floats = NDArray[np.float32]
Pixels = NDArray[np.bool_]


def find_folds(density: Floats, tissue: Pixels, mpp: float) -> Pixels:
    """Folds: long narrow bands that are denser than the densest tenth of the tissue.

    Dense pieces in one line are taken for one fold where what lies between them is denser than its surroundings.

    Parameters
    ----------
    density
        float32 ``(rows, columns)``, sum of the three optical densities above glass.
    tissue
        bool of the same shape.
    mpp
        Microns per pixel, some 8.
    """
    nothing = np.zeros(tissue.shape, dtype=bool)
    if not tissue.any():
        return nothing
    smooth = np.asarray(cv2.GaussianBlur(density, (0, 0), FOLD_SMOOTHING_UM / mpp), dtype=np.float32)
    seeds = (smooth > FOLD_DENSITY * np.quantile(smooth[tissue], 0.9)) & tissue
    if not seeds.any():
        return nothing
    around = cv2.morphologyEx(smooth, cv2.MORPH_OPEN, _disc(LONGEST_FOLD_WIDTH_UM, mpp))
    band = (smooth > FOLD_EDGE_DENSITY * around) & tissue
    found = _bands(_joined_in_lines(seeds & band, mpp) & band, seeds, mpp)
    if found.sum() > LARGEST_FOLD_SHARE * tissue.sum():
        return nothing
    return np.asarray(cv2.dilate(found.astype(np.uint8), _disc(2 * FOLD_MARGIN_UM, mpp)) > 0) & tissue


def doubled_parts(found: Pixels, optical_density: Floats, tissue: Pixels, mpp: float) -> Pixels:
    """Of what may be folds, the connected parts that look like more of the tissue around them: denser, of the same hue.

    Brown or blue bands of cells, and ink, are of another hue than the tissue beside them.

    Parameters
    ----------
    found, tissue
        bool ``(rows, columns)``.
    optical_density
        float32 ``(rows, columns, 3)``, above glass.
    mpp
        Microns per pixel.
    """
    kept = np.zeros(found.shape, dtype=bool)
    near, far = (_disc(2 * reach, mpp) for reach in FOLD_RING_UM)
    outside = tissue & (cv2.dilate(found.astype(np.uint8), near) == 0)
    count, labels = cv2.connectedComponents(found.astype(np.uint8))
    for number in range(1, count):
        part = labels == number
        ring = outside & (cv2.dilate(part.astype(np.uint8), far) > 0)
        if not ring.any():
            continue
        inside, around = (optical_density[pixels].mean(axis=0) for pixels in (part, ring))
        hues = inside / max(1e-6, inside.sum()), around / max(1e-6, around.sum())
        if inside.sum() >= LEAST_FOLD_RATIO * around.sum() and np.abs(hues[0] - hues[1]).max() <= LARGEST_FOLD_HUE:
            kept |= part
    return kept


def _joined_in_lines(pixels: Pixels, mpp: float) -> Pixels:
    """The pixels, and those between any that lie less than a gap apart, in each of several directions."""
    reach = round(FOLD_GAP_UM / mpp / 2)
    framed = np.pad(pixels.astype(np.uint8), reach + 1)
    joined = framed > 0
    for angle in np.arange(FOLD_LINES) * np.pi / FOLD_LINES:
        line = np.zeros((2 * reach + 1, 2 * reach + 1), dtype=np.uint8)
        step = np.round(reach * np.array([np.cos(angle), np.sin(angle)])).astype(int)
        cv2.line(line, (reach - step[0], reach - step[1]), (reach + step[0], reach + step[1]), 1)
        joined |= cv2.morphologyEx(framed, cv2.MORPH_CLOSE, line) > 0
    inner = slice(reach + 1, -reach - 1)
    return joined[inner, inner]


def _bands(pixels: Pixels, seeds: Pixels, mpp: float) -> Pixels:
    """The connected parts that are long for their width, and of which the seeds are no small share."""
    closed = cv2.morphologyEx(pixels.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
    depth = cv2.distanceTransform(closed, cv2.DIST_L2, 3)
    deepest = np.zeros(count)
    np.maximum.at(deepest, np.asarray(labels, dtype=np.int64).ravel(), depth.ravel())
    width_um = np.maximum(2 * deepest * mpp, mpp)
    length_um = statistics[:, cv2.CC_STAT_AREA] * mpp**2 / width_um
    dense = np.bincount(labels.ravel(), seeds.ravel(), minlength=count)
    kept = (
        (dense >= LEAST_DENSE_SHARE * statistics[:, cv2.CC_STAT_AREA])
        & (width_um <= LONGEST_FOLD_WIDTH_UM)
        & (length_um >= SHORTEST_FOLD_UM)
        & (length_um >= LEAST_FOLD_ELONGATION * width_um)
    )
    kept[0] = False
    return np.asarray(kept[labels])


def find_blurred_parts(slide: Slide, tissue: Mask) -> Pixels:
    """Parts of the tissue that are well below the usual sharpness of the slide; none of a slide coarser than 1 µm/px.

    Parameters
    ----------
    tissue
        In the slide's frame.

    Returns
    -------
    bool of the tissue's shape.

    Raises
    ------
    SlideError
        If the slide cannot be decoded somewhere.
    """
    if not tissue.pixels.any() or slide.mpp > FOCUS_MPP * 1.1:
        return np.zeros(tissue.pixels.shape, dtype=bool)
    rows, columns = (max(1, int(size // FOCUS_SQUARE_UM)) for size in reversed(slide.size_um))
    share = _share_of_squares(tissue, (rows, columns))
    sharpness = np.full((rows, columns), np.nan, dtype=np.float32)
    squares = round(_BLOCK_PX * FOCUS_MPP / FOCUS_SQUARE_UM)
    for top, left in _blocks_with(share >= LEAST_SQUARE_TISSUE, squares):
        room = sharpness[top : top + squares, left : left + squares]
        room[:] = _sharpness_at(slide, top, left, room.shape)
    sharpness[share < LEAST_SQUARE_TISSUE] = np.nan
    blurred = blurred_squares(sharpness)
    row_of, column_of = (
        np.minimum(((np.arange(length) + 0.5) * tissue.mpp / FOCUS_SQUARE_UM).astype(int), count - 1)
        for length, count in zip(tissue.pixels.shape, (rows, columns), strict=True)
    )
    return blurred[np.ix_(row_of, column_of)] & tissue.pixels


def blurred_squares(sharpness: Floats) -> Pixels:
    """Groups of squares around some that are blurred and far less sharp than most; NaN is one without enough to judge.

    >>> blurred_squares(np.full((5, 5), 0.6, dtype=np.float32)).any()
    np.False_
    """
    judged = np.isfinite(sharpness)
    if not judged.any():
        return np.zeros(sharpness.shape, dtype=bool)
    usual = np.quantile(sharpness[judged], 0.75)
    level = np.where(judged, sharpness, usual)
    below = (level < min(BLURRED_EDGE_RATIO * usual, BLURRED_EDGE_SHARPNESS)).astype(np.uint8)
    core_limit = min(BLURRED_RATIO * usual, BLURRED_SHARPNESS)
    count, labels = cv2.connectedComponents(below, connectivity=8)
    area = np.bincount(labels.ravel(), minlength=count) * FOCUS_SQUARE_UM**2 / 1e6
    core = np.bincount(labels.ravel(), (level < core_limit).ravel(), minlength=count)
    kept = (area >= LEAST_BLURRED_MM2) & (core * FOCUS_SQUARE_UM**2 / 1e6 >= LEAST_BLURRED_MM2 / 2)
    kept[0] = False
    # The squares around are partly blurred.
    grown = cv2.dilate(kept[labels].astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return np.asarray((grown & (level < min(0.85 * usual, 0.5))) | kept[labels])


def sharpness_of_squares(image: NDArray[np.uint8], side_px: int) -> Floats:
    """Detail finer than 1 µm relative to detail of 2 to 4 µm in squares of an image at ``FOCUS_MPP``.

    A ratio of differences of gaussians as ``ki67.tissue.focus_score``, at a scale that costs a quarter as much; pale
    and faintly stained tissue has the same ratio as dense. NaN where there is hardly any detail of 2 to 4 µm.

    Parameters
    ----------
    image
        uint8 ``(rows, columns, 3)``, both sides multiples of ``side_px``.
    """
    brightness = image.mean(axis=2, dtype=np.float32)
    fine, coarse, coarser = (cv2.GaussianBlur(brightness, (0, 0), sigma / FOCUS_MPP) for sigma in (1.0, 2.0, 4.0))
    size = (image.shape[1] // side_px, image.shape[0] // side_px)
    detail, contrast = (
        np.sqrt(cv2.resize(band * band, size, interpolation=cv2.INTER_AREA))
        for band in (brightness - fine, coarse - coarser)
    )
    return np.where(contrast >= LEAST_CONTRAST, detail / np.maximum(contrast, 1e-3), np.nan).astype(np.float32)


def _sharpness_at(slide: Slide, top: int, left: int, shape: tuple[int, ...]) -> Floats:
    side = round(FOCUS_SQUARE_UM / FOCUS_MPP)
    height, width = (count * side for count in shape)
    image = slide.read(left * FOCUS_SQUARE_UM, top * FOCUS_SQUARE_UM, width, height, FOCUS_MPP)
    return sharpness_of_squares(image, side)


def _share_of_squares(tissue: Mask, shape: tuple[int, int]) -> Floats:
    """Share of tissue in each square."""
    size_px = FOCUS_SQUARE_UM / tissue.mpp
    rows, columns = (round(count * size_px) for count in shape)
    held = np.zeros((rows, columns), dtype=np.float32)
    part = tissue.pixels[:rows, :columns]
    held[: part.shape[0], : part.shape[1]] = part
    return np.asarray(cv2.resize(held, shape[::-1], interpolation=cv2.INTER_AREA), dtype=np.float32)


def _blocks_with(squares: Pixels, side: int) -> Iterator[tuple[int, int]]:
    """Corners of the blocks of squares that hold any."""
    for top in range(0, squares.shape[0], side):
        for left in range(0, squares.shape[1], side):
            if squares[top : top + side, left : left + side].any():
                yield top, left


def find_control_tissue(ki67: Mask, he: Mask | None) -> Mask:
    """Pieces of a Ki-67 slide that look like control tissue: small, far off to one side, and not on the H&E.

    A piece is small if it has less than a third of the area of the largest one, far off if it lies 0.5 mm or more from,
    and wholly to one side of, all that is not small.

    Parameters
    ----------
    ki67, he
        Tissue of both slides; None where there is no H&E that could be used, and any such piece is taken.
    """
    areas, labels, boxes = _pieces(ki67)
    found = np.zeros(ki67.pixels.shape, dtype=bool)
    if len(areas) == 0:
        return Mask(found, ki67.mpp, ki67.frame)
    small = areas < CONTROL_SHARE * areas.max()
    large = np.isin(labels, 1 + np.flatnonzero(~small))
    distance_um = cv2.distanceTransform((~large).astype(np.uint8), cv2.DIST_L2, 5) * ki67.mpp
    rest = boxes[~small]
    counterparts = [] if he is None else list(_pieces(he)[0])
    for piece in np.flatnonzero(small)[np.argsort(-areas[small])]:
        here = labels == piece + 1
        left, top, right, bottom = boxes[piece]
        aside = right <= rest[:, 0].min() or left >= rest[:, 2].max()
        aside |= bottom <= rest[:, 1].min() or top >= rest[:, 3].max()
        if aside and distance_um[here].min() >= CONTROL_DISTANCE_UM and not _take(counterparts, areas[piece]):
            found |= here
    return Mask(found, ki67.mpp, ki67.frame)


def _take(areas: list[float], area: float) -> bool:
    """Whether a list holds about this area; it is then taken off."""
    low, high = (factor * area for factor in COUNTERPART_AREAS)
    fitting = [one for one in areas if low <= one <= high]
    if fitting:
        areas.remove(min(fitting, key=lambda one: abs(one - area)))
    return bool(fitting)


def _pieces(mask: Mask) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.int32]]:
    """Areas in mm², image of numbers from 1, and boxes ``(N, 4)`` (left, top, right, bottom) of the larger pieces."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.pixels.astype(np.uint8), connectivity=8)
    areas = statistics[:, cv2.CC_STAT_AREA].astype(np.float64) * mask.mpp**2 / 1e6
    kept = areas >= SMALLEST_PIECE_MM2
    kept[0] = False
    numbers = np.zeros(len(areas), dtype=np.int32)
    numbers[kept] = np.arange(1, kept.sum() + 1)
    left, top, width, height = statistics[kept, :4].T
    boxes = np.stack([left, top, left + width, top + height], axis=1).astype(np.int32)
    return areas[kept], numbers[np.asarray(labels)], boxes


def _disc(width_um: float, mpp: float) -> NDArray[np.uint8]:
    size = max(3, 2 * round(width_um / mpp / 2) + 1)
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)), dtype=np.uint8)
