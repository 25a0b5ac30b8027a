"""How far raters agree on the index: intraclass correlation, concordance, limits of agreement, kappa, alpha, errors.

A rater is the computed index or a person. Every measure is an ``Estimate`` with a 95 % interval; where there is none,
it is NaN with the reason. No measure depends on the order of the slides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ki67.bootstrap import percentile_intervals
from ki67.index import CUTOFFS, category_names, category_of, wilson_interval

FEWEST_SLIDES = 3  # fewer say nothing of agreement
CONFIDENCE = 0.95
KRIPPENDORFF = "krippendorff_alpha"

Ratings = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A measure of agreement.

    Attributes
    ----------
    value, low, high
        The measure and its 95 % interval; NaN where there is none.
    n
        Slides it is of.
    reason
        Why there is no value or no interval; empty where there are both.
    """

    value: float
    low: float
    high: float
    n: int
    reason: str = ""


def pair_agreement(first: Ratings, second: Ratings, cutoffs: Sequence[float] = CUTOFFS) -> dict[str, Estimate]:
    """All measures of two raters, by the names of the column ``measure`` in ``agreement.csv`` (docs/outputs.md).

    Parameters
    ----------
    first, second
        Indices of the same slides as fractions, ``(slides,)``; slides that are NaN for either are left out.
    cutoffs
        Fractions between the categories, ascending.
    """
    both = complete_ratings(np.column_stack([first, second]))
    table = confusion_matrix(first, second, cutoffs)
    return {
        **intraclass_correlations(both),
        "concordance": concordance(first, second),
        **bland_altman(first, second),
        "pearson": pearson(first, second),
        "spearman": spearman(first, second),
        **index_errors(first, second),
        "within_1_point": share_within(first, second, 0.01),
        "within_5_points": share_within(first, second, 0.05),
        "same_category": same_category(table),
        "kappa_linear": weighted_kappa(table, "linear"),
        "kappa_quadratic": weighted_kappa(table, "quadratic"),
    }


def group_agreement(ratings: Ratings, *, seed: int = 0) -> dict[str, Estimate]:
    """Measures of two or more raters together.

    Parameters
    ----------
    ratings
        Indices as fractions, ``(slides, raters)``, NaN where a rater gives none. Alpha takes every slide that two or
        more have rated, the intraclass correlations those that all have.
    seed
        Of the bootstrap of alpha.
    """
    alpha = krippendorff_alpha(ratings, seed=seed)
    return {KRIPPENDORFF: alpha, **intraclass_correlations(complete_ratings(ratings))}


def complete_ratings(ratings: Ratings) -> Ratings:
    """Rows without NaN, sorted, so that sums and draws do not depend on the order of the slides.

    Parameters
    ----------
    ratings
        ``(slides, raters)``

    Returns
    -------
    float64 ``(complete slides, raters)``
    """
    table = np.asarray(ratings, dtype=np.float64)
    return _sorted_rows(table[~np.isnan(table).any(axis=1)])


def _sorted_rows(table: Ratings) -> Ratings:
    return table[np.lexsort(table.T[::-1])]


def _both(first: Ratings, second: Ratings) -> tuple[Ratings, Ratings]:
    table = complete_ratings(np.column_stack([first, second]))
    return table[:, 0], table[:, 1]


def _undefined(n: int, reason: str) -> Estimate:
    return Estimate(math.nan, math.nan, math.nan, n, reason)


def _too_few(n: int) -> str:
    return f"needs at least {FEWEST_SLIDES} slides that all of these raters have; there are {n}"


def intraclass_correlations(ratings: Ratings) -> dict[str, Estimate]:
    """ICC(2,1), absolute agreement, and ICC(3,1), consistency, of single ratings in a two-way layout.

    Parameters
    ----------
    ratings
        ``(slides, raters)`` without NaN, two or more raters.

    Returns
    -------
    dict
        ``icc_2_1`` and ``icc_3_1``. Both are 1 at most; chance and bias can take them below 0.

    References
    ----------
    Shrout PE, Fleiss JL (1979) Psychological Bulletin 86:420-428, doi:10.1037/0033-2909.86.2.420
    McGraw KO, Wong SP (1996) Psychological Methods 1:30-46, doi:10.1037/1082-989X.1.1.30

    Examples
    --------
    >>> judges = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    >>> {name: round(icc.value, 2) for name, icc in intraclass_correlations(np.array(judges, float)).items()}
    {'icc_2_1': 0.29, 'icc_3_1': 0.71}
    """
    n, raters = ratings.shape
    names = ("icc_2_1", "icc_3_1")
    if n < FEWEST_SLIDES:
        return dict.fromkeys(names, _undefined(n, _too_few(n)))
    if raters < 2 or not np.ptp(ratings):
        reason = "needs at least 2 raters" if raters < 2 else "all ratings of all slides are the same"
        return dict.fromkeys(names, _undefined(n, reason))
    squares = _mean_squares(ratings)
    return {"icc_2_1": _icc_absolute(squares, n, raters), "icc_3_1": _icc_consistency(squares, n, raters)}


@dataclass(frozen=True)
class _MeanSquares:
    slides: float
    raters: float
    error: float


def _mean_squares(ratings: Ratings) -> _MeanSquares:
    """Of the two-way analysis of variance without repetition."""
    n, raters = ratings.shape
    rounding = 8 * np.finfo(float).eps * np.abs(ratings).max()  # means of equal numbers differ in the last digit
    centred = ratings - ratings.mean()
    of_slides, of_raters = centred.mean(axis=1), centred.mean(axis=0)
    residual = centred - of_slides[:, None] - of_raters[None, :]
    for parts in (of_slides, of_raters, residual):
        parts[np.abs(parts) <= rounding] = 0.0
    return _MeanSquares(
        slides=raters * float(of_slides @ of_slides) / (n - 1),
        raters=n * float(of_raters @ of_raters) / (raters - 1),
        error=float((residual**2).sum()) / ((n - 1) * (raters - 1)),
    )


def _icc_absolute(squares: _MeanSquares, n: int, k: int) -> Estimate:
    """ICC(2,1); the degrees of freedom are Satterthwaite's, as in table 7 of McGraw and Wong."""
    from scipy.stats import f

    if squares.error == 0 and squares.raters == 0:
        return Estimate(1.0, 1.0, 1.0, n)
    if squares.error == 0 and squares.slides == 0:
        return Estimate(0.0, math.nan, math.nan, n, "every rater gives all slides the same index")
    between = k * squares.raters + (k * n - k - n) * squares.error
    value = n * (squares.slides - squares.error) / (n * squares.slides + between)
    a, b = k * value, n * (1 - value) + k * value * (n - 1)
    parts = (a * squares.raters) ** 2 / (k - 1), (b * squares.error) ** 2 / ((n - 1) * (k - 1))
    freedom = (a * squares.raters + b * squares.error) ** 2 / sum(parts)
    tail = 1 - (1 - CONFIDENCE) / 2
    below, above = f.ppf(tail, n - 1, freedom), f.ppf(tail, freedom, n - 1)
    low = n * (squares.slides - below * squares.error) / (below * between + n * squares.slides)
    high = n * (above * squares.slides - squares.error) / (between + n * above * squares.slides)
    return _ordered(value, low, high, n)


def _icc_consistency(squares: _MeanSquares, n: int, k: int) -> Estimate:
    """ICC(3,1)."""
    from scipy.stats import f

    if squares.error == 0 and squares.slides == 0:
        return _undefined(n, "every rater gives all slides the same index")
    if squares.error == 0:
        return Estimate(1.0, 1.0, 1.0, n)
    ratio, freedom = squares.slides / squares.error, (n - 1) * (k - 1)
    tail = 1 - (1 - CONFIDENCE) / 2
    low, high = ratio / f.ppf(tail, n - 1, freedom), ratio * f.ppf(tail, freedom, n - 1)
    value, low, high = ((part - 1) / (part + k - 1) for part in (ratio, low, high))
    return Estimate(float(value), float(low), float(high), n)


def _ordered(value: float, low: float, high: float, n: int) -> Estimate:
    """An estimate whose interval may be missing or, being approximate, not hold the value."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return Estimate(float(value), math.nan, math.nan, n, "the interval cannot be computed from these ratings")
    return Estimate(float(value), float(min(low, value)), float(max(high, value)), n)


def concordance(first: Ratings, second: Ratings) -> Estimate:
    """Lin's concordance correlation coefficient, with an interval by Fisher's z.

    Parameters
    ----------
    first, second
        Indices of the same slides, ``(slides,)``; slides that are NaN for either are left out.

    References
    ----------
    Lin LI (1989) Biometrics 45:255-268, doi:10.2307/2532051, with the correction in (2000) Biometrics 56:324-325
    """
    one, other = _both(first, second)
    n = len(one)
    if n < FEWEST_SLIDES:
        return _undefined(n, _too_few(n))
    if np.ptp([one, other]) == 0:
        return _undefined(n, "all ratings of all slides are the same")
    if np.array_equal(one, other):
        return Estimate(1.0, 1.0, 1.0, n)
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return Estimate(0.0, math.nan, math.nan, n, "a rater gives all slides the same index")
    spread = float(np.std(one)), float(np.std(other))
    shift = (float(one.mean()) - float(other.mean())) ** 2 / (spread[0] * spread[1])
    accuracy = 2 / (spread[0] / spread[1] + spread[1] / spread[0] + shift)
    correlation = float(np.clip(np.corrcoef(one, other)[0, 1], -1, 1))
    value = accuracy * correlation
    rest = 1 - value**2
    if rest <= 0:
        return Estimate(value, value, value, n)
    # Lin's variance of z with correlation divided out, so that it holds for a correlation of 0 as well.
    variance = (
        (1 - correlation**2) * accuracy**2 / rest
        + 2 * value**2 * (1 - value) * accuracy * shift / rest**2
        - (value * accuracy * shift) ** 2 / (2 * rest**2)
    ) / (n - 2)
    return _by_fisher_z(value, math.sqrt(max(variance, 0.0)), n)


def _by_fisher_z(value: float, standard_error: float, n: int) -> Estimate:
    half = _normal_quantile(CONFIDENCE) * standard_error
    z = math.atanh(value)
    return Estimate(value, math.tanh(z - half), math.tanh(z + half), n)


def _normal_quantile(share: float) -> float:
    """How many standard deviations around the mean hold a share of a normal distribution."""
    from scipy.stats import norm

    return float(norm.ppf((1 + share) / 2))


def bland_altman(
    first: Ratings, second: Ratings, *, share: float = 0.95, confidence: float = CONFIDENCE
) -> dict[str, Estimate]:
    """Mean difference, and the limits within which a share of the differences is expected, each with its interval.

    Parameters
    ----------
    first, second
        Indices of the same slides, ``(slides,)``; slides that are NaN for either are left out. A difference is first
        less second.
    share
        Of the differences between the limits, if they are normal.
    confidence
        Of the intervals.

    Returns
    -------
    dict
        ``bias``, ``limit_low`` and ``limit_high``.

    References
    ----------
    Bland JM, Altman DG (1986) Lancet 327:307-310, doi:10.1016/S0140-6736(86)90837-8
    Bland JM, Altman DG (1999) Statistical Methods in Medical Research 8:135-160, doi:10.1177/096228029900800204
    """
    one, other = _both(first, second)
    n = len(one)
    names = ("bias", "limit_low", "limit_high")
    if n < FEWEST_SLIDES:
        return dict.fromkeys(names, _undefined(n, _too_few(n)))
    from scipy.stats import t

    differences = one - other
    bias, spread = float(differences.mean()), float(differences.std(ddof=1))
    deviations = _normal_quantile(share)
    of_bias = float(t.ppf((1 + confidence) / 2, n - 1)) * spread / math.sqrt(n)
    of_limit = of_bias * math.sqrt(1 + n * deviations**2 / (2 * (n - 1)))
    values = (bias, of_bias), (bias - deviations * spread, of_limit), (bias + deviations * spread, of_limit)
    return {
        name: Estimate(value, value - half, value + half, n) for name, (value, half) in zip(names, values, strict=True)
    }


def pearson(first: Ratings, second: Ratings) -> Estimate:
    """Pearson's correlation, with an interval by Fisher's z.

    Parameters
    ----------
    first, second
        Indices of the same slides, ``(slides,)``; slides that are NaN for either are left out.
    """
    from scipy.stats import pearsonr

    one, other = _both(first, second)
    n = len(one)
    reason = _why_no_correlation(one, other)
    if reason:
        return _undefined(n, reason)
    return _correlation(float(pearsonr(one, other).statistic), n, spread=1.0)


def spearman(first: Ratings, second: Ratings) -> Estimate:
    """Spearman's rank correlation, with an interval by Fisher's z and the standard error of Bonett and Wright.

    Parameters
    ----------
    first, second
        Indices of the same slides, ``(slides,)``; slides that are NaN for either are left out.

    References
    ----------
    Bonett DG, Wright TA (2000) Psychometrika 65:23-28, doi:10.1007/BF02294183
    """
    from scipy.stats import spearmanr

    one, other = _both(first, second)
    n = len(one)
    reason = _why_no_correlation(one, other)
    if reason:
        return _undefined(n, reason)
    value = float(spearmanr(one, other).statistic)
    return _correlation(value, n, spread=1 + value**2 / 2)


def _why_no_correlation(one: Ratings, other: Ratings) -> str:
    if len(one) < FEWEST_SLIDES:
        return _too_few(len(one))
    return "a rater gives all slides the same index" if np.ptp(one) == 0 or np.ptp(other) == 0 else ""


def _correlation(value: float, n: int, *, spread: float) -> Estimate:
    """A correlation with the interval of Fisher's z, whose variance is ``spread / (n - 3)``."""
    if n <= 3:
        return Estimate(value, math.nan, math.nan, n, "an interval needs at least 4 slides")
    if abs(value) > 1 - 1e-15:
        return Estimate(round(value, 12), round(value, 12), round(value, 12), n)
    return _by_fisher_z(value, math.sqrt(spread / (n - 3)), n)


def index_errors(first: Ratings, second: Ratings, *, seed: int = 0) -> dict[str, Estimate]:
    """Root mean square and mean of the absolute differences, with intervals from resampled slides (Efron 1979).

    Parameters
    ----------
    first, second
        Indices of the same slides, ``(slides,)``; slides that are NaN for either are left out.
    seed
        Of the draws.

    Returns
    -------
    dict
        ``rmse`` and ``mae``.
    """
    one, other = _both(first, second)
    n = len(one)
    if n < FEWEST_SLIDES:
        return dict.fromkeys(("rmse", "mae"), _undefined(n, _too_few(n)))
    sizes = np.sort(np.abs(one - other))

    def statistics(drawn: NDArray[np.int64]) -> dict[str, float]:
        return {"rmse": math.sqrt(float((sizes[drawn] ** 2).mean())), "mae": float(sizes[drawn].mean())}

    limits = percentile_intervals(n, statistics, seed=seed)
    values = statistics(np.arange(n))
    return {name: _ordered(value, limits[name][0], limits[name][1], n) for name, value in values.items()}


def share_within(first: Ratings, second: Ratings, limit: float) -> Estimate:
    """Share of the slides on which two raters differ by no more than a limit, with its Wilson interval.

    Parameters
    ----------
    first, second
        Indices of the same slides, ``(slides,)``; slides that are NaN for either are left out.
    limit
        Fraction: 0.05 is five percentage points.
    """
    one, other = _both(first, second)
    # 0.07 - 0.06 is a little more than 0.01 in binary fractions.
    return _share(int((np.abs(one - other) <= limit + 1e-9).sum()), len(one))


def _share(count: int, n: int) -> Estimate:
    if n < FEWEST_SLIDES:
        return _undefined(n, _too_few(n))
    return Estimate(count / n, *wilson_interval(count, n), n)


def confusion_matrix(first: Ratings, second: Ratings, cutoffs: Sequence[float] = CUTOFFS) -> NDArray[np.int64]:
    """How many slides two raters put into each pair of categories.

    Parameters
    ----------
    first, second
        Indices of the same slides as fractions, ``(slides,)``; slides that are NaN for either are left out.
    cutoffs
        Fractions between the categories, ascending.

    Returns
    -------
    int64 ``(categories, categories)``
        Rows are the categories of the first rater from low to high, columns those of the second.
    """
    names = category_names(cutoffs)
    table = np.zeros((len(names), len(names)), dtype=np.int64)
    for pair in zip(*_both(first, second), strict=True):
        row, column = (names.index(str(category_of(float(index), cutoffs))) for index in pair)
        table[row, column] += 1
    return table


def same_category(table: NDArray[np.int64]) -> Estimate:
    """Share of the slides that two raters put into the same category, with its Wilson interval.

    Parameters
    ----------
    table
        Of ``confusion_matrix``.
    """
    return _share(int(np.trace(table)), int(table.sum()))


def weighted_kappa(table: NDArray[np.int64], weights: Literal["linear", "quadratic"]) -> Estimate:
    """Cohen's kappa with weights by how many categories lie between two raters, with its large-sample interval.

    Parameters
    ----------
    table
        Of ``confusion_matrix``.
    weights
        Disagreement by one category counts ``linear`` half or ``quadratic`` a quarter as much as by two.

    References
    ----------
    Cohen J (1968) Psychological Bulletin 70:213-220, doi:10.1037/h0026256
    Fleiss JL, Cohen J, Everitt BS (1969) Psychological Bulletin 72:323-327, doi:10.1037/h0028106
    """
    from statsmodels.stats.inter_rater import cohens_kappa

    n = int(table.sum())
    if n < FEWEST_SLIDES:
        return _undefined(n, _too_few(n))
    if np.count_nonzero(table.sum(axis=0) + table.sum(axis=1)) == 1:
        return _undefined(n, "both raters put all slides into one category")
    with np.errstate(all="ignore"):  # it computes a test as well, which perfect agreement leaves undefined
        found = cohens_kappa(table, wt=weights)
    value, variance = float(found.kappa), float(found.var_kappa)
    if np.count_nonzero(table.sum(axis=0)) == 1 or np.count_nonzero(table.sum(axis=1)) == 1:
        return Estimate(value, math.nan, math.nan, n, "a rater puts all slides into one category")
    half = _normal_quantile(CONFIDENCE) * math.sqrt(max(variance, 0.0))
    return Estimate(value, max(value - half, -1.0), min(value + half, 1.0), n)


def krippendorff_alpha(ratings: Ratings, *, seed: int = 0) -> Estimate:
    """Krippendorff's alpha for ratings on an interval scale, with an interval from resampled slides.

    Parameters
    ----------
    ratings
        ``(slides, raters)``, NaN where a rater gives none; slides with fewer than two ratings do not count.
    seed
        Of the draws.

    References
    ----------
    Krippendorff K (2011) Computing Krippendorff's alpha-reliability, https://repository.upenn.edu/asc_papers/43
    Zapf A et al. (2016) BMC Medical Research Methodology 16:93, doi:10.1186/s12874-016-0200-9, for the interval
    """
    table = np.asarray(ratings, dtype=np.float64)
    table = _sorted_rows(table[(~np.isnan(table)).sum(axis=1) >= 2])
    n = len(table)
    if n < FEWEST_SLIDES:
        return _undefined(n, f"needs at least {FEWEST_SLIDES} slides with two or more ratings; there are {n}")
    table = table - np.nanmean(table)
    counts = (~np.isnan(table)).sum(axis=1)
    sums, squares = np.nansum(table, axis=1), np.nansum(table**2, axis=1)
    # Half the sum of squared differences of all pairs within a slide, over the others that a rating is compared with.
    within = (counts * np.nanvar(table, axis=1) * counts) / (counts - 1)

    def statistics(drawn: NDArray[np.int64]) -> dict[str, float]:
        total = counts[drawn].sum()
        between = total * squares[drawn].sum() - sums[drawn].sum() ** 2
        if between <= 1e-12 * total * squares.max():
            return {KRIPPENDORFF: math.nan}
        return {KRIPPENDORFF: 1 - float((total - 1) * within[drawn].sum() / between)}

    value = statistics(np.arange(n))[KRIPPENDORFF]
    if math.isnan(value):
        return _undefined(n, "all ratings of all slides are the same")
    low, high = percentile_intervals(n, statistics, seed=seed).get(KRIPPENDORFF, (math.nan, math.nan))
    return _ordered(value, low, high, n)
