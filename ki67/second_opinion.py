"""What another method counts on a slide, beside its index, and when the two differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from ki67.errors import Finding, Flag

if TYPE_CHECKING:
    from ki67.index import IndexResult

DIFFERENCE = 0.05
"""As much as two readers often differ by."""
MEASURES = ("index", "index_area", "positive", "total")

Limit = float | Literal["interval"]
"""From which difference of the indices on they differ; or ``"interval"``: where the other lies outside of the 95 %
interval of the slide's index."""


def second_opinion(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What ``ki67.json`` tells of a second opinion; None where there is none.

    Parameters
    ----------
    record
        Of the stage ``second_opinion``: ``model`` (None where no nuclei were looked for) and ``MEASURES``.
    """
    if not record:
        return None
    return {"method": record["settings"]["second_opinion"]} | {name: record.get(name) for name in MEASURES}


def second_opinion_findings(
    result: IndexResult, record: Mapping[str, Any] | None, slide_id: str, limit: Limit = DIFFERENCE
) -> Iterator[Finding]:
    """That a second opinion differs from the slide's index, if there are both.

    Parameters
    ----------
    result
        The slide's index.
    record
        As of ``second_opinion``.
    slide_id
        Begins the sentence.
    limit
        See there.
    """
    if not (record and result.total and record.get("total") is not None):
        return
    method, other = record["settings"]["second_opinion"], _number(record["index"])
    ours = f"{result.index:.1%}"
    if math.isnan(other):
        text = f"the second opinion ({method}) found no nuclei where the index is {ours}"
    elif not _differs(result, other, limit):
        return
    else:
        compared = (
            f"outside of the interval of the index {ours} ({result.index_low:.1%} to {result.index_high:.1%})"
            if limit == "interval"
            else f"{100 * abs(other - result.index):.1f} points from the index {ours}"
        )
        text = f"the second opinion ({method}) is {other:.1%}, {compared}"
    remedy = "look at the nuclei of both in QuPath, and at stain and focus of the slide"
    yield Finding(Flag.SECOND_OPINION_DIFFERS, f"{slide_id}: {text}; {remedy}", "ki67")


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _differs(result: IndexResult, other: float, limit: Limit) -> bool:
    if limit == "interval":
        return not result.index_low <= other <= result.index_high
    # A difference of exactly the limit is none, whatever its last binary digit.
    return abs(other - result.index) > limit + 1e-9
