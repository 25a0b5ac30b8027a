"""Targets for nuclei of which a person marked only the centre: with the outline that a trained network sees there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ki67.extraction import Nuclei, extract_nuclei, with_membranes
from ki67.matching import MATCH_UM
from ki67.predictors import WHOLE_NUCLEUS_CLASSES, Predictor, predict_image
from ki67.training.datasets import NUCLEUS_RADIUS_UM, AnnotatedImage, membrane_px
from ki67.training.targets import IGNORED, discs, five_class_target, without_membranes

_DOUBTFUL_RIM = 1.4
"""Where no outline is seen a disc stands for the nucleus; nobody knows what is there up to so many of its radii."""
_FEWEST_TO_MEASURE = 10


def outline_centers(image: AnnotatedImage, network: Predictor, classes: tuple[str, ...]) -> AnnotatedImage:
    """The image with another target.

    Each marked nucleus takes the pixels that the network sees as one at its centre; where it sees one for several
    marks, each pixel goes to the nearest. Where it sees none there is a disc as large as the nuclei that it does see,
    with a rim that is ``IGNORED``. What it sees where nobody marked anything becomes background.

    Parameters
    ----------
    image
        Marked with centres. What its target ignores stays ignored.
    network
        Of nuclei, at the image's resolution.
    classes
        Of the target: those of ``ki67.predictors.NUCLEUS_CLASSES`` or ``WHOLE_NUCLEUS_CLASSES``.
    """
    mpp = network.spec.mpp
    seen = extract_nuclei(with_membranes(predict_image(network, image.rgb)), mpp=mpp)
    labels, doubtful = outlined_labels(seen, image.nuclei[:, :2], mpp)
    kinds = {number + 1: int(kind) for number, kind in enumerate(image.nuclei[:, 2])}
    target = five_class_target(labels, kinds, membrane_px=membrane_px(mpp))
    if classes == WHOLE_NUCLEUS_CLASSES:
        target = without_membranes(target)
    return replace(image, target=np.where(doubtful | (image.target == IGNORED), np.uint8(IGNORED), target))


def outlined_labels(
    seen: Nuclei, centers_px: NDArray[np.float64], mpp: float
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Marked nuclei with outlines, and where it is not known whether there is one.

    Parameters
    ----------
    seen
        What a network found.
    centers_px
        ``(N, 2)`` x and y of the marks.
    mpp
        Microns per pixel.

    Returns
    -------
    labels
        uint16 ``(H, W)``: mark ``i`` has number ``i + 1``.
    doubtful
        bool ``(H, W)``, nowhere inside labels.
    """
    height, width = seen.labels.shape
    if len(centers_px) == 0:
        return np.zeros((height, width), dtype=np.uint16), np.zeros((height, width), dtype=bool)
    owners = _seen_at(seen, centers_px, MATCH_UM / 2 / mpp)
    first = np.zeros(len(seen.area_px) + 1, dtype=np.uint16)
    first[owners[::-1]] = np.arange(len(centers_px), 0, -1)
    first[0] = 0
    labels = first[seen.labels]
    _share(labels, seen.labels, owners, centers_px)
    radius_px = _usual_radius_px(seen.area_px[owners[owners > 0] - 1], mpp)
    unseen = np.flatnonzero(owners == 0)
    rims = discs(centers_px[unseen], (height, width), _DOUBTFUL_RIM * radius_px)
    cores = discs(centers_px[unseen], (height, width), radius_px)
    free = (labels == 0) & (cores > 0)
    labels[free] = unseen[cores[free] - 1] + 1
    # What is seen beside a mark that has its nucleus may be the rest of that one.
    beside = np.zeros(len(first), dtype=bool)
    beside[1:] = cKDTree(centers_px).query(np.column_stack([seen.x_px, seen.y_px]))[0] <= MATCH_UM / mpp
    return labels, (labels == 0) & ((rims > 0) | beside[seen.labels])


def _seen_at(seen: Nuclei, centers_px: NDArray[np.float64], reach_px: float) -> NDArray[np.int64]:
    """Number ``(N,)`` of the nucleus seen at each mark, or else of one whose middle is in reach, or else 0."""
    height, width = seen.labels.shape
    columns = np.clip(centers_px[:, 0].astype(int), 0, width - 1)
    rows = np.clip(centers_px[:, 1].astype(int), 0, height - 1)
    owners = seen.labels[rows, columns].astype(np.int64)
    if len(seen.area_px) == 0:
        return owners
    distance, nearest = cKDTree(np.column_stack([seen.x_px, seen.y_px])).query(centers_px)
    return np.where((owners == 0) & (distance <= reach_px), nearest + 1, owners)


def _share(
    labels: NDArray[np.uint16], seen: NDArray[np.int32], owners: NDArray[np.int64], centers_px: NDArray[np.float64]
) -> None:
    """Give the pixels of what was seen as one nucleus at several marks to the nearest of these."""
    numbers, counts = np.unique(owners[owners > 0], return_counts=True)
    for number in numbers[counts > 1]:
        marks = np.flatnonzero(owners == number)
        rows, columns = np.nonzero(seen == number)
        _, nearest = cKDTree(centers_px[marks]).query(np.column_stack([columns + 0.5, rows + 0.5]))
        labels[rows, columns] = marks[nearest] + 1


def _usual_radius_px(area_px: NDArray[np.int64], mpp: float) -> float:
    """Radius of a disc of the median area; the usual one where there are too few to measure."""
    if len(area_px) < _FEWEST_TO_MEASURE:
        return NUCLEUS_RADIUS_UM / mpp
    return float(np.sqrt(np.median(area_px) / np.pi))
