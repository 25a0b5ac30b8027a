import math

import numpy as np
import pandas as pd
import pytest

from ki67.errors import ConfigError, Finding, Flag
from ki67.geometry import Mask
from ki67.index import (
    category_names,
    category_of,
    flags_of,
    index_categories,
    ki67_index,
    slide_findings,
    slide_record,
    wilson_interval,
)

TUMOR = Mask(np.ones((10, 10), dtype=bool), 100.0, "ki67")  # 1 mm²


def nuclei(positive: int, negative: int, outside: int = 0) -> pd.DataFrame:
    """Nuclei in the tumour, and positive ones outside it."""
    return pd.DataFrame(
        {
            "positive": [True] * positive + [False] * negative + [True] * outside,
            "in_tumor": [True] * (positive + negative) + [False] * outside,
        }
    ).astype(bool)


@pytest.mark.parametrize(
    ("positive", "total", "low", "high"),
    [
        # Newcombe (1998) Statistics in Medicine 17:857-872, table I, method 3 (score, no continuity correction)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # by hand: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
        (15, 100, 0.0931, 0.2328),
    ],
)
def test_wilson_interval_equals_published_values(positive, total, low, high):
    assert np.allclose(wilson_interval(positive, total), (low, high), atol=5.1e-5)


def test_wilson_interval_of_nothing_is_missing():
    assert all(math.isnan(bound) for bound in wilson_interval(0, 0))


def test_wilson_interval_widens_with_confidence_and_stays_within_bounds():
    low, high = wilson_interval(3, 10, confidence=0.99)
    assert low < wilson_interval(3, 10)[0] < 0.3 < wilson_interval(3, 10)[1] < high
    assert wilson_interval(10, 10)[1] == 1.0


@pytest.mark.parametrize(
    ("positive", "total", "category"),
    [(0, 7, "<10%"), (99, 1000, "<10%"), (3, 30, "10-20%"), (7, 35, "10-20%"), (201, 1000, ">20%"), (9, 9, ">20%")],
)
def test_an_index_on_a_cutoff_belongs_to_the_middle_category(positive, total, category):
    assert category_of(positive / total) == category


def test_categories_follow_the_cutoffs():
    assert category_names((0.05, 0.14, 0.30)) == ("<5%", "5-14%", "14-30%", ">30%")
    assert category_of(0.14, (0.05, 0.14, 0.30)) == "5-14%"
    assert category_of(math.nan) is None


def test_the_index_counts_only_nuclei_in_the_tumour():
    result = ki67_index(nuclei(150, 850, outside=400), TUMOR)
    assert (result.positive, result.total, result.index, result.category) == (150, 1000, 0.15, "10-20%")
    assert result.index_low < 0.15 < result.index_high
    assert result.tumor_mm2 == pytest.approx(1.0)
    assert result.findings == ()


@pytest.mark.parametrize(
    ("table", "tumor", "flag", "words"),
    [
        (nuclei(0, 0), Mask.empty("ki67"), Flag.NO_TUMOR, "no tumour"),
        (nuclei(0, 0, outside=3), TUMOR, Flag.NO_NUCLEI, "1.00 mm²"),
        (nuclei(100, 399), TUMOR, Flag.FEWER_THAN_500_NUCLEI, "only 499 tumour nuclei"),
    ],
)
def test_what_makes_an_index_doubtful_is_named_with_its_value(table, tumor, flag, words):
    (finding,) = ki67_index(table, tumor, slide_id="S7").findings
    assert finding.flag == flag
    assert finding.message.startswith("S7: ")
    assert words in finding.message


def test_500_nuclei_are_enough():
    assert ki67_index(nuclei(100, 400), TUMOR).findings == ()


def test_no_nuclei_give_no_index_rather_than_zero():
    result = ki67_index(nuclei(0, 0), TUMOR)
    assert math.isnan(result.index)
    assert math.isnan(result.index_low)
    assert (result.positive, result.total, result.category) == (0, 0, None)


def finding(flag: Flag, message: str = "S1: x") -> dict[str, str | None]:
    return Finding(flag, message, "ki67").to_json()


def check(usable: bool | None, *findings: dict[str, str | None]) -> dict:
    ki67 = None if usable is None else {"usable": usable}
    return {"stains": {"he": None, "ki67": ki67}, "findings": list(findings), "seconds": 1.5}


def test_findings_of_all_stages_are_listed_once_in_the_order_of_the_flags():
    result = ki67_index(nuclei(1, 9), TUMOR, slide_id="S1")
    blurred, rejected = finding(Flag.OUT_OF_FOCUS), finding(Flag.REGISTRATION_REJECTED)
    stages = {"register": {"findings": [rejected]}, "check": check(True, blurred), "transfer": {"findings": [blurred]}}
    flags = flags_of(slide_findings(result, stages))
    assert flags == [Flag.OUT_OF_FOCUS, Flag.REGISTRATION_REJECTED, Flag.FEWER_THAN_500_NUCLEI]
    assert [item.flag for item in slide_findings(result, stages)] == flags


@pytest.mark.parametrize("usable", [None, False])
def test_a_slide_that_cannot_be_used_is_not_also_said_to_hold_no_tumour(usable):
    result = ki67_index(nuclei(0, 0), Mask.empty("ki67"))
    stages = {"check": check(usable, finding(Flag.MISSING_FILE))}
    assert flags_of(slide_findings(result, stages)) == [Flag.MISSING_FILE]


def test_a_record_holds_what_the_stages_know():
    stages = {
        "check": check(True),
        "register": {"verdict": "accepted", "ncc": 0.8, "estimated_error_um": 12.0, "reason": "fits", "seconds": 3.0},
        "tumor": {"tumor_source": "he", "tumor_mm2": 2.5, "model": {"name": "tumor_he", "sha256": "cd"}},
        "transfer": {"tumor_source": "he", "model": None},
        "nuclei": {"model": {"name": "nuclei", "sha256": "ab"}, "seconds": 20.0},
    }
    references = {"reference_index": 0.2, "reference_index_anna": None}
    result = ki67_index(nuclei(100, 900), TUMOR)
    record = slide_record(result, slide="S1", patient="P1", stages=stages, references=references)
    assert (record["slide"], record["patient"], record["index"], record["category"]) == ("S1", "P1", 0.1, "10-20%")
    assert (record["reference_index"], record["reference_index_anna"]) == (0.2, None)
    assert record["registration"] == {"verdict": "accepted", "ncc": 0.8, "estimated_error_um": 12.0}
    assert record["models"] == {
        "tumor": {"name": "tumor_he", "sha256": "cd"},
        "nuclei": {"name": "nuclei", "sha256": "ab"},
    }
    assert record["tumor_he_mm2"] == 2.5
    assert (record["tumor_source"], record["flags"]) == ("he", ["in_situ_counted"])
    assert record["findings"][0]["message"].startswith("S1: in situ carcinoma is not told from invasive")


@pytest.mark.parametrize(
    ("source", "excluded", "flagged"), [("he", False, True), ("he", True, False), ("roi", False, False)]
)
def test_in_situ_carcinoma_is_said_to_be_counted_unless_a_person_drew_what_counts(source, excluded, flagged):
    result = ki67_index(nuclei(100, 900), TUMOR)
    stages = {"check": check(True), "transfer": {"tumor_source": source, "excluded": excluded}}
    assert flags_of(slide_findings(result, stages)) == ([Flag.IN_SITU_COUNTED] if flagged else [])


@pytest.mark.parametrize(
    ("preset", "cutoffs", "expected"),
    [
        ("breast", None, ["<10%", "<10%", "10-20%", ">20%"]),
        ("neuroendocrine", None, ["G1", "G2", "G2", "G3"]),
        ("neuroendocrine", [0.05, 0.15], ["<5%", "<5%", "5-15%", ">15%"]),
    ],
)
def test_presets_give_cutoffs_and_names_and_own_cutoffs_override_them(preset, cutoffs, expected) -> None:
    limits, names = index_categories(preset, cutoffs)
    assert [category_of(index, limits, names) for index in (0.029, 0.03, 0.12, 0.201)] == expected
    assert ki67_index(nuclei(12, 88), TUMOR, cutoffs=limits, names=names).category == expected[2]


def test_an_unknown_preset_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="index.preset is lung; write breast or neuroendocrine"):
        index_categories("lung")
