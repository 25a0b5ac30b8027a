"""Categories of the index: their cut-offs and names by type of tumour, and how sure it is which one an index is in."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise

from ki67.errors import ConfigError

CUTOFFS = (0.10, 0.20)
PRESETS: dict[str, tuple[tuple[float, ...], tuple[str, ...] | None]] = {
    "breast": (CUTOFFS, None),
    "breast_ikwg": ((0.05, 0.30), ("low", "intermediate", "high")),  # Nielsen et al. 2021, doi:10.1093/jnci/djaa201
    "neuroendocrine": (
        (0.03, 0.20),
        ("G1", "G2", "G3"),
    ),  # WHO Classification of Tumours, Digestive System, 5th ed. 2019
}
"""Cut-offs of tumours, and what their categories are called where it is not by percent."""
INDETERMINATE = "indeterminate"
CERTAINTY = 0.8


def category_names(cutoffs: Sequence[float] = CUTOFFS) -> tuple[str, ...]:
    """Names of the categories from low to high.

    >>> category_names((0.10, 0.20))
    ('<10%', '10-20%', '>20%')
    """
    percents = [f"{100 * cutoff:g}" for cutoff in cutoffs]
    between = (f"{low}-{high}%" for low, high in pairwise(percents))
    return (f"<{percents[0]}%", *between, f">{percents[-1]}%")


def index_categories(preset: str, cutoffs: Sequence[float] | None = None) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Cut-offs and names of the categories: those of a preset, or of cut-offs of one's own, named by percent.

    Raises
    ------
    ConfigError
        If there is no such preset.

    Examples
    --------
    >>> index_categories("neuroendocrine")
    ((0.03, 0.2), ('G1', 'G2', 'G3'))
    >>> index_categories("neuroendocrine", [0.05, 0.20])
    ((0.05, 0.2), ('<5%', '5-20%', '>20%'))
    """
    if preset not in PRESETS:
        raise ConfigError(f"index.preset is {preset}; write {' or '.join(PRESETS)}")
    known, names = PRESETS[preset]
    chosen = tuple(cutoffs) if cutoffs else known
    return chosen, names if names and not cutoffs else category_names(chosen)


def category_of(index: float, cutoffs: Sequence[float] = CUTOFFS, names: Sequence[str] | None = None) -> str | None:
    """Category of an index; one that equals a cut-off is not beyond it, so 10 % and 20 % are both "10-20%".

    >>> category_of(0.0999), category_of(0.10), category_of(0.20), category_of(0.2001)
    ('<10%', '10-20%', '10-20%', '>20%')
    """
    if math.isnan(index):
        return None
    position = 1 if index == cutoffs[0] else bisect_left(cutoffs, index)
    return (names or category_names(cutoffs))[position]


def category_probabilities(probability_above: Callable[[float], float], cutoffs: Sequence[float]) -> tuple[float, ...]:
    """How likely each category is, from low to high, by how likely the index lies above each of its cut-offs.

    >>> [round(value, 2) for value in category_probabilities({0.1: 0.7, 0.2: 0.1}.__getitem__, (0.1, 0.2))]
    [0.3, 0.6, 0.1]
    """
    above = [1.0, *(probability_above(cutoff) for cutoff in cutoffs), 0.0]
    return tuple(lower - upper for lower, upper in pairwise(above))


def certain_category(
    probability_above: Callable[[float], float],
    cutoffs: Sequence[float] = CUTOFFS,
    names: Sequence[str] | None = None,
    *,
    certainty: float = CERTAINTY,
) -> str:
    """The most likely category if it is likely enough, else ``"indeterminate"``.

    Parameters
    ----------
    probability_above
        How likely the index lies above a cut-off.
    cutoffs, names
        Of the categories.
    certainty
        Least probability, 0 to 1.

    Examples
    --------
    >>> certain_category({0.1: 0.7, 0.2: 0.1}.__getitem__), certain_category({0.1: 0.95, 0.2: 0.1}.__getitem__)
    ('indeterminate', '10-20%')
    """
    likely = category_probabilities(probability_above, cutoffs)
    best = max(range(len(likely)), key=likely.__getitem__)
    return (names or category_names(cutoffs))[best] if likely[best] >= certainty else INDETERMINATE
