"""What the nuclei of a patch of H&E look like in numbers: how many, how large, how varied, how dark.

Grading looks at these (Elston & Ellis 1991), and a mean over all pixels hides most of them: nuclei that are larger but
fewer leave it as it was. Nuclei are what has more hematoxylin than the limit of the slide (``he_nuclei``); no network.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.prediction.he_nuclei import nucleus_limit, numbered_peaks
from ki67.prediction.slide_stain import stain_amounts

NUCLEAR_FEATURES = (
    "nuclear_share",
    "nuclei_per_mm2",
    "radius_um_mean",
    "radius_um_high",
    "radius_um_deviation",
    "area_um2_median",
    "area_um2_high",
    "hematoxylin_mean",
    "hematoxylin_deviation",
    "hematoxylin_high",
    "dense_share",
    "hematoxylin_darkest",
)
"""Names of what is measured, in the order of the columns: share of the patch that is nucleus; radii of the largest
discs that nuclei hold; areas of what is connected; hematoxylin between such; share of the patch that is twice as dark
as the limit, as mitoses are; the darkest hundredth."""

SMOOTHING_UM = 1.0
"""Standard deviation of the Gaussian before the limit: chromatin becomes even, and edges stay."""
LEAST_AREA_UM2 = 8.0
LEAST_RADIUS_UM = 1.5
_APART_UM = 2.0
_DENSE = 2.0

Floats = NDArray[np.float32]


def nuclear_features(he: NDArray[np.uint8], mpp: float) -> Floats:
    """Features of the nuclei of each patch of one slide.

    Parameters
    ----------
    he
        All patches of the slide, which together tell its stain and its limit, uint8 ``(n, size, size, 3)``.
    mpp
        Microns per pixel.

    Returns
    -------
    float32 ``(n, len(NUCLEAR_FEATURES))``; 0 where there is no nucleus to measure.

    References
    ----------
    Elston CW, Ellis IO (1991) Pathological prognostic factors in breast cancer. I. The value of histological grade in
    breast cancer, Histopathology 19:403-410, doi:10.1111/j.1365-2559.1991.tb00229.x
    """
    limit = nucleus_limit(he, mpp)
    found = np.zeros((len(he), len(NUCLEAR_FEATURES)), dtype=np.float32)
    for number, patch in enumerate(he):
        hematoxylin = np.ascontiguousarray(stain_amounts(patch, limit.stain)[..., 0])
        found[number] = _of_patch(hematoxylin, limit.amount, mpp)
    return found


def _of_patch(hematoxylin: Floats, limit: float, mpp: float) -> NDArray[np.float64]:
    smooth = cv2.GaussianBlur(hematoxylin, (0, 0), SMOOTHING_UM / mpp, borderType=cv2.BORDER_REFLECT_101)
    nuclear = (smooth > limit).astype(np.uint8)
    radii = _radii_um(nuclear, mpp)
    areas, dark = _components(nuclear, hematoxylin, mpp)
    return np.array(
        [
            nuclear.mean(),
            len(radii) / (nuclear.size * (mpp / 1000) ** 2),
            *_summary(radii, np.mean, lambda values: np.percentile(values, 90), np.std),
            *_summary(areas, np.median, lambda values: np.percentile(values, 80)),
            *_summary(dark, np.mean, np.std, lambda values: np.percentile(values, 90)),
            (smooth > _DENSE * limit).mean(),
            np.percentile(hematoxylin, 99),
        ]
    )


def _radii_um(nuclear: NDArray[np.uint8], mpp: float) -> NDArray[np.float64]:
    """Radii of the largest discs in a mask, one for each nucleus even where some touch."""
    depth = np.asarray(cv2.distanceTransform(nuclear, cv2.DIST_L2, cv2.DIST_MASK_5), np.float32)
    numbers = numbered_peaks(depth, LEAST_RADIUS_UM / mpp, _APART_UM / mpp)
    highest = np.zeros(numbers.max() + 1)
    np.maximum.at(highest, numbers, depth)
    return highest[1:] * mpp


def _components(
    nuclear: NDArray[np.uint8], hematoxylin: Floats, mpp: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Areas in µm² and mean hematoxylin of what is connected and large enough."""
    count, numbers = cv2.connectedComponents(nuclear, connectivity=4)
    pixels = np.bincount(numbers.ravel(), minlength=count)[1:].astype(np.float64)
    total = np.bincount(numbers.ravel(), weights=hematoxylin.ravel(), minlength=count)[1:]
    kept = pixels * mpp**2 >= LEAST_AREA_UM2
    area, amount = pixels[kept], total[kept]
    return area * mpp**2, amount / area


def _summary(values: NDArray[np.float64], *ways: Any) -> list[float]:
    return [float(way(values)) if len(values) else 0.0 for way in ways]
