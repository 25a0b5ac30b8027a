"""The cohort as tables: a row a slide and a row a patient, from the records of the slides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ki67.categories import CERTAINTY, CUTOFFS, category_of, certain_category
from ki67.errors import STAIN_NAMES, Flag
from ki67.index import MEASURES
from ki67.intervals import pooled_interval, pooled_probability_above

if TYPE_CHECKING:
    import pandas

COUNTS = ("positive", "total")
NUMBERS = tuple(name for name in MEASURES if name not in COUNTS)
FURTHER = tuple(name for name in MEASURES if name not in ("index", "index_low", "index_high", *COUNTS, "tumor_mm2"))
REFERENCE = "reference_index"
MADE = ("models", "versions", "settings", "code")
SECOND_OPINION = {"index": "index_second_opinion", "index_area": "index_area_second_opinion"}
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
    return _table([_slide_row(record, _readers([record])) for record in records])


def _table(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    import pandas as pd

    readers = _readers(rows)
    table = pd.DataFrame(rows, columns=_slide_columns(readers))
    measured = ("tumor_he_mm2", "registration_ncc", "registration_error_um", *SECOND_OPINION.values())
    floats = (*NUMBERS, REFERENCE, *readers, *measured)
    return table.astype(dict.fromkeys(floats, "float64") | dict.fromkeys(COUNTS, "Int64"))


def _readers(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Columns of further readers."""
    return sorted({name for row in rows for name in row if name.startswith(f"{REFERENCE}_")})


def _slide_columns(readers: Sequence[str]) -> list[str]:
    counted = ["slide", "patient", "index", "index_low", "index_high", "positive", "total", "category", "tumor_mm2"]
    found = ["reasons", "tumor_source", "tumor_he_mm2", *REGISTRATION.values()]
    return [
        *counted,
        "flags",
        REFERENCE,
        *readers,
        *found,
        "point_category",
        "interval",
        *FURTHER,
        *SECOND_OPINION.values(),
    ]


def _slide_row(record: Mapping[str, Any], readers: Sequence[str]) -> dict[str, Any]:
    registration, opinion = record.get("registration") or {}, record.get("second_opinion") or {}
    findings = record["findings"]
    texts = ("slide", "patient", "category", "point_category", "interval", "tumor_source")
    copied = (*texts, *NUMBERS, *COUNTS, "tumor_he_mm2")
    return {
        **{name: record.get(name) for name in copied},
        "flags": ";".join(_in_order(finding["flag"] for finding in findings)),
        **{name: record.get(name) for name in (REFERENCE, *readers)},
        "reasons": "; ".join(dict.fromkeys(finding["message"] for finding in findings)),
        **{column: registration.get(name) for name, column in REGISTRATION.items()},
        **{column: opinion.get(name) for name, column in SECOND_OPINION.items()},
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


@dataclass(frozen=True)
class CohortRecords:
    """What the tables of a cohort need of the slides' records, which hold much more.

    Attributes
    ----------
    slides
        Table of ``slide_table``.
    made
        By ``models``, ``versions``, ``settings`` and ``code``: by name the different values among the slides.
    checksums
        Columns ``sha256_he`` and ``sha256_ki67`` beside those of ``slides`` (``ki67.checksum``), None without a file.
    """

    slides: pandas.DataFrame
    made: dict[str, dict[str, list[Any]]]
    checksums: dict[str, list[str | None]]


def gather_records(
    paths: Sequence[str], read: Callable[[str], Mapping[str, Any]], *, at_once: int = 100, workers: int = 2
) -> CohortRecords:
    """Read the records of all slides through dask, ``at_once`` a worker, keeping of each only what the tables need.

    Parameters
    ----------
    paths
        Of the records ``ki67.json``, in the order of the sheet, in which the rows are.
    read
        Gives the record of a path.
    workers
        Threads, which help where files come over a network; the result does not depend on them.
    """
    import dask
    import dask.bag

    bag = dask.bag.from_sequence(paths, partition_size=at_once).map(read)
    with dask.config.set(scheduler="threads", num_workers=workers):
        parts: list[_Part] = bag.map_partitions(lambda records: [_part(list(records))]).compute() if paths else []
    made = {kind: _distinct(part.made[kind] for part in parts) for kind in MADE}
    checksums = {f"sha256_{stain}": [one for part in parts for one in part.checksums[stain]] for stain in STAIN_NAMES}
    return CohortRecords(_table([row for part in parts for row in part.rows]), made, checksums)


class _Part(NamedTuple):
    """What is kept of some records; see ``CohortRecords``."""

    rows: list[dict[str, Any]]
    made: dict[str, dict[str, list[Any]]]
    checksums: dict[str, list[str | None]]


def _part(records: Sequence[Mapping[str, Any]]) -> _Part:
    listed = [
        {kind: {name: [value] for name, value in (record.get(kind) or {}).items()} for kind in MADE}
        for record in records
    ]
    made = {kind: _distinct(item[kind] for item in listed) for kind in MADE}
    checksums = {stain: [_checksum(record, stain) for record in records] for stain in STAIN_NAMES}
    return _Part([_slide_row(record, _readers([record])) for record in records], made, checksums)


def _checksum(record: Mapping[str, Any], stain: str) -> str | None:
    file = (record.get("inputs") or {}).get(stain)
    return file["sha256"] if file else None


def cohort_provenance(
    records: CohortRecords, *, settings: Mapping[str, Any], versions: Mapping[str, str]
) -> dict[str, Any]:
    """What made the tables: settings, versions, and what scored the slides.

    More than one value of a model, version, setting or code tells of a mixed cohort.

    Parameters
    ----------
    settings
        Of the cohort stage, such as the cut-offs.
    versions
        Of the packages that make the tables.
    """
    return {
        "settings": dict(settings),
        "versions": dict(versions),
        "slides": dict(records.made),
    }


def _distinct(items: Iterable[Mapping[str, Sequence[Any]]]) -> dict[str, list[Any]]:
    """By key all different values, in the order they are met."""
    found: dict[str, list[Any]] = {}
    for item in items:
        for key, values in item.items():
            known = found.setdefault(key, [])
            known.extend(value for value in values if value not in known)
    return dict(sorted(found.items()))
