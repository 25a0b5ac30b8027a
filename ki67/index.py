"""The Ki-67 index of a slide by every measure there is, how sure it is, its category and flags."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ki67.categories import (
    CERTAINTY,
    CUTOFFS,
    PRESETS,
    category_names,
    category_of,
    certain_category,
    index_categories,
)
from ki67.counted_index import area_index
from ki67.errors import Finding, Flag
from ki67.geometry import Mask
from ki67.hot_spots import HotSpot, find_hot_spots, is_hot_spot_driven, share_in_hottest
from ki67.intervals import BlockBootstrap, block_bootstrap, wilson_interval, wilson_probability_above
from ki67.local_index import LocalIndexMap, local_index_map
from ki67.nucleus_squares import tumor_nuclei
from ki67.scoring_protocols import global_score
from ki67.second_opinion import DIFFERENCE, Limit, second_opinion, second_opinion_findings
from ki67.tumor_agreement import tumor_area_findings

if TYPE_CHECKING:
    import pandas

__all__ = [
    "CUTOFFS",
    "MEASURES",
    "PRESETS",
    "IndexResult",
    "category_names",
    "category_of",
    "flags_of",
    "index_categories",
    "ki67_index",
    "slide_findings",
    "slide_record",
    "tumor_nuclei",
    "wilson_interval",
]

FEWEST_NUCLEI = 500  # fewer do not give a dependable index (Nielsen et al. 2021, doi:10.1093/jnci/djaa201)
WANTED_NUCLEI = 1000  # what to aim at (Dowsett et al. 2011, doi:10.1093/jnci/djr393)
LIKELY_CUTOFFS = (0.05, 0.10, 0.14, 0.20, 0.30)
P_ABOVE = {f"p_above_{round(100 * cutoff)}": cutoff for cutoff in LIKELY_CUTOFFS}
"""Name of each probability of lying above a cut-off, and the cut-off."""
WEAK_DAB_OD = 0.2
"""Positive nuclei less brown than this above the negative ones are weak: 0.23 is where the lowest hundredth of the
fields that the network was trained on have the median of their positive nuclei."""
FEWEST_FOR_DAB = 20

MEASURES = (
    "index",
    "index_low",
    "index_high",
    "wilson_low",
    "wilson_high",
    "positive",
    "total",
    "tumor_mm2",
    "nuclei_per_mm2",
    "index_global_unweighted",
    "index_global_weighted",
    "index_hot_spot",
    "hot_spot_gap",
    "index_area",
    *P_ABOVE,
)
"""Numbers of a slide, in the order of the tables."""


@dataclass(frozen=True)
class IndexResult:
    """The index of one slide by every measure; fractions are NaN where they are not defined.

    Attributes
    ----------
    index, index_low, index_high
        Fraction of positive nuclei among all tumour nuclei, and its 95 % interval.
    interval
        Whether that is of the block bootstrap, or Wilson's where there are too few blocks; None without nuclei.
    wilson_low, wilson_high
        Wilson's 95 % interval, of the counting alone.
    positive, total
        Tumour nuclei.
    tumor_mm2
        Area of the tumour mask.
    nuclei_per_mm2
        Tumour nuclei per mm² of it.
    index_global_unweighted, index_global_weighted
        See ``ki67.scoring_protocols``.
    index_hot_spot
        Of the first hot spot.
    hot_spot_gap
        How much it is above ``index``.
    index_area
        Area of the positive over the area of all tumour nuclei.
    p_above
        How likely the index lies above each of ``LIKELY_CUTOFFS``, by the name in the tables.
    category
        Such as ``"10-20%"``, ``"G2"`` or ``"indeterminate"``; None without nuclei.
    point_category
        The category of ``index`` itself.
    hot_spots
        The hottest first.
    local
        Maps of the local index and of the density of nuclei.
    findings
        What makes the index doubtful or impossible.
    """

    index: float
    index_low: float
    index_high: float
    interval: Literal["block_bootstrap", "wilson"] | None
    wilson_low: float
    wilson_high: float
    positive: int
    total: int
    tumor_mm2: float
    nuclei_per_mm2: float
    index_global_unweighted: float
    index_global_weighted: float
    index_hot_spot: float
    hot_spot_gap: float
    index_area: float
    p_above: Mapping[str, float]
    category: str | None
    point_category: str | None
    hot_spots: tuple[HotSpot, ...]
    local: LocalIndexMap
    findings: tuple[Finding, ...]

    @property
    def measures(self) -> dict[str, float]:
        """Every number of ``MEASURES`` by its name."""
        return {name: self.p_above[name] if name in P_ABOVE else getattr(self, name) for name in MEASURES}


def ki67_index(
    nuclei: pandas.DataFrame,
    tumor: Mask,
    *,
    cutoffs: Sequence[float] = CUTOFFS,
    names: Sequence[str] | None = None,
    certainty: float = CERTAINTY,
    slide_id: str = "this slide",
) -> IndexResult:
    """Score a slide from its table of nuclei.

    Parameters
    ----------
    nuclei
        Table of nuclei (``ki67.nucleus_table``), in any order; those with ``in_tumor`` count.
    tumor
        Tumour mask in the Ki-67 frame.
    cutoffs
        Two or more fractions between the categories, ascending.
    names
        Of the categories, one more than cut-offs; None names them by percent.
    certainty
        How likely a category must be to be named, 0 to 1.
    slide_id
        Begins the sentences of the findings.
    """
    counted = tumor_nuclei(nuclei)
    positive, total = int(counted.positive.sum()), len(counted)
    index = positive / total if total else math.nan
    wilson = wilson_interval(positive, total)
    bootstrap = block_bootstrap(counted)
    above = _probability_above(bootstrap, positive, total)
    by_protocol, hot_spots = global_score(counted), find_hot_spots(counted)
    hottest = hot_spots[0].index if hot_spots else math.nan
    inside = nuclei["in_tumor"].to_numpy(dtype=bool)
    findings = [
        *_count_findings(slide_id, total, tumor.area_mm2),
        *_hot_spot_findings(slide_id, share_in_hottest(counted), hottest - index),
        *_dab_findings(slide_id, nuclei["dab_od"].to_numpy(dtype=np.float64)[inside], counted.positive),
    ]
    return IndexResult(
        index=index,
        index_low=bootstrap.low if bootstrap else wilson[0],
        index_high=bootstrap.high if bootstrap else wilson[1],
        interval=("block_bootstrap" if bootstrap else "wilson") if total else None,
        wilson_low=wilson[0],
        wilson_high=wilson[1],
        positive=positive,
        total=total,
        tumor_mm2=tumor.area_mm2,
        nuclei_per_mm2=total / tumor.area_mm2 if tumor.area_mm2 else math.nan,
        index_global_unweighted=by_protocol.unweighted,
        index_global_weighted=by_protocol.weighted,
        index_hot_spot=hottest,
        hot_spot_gap=hottest - index,
        index_area=area_index(nuclei["area_um2"].to_numpy(dtype=np.float64)[inside], counted.positive),
        p_above={name: above(cutoff) for name, cutoff in P_ABOVE.items()},
        category=certain_category(above, cutoffs, names, certainty=certainty) if total else None,
        point_category=category_of(index, cutoffs, names),
        hot_spots=hot_spots,
        local=local_index_map(counted, tumor),
        findings=tuple(findings),
    )


def _probability_above(bootstrap: BlockBootstrap | None, positive: int, total: int) -> Callable[[float], float]:
    return bootstrap.probability_above if bootstrap else partial(wilson_probability_above, positive, total)


def _count_findings(slide_id: str, total: int, tumor_mm2: float) -> Iterable[Finding]:
    if tumor_mm2 == 0:
        text = "no tumour was found, so there is no index; see whether the overlay shows any that was missed"
        yield Finding(Flag.NO_TUMOR, f"{slide_id}: {text}", "ki67")
    elif total == 0:
        text = f"no nuclei were found in {tumor_mm2:.2f} mm² of tumour, so there is no index; look at stain and focus"
        yield Finding(Flag.NO_NUCLEI, f"{slide_id}: {text}", "ki67")
    elif total < FEWEST_NUCLEI:
        text = f"only {total} tumour nuclei were counted, fewer than {FEWEST_NUCLEI}; add tissue or read the interval"
        yield Finding(Flag.FEWER_THAN_500_NUCLEI, f"{slide_id}: {text}", "ki67")
    elif total < WANTED_NUCLEI:
        text = f"{total} tumour nuclei were counted, fewer than the {WANTED_NUCLEI} to aim at; read the interval"
        yield Finding(Flag.FEWER_THAN_1000_NUCLEI, f"{slide_id}: {text}", "ki67")


def _hot_spot_findings(slide_id: str, share: float, gap: float) -> Iterable[Finding]:
    if is_hot_spot_driven(share, gap):
        text = f"{share:.0%} of the positive nuclei lie in the hottest tenth of the tumour"
        remedy = "look at the map of the local index, and say in a report whether the tumour or its hot spot was scored"
        yield Finding(Flag.HOT_SPOT_DRIVEN, f"{slide_id}: {text}; {remedy}", "ki67")


def _dab_findings(slide_id: str, dab_od: NDArray[np.float64], positive: NDArray[np.bool_]) -> Iterable[Finding]:
    """That positive nuclei are hardly browner than negative ones, by the medians of both classes."""
    if min(np.count_nonzero(positive), np.count_nonzero(~positive)) < FEWEST_FOR_DAB:
        return
    difference = float(np.median(dab_od[positive]) - np.median(dab_od[~positive]))
    if difference < WEAK_DAB_OD:
        text = f"DAB of positive nuclei is only {difference:.2f} (optical density) above that of negative ones"
        remedy = f"{WEAK_DAB_OD:.2f} or more is usual; look at the fields, and stain the slide anew if they are pale"
        yield Finding(Flag.WEAK_DAB, f"{slide_id}: {text}; {remedy}", "ki67")


def slide_record(
    result: IndexResult,
    *,
    slide: str,
    patient: str,
    stages: Mapping[str, Mapping[str, Any]],
    references: Mapping[str, float | None],
    marker: str = "Ki-67",
    second_opinion_differs: Limit = DIFFERENCE,
) -> dict[str, Any]:
    """Everything the stages found on a slide, as ``ki67.json`` holds it beside ``ki67.provenance.slide_provenance``.

    Parameters
    ----------
    result
        The slide's index.
    slide, patient
        Ids.
    stages
        Records of the stages by name: ``check``, ``tumor``, ``register``, ``transfer``, ``nuclei``, and perhaps
        ``second_opinion``.
    references
        Readers' indices by column of the sample sheet.
    marker
        What positive nuclei are stained for.
    second_opinion_differs
        From when on a second opinion is flagged; see ``ki67.second_opinion``.
    """
    findings = slide_findings(result, stages, slide_id=slide, second_opinion_differs=second_opinion_differs)
    registration, tumor_he = stages.get("register", {}), stages.get("tumor", {})
    return {
        "slide": slide,
        "patient": patient,
        "marker": marker,
        **result.measures,
        "interval": result.interval,
        "category": result.category,
        "point_category": result.point_category,
        "hot_spots": [spot.to_json() for spot in result.hot_spots],
        "second_opinion": second_opinion(stages.get("second_opinion")),
        "tumor_source": stages.get("transfer", {}).get("tumor_source"),
        "tumor_he_mm2": tumor_he.get("tumor_mm2") if tumor_he.get("tumor_source") else None,
        "flags": [flag.value for flag in flags_of(findings)],
        "findings": [finding.to_json() for finding in findings],
        "reference_index": None,
        **references,
        "registration": {name: registration.get(name) for name in ("verdict", "ncc", "estimated_error_um")},
        "models": {
            f"{stage}{suffix}": record[key]
            for stage, record in stages.items()
            for key, suffix in (("model", ""), ("coarse_model", "_coarse"), ("nuclei_model", "_nuclei"))
            if record.get(key)
        },
    }


def slide_findings(
    result: IndexResult,
    stages: Mapping[str, Mapping[str, Any]],
    *,
    slide_id: str = "this slide",
    second_opinion_differs: Limit = DIFFERENCE,
) -> list[Finding]:
    """Findings of all stages and of the count, each once, in the order of the flags.

    That a Ki-67 slide which is missing or cannot be used holds no tumour says nothing new, so it is left out.
    """
    found = [Finding.from_json(item) for record in stages.values() for item in record.get("findings", ())]
    ki67 = stages.get("check", {"stains": {"ki67": {"usable": True}}})["stains"].get("ki67")
    if ki67 is not None and ki67["usable"]:
        found.extend(result.findings)
        found.extend(_in_situ_findings(result, stages, slide_id))
        found.extend(_tumor_area_findings(result, stages, slide_id))
        opinion = stages.get("second_opinion")
        found.extend(second_opinion_findings(result, opinion, slide_id, second_opinion_differs))
    order = list(Flag)
    return sorted(dict.fromkeys(found), key=lambda finding: order.index(finding.flag))


def _in_situ_findings(result: IndexResult, stages: Mapping[str, Mapping[str, Any]], slide_id: str) -> Iterable[Finding]:
    """That no network tells in situ carcinoma from invasive, where one found the tumour and nobody left any out."""
    source = stages.get("transfer", {}).get("tumor_source")
    excluded = any(stages.get(stage, {}).get("excluded") for stage in ("tumor", "transfer"))
    if result.total and source in ("he", "ki67") and not excluded:
        text = "in situ carcinoma is not told from invasive and is counted if there is any"
        remedy = "draw polygons of the class Exclude around it and name their file in roi_ki67 or roi_he"
        yield Finding(Flag.IN_SITU_COUNTED, f"{slide_id}: {text}; {remedy}", "ki67")


def _tumor_area_findings(
    result: IndexResult, stages: Mapping[str, Mapping[str, Any]], slide_id: str
) -> Iterable[Finding]:
    """That tumour of the H&E is not there on the Ki-67 slide, where it was carried over and nobody limited it."""
    transfer, on_he = stages.get("transfer", {}), stages.get("tumor", {}).get("tumor_mm2")
    if result.total and on_he and transfer.get("tumor_source") == "he" and not transfer.get("limited"):
        yield from tumor_area_findings(slide_id, on_he, result.tumor_mm2, result.local.nuclei_per_mm2)


def flags_of(findings: Iterable[Finding]) -> list[Flag]:
    """The flags of some findings, each once, in the order of the enum."""
    raised = {finding.flag for finding in findings}
    return [flag for flag in Flag if flag in raised]
