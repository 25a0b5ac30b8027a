"""Scores of a probability against a truth of two classes, from counts of each level of the probability."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def level_counts(levels: NDArray[np.integer], truth: NDArray[np.bool_], number: int) -> NDArray[np.int64]:
    """How often each level occurs where the truth says no (row 0) and yes (row 1).

    Parameters
    ----------
    levels
        Integers ``(N,)`` from 0 to ``number - 1``, the last of which is probability 1.
    truth
        bool ``(N,)``.
    number
        Of levels.

    Returns
    -------
    int64 ``(2, number)``
    """
    return np.stack([np.bincount(levels[truth == answer], minlength=number) for answer in (False, True)])


def level_of(threshold: float, number: int) -> int:
    """The lowest of so many levels that reaches a threshold of probability; ``number`` where none does.

    >>> level_of(0.5, 256), level_of(1.0, 256)
    (128, 255)
    """
    return int(np.ceil(threshold * (number - 1) - 1e-9))


def threshold_scores(counts: NDArray[np.int64] | NDArray[np.float64], level: int) -> dict[str, float]:
    """What a threshold makes of the counts.

    Likelihood ratios: Deeks & Altman (2004); index J: Youden (1950); Dice (1945), which is F1.

    Parameters
    ----------
    counts
        ``(2, L)`` as ``level_counts`` returns them, or sums of several.
    level
        From which the answer is yes.

    Returns
    -------
    dict
        ``sensitivity``, ``specificity``, ``accuracy``, ``balanced_accuracy``, ``dice``, ``ppv``, ``npv``,
        ``positive_likelihood_ratio``, ``negative_likelihood_ratio`` and ``youden``. NaN where a score is undefined, as
        all that need both classes are where the truth has one; infinite where a likelihood ratio divides by nothing.

    Examples
    --------
    >>> scores = threshold_scores(np.array([[8, 2], [1, 9]]), 1)
    >>> scores["sensitivity"], scores["specificity"], round(scores["positive_likelihood_ratio"], 3)
    (0.9, 0.8, 4.5)
    """
    (true_negative, false_positive), (false_negative, true_positive) = (
        (float(row[:level].sum()), float(row[level:].sum())) for row in counts
    )
    negative, positive = true_negative + false_positive, true_positive + false_negative
    sensitivity, specificity = _share(true_positive, positive), _share(true_negative, negative)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "accuracy": _share(true_positive + true_negative, positive + negative),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "dice": _share(2 * true_positive, 2 * true_positive + false_positive + false_negative),
        "ppv": _share(true_positive, true_positive + false_positive),
        "npv": _share(true_negative, true_negative + false_negative),
        "positive_likelihood_ratio": _ratio(sensitivity, 1 - specificity),
        "negative_likelihood_ratio": _ratio(1 - sensitivity, specificity),
        "youden": sensitivity + specificity - 1,
    }


def roc_curve(counts: NDArray[np.int64] | NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rate with the threshold at every level, and above all of them; from (1, 1) to (0, 0).

    Returns
    -------
    false_positive_rate, true_positive_rate
        float64 ``(L + 1,)`` for counts ``(2, L)``; NaN for a class that does not occur.
    """
    above = np.concatenate([np.cumsum(counts[:, ::-1], axis=1)[:, ::-1], np.zeros((2, 1))], axis=1)
    with np.errstate(invalid="ignore"):
        negative, positive = above / above[:, :1]
    return negative, positive


def area_under_roc(counts: NDArray[np.int64] | NDArray[np.float64]) -> float:
    """How likely a pixel of the class has a higher level than one that is not, ties counting half; NaN if undefined.

    >>> area_under_roc(np.array([[1, 1, 0], [0, 1, 1]]))
    0.875
    """
    false_positive, true_positive = roc_curve(counts)
    return float(np.trapezoid(true_positive[::-1], false_positive[::-1]))


def best_threshold(counts: NDArray[np.int64] | NDArray[np.float64]) -> tuple[float, float]:
    """The threshold of probability with the greatest Youden index, and that index.

    Where neighbouring levels are as good as one another it lies in the middle of the first of them.

    Returns
    -------
    threshold, youden
        NaN where the truth has only one class.
    """
    false_positive, true_positive = roc_curve(counts)
    youden = true_positive - false_positive
    if np.isnan(youden).any():
        return float("nan"), float("nan")
    youden = np.round(youden[:-1], 12)
    best = np.flatnonzero(youden == youden.max())
    run = best[: np.argmax(np.diff(best, append=best[-1] + 2) > 1) + 1]
    middle = (run[0] - 1 + run[-1]) / 2 if run[0] else 0.0
    return float(np.round(middle / (counts.shape[1] - 1), 4)), float(youden.max())


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _ratio(above: float, below: float) -> float:
    if below:
        return above / below
    return float("inf") if above > 0 else float("nan")
