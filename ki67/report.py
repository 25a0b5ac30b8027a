"""The report of a cohort as HTML: one file up to 300 slides, above that an index and a page for each slide.

Pages hold all that they show and ask no network for anything, which their own content security policy forbids. Text of
the sheet is escaped by Jinja2 and, where it is JSON for the page's JavaScript, by ``json_for_script``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ki67.errors import Flag

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_SLIDES_IN_ONE_FILE = 300
PAGES_FOLDER = "report_pages"
TEMPLATE_FOLDER = Path(__file__).with_name("report_template")
SCRIPTS = (
    "basics.js",
    "state.js",
    "scores.js",
    "plots.js",
    "agreement.js",
    "prediction.js",
    "table.js",
    "slide.js",
    "main.js",
)
STYLES = ("report.css",)
HEATMAP_COLORS = 32  # of the bar beside a map
REFERENCE = "reference_index"
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

# Flags that say something about how high the index is; a blind reader does not see them.
REVEALING = frozenset({"hot_spot_driven", "weak_dab", "second_opinion_differs"})

PROVENANCE = ("models", "versions", "seconds", "inputs", "settings", "code")

# What the page of a slide lists: heading, then key of ki67.json (or two), words and kind of value.
MEASURES: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "All tumour nuclei",
        (
            ("index", "Index", "percent"),
            ("positive", "Positive tumour nuclei", "count"),
            ("total", "All tumour nuclei", "count"),
            ("tumor_mm2", "Tumour", "mm2"),
            ("tumor_he_mm2", "Tumour on the H&E", "mm2"),
            ("nuclei_per_mm2", "Tumour nuclei per mm²", "count"),
            ("tumor_source", "Tumour mask from", "source"),
        ),
    ),
    (
        "Scoring protocols",
        (
            ("index_global_unweighted", "IKWG global, unweighted", "percent"),
            ("index_global_weighted", "IKWG global, weighted", "percent"),
            ("index_hot_spot", "Hot spot of 500 nuclei", "percent"),
            ("hot_spot_gap", "Hot spot above index", "points"),
            ("index_area", "Positive nuclear area", "percent"),
        ),
    ),
    (
        "Uncertainty",
        (
            ("index_low index_high", "95 % interval", "range"),
            ("interval", "Kind of interval", "interval"),
            ("wilson_low wilson_high", "Wilson 95 % interval", "range"),
            ("category", "Category", "text"),
            ("point_category", "Category of the index itself", "text"),
        ),
    ),
    (
        "Probability that the index is above",
        tuple((f"p_above_{percent}", f"{percent} %", "probability") for percent in (5, 10, 14, 20, 30)),
    ),
    (
        "Registration",
        (
            ("registration_verdict", "Verdict", "text"),
            ("registration_ncc", "Correlation", "number"),
            ("registration_error_um", "Estimated error", "um"),
        ),
    ),
)


@dataclass(frozen=True)
class ReportSettings:
    """What the pages of a cohort share.

    Attributes
    ----------
    cutoffs, categories
        Fractions between the categories, and the names of these from low to high.
    agreement
        Record of ``agreement.json``; empty where there is none.
    versions
        Of what wrote the report.
    marker
        What positive nuclei are stained for.
    prediction
        What was predicted from H&E alone (``prediction_data``); None where nothing was asked for.
    title
        Of the page; "<marker> report" where it is empty.
    """

    cutoffs: Sequence[float]
    categories: Sequence[str]
    agreement: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    marker: str = "Ki-67"
    prediction: Mapping[str, Any] | None = None
    title: str = ""

    @property
    def heading(self) -> str:
        """What stands above the report."""
        return self.title or f"{self.marker} report"


def report_html(
    records: Sequence[Mapping[str, Any]], pages: Iterable[Mapping[str, Any]] | None, settings: ReportSettings
) -> str:
    """The report as one page.

    Parameters
    ----------
    records
        Records of the slides as ``ki67.json`` holds them.
    pages
        What the page shows of each slide (``ki67.report_pictures.slide_page``), in the order of the records; None
        leaves that to pages of their own, to which this one refers.
    settings
        What all pages share.
    """
    shared = {
        "view": "cohort",
        "slides": [slide_summary(record) for record in records],
        "files": None if pages is not None else page_names(records),
        "agreement": settings.agreement,
        "prediction": settings.prediction,
    }
    details = [] if pages is None else (slide_details(*pair) for pair in zip(records, pages, strict=True))
    return _render(records, shared, details, settings, heading=settings.heading)


def prediction_data(
    evaluation: Mapping[str, Any], predicted: Iterable[Mapping[str, Any]], pictures: Mapping[str, Any]
) -> dict[str, Any]:
    """What the report shows of predictions from H&E alone.

    Parameters
    ----------
    evaluation
        Record of ``ki67.prediction.folder_scores.evaluate_folder``.
    predicted
        Records ``prediction.json`` of the slides that have an H&E alone.
    pictures
        Of ``ki67.prediction.folder_scores.evaluation_pictures``, each as ``ki67.report_pictures.Picture``.
    """
    levels = [(level, evaluation[level]) for level in ("slide", "patch") if evaluation[level]]
    shown = ("slide", "predicted_index", "predicted_low", "predicted_high", "reason")
    # Slides are plotted by the page itself.
    kept = ("patches", "correlations") if evaluation["patch"] else ("correlations",)
    return {
        "method": evaluation["method"],
        "model": evaluation["model"],
        "scores": [
            {"level": level, "name": name, **score} for level, one in levels for name, score in one["scores"].items()
        ],
        "slides": evaluation["out_of_fold"],
        "notes": evaluation["notes"],
        "predicted": [{name: one[name] for name in shown} for one in predicted],
        "pictures": {name: pictures[name] for name in kept},
    }


def slide_pages(
    records: Sequence[Mapping[str, Any]], pages: Iterable[Mapping[str, Any]], settings: ReportSettings
) -> Iterator[tuple[str, str]]:
    """Name and content of a page for each slide, one after the other, each with what leads to its neighbours.

    Parameters
    ----------
    records, pages, settings
        As for ``report_html``.
    """
    names = page_names(records)
    for number, (record, page) in enumerate(zip(records, pages, strict=True)):
        shared = {
            "view": "slide",
            "slides": [slide_summary(record)],
            "before": names[number - 1] if number else None,
            "after": names[number + 1] if number + 1 < len(names) else None,
            "place": [number + 1, len(names)],
        }
        heading = f"{record['slide']} – {settings.heading}"
        yield names[number], _render(records, shared, [slide_details(record, page)], settings, heading=heading)


def page_names(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """File names of the slides' pages: the id, or the number where the id is no name for a file.

    >>> page_names([{"slide": "S1"}, {"slide": "a/../b"}])
    ['S1.html', '_00002.html']
    """
    return [
        f"{record['slide']}.html" if SAFE_NAME.fullmatch(record["slide"]) else f"_{number:05d}.html"
        for number, record in enumerate(records, start=1)
    ]


def slide_summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """What table and plots show of a slide."""
    copied = ("slide", "patient", "index", "index_low", "index_high", "positive", "total", "tumor_mm2", "category")
    return {
        **{name: record.get(name) for name in copied},
        "index_hot_spot": record.get("index_hot_spot"),
        "flags": list(record.get("flags") or ()),
        "readers": {name: value for name, value in record.items() if name.startswith(REFERENCE) and value is not None},
    }


def slide_details(record: Mapping[str, Any], page: Mapping[str, Any]) -> dict[str, Any]:
    """What the page of a slide shows beyond its summary."""
    registration = record.get("registration") or {}
    known = {
        **record,
        "registration_verdict": (registration.get("verdict") or "").replace("_", " ") or None,
        "registration_ncc": registration.get("ncc"),
        "registration_error_um": registration.get("estimated_error_um"),
    }
    return {
        "measures": {key: known.get(key) for _, rows in MEASURES for keys, _, _ in rows for key in keys.split()},
        "findings": [
            {"flag": finding["flag"], "message": finding["message"]} for finding in record.get("findings") or ()
        ],
        **{name: record.get(name) or {} for name in PROVENANCE},
        "page": page,
    }


def flag_words(flag: str) -> str:
    """A flag in words; one that this version does not know, as it is written.

    >>> flag_words("no_he"), flag_words("hot_tea")
    ('no H&E slide', 'hot tea')
    """
    from ki67.figures import FLAG_WORDS  # brings matplotlib

    known = {key.value: words for key, words in FLAG_WORDS.items()}
    return known.get(flag, flag.replace("_", " "))


def json_for_script(value: Any) -> str:
    r"""JSON that can stand in a ``script`` element: no character of it begins a tag, an entity or a line of its own.

    >>> json_for_script({"id": "</script>&"})
    '{"id":"\\\\u003c/script\\\\u003e\\\\u0026"}'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


@cache
def template_digest() -> str:
    """Digest of everything the pages are made of besides data: a change in it is a reason to write them again."""
    digest = hashlib.sha256()
    for path in sorted(TEMPLATE_FOLDER.iterdir()):
        digest.update(path.name.encode())
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def _render(
    records: Sequence[Mapping[str, Any]],
    shared: Mapping[str, Any],
    details: Iterable[Mapping[str, Any]],
    settings: ReportSettings,
    *,
    heading: str,
) -> str:
    from ki67.figures import heatmap_colors  # brings matplotlib
    from ki67.storage import to_plain

    style, script = _joined(STYLES), _joined(SCRIPTS)
    data = {
        **shared,
        "key": _cohort_key(records),
        "cutoffs": list(settings.cutoffs),
        "categories": list(settings.categories),
        "flags": _flags_of(shared["slides"]),
        "measures": _measures(settings.marker),
        "pages_folder": PAGES_FOLDER,
        "heatmap_colors": heatmap_colors(HEATMAP_COLORS),
        "versions": settings.versions,
        "title": settings.heading,
        "marker": settings.marker,
    }
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            heading=heading,
            style=style,
            script=script,
            policy=_policy(style, script),
            data=json_for_script(to_plain(data)),
            details=(json_for_script(to_plain(one)) for one in details),
        )
    )


def _measures(marker: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """``MEASURES`` with the marker's name before the index."""
    named = {"index": f"{marker} index"}
    return [(title, [(keys, named.get(keys, words), kind) for keys, words, kind in rows]) for title, rows in MEASURES]


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


@cache
def _joined(names: tuple[str, ...]) -> str:
    return "\n" + "\n".join((TEMPLATE_FOLDER / name).read_text(encoding="utf-8") for name in names)


def _policy(style: str, script: str) -> str:
    """Content security policy: this style, this script, pictures in the page itself, and nothing else."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in (style, script))
    style_source, script_source = (f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; style-src {style_source}; script-src {script_source}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _cohort_key(records: Iterable[Mapping[str, Any]]) -> str:
    """Keeps the scores that a browser remembers for one cohort apart from those of another."""
    ids = "\n".join(record["slide"] for record in records)
    return hashlib.sha256(ids.encode()).hexdigest()[:16]


def _flags_of(slides: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of the flags that some slides have: words, whether they only inform, whether they give the index away."""
    from ki67.figures import INFORMATION

    raised = {flag for slide in slides for flag in slide["flags"]}
    order = [flag.value for flag in Flag if flag.value in raised]
    return {
        flag: {
            "words": flag_words(flag),
            "information": flag in {one.value for one in INFORMATION},
            "revealing": flag in REVEALING,
        }
        for flag in [*order, *sorted(raised - set(order))]
    }
