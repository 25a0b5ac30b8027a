"""Whether nuclei are such as the detector was trained on: their size and stain, square by square of a slide.

In its training fields the nuclei that the network finds have medians of area and stain; what lies outside of their
range is a scale (a wrong number of microns per pixel), a stain or a tissue that the network was never shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas
from numpy.typing import NDArray

from ki67.errors import Finding, Flag

SQUARE_UM = 256.0
FEWEST_NUCLEI = 20
"""Squares with fewer nuclei say nothing."""
MOST_UNLIKE = 0.25
"""Share of nuclei in squares unlike the training from which a slide is flagged."""
QUANTILES = (0.01, 0.99)
"""Of the training fields, between which a measure is familiar."""

MEASURES = {
    "area_um2": "median area of nuclei in µm²",
    "negative_hematoxylin_od": "median hematoxylin of negative nuclei",
    "negative_dab_od": "median DAB of negative nuclei",
    "positive_dab_od": "median DAB of positive nuclei",
}
Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Familiarity:
    """How much of a slide is like the training.

    Attributes
    ----------
    unlike_share
        Share of nuclei, of those in squares with enough of them, that lie in squares outside of a range; NaN if none.
    measure
        The measure that is outside of its range for most nuclei; None where none is.
    value
        Its median over these squares.
    familiar
        Its range.
    """

    unlike_share: float
    measure: str | None = None
    value: float | None = None
    familiar: tuple[float, float] | None = None


def measured(nuclei: pandas.DataFrame) -> dict[str, float]:
    """``MEASURES`` of some nuclei, NaN for a class with fewer than a quarter of ``FEWEST_NUCLEI``.

    Parameters
    ----------
    nuclei
        With the columns ``area_um2``, ``hematoxylin_od``, ``dab_od`` and ``positive``.
    """
    positive, negative = nuclei[nuclei["positive"]], nuclei[~nuclei["positive"]]

    def median(values: pandas.Series[float]) -> float:
        return float(values.median()) if 4 * len(values) >= FEWEST_NUCLEI else float("nan")

    return {
        "area_um2": float(nuclei["area_um2"].median()),
        "negative_hematoxylin_od": median(negative["hematoxylin_od"]),
        "negative_dab_od": median(negative["dab_od"]),
        "positive_dab_od": median(positive["dab_od"]),
    }


def square_measures(nuclei: pandas.DataFrame) -> pandas.DataFrame:
    """A row for each square of ``SQUARE_UM`` with enough nuclei: ``MEASURES`` and the number of ``nuclei``."""
    squares = [np.floor(nuclei[name] / SQUARE_UM).astype(int).rename(name) for name in ("y_um", "x_um")]
    rows = [measured(part) | {"nuclei": len(part)} for _, part in nuclei.groupby(squares) if len(part) >= FEWEST_NUCLEI]
    return pandas.DataFrame(rows, columns=[*MEASURES, "nuclei"])


def familiar_ranges(fields: pandas.DataFrame) -> dict[str, tuple[float, float]]:
    """Range of each measure over training fields, as ``square_measures`` gives them; none for what no field has."""
    known = [name for name in MEASURES if fields[name].notna().any()]
    return {name: _quantiles(fields[name].dropna().to_numpy()) for name in known}


def joined_ranges(one: Ranges, other: Ranges) -> dict[str, tuple[float, float]]:
    """What is familiar from either of two trainings."""
    return {
        name: (min(low for low, _ in known), max(high for _, high in known))
        for name in sorted({*one, *other})
        if (known := [ranges[name] for ranges in (one, other) if name in ranges])
    }


def _quantiles(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, QUANTILES)
    return float(low), float(high)


def familiarity(nuclei: pandas.DataFrame, ranges: Ranges) -> Familiarity:
    """Compare the nuclei of a slide with the ranges of the training, square by square."""
    squares = square_measures(nuclei)
    total = int(squares["nuclei"].sum())
    if total == 0:
        return Familiarity(float("nan"))
    outside = pandas.DataFrame(
        {name: (squares[name] < low) | (squares[name] > high) for name, (low, high) in ranges.items()},
        index=squares.index,
    )
    unlike = float(squares["nuclei"][outside.any(axis=1)].sum() / total)
    if unlike == 0:
        return Familiarity(0.0)
    worst = str(outside.mul(squares["nuclei"], axis=0).sum().idxmax())
    return Familiarity(unlike, worst, float(squares[worst][outside[worst]].median()), ranges[worst])


def unlike_training_finding(slide_id: str, told: Familiarity) -> Finding | None:
    """The finding of a slide of which too much is unlike the training; None for all others."""
    if told.measure is None or told.value is None or told.familiar is None or not told.unlike_share > MOST_UNLIKE:
        return None
    low, high = told.familiar
    measure = f"{MEASURES[told.measure]} is {told.value:.3g}, outside of the {low:.3g} to {high:.3g} of the training"
    remedy = "check the microns per pixel and the stain, and look at the overlay"
    text = f"{slide_id}: {told.unlike_share:.0%} of the nuclei lie where the {measure}; {remedy}"
    return Finding(Flag.UNLIKE_TRAINING, text, "ki67")
