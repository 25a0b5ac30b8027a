"""Scores of evaluations as a table of Markdown, and which images stand for all of a dataset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def score_cell(value: float | None, interval: Sequence[float | None] | None, digits: int) -> str:
    """A score with its interval as text; empty where it is undefined.

    >>> score_cell(0.8123, [0.75, 0.9], 2)
    '0.81 (0.75-0.90)'
    >>> score_cell(0.21, [-0.5, 0.77], 2)
    '0.21 (-0.50 to 0.77)'
    """
    if value is None or np.isnan(value):
        return ""
    low, high = interval or (None, None)
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ({low:.{digits}f}{' to ' if low < 0 else '-'}{high:.{digits}f})"


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    """Rows with the same columns as a table of Markdown; empty where there is no row."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *("| " + " | ".join(row.values()) + " |" for row in rows)]) + "\n"


def best_median_worst(scores: Sequence[float]) -> dict[str, int]:
    """Index of the best, the median and the worst of scores; NaN does not count.

    >>> best_median_worst([0.2, 0.9, float("nan"), 0.5])
    {'best': 1, 'median': 3, 'worst': 0}
    """
    ranked = sorted((index for index in range(len(scores)) if not np.isnan(scores[index])), key=lambda i: -scores[i])
    places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1} if ranked else {}
    return {name: ranked[place] for name, place in places.items()}
