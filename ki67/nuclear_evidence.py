"""What nuclei tell of tumour on a Ki-67 slide: in tumour they lie close together.

No annotated Ki-67 slide with a licence is at hand, so the tumour network of this stain learned from drawn slides and
from H&E stained anew, and is unsure of pale tumours such as carcinoma in situ. The nucleus network is not: where it is
certain of much of the area, this is most likely tumour. The two answers are added as log odds (logistic regression).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ki67.predictors import Predictor

MARGIN = 0.01
"""Added to both sides of a probability, so that its log odds are finite."""
_STRIP_ROWS = 1024


@dataclass(frozen=True)
class NuclearEvidence:
    """A nucleus network, and how what it finds is weighed against the tumour network.

    The weights lie between those that fit ``ki67_dcis`` best, a validation set (``benchmarks.nuclear_evidence``: nearly
    the nuclei alone), and the tumour network alone, so that drawn slides lose nothing.

    Attributes
    ----------
    network
        Tells nuclei from background; further classes, such as membranes, do not count.
    certain_from
        Probability from which a pixel is certainly nucleus: blurred and pale ones are not, most of those of stroma.
    reach_um
        Standard deviation of the Gaussian within which the share of nuclei is taken.
    share_weight, network_weight, offset
        Of the log odds of that share and of the tumour network, and what is added.
    """

    network: Predictor
    certain_from: float = 0.75
    reach_um: float = 12.0
    share_weight: float = 1.1
    network_weight: float = 0.75
    offset: float = 3.0

    def certain_nuclei(self, levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Where there certainly is a nucleus.

        Parameters
        ----------
        levels
            uint8 ``(classes, H, W)`` of the network, 255 for 1.

        Returns
        -------
        uint8 ``(H, W)``
            255 or 0.
        """
        classes = self.network.spec.classes
        chosen = [i for i, name in enumerate(classes) if name != "background" and not name.endswith("membrane")]
        certain = levels[chosen].sum(axis=0, dtype=np.uint16) >= round(255 * self.certain_from)
        return certain.astype(np.uint8) * 255

    def share_around(
        self, nuclei: NDArray[np.uint8], allowed: NDArray[np.bool_], mpp: float
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """The share of what is allowed around each pixel that is certainly nucleus, in strips."""
        return smoothed_strips(nuclei, allowed, self.reach_um / mpp)

    def weigh(
        self, probability: NDArray[np.uint8], nuclei: NDArray[np.uint8], allowed: NDArray[np.bool_], mpp: float
    ) -> NDArray[np.uint8]:
        """The probability of tumour from both networks.

        Parameters
        ----------
        probability
            uint8 ``(H, W)``, 255 for 1, of the tumour network.
        nuclei
            uint8 of the same shape: the share of each pixel that is certainly nucleus, 255 for all of it.
        allowed
            bool of the same shape. The share around a pixel is that of the area which is allowed.
        mpp
            Microns per pixel.

        Returns
        -------
        uint8 ``(H, W)``
        """
        weighed = np.empty_like(probability)
        for rows, share in self.share_around(nuclei, allowed, mpp):
            odds = self.share_weight * log_odds(share / 255) + self.network_weight * log_odds(probability[rows] / 255)
            weighed[rows] = np.rint(255 / (1 + np.exp(-(odds + self.offset))))
        return weighed


def log_odds(probability: NDArray[np.floating]) -> NDArray[np.floating]:
    """Natural logarithm of the odds, finite at 0 and 1."""
    return np.log((probability + MARGIN) / (1 + MARGIN - probability))


def smoothed_strips(
    levels: NDArray[np.uint8], allowed: NDArray[np.bool_], sigma_px: float
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """A Gaussian over what is allowed alone, a strip of rows after the other.

    In strips, as pixels of four bytes take more memory than all that is kept of a slide.

    Parameters
    ----------
    levels, allowed
        uint8 and bool ``(H, W)``.
    sigma_px
        Standard deviation.

    Yields
    ------
    tuple
        Rows, and float32 of their shape: the mean of ``levels`` around each pixel, 0 far from all that is allowed.
    """
    reach = int(np.ceil(4 * sigma_px)) + 1
    for start in range(0, len(levels), _STRIP_ROWS):
        rows = slice(start, min(start + _STRIP_ROWS, len(levels)))
        first = max(0, start - reach)
        around, inner = slice(first, rows.stop + reach), slice(start - first, rows.stop - first)
        inside = allowed[around].astype(np.float32)
        weight = np.asarray(cv2.GaussianBlur(inside, (0, 0), sigma_px))[inner]
        mean = np.asarray(cv2.GaussianBlur(levels[around] * inside, (0, 0), sigma_px))[inner]
        yield rows, (mean / np.maximum(weight, 1e-3)).astype(np.float32)
