"""The colours that a slide's own stains have, found in its pixels (Macenko et al. 2009)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def macenko_vectors(density: NDArray[np.floating]) -> NDArray[np.float64]:
    """Unit vectors of hematoxylin and eosin ``(2, 3)`` in optical density of red, green and blue.

    The two directions lie at the edges of the plane that holds most of the pixels, of which one in a hundred on either
    side does not count.

    Parameters
    ----------
    density
        Optical densities ``(N, 3)`` of stained pixels, N at least 3.

    References
    ----------
    Macenko M et al. (2009) A method for normalizing histology slides for quantitative analysis, ISBI, 1107-1110,
    doi:10.1109/ISBI.2009.5193250
    """
    plane = np.linalg.eigh(np.cov(density.T))[1][:, [2, 1]]
    plane *= np.sign(plane.sum(axis=0))
    projected = density @ plane
    angles = np.percentile(np.arctan2(projected[:, 1], projected[:, 0]), [1, 99])
    vectors = np.abs(np.stack([plane @ [np.cos(angle), np.sin(angle)] for angle in angles]))
    # Eosin lets red light pass.
    return vectors[np.argsort(-vectors[:, 0])]
