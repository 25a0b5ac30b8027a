"""The Ki-67 index of a slide: positive tumour nuclei over all tumour nuclei, its interval, category and flags."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ki67.errors import ConfigError, Finding, Flag
from ki67.geometry import Mask

if TYPE_CHECKING:
    import geopandas

CUTOFFS = (0.10, 0.20)
PRESETS: dict[str, tuple[tuple[float, ...], tuple[str, ...] | None]] = {
    "breast": (CUTOFFS, None),
    "neuroendocrine": (
        (0.03, 0.20),
        ("G1", "G2", "G3"),
    ),  # WHO Classification of Tumours, Digestive System, 5th ed. 2019
}
"""Cut-offs of tumours, and what their categories are called where it is not by percent."""
FEWEST_NUCLEI = 500  # fewer do not give a dependable index (Nielsen et al. 2021, doi:10.1093/jnci/djaa201)
MEASURES = ("index", "index_low", "index_high", "positive", "total", "tumor_mm2")


@dataclass(frozen=True)
class IndexResult:
    """The exhaustive index of one slide.

    Attributes
    ----------
    index, index_low, index_high
        Fraction of positive nuclei and its Wilson 95 % interval, NaN without nuclei.
    positive, total
        Tumour nuclei.
    category
        Such as ``"10-20%"`` or ``"G2"``; None without nuclei.
    tumor_mm2
        Area of the tumour mask.
    findings
        What makes the index doubtful or impossible.
    """

    index: float
    index_low: float
    index_high: float
    positive: int
    total: int
    category: str | None
    tumor_mm2: float
    findings: tuple[Finding, ...]


def wilson_interval(positive: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
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


def ki67_index(
    nuclei: geopandas.GeoDataFrame,
    tumor: Mask,
    *,
    cutoffs: Sequence[float] = CUTOFFS,
    names: Sequence[str] | None = None,
    slide_id: str = "this slide",
) -> IndexResult:
    """Count every tumour nucleus of a slide.

    Parameters
    ----------
    nuclei
        Table of nuclei; those with ``in_tumor`` count.
    tumor
        Tumour mask in the Ki-67 frame.
    cutoffs
        Two or more fractions between the categories, ascending.
    names
        Of the categories, one more than cut-offs; None names them by percent.
    slide_id
        Begins the sentences of the findings.
    """
    counted = nuclei["positive"][nuclei["in_tumor"]]
    positive, total = int(counted.sum()), len(counted)
    index = positive / total if total else math.nan
    low, high = wilson_interval(positive, total)
    return IndexResult(
        index=index,
        index_low=low,
        index_high=high,
        positive=positive,
        total=total,
        category=category_of(index, cutoffs, names),
        tumor_mm2=tumor.area_mm2,
        findings=tuple(_count_findings(slide_id, total, tumor.area_mm2)),
    )


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


def slide_record(
    result: IndexResult,
    *,
    slide: str,
    patient: str,
    stages: Mapping[str, Mapping[str, Any]],
    references: Mapping[str, float | None],
) -> dict[str, Any]:
    """Everything the stages found on a slide, as ``ki67.json`` holds it beside ``ki67.provenance.slide_provenance``.

    Parameters
    ----------
    result
        The slide's index.
    slide, patient
        Ids.
    stages
        Records of the stages by name: ``check``, ``tumor``, ``register``, ``transfer``, ``nuclei``.
    references
        Readers' indices by column of the sample sheet.
    """
    findings = slide_findings(result, stages, slide_id=slide)
    registration, tumor_he = stages.get("register", {}), stages.get("tumor", {})
    return {
        "slide": slide,
        "patient": patient,
        **{name: getattr(result, name) for name in ("index", "index_low", "index_high", "positive", "total")},
        "category": result.category,
        "tumor_mm2": result.tumor_mm2,
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
            for key, suffix in (("model", ""), ("coarse_model", "_coarse"))
            if record.get(key)
        },
    }


def slide_findings(
    result: IndexResult, stages: Mapping[str, Mapping[str, Any]], *, slide_id: str = "this slide"
) -> list[Finding]:
    """Findings of all stages and of the count, each once, in the order of the flags.

    That a Ki-67 slide which is missing or cannot be used holds no tumour says nothing new, so it is left out.
    """
    found = [Finding.from_json(item) for record in stages.values() for item in record.get("findings", ())]
    ki67 = stages.get("check", {"stains": {"ki67": {"usable": True}}})["stains"].get("ki67")
    if ki67 is not None and ki67["usable"]:
        found.extend(result.findings)
        found.extend(_in_situ_findings(result, stages, slide_id))
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


def flags_of(findings: Iterable[Finding]) -> list[Flag]:
    """The flags of some findings, each once, in the order of the enum."""
    raised = {finding.flag for finding in findings}
    return [flag for flag in Flag if flag in raised]
