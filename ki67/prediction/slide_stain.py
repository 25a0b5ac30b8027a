"""The stains of one slide, and its patches without what only the laboratory decides about them.

Laboratories differ in the colour of their stains and in how much of them they take. Both are found in the patches of a
slide together and taken out, so that what is left of a nucleus is how much darker it is than others of its own slide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ki67.stain import FEWEST_STAINED_PIXELS, HED_VECTORS, STAINED_OD, optical_density
from ki67.stain_vectors import macenko_vectors

MOST_PIXELS = 300_000
"""So many pixels of a slide, evenly spaced, tell its stains."""
GLASS_PERCENTILE = 1.0
MOST_GLASS = 0.05
"""Optical density of glass, at most: where patches are all tissue, the palest pixels are stained as well."""
STRONG_PERCENTILE = 97.0
"""Of the amounts in stained pixels; more of a stain than this is rare."""
COMMON_STRENGTH = (0.9, 0.6)
"""Optical density of strong hematoxylin and eosin in pictures with common stains."""


@dataclass(frozen=True)
class SlideStain:
    """How a slide is stained.

    Attributes
    ----------
    glass
        Optical density of what has no stain, float64 ``(3,)``.
    vectors
        Unit vectors of hematoxylin and eosin in optical density, float64 ``(2, 3)``.
    strength
        Optical density along them of strong stain, float64 ``(2,)``.
    """

    glass: NDArray[np.float64]
    vectors: NDArray[np.float64]
    strength: NDArray[np.float64]


def slide_stain(he: NDArray[np.uint8]) -> SlideStain:
    """The stains of a slide, found in all of its patches.

    Parameters
    ----------
    he
        Patches, uint8 ``(n, size, size, 3)``. With too few stained pixels the vectors are those of Ruifrok & Johnston.
    """
    pixels = he.reshape(-1, 3)
    density = optical_density(pixels[:: max(1, len(pixels) // MOST_PIXELS)]).astype(np.float64)
    if not len(density):
        return SlideStain(np.zeros(3), HED_VECTORS[:2], np.ones(2))
    glass = np.minimum(np.percentile(density, GLASS_PERCENTILE, axis=0), MOST_GLASS)
    stained = np.maximum(density - glass, 0)
    stained = stained[stained.sum(axis=1) > STAINED_OD]
    if len(stained) < FEWEST_STAINED_PIXELS:
        return SlideStain(glass, HED_VECTORS[:2], np.ones(2))
    vectors = macenko_vectors(stained)
    amounts = stained @ np.linalg.pinv(vectors)
    return SlideStain(glass, vectors, np.maximum(np.percentile(amounts, STRONG_PERCENTILE, axis=0), 0.05))


def stain_amounts(he: NDArray[np.uint8], stain: SlideStain) -> NDArray[np.float32]:
    """Hematoxylin and eosin of patches, of which 1 is strong on their slide.

    Parameters
    ----------
    he
        uint8 ``(..., 3)``.

    Returns
    -------
    float32 ``(..., 2)``
    """
    unmixing = (np.linalg.pinv(stain.vectors) / stain.strength).astype(np.float32)
    density = np.maximum(optical_density(he) - stain.glass.astype(np.float32), 0)
    return np.maximum(density @ unmixing, 0)


def commonly_stained(he: NDArray[np.uint8], stain: SlideStain) -> NDArray[np.uint8]:
    """The patches ``(..., 3)`` in the stains of Ruifrok and Johnston (2001), of a common strength."""
    vectors = (HED_VECTORS[:2] * np.array(COMMON_STRENGTH)[:, None]).astype(np.float32)
    rgb = 255 * 10.0 ** -(stain_amounts(he, stain) @ vectors)
    return cast(NDArray[np.uint8], np.clip(np.rint(rgb), 0, 255).astype(np.uint8))
