"""Single nuclei from the probabilities of the five-class network: seeds, parts, membranes, and what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.compiled import compiled

Pixel = TypeVar("Pixel", np.uint8, np.uint16)

_HALF = 128
# Depth in an interior is kept in 16 bits: integers are smoothed to the same values everywhere in an image.
_DEPTH_STEPS = 128
_DEPTH_LIMIT = 2 * 255 * _DEPTH_STEPS
# Pixels are flooded in order of so many bits of depth, and where these are equal in the order they were reached in.
_FLOOD_SHIFT = 5


@dataclass(frozen=True)
class ExtractionOptions:
    """How probabilities become single nuclei.

    Attributes
    ----------
    seed_probability
        Smoothed probability of nuclear interior from which a pixel is part of one.
    smoothing_um
        Standard deviation of the Gaussian over the probability of nuclear interior.
    smallest_um2, largest_um2
        Limits of the area of a nucleus with its membrane.
    peak_distance_um
        Least distance of the middles of two nuclei whose interiors run together.
    deepest_um, depth_smoothing_um
        How deep inside a nucleus a pixel lies is the probability of interior and the distance to the nearest pixel
        outside as a share of the deepest, in equal parts, under a Gaussian of this standard deviation.
    neck
        Two parts of one interior are two nuclei where the neck between them is less deep than this share of the
        shallower part.
    membrane_um
        Farthest that the membrane reaches out from the interior.
    """

    seed_probability: float = 0.45
    smoothing_um: float = 0.35
    smallest_um2: float = 12.0
    largest_um2: float = 500.0
    peak_distance_um: float = 2.5
    deepest_um: float = 10.0
    depth_smoothing_um: float = 1.0
    neck: float = 0.9
    membrane_um: float = 1.5


@dataclass(frozen=True)
class Nuclei:
    """Nuclei in an image; arrays of length ``N``, number ``i + 1`` of ``labels`` is entry ``i``.

    Attributes
    ----------
    labels
        int32 ``(H, W)``, 0 outside nuclei.
    x_px, y_px
        float64, centre of mass, from the image's top-left corner.
    area_px
        int64.
    positive
        bool.
    probability
        float32, mean probability 0-1 of the nucleus's own class over its pixels.
    """

    labels: NDArray[np.int32]
    x_px: NDArray[np.float64]
    y_px: NDArray[np.float64]
    area_px: NDArray[np.int64]
    positive: NDArray[np.bool_]
    probability: NDArray[np.float32]

    def chosen(self, which: NDArray[np.bool_]) -> Nuclei:
        """Only some of the nuclei, ``(N,)``, numbered anew."""
        return Nuclei(
            _renumbered(self.labels, 0, _new_numbers(which)),
            self.x_px[which],
            self.y_px[which],
            self.area_px[which],
            self.positive[which],
            self.probability[which],
        )


def with_membranes(probabilities: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Five classes ``(..., 5, H, W)``, the membranes 0 everywhere, of three: background, positive, negative.

    What has five classes already, such as ``extract_nuclei`` asks for, is returned as it is.
    """
    if probabilities.shape[-3] == 5:
        return probabilities
    background, positive, negative = np.moveaxis(probabilities, -3, 0)
    none = np.zeros_like(background)
    return np.stack([background, positive, none, negative, none], axis=-3)


def extract_nuclei(probabilities: NDArray[np.uint8], *, mpp: float, options: ExtractionOptions | None = None) -> Nuclei:
    """Single nuclei from the probabilities of the five classes.

    Interiors are where the network sees nucleus, positive or negative; those that run together are parted at narrow
    necks by a watershed of their depth (Meyer, Topographic distance and watershed lines, 1994); each then grows into
    the membrane around it. Depth is distance to the nearest pixel outside and probability together: distance alone may
    change much where probabilities hardly change, and nuclei would fall apart by chance. Everything is decided by what
    is near: see ``ki67.nuclei.REACH_UM``.

    Parameters
    ----------
    probabilities
        uint8 ``(5, H, W)``, 255 for 1, in the order of ``ki67.predictors.NUCLEUS_CLASSES``.
    mpp
        Microns per pixel.
    options
        See there.
    """
    options = options or ExtractionOptions()
    _, positive, positive_membrane, negative, negative_membrane = probabilities
    interior = cv2.add(positive, negative)
    foreground = cv2.add(interior, cv2.add(positive_membrane, negative_membrane))
    smooth = cv2.GaussianBlur(interior, (0, 0), options.smoothing_um / mpp)
    # A frame without seeds saves asking at every pixel whether its neighbours lie within the image.
    frame = 1 + int(options.membrane_um / mpp)
    seed_pixels = _framed(_at_least(smooth, 255 * options.seed_probability), frame)
    depth = _framed(_depth(seed_pixels[frame:-frame, frame:-frame], interior, mpp, options), frame)
    labels, last = _parted(seed_pixels, depth, mpp, options)
    _grow_seeds(labels, seed_pixels, _framed(_at_least(foreground, _HALF), frame), options.membrane_um / mpp)
    return _measured(labels, last, frame, probabilities, mpp, options)


def _at_least(levels: NDArray[np.uint8], lowest: float) -> NDArray[np.uint8]:
    """1 where a level is reached, else 0."""
    return np.asarray(cv2.threshold(levels, int(np.ceil(lowest)) - 1, 1, cv2.THRESH_BINARY)[1])


def _framed(pixels: NDArray[Pixel], frame: int) -> NDArray[Pixel]:
    """The image with a frame of so many pixels of 0."""
    return np.asarray(cv2.copyMakeBorder(pixels, frame, frame, frame, frame, cv2.BORDER_CONSTANT, value=0))


# ---------------------------------------------------------------------------------------------- parting
# All images here have a frame of 0; a place in one is the index of a pixel in the flat array.


def _parted(
    interior: NDArray[np.uint8], depth: NDArray[np.uint16], mpp: float, options: ExtractionOptions
) -> tuple[NDArray[np.int32], int]:
    """Interiors numbered, those with narrow necks cut there, and a number that none of them exceeds."""
    count, components = cv2.connectedComponents(interior, connectivity=4)
    labels = np.asarray(components, dtype=np.int32)
    if count == 1:
        return labels, 0
    reach = max(1, round(options.peak_distance_um / mpp))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    peaks = (depth >= cv2.dilate(depth, disc)) & interior
    crowded = _crowded_peaks(labels.ravel(), count, peaks.ravel(), cv2.countNonZero(peaks))
    parts, flooded = _flooded(labels, crowded, depth.ravel(), cv2.countNonZero(interior))
    joined = _joined_at_wide_necks(parts, len(crowded), flooded, depth.ravel(), labels.shape[1], options.neck)
    labels.ravel()[flooded] = count - 1 + joined[parts[flooded]]
    return labels, count - 1 + len(crowded)


def _depth(
    seed_pixels: NDArray[np.uint8], interior: NDArray[np.uint8], mpp: float, options: ExtractionOptions
) -> NDArray[np.uint16]:
    """Smoothed sum of the probability of interior and the distance to the nearest pixel outside."""
    deepest_px = options.deepest_um / mpp
    distance = np.asarray(cv2.distanceTransform(seed_pixels, cv2.DIST_L2, 5), dtype=np.float32)
    np.minimum(distance, np.float32(deepest_px), out=distance)
    distance *= np.float32(_DEPTH_LIMIT / 2 / deepest_px)
    depth = distance.astype(np.uint16) + interior.astype(np.uint16) * np.uint16(_DEPTH_STEPS)
    return np.asarray(cv2.GaussianBlur(depth, (0, 0), options.depth_smoothing_um / mpp))


@compiled
def _crowded_peaks(
    labels: NDArray[np.int32], count: int, peaks: NDArray[np.uint8], peak_count: int
) -> NDArray[np.int64]:
    """Places of the peaks that share their component with others, in order."""
    peaks_of = np.zeros(count, dtype=np.int64)
    places = np.empty(peak_count, dtype=np.int64)
    found = 0
    for place in range(len(peaks)):
        if peaks[place]:
            places[found] = place
            found += 1
            peaks_of[labels[place]] += 1
    crowded = 0
    for peak in places:
        if peaks_of[labels[peak]] > 1:
            places[crowded] = peak
            crowded += 1
    return places[:crowded]


@compiled
def _flooded(
    labels: NDArray[np.int32], peaks: NDArray[np.int64], depth: NDArray[np.uint16], most: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Flood components from their peaks downwards: deeper pixels first, equally deep ones as they were reached.

    Parameters
    ----------
    labels
        int32 ``(H, W)``, components.
    peaks
        int64 ``(P,)``, places from which water comes.
    depth
        uint16 ``(H * W,)``.
    most
        Number of pixels there may be to flood.

    Returns
    -------
    parts
        int32 ``(H * W,)``: 1 + index of the peak whose water came first, 0 where none comes.
    places
        int64, those that were flooded.
    """
    width, component = labels.shape[1], labels.ravel()
    parts = np.zeros(component.size, dtype=np.int32)
    # Of every depth a queue, first in, first out: entry e is at places[e], and the one behind it is following[e].
    levels = (_DEPTH_LIMIT >> _FLOOD_SHIFT) + 1
    first, last = np.empty(levels, dtype=np.int64), np.empty(levels, dtype=np.int64)
    first[:] = -1
    places, following = np.empty(most, dtype=np.int64), np.empty(most, dtype=np.int64)
    entries, level = 0, np.int64(-1)
    for place in peaks:
        places[entries] = place
        level = max(level, _enqueue(entries, np.int64(depth[place]), following, first, last))
        entries += 1
        parts[place] = entries
    while level >= 0:
        entry = first[level]
        if entry < 0:
            level -= 1
            continue
        first[level] = following[entry]
        place = places[entry]
        for neighbour in (place - width, place - 1, place + 1, place + width):
            if component[neighbour] > 0 and parts[neighbour] == 0:
                parts[neighbour] = parts[place]
                places[entries] = neighbour
                level = max(level, _enqueue(entries, np.int64(depth[neighbour]), following, first, last))
                entries += 1
    return parts, places[:entries]


@compiled
def _enqueue(
    entry: int, depth: np.int64, following: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64]
) -> np.int64:
    """Put an entry at the end of the queue of its depth; returns the number of that queue."""
    level = depth >> _FLOOD_SHIFT
    following[entry] = -1
    if first[level] < 0:
        first[level] = entry
    else:
        following[last[level]] = entry
    last[level] = entry
    return level


@compiled
def _joined_at_wide_necks(
    parts: NDArray[np.int32], count: int, flooded: NDArray[np.int64], depth: NDArray[np.uint16], width: int, neck: float
) -> NDArray[np.int32]:
    """For each part from 0 to ``count`` the lowest one to which it belongs.

    Two that touch belong together where the neck between them is at least that share of the shallower one's depth.
    """
    deepest = np.zeros(count + 1, dtype=np.int64)
    for place in flooded:
        deepest[parts[place]] = max(deepest[parts[place]], np.int64(depth[place]))
    joined = np.empty(count + 1, dtype=np.int32)
    for part in range(count + 1):
        joined[part] = part
    for place in flooded:
        part = parts[place]
        for neighbour in (place + 1, place + width):
            other = parts[neighbour]
            if other > 0 and other != part:
                saddle = min(depth[place], depth[neighbour])
                if saddle >= neck * min(deepest[part], deepest[other]):
                    one, two = _root(joined, part), _root(joined, other)
                    joined[max(one, two)] = min(one, two)
    for part in range(count + 1):
        joined[part] = _root(joined, part)
    return joined


@compiled
def _root(joined: NDArray[np.int32], part: int) -> int:
    while joined[part] != part:
        part = joined[part]
    return part


# ---------------------------------------------------------------------------------------------- membranes


def _grow_seeds(
    labels: NDArray[np.int32], seed_pixels: NDArray[np.uint8], foreground: NDArray[np.uint8], reach_px: float
) -> None:
    """Grow seeds over the foreground in place, every pixel within reach going to the nearest, with its number negative.

    All have a frame as wide as the reach.
    """
    down, right = _steps_within(reach_px)
    reach = int(reach_px)
    disc = np.zeros((2 * reach + 1, 2 * reach + 1), dtype=np.uint8)
    disc[down + reach, right + reach] = 1
    near = np.asarray(cv2.dilate(seed_pixels, disc), dtype=np.uint8)
    membrane: NDArray[np.uint8] = foreground & ~seed_pixels & near
    _grow(labels.ravel(), membrane.ravel(), down * labels.shape[1] + right)


def _steps_within(reach_px: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows down and columns to the right to all other pixels within reach, the nearest first."""
    reach = int(reach_px)
    down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    squared = down**2 + right**2
    order = np.argsort(squared, kind="stable")[1 : np.count_nonzero(squared <= reach_px**2)]
    return down[order], right[order]


@compiled
def _grow(labels: NDArray[np.int32], membrane: NDArray[np.uint8], steps: NDArray[np.int64]) -> None:
    """Give each pixel of the membrane minus the number of the nearest seed."""
    for place in range(len(membrane)):
        if membrane[place]:
            for step in steps:
                number = labels[place + step]
                if number > 0:
                    labels[place] = -number
                    break


# ---------------------------------------------------------------------------------------------- measures


def _measured(
    labels: NDArray[np.int32],
    last: int,
    frame: int,
    probabilities: NDArray[np.uint8],
    mpp: float,
    options: ExtractionOptions,
) -> Nuclei:
    """Nuclei within the limits of area, numbered anew, without the frame; numbers may have been negative."""
    sums = _sums(labels, last, frame, probabilities)
    area_um2 = sums[:, 0] * mpp**2
    kept = (area_um2 >= options.smallest_um2) & (area_um2 <= options.largest_um2)
    area, columns, rows, positive, negative = sums[kept].T
    return Nuclei(
        labels=_renumbered(labels, frame, _new_numbers(kept)),
        x_px=columns / area + 0.5,
        y_px=rows / area + 0.5,
        area_px=area,
        positive=positive > negative,
        probability=(np.maximum(positive, negative) / (255 * area)).astype(np.float32),
    )


def _new_numbers(kept: NDArray[np.bool_]) -> NDArray[np.int32]:
    """For 0 and each old number from 1 the new number, 0 for those not kept."""
    return np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.int32)


@compiled
def _sums(labels: NDArray[np.int32], last: int, frame: int, probabilities: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sums over each number from 1 to ``last``: pixels, columns, rows, positive and negative probability."""
    _, height, width = probabilities.shape
    sums = np.zeros((last, 5), dtype=np.int64)
    for row in range(height):
        for column in range(width):
            number = abs(labels[row + frame, column + frame])
            if number:
                one = sums[number - 1]
                one[0] += 1
                one[1] += column
                one[2] += row
                one[3] += np.int64(probabilities[1, row, column]) + np.int64(probabilities[2, row, column])
                one[4] += np.int64(probabilities[3, row, column]) + np.int64(probabilities[4, row, column])
    return sums


@compiled
def _renumbered(labels: NDArray[np.int32], frame: int, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
    """Labels without their frame, each number or minus that number replaced."""
    height, width = labels.shape[0] - 2 * frame, labels.shape[1] - 2 * frame
    result = np.empty((height, width), dtype=np.int32)
    for row in range(height):
        for column in range(width):
            result[row, column] = numbers[abs(labels[row + frame, column + frame])]
    return result
