"""What a network is asked to answer at every pixel, made from annotations."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

IGNORED = 255
"""Target of pixels about which nothing is known: they take no part in the loss."""
POSITIVE, NEGATIVE, OTHER = 1, 2, 3
"""Classes of nuclei in annotations."""

_NUCLEUS_OF_CLASS = {POSITIVE: 1, NEGATIVE: 3}
_MEMBRANE_OF_CLASS = {POSITIVE: 2, NEGATIVE: 4}


def five_class_target(
    labels: NDArray[np.uint16], classes: Mapping[int, int], *, membrane_px: int = 2
) -> NDArray[np.uint8]:
    """Background, and nucleus and membrane of positive and of negative nuclei (0-4, in the order of the network).

    The membrane is the outer rim of each nucleus, narrower in thin nuclei so that all keep an interior; where two touch
    both have one, so that a strip of twice the width parts them.

    Parameters
    ----------
    labels
        uint16 ``(H, W)``, 0 background, else the number of the nucleus.
    classes
        Number of a nucleus to ``POSITIVE`` or ``NEGATIVE``; nuclei of any other class or of none are ``IGNORED``.
    membrane_px
        Width of the rim.

    Returns
    -------
    uint8 ``(H, W)``
        0-4, or ``IGNORED``.
    """
    interior = _interior(labels, membrane_px)
    nucleus_value = np.full(int(labels.max(initial=0)) + 1, IGNORED, dtype=np.uint8)
    membrane_value = nucleus_value.copy()
    nucleus_value[0] = membrane_value[0] = 0
    for number, kind in classes.items():
        if 0 < number < len(nucleus_value):
            nucleus_value[number] = _NUCLEUS_OF_CLASS.get(kind, IGNORED)
            membrane_value[number] = _MEMBRANE_OF_CLASS.get(kind, IGNORED)
    return np.where(interior, nucleus_value[labels], membrane_value[labels])


def without_membranes(target: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Background, positive and negative nuclei (0-2) of a target of five classes; ``IGNORED`` stays.

    A membrane becomes a part of its nucleus. Where two nuclei touch, the pixels on either side become background, so
    that a network which knows no membranes can keep them apart.

    Parameters
    ----------
    target
        uint8 ``(H, W)``, as ``five_class_target`` makes it.
    """
    whole = np.array([0, 1, 1, 2, 2, *[IGNORED] * 251], dtype=np.uint8)[target]
    outside = np.where((target == 1) | (target == 3), 0, 1).astype(np.uint8)
    nucleus = (whole == 1) | (whole == 2)
    _, nearest = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP)
    whole[_touching(np.where(nucleus, nearest, 0).astype(np.uint16))] = 0
    return whole


def _touching(labels: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Pixels of a nucleus beside one of another nucleus."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    highest = cv2.dilate(labels, cross)
    lowest = cv2.erode(np.where(labels == 0, np.uint16(2**16 - 1), labels), cross)
    return np.asarray((labels > 0) & ((highest > labels) | (lowest < labels)), dtype=bool)


def _interior(labels: NDArray[np.uint16], membrane_px: int) -> NDArray[np.bool_]:
    """Pixels deeper in their nucleus than the membrane, and than three fifths of its depth where it is thin."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    # The image's edge cuts nuclei but is no membrane.
    lowest = cv2.erode(labels, cross, borderType=cv2.BORDER_REPLICATE)
    highest = cv2.dilate(labels, cross, borderType=cv2.BORDER_REPLICATE)
    depth = cv2.distanceTransform((lowest == highest).astype(np.uint8), cv2.DIST_L2, 5)
    deepest = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.float32)
    np.maximum.at(deepest, labels.ravel(), depth.ravel())
    return np.asarray(depth >= np.clip(0.6 * deepest, 1, membrane_px)[labels], dtype=bool)


def discs(centers_px: NDArray[np.float64], shape: tuple[int, int], radius_px: float) -> NDArray[np.uint16]:
    """Label image of discs around centres; a pixel within reach of several belongs to the nearest.

    Parameters
    ----------
    centers_px
        ``(N, 2)`` x and y in pixels.
    shape
        Rows and columns of the result.
    radius_px
        Of every disc.

    Returns
    -------
    uint16 ``(H, W)``
        Disc ``i`` has number ``i + 1``.
    """
    labels = np.zeros(shape, dtype=np.uint16)
    if len(centers_px) == 0:
        return labels
    rows, columns = np.indices(shape)
    pixels = np.column_stack([columns.ravel() + 0.5, rows.ravel() + 0.5])
    distance, nearest = cKDTree(centers_px).query(pixels, distance_upper_bound=radius_px)
    inside = np.isfinite(distance)
    labels.ravel()[inside] = nearest[inside] + 1
    return labels


def tumor_target(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """1 where a tumour mask ``(H, W)`` is at least half white, 0 elsewhere."""
    return (mask > 127).astype(np.uint8)
