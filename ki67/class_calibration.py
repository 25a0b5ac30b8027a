"""Positive or negative by the DAB of each nucleus, measured against the slide's own positive and negative nuclei.

How brown a nucleus must be to be called positive differs from slide to slide: on one with strong DAB, negative nuclei
have a brown shade that would be a positive nucleus on a pale one. A network sees a window and not the slide; all nuclei
of the slide together tell where its two levels lie. The threshold lies at a fixed share of the way from the one to the
other, but never within the spread of the negative nuclei.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PALEST_PERCENTILE = 2.0


@dataclass(frozen=True)
class CalibrationOptions:
    """Where the threshold lies.

    Attributes
    ----------
    share
        Of the way from the median DAB of negative to that of positive nuclei.
    spreads
        Least distance from the negative median in standard deviations of the negative nuclei (from their median
        absolute deviation).
    least_od
        Least distance from the negative median in optical density.
    fewest
        With fewer nuclei of either class there is no threshold, and the network's classes stay.
    softness
        Share of the way from level to level over which a nucleus is more and more likely to be positive.
    doubted
        Share of the way from the palest nuclei to the median of positive ones from which a nucleus that is called
        negative tells nothing of negative nuclei, for methods that miss what is nearly black in the DAB alone. None:
        all of them tell.
    """

    share: float = 0.2
    spreads: float = 2.5
    least_od: float = 0.08
    fewest: int = 5
    softness: float = 0.1
    doubted: float | None = None


@dataclass(frozen=True)
class DabLevels:
    """What calibrates the classes of one slide, all in optical density of DAB.

    Attributes
    ----------
    negative, positive
        Median of the nuclei that the network calls so.
    threshold
        From which a nucleus is positive.
    softness
        Distance from the threshold over which the odds change e-fold.
    """

    negative: float
    positive: float
    threshold: float
    softness: float

    def positive_probability(self, dab_od: NDArray[np.float64]) -> NDArray[np.float64]:
        """How likely nuclei of this DAB ``(N,)`` are positive, 0 to 1."""
        return np.asarray(1 / (1 + np.exp(-np.clip((dab_od - self.threshold) / self.softness, -30, 30))))


def dab_levels(
    dab_od: NDArray[np.float64], positive: NDArray[np.bool_], options: CalibrationOptions | None = None
) -> DabLevels | None:
    """The levels of a slide; ``None`` where there are too few nuclei of a class to tell.

    Parameters
    ----------
    dab_od
        ``(N,)``, mean optical density of DAB in each nucleus.
    positive
        ``(N,)``, its class by the network.

    Examples
    --------
    >>> levels = dab_levels(np.array([0.1] * 50 + [1.5] * 10), np.array([False] * 50 + [True] * 10))
    >>> round(levels.threshold, 2)
    0.38
    """
    options = options or CalibrationOptions()
    if min(np.count_nonzero(positive), np.count_nonzero(~positive)) < options.fewest:
        return None
    negative_dab, high = dab_od[~positive], float(np.median(dab_od[positive]))
    if options.doubted is not None:
        palest = float(np.percentile(dab_od, _PALEST_PERCENTILE))
        negative_dab = negative_dab[negative_dab - palest <= options.doubted * max(high - palest, options.least_od)]
        if len(negative_dab) < options.fewest:
            return None
    low = float(np.median(negative_dab))
    spread = 1.4826 * float(np.median(np.abs(negative_dab - low)))
    lowest = low + max(options.least_od, options.spreads * spread)
    way = max(high - low, options.least_od)
    return DabLevels(low, high, max(low + options.share * way, lowest), options.softness * way)


def uncertainty(
    probability: NDArray[np.floating], called: NDArray[np.bool_], dab_od: NDArray[np.float64], levels: DabLevels | None
) -> NDArray[np.float32]:
    """How likely each nucleus is not what it is counted as, 0 to 1.

    Parameters
    ----------
    probability
        ``(N,)``, the network's mean probability of the class it gives the nucleus.
    called
        ``(N,)``, whether it calls the nucleus positive.
    dab_od, levels
        DAB of each nucleus ``(N,)``, and the slide's levels if they decide on the class.
    """
    if levels is None:
        return np.asarray(1 - probability, dtype=np.float32)
    likely = levels.positive_probability(dab_od)
    agrees = np.where(called == (likely > 0.5), probability, 1 - probability)
    return np.asarray(1 - agrees * np.maximum(likely, 1 - likely), dtype=np.float32)
