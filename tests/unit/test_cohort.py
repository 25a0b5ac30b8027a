import csv
import math

import numpy as np
import pandas as pd
import pytest

from ki67.categories import category_of
from ki67.cohort import cohort_provenance, gather_records, patient_table, slide_table
from ki67.errors import Flag
from ki67.intervals import pooled_interval, wilson_interval
from ki67.storage import write_csv


def record(slide: str, patient: str, positive: int, total: int, *flags: Flag, **others) -> dict:
    """A slide's record as it is read back from JSON, where NaN has become None."""
    index = positive / total if total else None
    low, high = wilson_interval(positive, total) if total else (None, None)
    return {
        "slide": slide,
        "patient": patient,
        "index": index,
        "index_low": low,
        "index_high": high,
        "positive": positive,
        "total": total,
        "interval": "block_bootstrap" if total else None,
        "category": category_of(index) if total else None,
        "point_category": category_of(index) if total else None,
        "tumor_mm2": 2.5,
        "tumor_source": "he",
        "tumor_he_mm2": 3.25,
        "flags": [flag.value for flag in flags],
        "findings": [{"flag": flag.value, "message": f"{slide}: {flag.value}", "stain": None} for flag in flags],
        "reference_index": None,
        "registration": {"verdict": "accepted", "ncc": 0.75, "estimated_error_um": 8.0},
        "seconds": {"check": 1.234},
        **others,
    }


@pytest.fixture
def records() -> list[dict]:
    unscored = {"registration": {"verdict": "not_applicable", "ncc": None, "estimated_error_um": None}}
    return [
        record("S2", "P1", 30, 100, Flag.FEWER_THAN_500_NUCLEI, Flag.PEN_MARK, Flag.FEWER_THAN_500_NUCLEI),
        record("S1", "P2", 0, 0, Flag.NO_KI67, **unscored),
        record("S3", "P1", 100, 1000, reference_index=0.12, reference_index_bo=0.1),
    ]


def test_a_row_a_slide_in_the_order_of_the_sheet(records):
    table = slide_table(records)
    assert list(table["slide"]) == ["S2", "S1", "S3"]
    assert list(table.columns) == [
        *["slide", "patient", "index", "index_low", "index_high", "positive", "total", "category", "tumor_mm2"],
        *["flags", "reference_index", "reference_index_bo", "reasons", "tumor_source", "tumor_he_mm2"],
        *["registration", "registration_ncc", "registration_error_um", "point_category", "interval"],
        *["wilson_low", "wilson_high", "nuclei_per_mm2", "index_global_unweighted", "index_global_weighted"],
        *["index_hot_spot", "hot_spot_gap", "index_area"],
        *["p_above_5", "p_above_10", "p_above_14", "p_above_20", "p_above_30"],
        *["index_second_opinion", "index_area_second_opinion"],
    ]


def test_flags_stand_once_in_the_order_of_the_enum_and_reasons_are_sentences(records):
    table = slide_table(records)
    assert list(table["flags"]) == ["pen_mark;fewer_than_500_nuclei", "no_ki67", ""]
    assert table["reasons"][0] == "S2: fewer_than_500_nuclei; S2: pen_mark"


def test_a_slide_without_index_keeps_its_row_with_empty_cells(records, tmp_path):
    write_csv(tmp_path / "cohort.csv", slide_table(records))
    lines = (tmp_path / "cohort.csv").read_bytes().split(b"\n")
    assert lines[2] == b"S1,P2,,,,0,0,,2.5,no_ki67,,,S1: no_ki67,he,3.25,not_applicable,," + 17 * b","
    assert b"1.234" not in b"".join(lines)


def test_the_table_is_the_same_bytes_each_time(records, tmp_path):
    for name in ("a.csv", "b.csv"):
        write_csv(tmp_path / name, slide_table(records))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_patient_has_the_counts_of_all_scored_slides(records):
    patients = patient_table(slide_table(records)).set_index("patient")
    assert list(patients.index) == ["P1", "P2"]
    first = patients.loc["P1"]
    assert (first["slides"], first["scored_slides"], first["positive"], first["total"]) == (2, 2, 130, 1100)
    assert first["index"] == pytest.approx(130 / 1100)
    slides = [[30, 100], [100, 1000], *zip(wilson_interval(30, 100), wilson_interval(100, 1000), strict=True)]
    (one, other, low, high) = (np.array(values, dtype=float) for values in slides)
    wanted = pooled_interval(np.array([one[0], other[0]]), np.array([one[1], other[1]]), low, high)
    assert (first["index_low"], first["index_high"]) == pytest.approx(wanted)
    assert first["interval"] == "block_bootstrap"
    assert (first["index_min"], first["index_max"]) == pytest.approx((0.1, 0.3))
    assert (first["category"], first["point_category"]) == ("10-20%", "10-20%")
    assert first["flags"] == "pen_mark;fewer_than_500_nuclei"


def test_a_patient_without_scored_slide_is_listed_without_index(records):
    second = patient_table(slide_table(records)).set_index("patient").loc["P2"]
    assert (second["slides"], second["scored_slides"], second["total"]) == (1, 0, 0)
    assert math.isnan(second["index"])
    assert math.isnan(second["index_min"])
    assert second["category"] is None
    assert second["flags"] == "no_ki67"


def test_patients_follow_the_cutoffs_and_the_certainty(records):
    assert patient_table(slide_table(records), (0.05, 0.11))["category"][0] == ">11%"
    patients = patient_table(slide_table(records), (0.05, 0.115))
    assert (patients["category"][0], patients["point_category"][0]) == ("indeterminate", ">11.5%")
    assert patient_table(slide_table(records), (0.05, 0.115), certainty=0.5)["category"][0] == ">11.5%"


def test_a_patient_of_one_slide_has_what_the_slide_has():
    slide = record("S1", "P1", 30, 100, category="indeterminate")
    (row,) = patient_table(slide_table([slide])).to_dict("records")
    assert (row["category"], row["interval"]) == ("indeterminate", "block_bootstrap")
    assert (row["index_low"], row["index_high"]) == pytest.approx((slide["index_low"], slide["index_high"]))


def test_slides_with_different_intervals_give_a_mixed_one():
    slides = [record("S1", "P1", 30, 100), record("S2", "P1", 10, 100, interval="wilson")]
    assert list(patient_table(slide_table(slides))["interval"]) == ["mixed"]


def test_an_empty_cohort_gives_empty_tables():
    assert len(slide_table([])) == 0
    assert len(patient_table(slide_table([]))) == 0


MADE = [
    {"models": {"nuclei": {"sha256": "a"}}, "versions": {"numpy": "2"}, "code": {"index": "x"}},
    {
        "models": {"nuclei": {"sha256": "b"}, "tumor": {"sha256": "t"}},
        "versions": {"numpy": "2"},
        "settings": {"index": {"preset": "breast"}},
        "inputs": {"he": None, "ki67": {"bytes": 5, "sampled_bytes": 5, "sha256": "f"}},
    },
    {"models": {"nuclei": {"sha256": "a"}}},
]


def gathered(records: list[dict], **options):
    return gather_records([str(number) for number in range(len(records))], lambda name: records[int(name)], **options)


def test_provenance_tells_of_every_model_and_version_that_scored_a_slide_and_of_its_files(records):
    both = [one | made for one, made in zip(records, MADE, strict=True)]
    found = cohort_provenance(gathered(both, at_once=2), settings={"cutoffs": (0.1, 0.2)}, versions={"pandas": "2"})
    assert found == {
        "settings": {"cutoffs": (0.1, 0.2)},
        "versions": {"pandas": "2"},
        "slides": {
            "models": {"nuclei": [{"sha256": "a"}, {"sha256": "b"}], "tumor": [{"sha256": "t"}]},
            "versions": {"numpy": ["2"]},
            "settings": {"index": [{"preset": "breast"}]},
            "code": {"index": ["x"]},
        },
    }
    assert gathered(both, at_once=2).checksums == {"sha256_he": [None] * 3, "sha256_ki67": [None, "f", None]}


@pytest.mark.parametrize(("at_once", "workers"), [(1, 1), (2, 3), (100, 2)])
def test_records_read_in_parts_give_the_same_table(records, at_once, workers):
    table = gathered(records, at_once=at_once, workers=workers).slides
    pd.testing.assert_frame_equal(table, slide_table(records))


def test_no_records_give_an_empty_table():
    pd.testing.assert_frame_equal(gathered([]).slides, slide_table([]))


HARMFUL = (
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3|x",
    "@SUM(A1)",
    "\t=1",
    "\r\n=1",
    'a";=1+1;"',
    "<script>alert(1)</script>\n=2",
)


@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("text", HARMFUL)
def test_no_cell_of_a_table_is_a_formula_and_numbers_stay_numbers(tmp_path, text, separator):
    findings = [{"flag": "pen_mark", "message": text, "stain": None}]
    slides = slide_table([record("S1", text, 3, 10, findings=findings, tumor_source=text), record("S2", "P", 0, 9)])
    for name, table, rows in (("cohort", slides, 2), ("patients", patient_table(slides), 2)):
        write_csv(tmp_path / name, table)
        text_of_file = (tmp_path / name).read_text(encoding="utf-8")
        assert text_of_file.count("\n") == rows + 1
        lines = text_of_file.splitlines()
        # a spreadsheet that takes semicolons sees no quotes around cells
        parsed = list(csv.reader(lines)) if separator == "," else [line.split(";") for line in lines]
        cells = [cell.strip(' "') for line in parsed for cell in line]
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "@")]
        assert not [cell for cell in cells if cell.startswith("-") and cell.strip("-.0123456789")]
        back = pd.read_csv(tmp_path / name)
        assert list(back["positive"]) == [3, 0]
        assert back["index"][0] == pytest.approx(0.3)
