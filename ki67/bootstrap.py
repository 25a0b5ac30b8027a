"""Intervals of any statistic over images, from images drawn anew with replacement (Efron 1979)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

BOOTSTRAPS = 1000


def percentile_intervals(
    count: int, statistics: Callable[[NDArray[np.int64]], Mapping[str, float]], *, seed: int = 0
) -> dict[str, list[float]]:
    """95 % percentile intervals of statistics, from ``BOOTSTRAPS`` draws of images.

    Parameters
    ----------
    count
        Number of images.
    statistics
        Of the images drawn, which are given as indices int64 ``(count,)``, some more than once. What it leaves out or
        says is NaN does not count.
    seed
        Of the draws.

    Returns
    -------
    dict
        Name of each statistic that was a number at least once to the lower and upper limit.
    """
    random = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {}
    for _ in range(BOOTSTRAPS):
        for name, value in statistics(random.integers(count, size=count)).items():
            draws.setdefault(name, []).append(value)
    return {
        name: [float(limit) for limit in np.nanpercentile(values, [2.5, 97.5])]
        for name, values in draws.items()
        if not np.isnan(values).all()
    }
