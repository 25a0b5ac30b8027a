"""Stains as light absorbers: optical density, amounts of hematoxylin, eosin and DAB, and which stain a slide has.

Light that passes stained tissue is weakened exponentially (Beer-Lambert), so in optical density stains add up, and the
direction of a pixel's three densities is its hue however much stain there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Ruifrok & Johnston, Quantification of histochemical staining by color deconvolution, 2001: optical densities of
# hematoxylin, eosin and DAB (rows) in red, green and blue.
RUIFROK_JOHNSTON = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HED_VECTORS = RUIFROK_JOHNSTON / np.linalg.norm(RUIFROK_JOHNSTON, axis=1, keepdims=True)
OD_TO_HED = np.linalg.inv(HED_VECTORS).astype(np.float32)

STAINED_OD = 0.15  # sum of the three densities from which a pixel says something about the stain
FEWEST_STAINED_PIXELS = 500
DARK_BRIGHTNESS = 50  # dense lymph nodes in H&E stay above 80, fluorescence stays below 30
COLOURLESS_CHROMA = 0.02  # the palest Ki-67 field measured has 0.04, a grayscale image 0
GREEN_EXCESS = 0.10  # no stain measured lets green pass this much better than both red and blue
HUE_WEIGHT = 0.3
HE_LIMIT = 0.14  # real H&E fields score 0.24 to 0.78, real Ki-67 fields -0.51 to 0.03
LIMIT_WIDTH = 0.02
UNKNOWN_BELOW = 0.8

# Pixels that tell the colour of a stain: enough of it, nearly none of the other, and not so dark that light is lost.
_TELLING_OD = {"hematoxylin": 0.2, "dab": 0.3}
_PURE_SHARE = 0.75
_MOST_OD = 1.6
_AS_GOOD_AS_USUAL = 2000  # pixels from which what is seen weighs as much as the usual vector
_LEAST_ANGLE_DEG = 20.0  # vectors that lie closer cannot be told apart

_OD_OF_BYTE = -np.log10(np.maximum(np.arange(256), 1) / 255).astype(np.float32)


@dataclass(frozen=True)
class StainIdentity:
    """Which stain pixels show, and how surely.

    Attributes
    ----------
    stain
        ``"he"``, ``"ki67"`` (hematoxylin with or without DAB), or ``"unknown"``.
    confidence
        0.5 (a coin toss) to 1 for H&E against Ki-67; 0 where pixels can be neither.
    reason
        ``"clear"``; ``"between"`` the two stains; ``"blank"``: too few stained pixels; ``"dark"``, ``"colourless"`` or
        ``"green"``: no brightfield scan of one of these stains.
    score
        Above ``HE_LIMIT`` for H&E; NaN where there is none.
    """

    stain: Literal["he", "ki67", "unknown"]
    confidence: float
    reason: Literal["clear", "between", "blank", "dark", "colourless", "green"]
    score: float = float("nan")

    @property
    def excluded(self) -> bool:
        """Whether the pixels can be neither H&E nor Ki-67, rather than being hard to tell."""
        return self.reason in {"dark", "colourless", "green"}


def optical_density(rgb: NDArray[np.uint8], background: ArrayLike = 255) -> NDArray[np.float32]:
    """Optical density ``-log10(rgb / background)`` per channel, not below 0.

    Parameters
    ----------
    rgb
        uint8 ``(..., 3)``.
    background
        Value of clear glass, one for all channels or one each.

    Returns
    -------
    float32 ``(..., 3)``; black counts as 1 of 255, so at most 2.4.

    Examples
    --------
    >>> optical_density(np.array([255, 26, 0], dtype=np.uint8)).round(2)
    array([0.  , 0.99, 2.41], dtype=float32)
    """
    density = _OD_OF_BYTE[rgb]
    offset = np.log10(np.asarray(background, dtype=np.float32) / 255)
    return density if not offset.any() else np.maximum(density + offset, 0, dtype=np.float32)


def separate_hed(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Amounts of hematoxylin, eosin and DAB, in optical density along each stain's unit vector.

    The fixed vectors and their inverse are those of Ruifrok & Johnston (2001). Amounts of a stain that is not there may
    come out slightly negative.

    Parameters
    ----------
    rgb
        uint8 ``(..., 3)``.

    Returns
    -------
    float32 ``(..., 3)``.
    """
    return optical_density(rgb) @ OD_TO_HED


@dataclass(frozen=True)
class StainPair:
    """The colours of hematoxylin and DAB on a slide, unit vectors of optical density in red, green and blue."""

    hematoxylin: tuple[float, float, float]
    dab: tuple[float, float, float]

    @property
    def amounts_of_density(self) -> NDArray[np.float32]:
        """Matrix ``(3, 2)`` from optical densities to amounts; what neither stain explains is left out."""
        return np.linalg.pinv(np.array([self.hematoxylin, self.dab])).astype(np.float32)

    def amounts(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Amounts of both stains float32 ``(..., 2)`` of pixels uint8 ``(..., 3)``; see ``separate_hed``."""
        return optical_density(rgb) @ self.amounts_of_density


USUAL_STAINS = StainPair(*(tuple(map(float, HED_VECTORS[stain])) for stain in (0, 2)))  # type: ignore[arg-type]
"""Those of Ruifrok & Johnston (2001)."""


def slide_stains(rgb: NDArray[np.uint8]) -> StainPair:
    """The colours that hematoxylin and DAB have on a slide.

    Of the pixels with nearly one stain alone, by the usual vectors, the mean hue. Where few show a stain, the usual
    vector counts for more, so that a slide without DAB has the usual brown; methods that take the extreme hues of all
    pixels for the stains (Macenko et al. 2009) would call the greyest of its blues DAB.

    Parameters
    ----------
    rgb
        uint8 ``(..., 3)``, pixels of the slide's tumour.

    Examples
    --------
    >>> slide_stains(np.full((10, 3), 255, dtype=np.uint8)) == USUAL_STAINS
    True
    """
    density = optical_density(rgb.reshape(-1, 3))
    pair = StainPair(*(_seen_vector(density, stain, USUAL_STAINS) for stain in ("hematoxylin", "dab")))
    angle = np.degrees(np.arccos(np.clip(np.dot(pair.hematoxylin, pair.dab), -1, 1)))
    return pair if angle >= _LEAST_ANGLE_DEG else USUAL_STAINS


def _seen_vector(
    density: NDArray[np.float32], stain: Literal["hematoxylin", "dab"], usual: StainPair
) -> tuple[float, float, float]:
    """Mean hue of the pixels of one stain alone, drawn towards the usual one where these are few."""
    amounts = np.maximum(density @ usual.amounts_of_density, 0)
    own = amounts[:, 0 if stain == "hematoxylin" else 1]
    pure = own >= _PURE_SHARE * amounts.sum(axis=1)
    telling = density[pure & (own >= _TELLING_OD[stain]) & (density.max(axis=1) <= _MOST_OD)].astype(np.float64)
    hues = telling / np.linalg.norm(telling, axis=1, keepdims=True)
    vector = hues.sum(axis=0) + _AS_GOOD_AS_USUAL * np.array(getattr(usual, stain))
    red, green, blue = (vector / np.linalg.norm(vector)).tolist()
    return red, green, blue


def identify_stain(rgb_pixels: NDArray[np.uint8]) -> StainIdentity:
    """Tell H&E from Ki-67 IHC by which colour of light the tissue takes away.

    In H&E eosin and hematoxylin both take mostly green, so green has the largest share of all optical density, and
    many pixels are pink (green without red). In IHC blue counterstain takes red at least as much as green, DAB takes
    blue most, and nothing is pink. The score is the lead of the green share over the larger other share, plus 0.3
    times the share of optical density in pink pixels less that in brown ones. White counts as glass: a tint of the
    glass measured in a field may be pale tissue, and taking it away was found to bring the two stains closer together.

    Parameters
    ----------
    rgb_pixels
        uint8 ``(..., 3)``, tissue pixels at 1 µm/px or finer.
    """
    pixels = rgb_pixels.reshape(-1, 3)
    if len(pixels) >= FEWEST_STAINED_PIXELS and np.median(pixels.mean(axis=1)) < DARK_BRIGHTNESS:
        return StainIdentity("unknown", 0.0, "dark")
    density = optical_density(pixels)
    total = density.sum(axis=1)
    stained = total > STAINED_OD
    if np.count_nonzero(stained) < FEWEST_STAINED_PIXELS:
        return StainIdentity("unknown", 0.0, "blank")
    return _identify_hues(density[stained] / total[stained, None], total[stained])


def _identify_hues(hues: NDArray[np.float32], weights: NDArray[np.float32]) -> StainIdentity:
    """Decide from hues ``(N, 3)`` that sum to 1 in each pixel, weighted by optical density."""
    red, green, blue = np.average(hues, axis=0, weights=weights)
    if np.average(hues.max(axis=1) - hues.min(axis=1), weights=weights) < COLOURLESS_CHROMA:
        return StainIdentity("unknown", 0.0, "colourless")
    if min(red, blue) - green > GREEN_EXCESS:
        return StainIdentity("unknown", 0.0, "green")
    score = float(green - max(red, blue) + HUE_WEIGHT * (_pink_share(hues, weights) - _brown_share(hues, weights)))
    confidence = float(1 / (1 + np.exp(-abs(score - HE_LIMIT) / LIMIT_WIDTH)))
    if confidence < UNKNOWN_BELOW:
        return StainIdentity("unknown", confidence, "between", score)
    return StainIdentity("he" if score > HE_LIMIT else "ki67", confidence, "clear", score)


def _pink_share(hues: NDArray[np.float32], weights: NDArray[np.float32]) -> float:
    pink = (hues[:, 1] > 0.42) & (hues[:, 0] < 0.30) & (hues[:, 1] > hues[:, 2])
    return float(np.average(pink, weights=weights))


def _brown_share(hues: NDArray[np.float32], weights: NDArray[np.float32]) -> float:
    brown = (hues[:, 2] > 0.37) & (hues[:, 0] < 0.33)
    return float(np.average(brown, weights=weights))
