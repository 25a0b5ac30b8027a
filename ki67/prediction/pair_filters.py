"""Whether an H&E patch and the Ki-67 patch at the same place show the same tissue, so that one may label the other."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from ki67.prediction.slide_stain import SlideStain, stain_amounts
from ki67.stain import STAINED_OD, optical_density, separate_hed

STRUCTURE_MPP = 8.0
"""Nuclei of neighbouring sections are not the same ones; what both share is coarser."""
STRUCTURE_UM = 16.0
AROUND_UM = 96.0
"""Structure is compared in a patch and so far around it, as the patch alone is often all tumour and shows none."""
DATA_RANGE = 4.0
"""Of structure in standard deviations of its slide, from -2 to 2."""
STABILITY = 0.1
"""K1 and K2 of the similarity: places that differ from what is usual by less than this are alike."""
COUNT_PRIOR = 5.0
"""Added to both counts, so that places with few nuclei do not differ by chance."""


class Rejection(StrEnum):
    """Why a patch was left out (``WHITE_HE``) or has no label."""

    WHITE_HE = "white_he"
    NO_KI67 = "no_ki67"
    REGISTRATION_DOUBTFUL = "registration_doubtful"
    REGISTRATION_REJECTED = "registration_rejected"
    NOT_REGISTERED = "not_registered"
    WHITE_KI67 = "white_ki67"
    FEW_NUCLEI = "few_nuclei"
    DENSITY_DIFFERS = "density_differs"
    STRUCTURE_DIFFERS = "structure_differs"


REJECTION_WORDS: dict[Rejection, str] = {
    Rejection.WHITE_HE: "mostly white on the H&E",
    Rejection.NO_KI67: "no Ki-67 slide that can be used",
    Rejection.REGISTRATION_DOUBTFUL: "the registration is doubtful",
    Rejection.REGISTRATION_REJECTED: "the registration was rejected",
    Rejection.NOT_REGISTERED: "the sections were not registered",
    Rejection.WHITE_KI67: "mostly white on the Ki-67 slide",
    Rejection.FEW_NUCLEI: "too few tumour nuclei",
    Rejection.DENSITY_DIFFERS: "numbers of nuclei differ",
    Rejection.STRUCTURE_DIFFERS: "structure differs",
}


@dataclass(frozen=True)
class PairSettings:
    """How patch pairs of a slide are made: section ``predict.pairs`` of the settings.

    Attributes
    ----------
    size_px, mpp
        Side of a patch and its µm/px.
    patches_per_slide, seed
        At most so many patches of a slide, drawn by this number and the slide's id.
    tumor_share
        Least share of a patch that is tumour on the H&E.
    label
        ``count``: positive of all tumour nuclei; ``area``: their area of that of all.
    white_he, white_ki67
        Largest share of a patch that is white.
    fewest_nuclei
        Least number of tumour nuclei on the Ki-67 slide.
    density_ratio
        By which factor the numbers of nuclei on both slides may differ from what is usual on the slide.
    ssim
        Least structural similarity of both stains.
    """

    size_px: int = 128
    mpp: float = 1.0
    patches_per_slide: int = 256
    seed: int = 1
    tumor_share: float = 0.75
    label: Literal["count", "area"] = "count"
    white_he: float = 0.4
    white_ki67: float = 0.6
    fewest_nuclei: int = 20
    density_ratio: float = 2.5
    ssim: float = 0.4

    @property
    def side_um(self) -> float:
        """Side of a patch in microns."""
        return self.size_px * self.mpp


@dataclass(frozen=True)
class PairMeasures:
    """What is compared with the limits, one value a patch, each ``(n,)``.

    Attributes
    ----------
    white_ki67
        Share of the Ki-67 patch that is white.
    nuclei_he, nuclei_ki67
        Nuclei on the H&E (about) and on the Ki-67 slide, all kinds.
    tumor_nuclei
        Tumour nuclei on the Ki-67 slide.
    similarity
        Structural similarity, -1 to 1.
    """

    white_ki67: NDArray[np.float64]
    nuclei_he: NDArray[np.float32]
    nuclei_ki67: NDArray[np.int64]
    tumor_nuclei: NDArray[np.int64]
    similarity: NDArray[np.float64]

    @property
    def density_factor(self) -> NDArray[np.float64]:
        """By which factor the counts of a patch differ from what is usual on the slide, 1 or more."""
        ratio = np.log((self.nuclei_he + COUNT_PRIOR) / (self.nuclei_ki67 + COUNT_PRIOR)).astype(np.float64)
        counted = ratio[self.tumor_nuclei > 0]
        return np.exp(np.abs(ratio - (np.median(counted) if len(counted) else 0.0)))


def rejections(measures: PairMeasures, settings: PairSettings) -> list[Rejection | None]:
    """Why each patch has no label, the first reason of several; None where it has one."""
    failed = {
        Rejection.WHITE_KI67: measures.white_ki67 >= settings.white_ki67,
        Rejection.FEW_NUCLEI: measures.tumor_nuclei < settings.fewest_nuclei,
        Rejection.DENSITY_DIFFERS: measures.density_factor > settings.density_ratio,
        Rejection.STRUCTURE_DIFFERS: ~(measures.similarity > settings.ssim),
    }
    patches = range(len(measures.white_ki67))
    return [next((reason for reason, where in failed.items() if where[patch]), None) for patch in patches]


def white_share(rgb: NDArray[np.uint8], glass: NDArray[np.uint8]) -> float:
    """Share of the pixels of a patch ``(H, W, 3)`` that take away no more light than the slide's ``glass`` ``(3,)``."""
    return float(np.mean(optical_density(rgb, glass).sum(axis=-1) < STAINED_OD))


def field_px(side_um: float) -> int:
    """Side of the field in which structure is compared around a patch, an odd number of pixels of ``STRUCTURE_MPP``."""
    pixels = int((side_um + 2 * AROUND_UM) / STRUCTURE_MPP)
    return pixels - 1 + pixels % 2


def he_structure(rgb: NDArray[np.uint8], stain: SlideStain) -> NDArray[np.float32]:
    """How dense nuclei are from place to place on H&E, without single ones.

    Parameters
    ----------
    rgb
        Field at ``STRUCTURE_MPP``, uint8 ``(H, W, 3)``.
    stain
        Of the slide.

    Returns
    -------
    float32 ``(H, W)``
        Smoothed hematoxylin. Eosin has no part in it, as collagen takes it and hardly any counterstain of IHC.
    """
    return _smoothed(stain_amounts(rgb, stain)[..., 0])


def ki67_structure(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The same on the Ki-67 slide: smoothed hematoxylin and DAB together, float32 ``(H, W)``."""
    return _smoothed(np.maximum(separate_hed(rgb)[..., [0, 2]], 0).sum(axis=-1))


def similarities(he: NDArray[np.float32], ki67: NDArray[np.float32]) -> NDArray[np.float64]:
    """Structural similarity (Wang et al. 2004, doi:10.1109/TIP.2003.819861) of each field in two stains, ``(n,)``.

    One window covers the whole field. Each stain is compared with itself first: what counts is how dense nuclei are for
    their own slide.

    Parameters
    ----------
    he, ki67
        Structure of the fields, ``(n, side, side)`` with an odd side.
    """
    one, other = _standardized(he), _standardized(ki67)
    options = {"win_size": he.shape[1], "data_range": DATA_RANGE, "K1": STABILITY, "K2": STABILITY}
    found = [
        structural_similarity(first, second, use_sample_covariance=False, **options)
        for first, second in zip(one, other, strict=True)
    ]
    return np.array(found, dtype=np.float64)


def _smoothed(amount: NDArray[np.float32]) -> NDArray[np.float32]:
    smooth = cv2.GaussianBlur(np.ascontiguousarray(amount, dtype=np.float32), (0, 0), STRUCTURE_UM / STRUCTURE_MPP)
    return np.asarray(smooth, dtype=np.float32)


def _standardized(images: NDArray[np.float32]) -> NDArray[np.float32]:
    if not images.size:
        return images
    spread = float(images.std())
    return np.asarray((images - images.mean()) / (spread if spread > 0 else 1.0), dtype=np.float32)
