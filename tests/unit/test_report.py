"""The report as text: what it holds, and that nothing of a sheet becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from ki67.report import (
    ReportSettings,
    flag_words,
    json_for_script,
    page_names,
    prediction_data,
    report_html,
    slide_details,
    slide_pages,
    slide_summary,
)

SETTINGS = ReportSettings((0.1, 0.2), ("<10%", "10-20%", ">20%"))
HOSTILE = "</script><script>alert(1)</script>\n=cmd|' /C calc'!A0 \"&amp;'<!--\u2028"
PAGE: dict[str, Any] = {"overview": None, "heatmaps": [], "registration": None, "fields": [], "absent": {}}
PICTURE = {"src": "data:image/webp;base64,UklGRg==", "width": 10, "height": 10}


def record(slide: str = "S1", **changes: Any) -> dict[str, Any]:
    known = {
        "slide": slide,
        "patient": slide,
        "index": 0.15,
        "index_low": 0.12,
        "index_high": 0.18,
        "positive": 150,
        "total": 1000,
        "category": "10-20%",
        "tumor_mm2": 1.5,
        "flags": ["fold"],
        "findings": [{"flag": "fold", "message": f"{slide}: a fold", "stain": "ki67"}],
        "reference_index": 0.2,
        "reference_index_bo": None,
        "registration": {"verdict": "not_applicable", "ncc": None, "estimated_error_um": None},
        "models": {},
        "versions": {"ki67": "0.1"},
        "seconds": {"check": 1.0},
    }
    return known | changes


class Elements(HTMLParser):
    """Tags of a page, and the content of its scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem in self.texts:
            self.texts[self.cdata_elem][-1] += data


def test_one_page_holds_every_slide() -> None:
    html = report_html([record("S1"), record("S2", index=None)], [PAGE, PAGE], SETTINGS)
    data, first, second, _ = Elements(html).texts["script"]
    assert [slide["slide"] for slide in json.loads(data)["slides"]] == ["S1", "S2"]
    assert json.loads(data)["slides"][1]["index"] is None
    assert json.loads(data)["flags"] == {
        "fold": {"words": "fold in the tissue", "information": False, "revealing": False}
    }
    assert (json.loads(first)["measures"]["index"], json.loads(second)["measures"]["index"]) == (0.15, None)
    assert json.loads(first)["findings"] == [{"flag": "fold", "message": "S1: a fold"}]


def test_the_policy_allows_this_script_and_this_style_alone() -> None:
    elements = Elements(report_html([record()], [PAGE], SETTINGS))
    (policy,) = (
        attributes["content"]
        for tag, attributes in elements.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for name, text in (("script-src", elements.texts["script"][-1]), ("style-src", elements.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(name) == f"'sha256-{digest}'"
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_no_page_names_an_address_outside() -> None:
    html = report_html([record()], [PAGE], SETTINGS)
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg"}


def test_hostile_texts_stay_texts() -> None:
    hostile = record(HOSTILE, patient=HOSTILE, findings=[{"flag": "fold", "message": HOSTILE, "stain": None}])
    hostile["flags"], hostile["category"] = ["fold", HOSTILE], HOSTILE
    harmless = Elements(report_html([record()], [PAGE], SETTINGS))
    elements = Elements(report_html([hostile], [PAGE], ReportSettings((0.1,), (HOSTILE, "b"), title=HOSTILE)))
    assert [tag for tag, _ in elements.tags] == [tag for tag, _ in harmless.tags]
    slide = json.loads(elements.texts["script"][0])["slides"][0]
    assert (slide["slide"], slide["patient"], slide["category"]) == (HOSTILE, HOSTILE, HOSTILE)
    assert json.loads(elements.texts["script"][1])["findings"][0]["message"] == HOSTILE


def test_json_in_a_script_can_end_no_script_and_begins_no_comment() -> None:
    text = json_for_script({HOSTILE: [HOSTILE]})
    assert not set("<>&\u2028\u2029\n") & set(text)
    assert json.loads(text) == {HOSTILE: [HOSTILE]}
    with pytest.raises(ValueError, match="Out of range"):
        json_for_script(float("nan"))


def test_pages_lead_to_their_neighbours() -> None:
    records = [record(name) for name in ("S1", "../x", "S3")]
    pages = dict(slide_pages(records, [PAGE] * 3, SETTINGS))
    assert list(pages) == page_names(records) == ["S1.html", "_00002.html", "S3.html"]
    data = json.loads(Elements(pages["_00002.html"]).texts["script"][0])
    assert (data["view"], data["before"], data["after"], data["place"]) == ("slide", "S1.html", "S3.html", [2, 3])
    index = json.loads(Elements(report_html(records, None, SETTINGS)).texts["script"][0])
    assert index["files"] == list(pages)
    assert index["key"] == data["key"]


def test_predictions_are_apart_from_measured_indices() -> None:
    score = {"value": 0.5, "low": 0.2, "high": 0.7}
    evaluation = {
        "method": "forest",
        "model": {"method": "forest", "marker": "Ki-67", "sha256": "ab", "slides": 40, "patients": 38},
        "slide": {"scores": {"spearman": score}},
        "patch": None,
        "notes": [],
        "out_of_fold": [{"slide": "S1", "index": 0.15, "predicted": 0.2, "predicted_low": 0.1, "predicted_high": 0.4}],
    }
    told = {"predicted_index": 0.31, "predicted_low": 0.2, "predicted_high": 0.5, "reason": "", "seconds": 2}
    prediction = prediction_data(
        evaluation, [{"slide": "S2", **told}], dict.fromkeys(("patches", "correlations"), PICTURE)
    )
    settings = ReportSettings((0.1, 0.2), ("a", "b", "c"), prediction=prediction)
    html = report_html([record("S1"), record("S2", index=None)], [PAGE, PAGE], settings)
    data = json.loads(Elements(html).texts["script"][0])
    assert data["prediction"]["scores"] == [{"level": "slide", "name": "spearman", **score}]
    assert data["prediction"]["predicted"][0]["predicted_index"] == 0.31
    assert "seconds" not in data["prediction"]["predicted"][0]
    assert data["prediction"]["pictures"] == {"correlations": PICTURE}  # this method says nothing of patches
    assert data["slides"][1]["index"] is None
    assert not [key for slide in data["slides"] for key in slide if "predicted" in key]


def test_a_report_without_predictions_holds_none() -> None:
    data = json.loads(Elements(report_html([record()], [PAGE], SETTINGS)).texts["script"][0])
    assert data["prediction"] is None


def test_the_marker_names_the_report_and_the_index() -> None:
    settings = ReportSettings((0.1,), ("low", "high"), marker="ER")
    elements = Elements(report_html([record()], [PAGE], settings))
    data = json.loads(elements.texts["script"][0])
    assert (data["title"], data["marker"]) == ("ER report", "ER")
    assert data["measures"][0][1][0] == ["index", "ER index", "percent"]
    assert ReportSettings((0.1,), ("low", "high")).heading == "Ki-67 report"


def test_a_cohort_without_slides_is_a_page() -> None:
    assert json.loads(Elements(report_html([], [], SETTINGS)).texts["script"][0])["slides"] == []


def test_the_same_records_give_the_same_page() -> None:
    assert report_html([record()], [PAGE], SETTINGS) == report_html([record()], [PAGE], SETTINGS)


def test_a_summary_names_readers_with_a_score() -> None:
    assert slide_summary(record())["readers"] == {"reference_index": 0.2}


def test_details_hold_every_measure_that_is_known() -> None:
    details = slide_details(record(index_hot_spot=0.4, p_above_20=0.01, wilson_low=0.1), PAGE)
    measures = details["measures"]
    assert (measures["index_hot_spot"], measures["p_above_20"], measures["wilson_low"]) == (0.4, 0.01, 0.1)
    assert measures["index_area"] is None
    assert measures["registration_verdict"] == "not applicable"


def test_unknown_flags_are_readable() -> None:
    assert flag_words("no_mpp") == "no microns per pixel"
    assert flag_words("a_flag_of_tomorrow") == "a flag of tomorrow"
