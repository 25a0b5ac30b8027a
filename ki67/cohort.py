"""The cohort as tables: a row a slide and a row a patient, from the records of the slides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ki67.categories import CERTAINTY, CUTOFFS, category_of, certain_category
from ki67.errors import Flag
from ki67.index import MEASURES
from ki67.intervals import pooled_interval, pooled_probability_above

if TYPE_CHECKING:
    import pandas

COUNTS = ("positive", "total")
NUMBERS = tuple(name for name in MEASURES if name not in COUNTS)
FURTHER = tuple(name for name in MEASURES if name not in ("index", "index_low", "index_high", *COUNTS, "tumor_mm2"))
REFERENCE = "reference_index"
REGISTRATION = {"verdict": "registration", "ncc": "registration_ncc", "estimated_error_um": "registration_error_um"}


def slide_table(records: Iterable[Mapping[str, Any]]) -> pandas.DataFrame:
    """One row a slide, in the order of the records.

    Parameters
    ----------
    records
        Records of slides as ``ki67.json`` holds them.

    Returns
    -------
    pandas.DataFrame
        The columns of ``cohort.csv`` (docs/outputs.md). Numbers are NaN and counts ``<NA>`` where there are none.
        Holds nothing that differs between two runs on the same slides.
    """
    import pandas as pd

    rows = list(records)
    readers = sorted({name for row in rows for name in row if name.startswith(f"{REFERENCE}_")})
    table = pd.DataFrame([_slide_row(row, readers) for row in rows], columns=_slide_columns(readers))
    floats = (*NUMBERS, REFERENCE, *readers, "tumor_he_mm2", "registration_ncc", "registration_error_um")
    return table.astype(dict.fromkeys(floats, "float64") | dict.fromkeys(COUNTS, "Int64"))


def _slide_columns(readers: Sequence[str]) -> list[str]:
    counted = ["slide", "patient", "index", "index_low", "index_high", "positive", "total", "category", "tumor_mm2"]
    found = ["reasons", "tumor_source", "tumor_he_mm2", *REGISTRATION.values()]
    return [*counted, "flags", REFERENCE, *readers, *found, "point_category", "interval", *FURTHER]


def _slide_row(record: Mapping[str, Any], readers: Sequence[str]) -> dict[str, Any]:
    registration = record.get("registration") or {}
    findings = record["findings"]
    texts = ("slide", "patient", "category", "point_category", "interval", "tumor_source")
    copied = (*texts, *NUMBERS, *COUNTS, "tumor_he_mm2")
    return {
        **{name: record.get(name) for name in copied},
        "flags": ";".join(_in_order(finding["flag"] for finding in findings)),
        **{name: record.get(name) for name in (REFERENCE, *readers)},
        "reasons": "; ".join(dict.fromkeys(finding["message"] for finding in findings)),
        **{column: registration.get(name) for name, column in REGISTRATION.items()},
    }


def _in_order(flags: Iterable[str]) -> list[str]:
    raised = set(flags)
    return [flag.value for flag in Flag if flag.value in raised]


def patient_table(
    slides: pandas.DataFrame,
    cutoffs: Sequence[float] = CUTOFFS,
    names: Sequence[str] | None = None,
    *,
    certainty: float = CERTAINTY,
) -> pandas.DataFrame:
    """One row a patient, in the order of the patients' first slides: counts pooled over the slides with an index.

    The interval of a patient is put together from those of the slides (``ki67.intervals.pooled_interval``), so it knows
    that nuclei cluster wherever theirs do; ``interval`` says which kind they are, and is ``"mixed"`` where there are
    both. It does not know that another slide of the patient would differ, which the range over the slides shows.

    Parameters
    ----------
    slides
        Table of ``slide_table``.
    cutoffs
        Fractions between the categories.
    names
        Of the categories; None names them by percent.
    certainty
        How likely a category must be to be named, 0 to 1.

    Returns
    -------
    pandas.DataFrame
        The columns of ``patients.csv`` (docs/outputs.md).
    """
    import pandas as pd

    groups = slides.groupby("patient", sort=False, dropna=False)
    rows = [_patient_row(str(patient), group, cutoffs, names, certainty) for patient, group in groups]
    columns = ["patient", "slides", "scored_slides", "index", "index_low", "index_high", "positive", "total"]
    further = ["category", "index_min", "index_max", "flags", "point_category", "interval"]
    return pd.DataFrame(rows, columns=[*columns, *further])


def _patient_row(
    patient: str, slides: pandas.DataFrame, cutoffs: Sequence[float], names: Sequence[str] | None, certainty: float
) -> dict[str, Any]:
    scored = slides[slides["index"].notna()]
    positive, total = int(scored["positive"].sum()), int(scored["total"].sum())
    index = positive / total if total else math.nan
    low, high = pooled_interval(*scored[[*COUNTS, "index_low", "index_high"]].to_numpy(dtype=float).T)
    if len(scored) == 1:
        category = scored["category"].iloc[0]
    else:
        above = partial(pooled_probability_above, positive, total, low, high)
        category = certain_category(above, cutoffs, names, certainty=certainty) if total else None
    kinds = list(scored["interval"].unique())
    return {
        "patient": patient,
        "slides": len(slides),
        "scored_slides": len(scored),
        "index": index,
        "index_low": low,
        "index_high": high,
        "positive": positive,
        "total": total,
        "category": category,
        "index_min": scored["index"].min(),
        "index_max": scored["index"].max(),
        "flags": ";".join(_in_order(flag for flags in slides["flags"] for flag in flags.split(";"))),
        "point_category": category_of(index, cutoffs, names),
        "interval": (kinds[0] if len(kinds) == 1 else "mixed") if kinds else None,
    }


def cohort_provenance(
    records: Iterable[Mapping[str, Any]], *, cutoffs: Sequence[float], versions: Mapping[str, str]
) -> dict[str, Any]:
    """What made the tables: cut-offs, versions, and every model and version that scored one of the slides.

    Parameters
    ----------
    records
        Records of slides as ``ki67.json`` holds them.
    cutoffs
        Fractions between the categories.
    versions
        Of the packages that make the tables.
    """
    rows = list(records)
    return {
        "cutoffs": list(cutoffs),
        "versions": dict(versions),
        "models": _distinct(row.get("models") for row in rows),
        "slide_versions": _distinct(row.get("versions") for row in rows),
    }


def _distinct(items: Iterable[Mapping[str, Any] | None]) -> dict[str, list[Any]]:
    """By key the different values it has, in the order they are met; more than one tells of a mixed cohort."""
    found: dict[str, list[Any]] = {}
    for key, value in (pair for item in items if item for pair in item.items()):
        values = found.setdefault(key, [])
        if value not in values:
            values.append(value)
    return dict(sorted(found.items()))
