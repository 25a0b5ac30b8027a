"""Predictions beside the measured index in the tables of a cohort: in columns of their own, and never in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas


def with_predictions(table: pandas.DataFrame, predictions: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """The table of slides with what was predicted of those that have an H&E alone, in columns of its own.

    Nothing of the measured index changes, and no category or patient is made of a prediction.

    Parameters
    ----------
    table
        Of ``ki67.cohort.slide_table``.
    predictions
        Records ``prediction.json`` of some of its slides.

    Returns
    -------
    pandas.DataFrame
        With the columns ``predicted_index``, ``predicted_low``, ``predicted_high`` and ``predicted_reason`` at the end.
    """
    by_slide = {record["slide"]: record for record in predictions}
    rows = [by_slide.get(slide, {}) for slide in table["slide"]]
    columns: dict[str, Any] = {
        name: np.array([_number(row.get(name)) for row in rows])
        for name in ("predicted_index", "predicted_low", "predicted_high")
    }
    reasons: list[Any] = [row.get("reason") or None for row in rows]
    return table.assign(**columns, predicted_reason=reasons)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
