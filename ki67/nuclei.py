"""Nuclei from the probabilities of the five-class network: where each is, its outline, and whether it is positive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from skimage.segmentation import watershed

_HALF = 128


@dataclass(frozen=True)
class ExtractionOptions:
    """How probabilities become single nuclei.

    Attributes
    ----------
    smoothing_um
        Standard deviation of the Gaussian over the probability of nuclear interior.
    smallest_um2, largest_um2
        Limits of the area of a nucleus with its membrane.
    peak_distance_um
        Least distance of the middles of two nuclei whose interiors run together.
    neck
        Two parts of one interior are two nuclei where the neck between them is narrower than this share of the
        narrower part.
    membrane_um
        Farthest that the membrane reaches out from the interior.
    """

    smoothing_um: float = 0.5
    smallest_um2: float = 12.0
    largest_um2: float = 500.0
    peak_distance_um: float = 2.5
    neck: float = 0.75
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


def extract_nuclei(probabilities: NDArray[np.uint8], *, mpp: float, options: ExtractionOptions | None = None) -> Nuclei:
    """Single nuclei from the probabilities of the five classes.

    Interiors are where nucleus, positive or negative, is likelier than not; those that run together are parted at
    narrow necks by a watershed of their distance transform; each then grows into the membrane around it.

    Parameters
    ----------
    probabilities
        uint8 ``(5, H, W)``, 255 for 1, in the order of ``ki67.networks.NUCLEUS_CLASSES``.
    mpp
        Microns per pixel.
    options
        See there.
    """
    options = options or ExtractionOptions()
    _, positive, positive_membrane, negative, negative_membrane = probabilities
    interior = cv2.add(positive, negative)
    foreground = cv2.add(interior, cv2.add(positive_membrane, negative_membrane))
    sigma = options.smoothing_um / mpp
    seeds = _parted(np.asarray(cv2.GaussianBlur(interior, (0, 0), sigma)) >= _HALF, mpp, options)
    labels = _grown(seeds, foreground >= _HALF, options.membrane_um / mpp)
    return _measured(labels, probabilities, mpp, options)


def _parted(interior: NDArray[np.bool_], mpp: float, options: ExtractionOptions) -> NDArray[np.int32]:
    """Interiors numbered from 1, those with narrow necks cut there."""
    pixels = interior.astype(np.uint8)
    count, found = cv2.connectedComponents(pixels, connectivity=4)
    components = np.asarray(found, dtype=np.int32)
    depth = np.asarray(cv2.GaussianBlur(cv2.distanceTransform(pixels, cv2.DIST_L2, 5), (0, 0), 1.0), dtype=np.float32)
    reach = max(1, round(options.peak_distance_um / mpp))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    peaks = ((depth >= cv2.dilate(depth, disc)) & interior).astype(np.uint8)
    _, markers = cv2.connectedComponents(peaks, connectivity=8)
    # A peak lies within one component; its first pixel says in which.
    places = np.flatnonzero(peaks)
    _, first = np.unique(markers.ravel()[places], return_index=True)
    several = np.bincount(components.ravel()[places[first]], minlength=count) > 1
    crowded = several[components]
    if not crowded.any():
        return components
    rows, columns = _bounds(crowded)
    inside = crowded[rows, columns]
    parts = watershed(-depth[rows, columns], np.where(inside, markers[rows, columns], 0), mask=inside)
    parts = _without_wide_necks(parts, depth[rows, columns], options.neck)
    components[rows, columns][inside] = parts[inside] + count
    return components


def _bounds(pixels: NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _without_wide_necks(parts: NDArray[np.int32], depth: NDArray[np.float32], neck: float) -> NDArray[np.int32]:
    """Parts joined again wherever the neck between two is at least that share of the narrower one's depth."""
    count = int(parts.max()) + 1
    deepest = np.zeros(count, dtype=np.float32)
    np.maximum.at(deepest, parts.ravel(), depth.ravel())
    pairs, saddles = [], []
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        touching = (parts[first] != parts[second]) & (parts[first] > 0) & (parts[second] > 0)
        one, other = parts[first][touching], parts[second][touching]
        pairs.append(np.minimum(one, other).astype(np.int64) * count + np.maximum(one, other))
        saddles.append(np.minimum(depth[first][touching], depth[second][touching]))
    keys, which = np.unique(np.concatenate(pairs), return_inverse=True)
    if len(keys) == 0:
        return parts
    saddle = np.zeros(len(keys), dtype=np.float32)
    np.maximum.at(saddle, which, np.concatenate(saddles))
    one, other = np.divmod(keys, count)
    wide = saddle >= neck * np.minimum(deepest[one], deepest[other])
    graph = sparse.coo_array((np.ones(wide.sum()), (one[wide], other[wide])), shape=(count, count))
    # Part 0 is the background and touches nothing, so it stays a group of its own, the first.
    groups = sparse.csgraph.connected_components(graph, directed=False)[1]
    return groups[parts].astype(np.int32)


def _grown(seeds: NDArray[np.int32], foreground: NDArray[np.bool_], reach_px: float) -> NDArray[np.int32]:
    """Seeds grown over the foreground, every pixel within reach going to the nearest."""
    empty = (seeds == 0).astype(np.uint8)
    if empty.all():
        return np.zeros_like(seeds)
    distance, nearest = cv2.distanceTransformWithLabels(empty, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    number_of = np.zeros(int(nearest.max()) + 1, dtype=np.int32)
    number_of[nearest[empty == 0]] = seeds[empty == 0]
    return np.where((empty == 0) | (foreground & (distance <= reach_px)), number_of[nearest], 0)


def _measured(
    labels: NDArray[np.int32], probabilities: NDArray[np.uint8], mpp: float, options: ExtractionOptions
) -> Nuclei:
    """Nuclei within the limits of area, numbered anew."""
    area = np.bincount(labels.ravel())
    area_um2 = area * mpp**2
    kept = (area_um2 >= options.smallest_um2) & (area_um2 <= options.largest_um2)
    kept[0] = False
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    labels = numbers[labels]
    area, count = area[kept], int(kept.sum())
    rows, columns = np.nonzero(labels)
    owner = labels[rows, columns] - 1

    def total(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(owner, values, minlength=count).astype(np.float64, copy=False)

    # Sums of 8-bit values in float64 are exact, so they do not depend on the order of the pixels.
    positive = total(probabilities[1, rows, columns].astype(np.int32) + probabilities[2, rows, columns])
    negative = total(probabilities[3, rows, columns].astype(np.int32) + probabilities[4, rows, columns])
    return Nuclei(
        labels=labels,
        x_px=total(columns) / area + 0.5,
        y_px=total(rows) / area + 0.5,
        area_px=area,
        positive=positive > negative,
        probability=(np.maximum(positive, negative) / (255 * area)).astype(np.float32),
    )
