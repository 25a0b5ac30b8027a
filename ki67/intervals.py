"""How sure an index is: from the counting alone (Wilson), and from how the tumour differs from place to place.

Nuclei that lie near one another are alike, so 10,000 nuclei tell less of the tumour than 10,000 independent draws
would. The block bootstrap draws whole squares of tumour anew and takes from their differences how sure the index is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ki67.nucleus_squares import SquareCounts, TumorNuclei, coarser, count_squares, with_touching

CONFIDENCE = 0.95
RESAMPLES = 1000
SMALLEST_SIDE_UM = 250.0
USUAL_SIDE_UM = 1000.0
LARGEST_SIDE_UM = 3000.0
ENOUGH_BLOCKS = 50
FEWEST_BLOCKS = 25


def wilson_interval(positive: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Score interval of a proportion; NaN where there is nothing to count.

    Wilson EB (1927) Journal of the American Statistical Association 22:209-212.

    Examples
    --------
    >>> low, high = wilson_interval(15, 148)
    >>> round(low, 4), round(high, 4)
    (0.0624, 0.1605)
    """
    if total == 0:
        return math.nan, math.nan
    from scipy.stats import binomtest

    interval = binomtest(int(positive), int(total)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def wilson_probability_above(positive: int, total: int, cutoff: float) -> float:
    """How likely the fraction lies above a cut-off, so that Wilson's limits are those of 2.5 and 97.5 %.

    The normal distribution of the score, ``Φ((p - c) / √(c (1 - c) / n))``; NaN where there is nothing to count.

    Examples
    --------
    >>> low, high = wilson_interval(15, 148)
    >>> round(wilson_probability_above(15, 148, low), 4), round(wilson_probability_above(15, 148, high), 4)
    (0.975, 0.025)
    """
    if total == 0:
        return math.nan
    score = (positive / total - cutoff) / math.sqrt(cutoff * (1 - cutoff) / total)
    return 0.5 * math.erfc(-score / math.sqrt(2))


@dataclass(frozen=True)
class BlockBootstrap:
    """What resampled blocks say of an index.

    Attributes
    ----------
    low, high
        95 % interval, fractions.
    indices
        float64 ``(RESAMPLES,)``, the resampled index, ascending.
    blocks
        Blocks of equal size that tell as much as those that hold nuclei: ``(Σn)² / Σn²`` of their nuclei ``n``.
    side_um
        Of a block.
    """

    low: float
    high: float
    indices: NDArray[np.float64]
    blocks: float
    side_um: float

    def probability_above(self, cutoff: float) -> float:
        """Share of the resampled indices above a cut-off, those that equal it by half."""
        return float((self.indices > cutoff).mean() + (self.indices == cutoff).mean() / 2)


def block_bootstrap(nuclei: TumorNuclei, *, seed: int = 0) -> BlockBootstrap | None:
    """Interval of the index from blocks of tumour that are drawn anew; None where there are too few, or all is alike.

    Blocks are the squares of a grid, of the size that ``block_counts`` chooses. Each resample draws as many
    blocks as there are, with replacement, and takes the ratio of all its positive to all its nuclei (Davison & Hinkley
    1997, Bootstrap Methods and their Application, chapter 8; Lahiri 2003, doi:10.1007/978-1-4757-3803-2). Blocks drawn
    one by one know nothing of what two that touch have in common, and a percentile nothing of how few there are. So
    the distances of the resampled from the observed index are stretched, on the scale of the logit, by

    - what the covariance of touching blocks adds to the standard error (Conley 1999, doi:10.1016/S0304-4076(98)00084-0,
      with the correction for the estimated mean), never less than none, and at least as much as counting alone leaves;
    - the quantile of Student's t beside that of the normal distribution, its degrees of freedom as Satterthwaite 1946
      (doi:10.2307/3002019) has them for a sum of products of blocks.

    ``benchmarks/interval_coverage.py`` measures what this covers.

    Parameters
    ----------
    nuclei
        Of the tumour, in any order.
    seed
        Of the draws.
    """
    positive, total = int(nuclei.positive.sum()), len(nuclei)
    counts = block_counts(nuclei)
    stretch = 0.0 if counts is None else _stretch(counts, positive / total)
    if counts is None or stretch == 0:
        return None
    filled = counts.total > 0
    blocks = np.column_stack([counts.positive[filled], counts.total[filled]])
    drawn = np.random.default_rng(seed).multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), size=RESAMPLES)
    positives, totals = (drawn @ blocks).T
    center = _logit(positive, total)
    indices = np.sort(1 / (1 + np.exp(-center - stretch * (_logit(positives, totals) - center))))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(indices, [tail, 100 - tail])
    index = positive / total
    return BlockBootstrap(
        min(float(low), index), max(float(high), index), indices, equal_blocks(counts), counts.side_um
    )


def block_counts(nuclei: TumorNuclei) -> SquareCounts | None:
    """Nuclei in blocks of a size that suits the tumour; None where it is too small for any.

    Blocks are 1 mm wide if that gives at least ``FEWEST_BLOCKS``, and larger, up to 3 mm, as long as ``ENOUGH_BLOCKS``
    are left: the larger they are, the less they depend on one another. They are smaller, down to 0.25 mm, where
    ``FEWEST_BLOCKS`` could not be had otherwise.
    """
    finest = count_squares(nuclei, SMALLEST_SIDE_UM)
    for factor in range(round(LARGEST_SIDE_UM / SMALLEST_SIDE_UM), 0, -1):
        counts = coarser(finest, factor)
        if equal_blocks(counts) >= (ENOUGH_BLOCKS if counts.side_um > USUAL_SIDE_UM else FEWEST_BLOCKS):
            return counts
    return None


def equal_blocks(counts: SquareCounts) -> float:
    """How many blocks of equal size would tell as much as these; 0 without nuclei.

    >>> from ki67.nucleus_squares import SquareCounts
    >>> equal_blocks(SquareCounts(np.zeros((1, 3), int), np.array([[10, 10, 0]]), 1.0, (0, 0)))
    2.0
    """
    total = counts.total.sum()
    return float(total**2 / (counts.total**2).sum()) if total else 0.0


def _logit(positive: NDArray[np.int64] | int, total: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """Log odds with half a nucleus added to both, so that they are finite (Haldane 1956, Anscombe 1956)."""
    return np.asarray(np.log((positive + 0.5) / (np.asarray(total) - positive + 0.5)))


def _stretch(counts: SquareCounts, index: float) -> float:
    """What resampled distances are multiplied by, for what touching blocks share and for how few there are.

    0 where no block differs from the others, of which resampling tells nothing.
    """
    from scipy.stats import norm, t

    residual = counts.positive - index * counts.total
    alone = float((residual**2).sum())
    total = float(counts.total.sum())
    if alone <= 1e-9 * total:
        return 0.0
    known_mean = 1 - float((counts.total * with_touching(counts.total)).sum()) / total**2
    together = max(float((residual * with_touching(residual)).sum()), alone) / max(known_mean, 0.1)
    together = max(together, index * (1 - index) * total)
    filled = (counts.total > 0).astype(float)
    freedom = max(float(filled.sum() ** 2 / (filled * with_touching(filled)).sum()) - 1, 1.0)
    upper = (1 + CONFIDENCE) / 2
    return math.sqrt(together / alone) * float(t.ppf(upper, freedom) / norm.ppf(upper))


def pooled_interval(
    positive: NDArray[np.float64], total: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[float, float]:
    """Interval of the index of some slides' pooled counts, from the interval of each slide.

    The pooled index is the slides' indices weighted by their nuclei; the distances of the slides' limits from their
    indices are squared, weighted and added up (MOVER: Zou & Donner 2008, doi:10.1002/sim.3095). One slide keeps its
    interval.

    Parameters
    ----------
    positive, total, low, high
        ``(N,)``, counts and limits of each slide, of which none is without nuclei. NaN for no slides.

    Examples
    --------
    >>> low, high = pooled_interval(*(np.array(v) for v in ([10.0, 30.0], [100.0, 100.0], [0.06, 0.22], [0.18, 0.4])))
    >>> round(low, 4), round(high, 4)
    (0.1553, 0.264)
    """
    if not len(total):
        return math.nan, math.nan
    index, share = positive / total, total / total.sum()
    pooled = float(positive.sum() / total.sum())
    below, above = (float(np.linalg.norm(share * (limit - index))) for limit in (low, high))
    return max(0.0, pooled - below), min(1.0, pooled + above)


def pooled_probability_above(positive: int, total: int, low: float, high: float, cutoff: float) -> float:
    """How likely an index with this 95 % interval lies above a cut-off: normal on the scale of the logit to each side.

    Where a limit is 0 or 1 or the index itself, the counting alone decides.
    """
    from scipy.special import logit
    from scipy.stats import norm

    limit = high if cutoff * total > positive else low
    if not 0 < limit < 1 or positive in (0, total) or limit == positive / total:
        return wilson_probability_above(positive, total, cutoff)
    center = logit(positive / total)
    spread = abs(float(logit(limit) - center)) / norm.ppf((1 + CONFIDENCE) / 2)
    return float(norm.cdf((center - logit(cutoff)) / spread))
