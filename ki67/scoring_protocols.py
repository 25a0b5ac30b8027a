"""Scoring protocols of the International Ki67 in Breast Cancer Working Group (IKWG), from the table of nuclei alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ki67.nucleus_squares import SquareCounts, TumorNuclei, coarser, count_squares, with_touching

FIELD_NUCLEI = 100
FEWEST_IN_FIELD = 50
FIELDS_EACH = 4
AREA_LIMITS = (0.01, 0.10, 0.30)
AREA_NAMES = ("negligible", "low", "medium", "high")
_STEP_UM = 25.0
_WIDEST_FIELD_UM = 1000.0


@dataclass(frozen=True)
class GlobalScore:
    """Both global scores of the IKWG.

    Attributes
    ----------
    unweighted
        Mean of the fields' indices; NaN where there is no field.
    weighted
        Mean over the areas of positivity of the mean of their fields, weighted by the area's share of the tumour.
    shares
        Of each area of ``AREA_NAMES`` in the fields of the tumour.
    fields
        How many fields of each area were scored.
    """

    unweighted: float
    weighted: float
    shares: tuple[float, ...]
    fields: tuple[int, ...]


def global_score(nuclei: TumorNuclei, *, each: int = FIELDS_EACH) -> GlobalScore:
    """Unweighted and weighted global Ki-67 score, as the IKWG's protocol has it, without a reader.

    The protocol (Leung et al. 2016, doi:10.1038/npjbcancer.2016.14; 2019, doi:10.1111/his.13880; Nielsen et al. 2021,
    doi:10.1093/jnci/djaa201): a reader estimates at low magnification how much of the tumour is of negligible, low,
    medium and high positivity, counts 100 nuclei in fields that stand for these areas, and takes the mean of the
    fields, or the mean weighted by the areas. Here

    1. fields are the squares of a grid, as wide as it takes for half of the nuclei to lie in squares with 100 or more
       (in steps of 25 µm, at most 1 mm); a square with fewer than 50 is no field;
    2. the positivity of a field is that of the 3 x 3 squares around it, about what low magnification shows: negligible
       below 1 %, low below 10 %, medium below 30 %, high from 30 %. The protocol leaves these limits to the eye of the
       reader; they are a choice of this project;
    3. the share of an area is its share of the fields;
    4. of each area at most ``each`` fields are scored, evenly spaced in the order from top to bottom and left to right.
       All nuclei of a field count, about 100.

    A reader chooses fields that look typical and avoids the edges; a grid does neither. The fields of a reader hold
    exactly
    100 nuclei.

    Parameters
    ----------
    nuclei
        Of the tumour, in any order.
    each
        Fields of each area.
    """
    if len(nuclei) < FIELD_NUCLEI:
        return _nothing()
    counts = _fields(nuclei)
    usable = counts.total >= FEWEST_IN_FIELD
    if not usable.any():
        return _nothing()
    around = with_touching(counts.positive)[usable] / with_touching(counts.total)[usable]
    area = np.searchsorted(AREA_LIMITS, around, side="right")
    indices = counts.positive[usable] / counts.total[usable]
    scored = [indices[_evenly_spaced(np.flatnonzero(area == number), each)] for number in range(len(AREA_NAMES))]
    shares = np.bincount(area, minlength=len(AREA_NAMES)) / len(area)
    means = [float(found.mean()) if len(found) else 0.0 for found in scored]
    return GlobalScore(
        unweighted=float(np.concatenate(scored).mean()),
        weighted=min(1.0, math.fsum(share * mean for share, mean in zip(shares, means, strict=True))),
        shares=tuple(float(share) for share in shares),
        fields=tuple(len(found) for found in scored),
    )


def _nothing() -> GlobalScore:
    return GlobalScore(math.nan, math.nan, (0.0,) * len(AREA_NAMES), (0,) * len(AREA_NAMES))


def _fields(nuclei: TumorNuclei) -> SquareCounts:
    """The narrowest grid in which half of the nuclei lie in squares that hold ``FIELD_NUCLEI``."""
    finest = count_squares(nuclei, _STEP_UM)
    low, high = 1, round(_WIDEST_FIELD_UM / _STEP_UM)
    while low < high:
        middle = (low + high) // 2
        if _is_filled(coarser(finest, middle)):
            high = middle
        else:
            low = middle + 1
    return coarser(finest, low)


def _is_filled(counts: SquareCounts) -> bool:
    return bool(2 * counts.total[counts.total >= FIELD_NUCLEI].sum() >= counts.total.sum())


def _evenly_spaced(numbers: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the numbers, the middles of as many equal parts of their order.

    >>> _evenly_spaced(np.arange(10), 4), _evenly_spaced(np.arange(2), 4)
    (array([1, 3, 6, 8]), array([0, 1]))
    """
    if len(numbers) <= most:
        return numbers
    return numbers[((np.arange(most) + 0.5) * len(numbers) / most).astype(np.int64)]
