"""Nuclei without a trained network: colour deconvolution, difference of Gaussians and fixed thresholds.

The way of ImageJ macros and of QuPath's cell detection, with thresholds that are numbers and not found in the image, so
that a nucleus does not depend on what else is seen beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.predictors import Device, FixedSpec, NamedDevice
from ki67.stain import OD_TO_HED, optical_density
from ki67.tiles import HALO_PX

# Amounts of stain are integers in steps of 2 ** -12: integers are smoothed to the same values everywhere in an image.
_STEPS = 2**12
# Gaussians end after so many standard deviations.
_KERNEL_DEVIATIONS = 3.0


@dataclass(frozen=True)
class ColorThresholdOptions:
    """Thresholds, as amounts of stain along unit vectors of optical density (``ki67.stain.separate_hed``).

    Attributes
    ----------
    nucleus_od
        Hematoxylin and DAB together from which a pixel may be part of a nucleus.
    contrast_od
        By how much a nucleus is denser than what surrounds it.
    dab_od
        DAB from which a nucleus is positive.
    dab_per_hematoxylin
        DAB that the counterstain alone seems to hold, as a share of its amount: its blue is not quite the one of the
        fixed vectors.
    softness_od
        Half the width of the ramp from 0 to 1 around each threshold.
    smoothing_um, blob_um, surround_um
        Standard deviations of the Gaussians that take away noise, that fill a nucleus, and that reach into what
        surrounds it. The difference of the last two approximates the Laplacian of a Gaussian (Marr & Hildreth, Theory
        of edge detection, 1980).
    """

    nucleus_od: float = 0.2
    contrast_od: float = 0.04
    dab_od: float = 0.25
    dab_per_hematoxylin: float = 0.1
    softness_od: float = 0.1
    smoothing_um: float = 0.6
    blob_um: float = 1.0
    surround_um: float = 3.0

    @property
    def reach_um(self) -> float:
        """Farthest that a pixel looks: through the first smoothing, and then through a Gaussian of the contrast."""
        return _KERNEL_DEVIATIONS * (self.smoothing_um + max(self.blob_um, self.surround_um))


@dataclass(frozen=True)
class ColorThreshold:
    """Says by colour alone how likely each pixel is one of the five classes; a ``ki67.predictors.Predictor``.

    Examples
    --------
    >>> glass = np.full((1, 32, 32, 3), 255, dtype=np.uint8)
    >>> ColorThreshold().predict_levels(glass)[0, :, 0, 0]
    array([255,   0,   0,   0,   0], dtype=uint8)
    """

    options: ColorThresholdOptions = field(default_factory=ColorThresholdOptions)
    spec: FixedSpec = field(default_factory=lambda: FixedSpec("color_threshold"))
    block_px: tuple[int, int] = (1024, 1536)
    halo_px: int = HALO_PX
    device: Device = field(default_factory=NamedDevice)

    def predict_levels(self, batch: NDArray[np.uint8], halo_px: int = 0) -> NDArray[np.uint8]:
        """Probabilities uint8 ``(N, 5, H - 2 * halo, W - 2 * halo)``, 255 for 1, of RGB tiles ``(N, H, W, 3)``."""
        end = -halo_px or None
        answers = [color_levels(rgb, self.spec.mpp, self.options) for rgb in batch]
        return np.stack([levels[:, halo_px:end, halo_px:end] for levels in answers])


def color_levels(rgb: NDArray[np.uint8], mpp: float, options: ColorThresholdOptions) -> NDArray[np.uint8]:
    """Probabilities of the five classes ``ki67.predictors.NUCLEUS_CLASSES``.

    Where there is stain enough is a nucleus; where it is also denser than its surroundings is the nucleus's interior,
    and the rest its membrane, into which interiors grow. Both are positive where there is DAB enough.

    Parameters
    ----------
    rgb
        uint8 ``(H, W, 3)``.
    mpp
        Microns per pixel.
    options
        See there.

    Returns
    -------
    uint8 ``(5, H, W)``
        255 for 1. A pixel depends on what lies within ``options.reach_um``.
    """
    hematoxylin, dab = (smoothed(steps, options.smoothing_um / mpp) for steps in stain_steps(rgb))
    density = hematoxylin + dab
    blob, surround = (smoothed(density, width_um / mpp) for width_um in (options.blob_um, options.surround_um))
    nucleus = _ramp(_amount(density) - options.nucleus_od, options.softness_od)
    contrast = _ramp(_amount(blob) - _amount(surround) - options.contrast_od, options.softness_od / 2)
    brown = _amount(dab) - np.float32(options.dab_per_hematoxylin) * _amount(hematoxylin) - np.float32(options.dab_od)
    positive, interior = _ramp(brown, options.softness_od), np.minimum(nucleus, contrast)
    membrane, negative = nucleus - interior, 1 - positive
    shares = [1 - nucleus, interior * positive, membrane * positive, interior * negative, membrane * negative]
    return np.rint(255 * np.stack(shares)).astype(np.uint8)


def stain_steps(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Hematoxylin and DAB of an image, not below 0, in steps of 2 ** -12 of optical density.

    Parameters
    ----------
    rgb
        uint8 ``(H, W, 3)``.

    Returns
    -------
    uint16 ``(H, W)`` each, at most half of what 16 bits hold.
    """
    return _stain_steps(rgb, 0), _stain_steps(rgb, 1)


def _stain_steps(rgb: NDArray[np.uint8], stain: int) -> NDArray[np.uint16]:
    red, green, blue = (steps[rgb[..., channel]] for channel, steps in enumerate(_STEPS_OF_BYTE[stain]))
    return np.clip(red + green + blue, 0, 2**15 - 1).astype(np.uint16)


def _steps_of_byte(stain: int) -> list[NDArray[np.int32]]:
    """What each value of red, green and blue adds to the amount of a stain."""
    density = optical_density(np.arange(256, dtype=np.uint8)).astype(np.float64)
    return [np.rint(density * float(OD_TO_HED[channel, stain]) * _STEPS).astype(np.int32) for channel in range(3)]


_STEPS_OF_BYTE = (_steps_of_byte(0), _steps_of_byte(2))


def smoothed(steps: NDArray[np.uint16], width_px: float) -> NDArray[np.uint16]:
    """A Gaussian of this standard deviation over integers, which ends after three of them."""
    side = 2 * int(_KERNEL_DEVIATIONS * width_px) + 1
    return np.asarray(cv2.GaussianBlur(steps, (side, side), width_px), dtype=np.uint16)


def _amount(steps: NDArray[np.uint16]) -> NDArray[np.float32]:
    return steps.astype(np.float32) / np.float32(_STEPS)


def _ramp(excess: NDArray[np.float32], half_width: float) -> NDArray[np.float32]:
    """0 far below, 1/2 at and 1 far above a threshold."""
    return np.clip(np.float32(0.5) + excess / np.float32(2 * half_width), 0, 1)
