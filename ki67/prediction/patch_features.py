"""What a patch of H&E looks like in numbers: pixel features at several scales, summarised over the patch.

The pixel features are those that ilastik offers (Berg et al. 2019): smoothed amounts, steepness of edges, eigenvalues
of the Hessian matrix and of the structure tensor. They are taken of hematoxylin and eosin after the slide's own stain
(``ki67.prediction.slide_stain``), at scales in microns.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.prediction.slide_stain import slide_stain, stain_amounts

SCALES_UM = (1.0, 1.6, 2.5, 4.0, 6.3)
"""Standard deviations of the Gaussians, from chromatin to the distance between nuclei."""
_STAINS = ("hematoxylin", "eosin")
_MAPS = ("smoothed", "edge", "hessian_large", "hessian_small", "tensor_large", "tensor_small")
_SUMMARIES = ("mean", "deviation", "low", "high")
_QUANTILES = (0.1, 0.9)
_QUANTILE_PIXELS = 2500
"""About so many pixels, evenly spaced, give the quantiles of a map."""
_SIGMA_STEPS = 1.25
"""A smoothed map is kept at so many steps a standard deviation, or at every pixel."""
_REACH = 3.0
"""Gaussians end so many standard deviations from their centre."""
FEATURES = tuple(
    f"{stain}_{name}_{scale:g}um_{summary}"
    for stain in _STAINS
    for scale in SCALES_UM
    for name in _MAPS
    for summary in _SUMMARIES
)
"""Names of what is measured of a patch, in the order of the columns."""

Floats = NDArray[np.float32]


def patch_features(he: NDArray[np.uint8], mpp: float) -> Floats:
    """Pixel features of the patches of one slide, each summarised by mean, deviation and two quantiles.

    Parameters
    ----------
    he
        All patches of the slide, which together tell its stain, uint8 ``(n, size, size, 3)``.
    mpp
        Microns per pixel.

    Returns
    -------
    float32 ``(n, len(FEATURES))``

    References
    ----------
    Berg S et al. (2019) ilastik: interactive machine learning for (bio)image analysis, Nature Methods 16:1226-1232,
    doi:10.1038/s41592-019-0582-9
    """
    stain = slide_stain(he)
    found = np.empty((len(he), len(FEATURES)), dtype=np.float32)
    for number, patch in enumerate(he):
        amounts = stain_amounts(patch, stain)
        channels = (np.ascontiguousarray(amounts[..., place]) for place in range(len(_STAINS)))
        parts = [_summaries(_pixel_features(channel, scale / mpp)) for channel in channels for scale in SCALES_UM]
        found[number] = np.concatenate(parts, axis=None)
    return found


def _pixel_features(channel: Floats, sigma_px: float) -> Floats:
    """What ``_MAPS`` names ``(M, h, w)``, at every pixel of a grid as fine as the scale asks for."""
    step = max(1, int(sigma_px / _SIGMA_STEPS))
    smooth = np.ascontiguousarray(_blurred(channel, sigma_px)[::step, ::step])
    # Times the scale, so that a structure of twice the size has the same values at twice the scale.
    sigma = sigma_px / step
    across, down = sigma * _slope(smooth, 1, 0), sigma * _slope(smooth, 0, 1)
    second = sigma * _slope(across, 1, 0), sigma * _slope(down, 0, 1), sigma * _slope(across, 0, 1)
    products = [_blurred(one, sigma) for one in (across * across, down * down, across * down)]
    edge = cv2.magnitude(across, down)
    return np.stack([smooth, edge, *_eigenvalues(*second), *_eigenvalues(*products)])


def _slope(values: Floats, across: int, down: int) -> Floats:
    return np.asarray(cv2.Scharr(values, cv2.CV_32F, across, down, scale=1 / 32), np.float32)


def _blurred(channel: Floats, sigma_px: float) -> Floats:
    side = 2 * int(np.ceil(_REACH * sigma_px)) + 1
    return np.asarray(cv2.GaussianBlur(channel, (side, side), sigma_px, borderType=cv2.BORDER_REFLECT_101), np.float32)


def _eigenvalues(across: Floats, down: Floats, mixed: Floats) -> tuple[Floats, Floats]:
    """Of symmetric 2 x 2 matrices, the larger first."""
    mean, spread = (across + down) / 2, np.asarray(cv2.magnitude((across - down) / 2, mixed), np.float32)
    return mean + spread, mean - spread


def _summaries(maps: Floats) -> Floats:
    """What ``_SUMMARIES`` names of maps ``(M, H, W)``: ``(M, 4)``."""
    flat = maps.reshape(len(maps), -1)
    few = flat[:, :: max(1, flat.shape[1] // _QUANTILE_PIXELS)]
    places = [round(share * (few.shape[1] - 1)) for share in _QUANTILES]
    quantiles = np.partition(few, places, axis=1)[:, places]
    mean = flat.mean(axis=1)
    deviation = np.sqrt(np.maximum(np.einsum("mp,mp->m", flat, flat) / flat.shape[1] - mean**2, 0))
    return np.column_stack([mean, deviation, quantiles]).astype(np.float32)
