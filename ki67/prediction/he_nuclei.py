"""About how many nuclei H&E patches show: dark spots of hematoxylin, by the slide's own stains and its own limit.

No network: the number is the weight of a patch in its slide, and tells whether two sections have about as many nuclei
at the same place. Where nuclei lie on one another, one is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from ki67.prediction.slide_stain import SlideStain, slide_stain, stain_amounts

SMOOTHING_UM = 2.0
"""Standard deviation of the Gaussian, which leaves one peak to a nucleus of 5 µm and more."""
APART_UM = 3.0
"""Peaks nearer to a higher one than this are of the same nucleus."""
LEAST_CONTRAST = 0.15
"""A slide whose nuclei are not this much above its background, relative to strong stain, has no limit of its own."""
USUAL_LIMIT = 0.35


@dataclass(frozen=True)
class NucleusLimit:
    """From where on hematoxylin is a nucleus on one slide.

    Attributes
    ----------
    stain
        The slide's stains.
    amount
        Smoothed hematoxylin, relative to strong stain, between background and nuclei.
    """

    stain: SlideStain
    amount: float


def nucleus_limit(he: NDArray[np.uint8], mpp: float) -> NucleusLimit:
    """The limit that parts nuclei from all else in some patches of a slide together (Otsu 1979, two classes).

    Three classes put the lower limit between glass and cytoplasm, and the upper one between pale and dark nuclei.

    Parameters
    ----------
    he
        Patches, uint8 ``(n, size, size, 3)``.
    mpp
        Their µm/px.
    """
    stain = slide_stain(he)
    if not len(he):
        return NucleusLimit(stain, USUAL_LIMIT)
    smooth = np.stack([_smoothed(patch, stain, mpp) for patch in he])
    if float(smooth.max() - smooth.min()) < LEAST_CONTRAST:
        return NucleusLimit(stain, USUAL_LIMIT)
    return NucleusLimit(stain, float(threshold_otsu(smooth)))


def count_nuclei(he: NDArray[np.uint8], limit: NucleusLimit, mpp: float) -> NDArray[np.float32]:
    """About how many nuclei each patch shows, float32 ``(n,)``.

    Parameters
    ----------
    he
        Patches, uint8 ``(n, size, size, 3)``.
    limit
        Of their slide.
    mpp
        Their µm/px.
    """
    return np.array([_count_peaks(_smoothed(patch, limit.stain, mpp), limit.amount, mpp) for patch in he], np.float32)


def _smoothed(patch: NDArray[np.uint8], stain: SlideStain, mpp: float) -> NDArray[np.float32]:
    hematoxylin = np.ascontiguousarray(stain_amounts(patch, stain)[..., 0])
    return np.asarray(cv2.GaussianBlur(hematoxylin, (0, 0), SMOOTHING_UM / mpp), dtype=np.float32)


def _count_peaks(smooth: NDArray[np.float32], amount: float, mpp: float) -> int:
    return int(numbered_peaks(smooth, amount, APART_UM / mpp).max())


def numbered_peaks(values: NDArray[np.float32], above: float, apart_px: float) -> NDArray[np.int32]:
    """Peaks that are above a value, none within a distance of a higher one; a flat one is one.

    Parameters
    ----------
    values
        float32 ``(h, w)``.
    above, apart_px
        The value and the distance, at least a pixel.

    Returns
    -------
    int32 ``(h, w)``: 0 where there is no peak, else the number of the peak from 1.
    """
    radius = max(1, round(apart_px))
    disc: Any = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    peaks = (values >= cv2.dilate(values, disc)) & (values > above)
    return np.asarray(cv2.connectedComponents(peaks.astype(np.uint8), connectivity=8)[1], np.int32)
