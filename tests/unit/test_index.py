import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki67.categories import category_names, category_of, certain_category, index_categories
from ki67.errors import ConfigError, Finding, Flag
from ki67.geometry import Mask
from ki67.hot_spots import find_hot_spots
from ki67.index import MEASURES, flags_of, ki67_index, slide_findings, slide_record
from ki67.intervals import block_bootstrap, wilson_interval, wilson_probability_above
from ki67.nucleus_squares import tumor_nuclei
from ki67.storage import to_plain
from tests.unit.drawn_tables import table_of

TUMOR = Mask(np.ones((10, 10), dtype=bool), 100.0, "ki67")  # 1 mm²


def nuclei(positive: int, negative: int, outside: int = 0) -> pd.DataFrame:
    """Nuclei spread over the tumour, and positive ones outside it."""
    total = positive + negative + outside
    points = np.random.default_rng(0).uniform(0, 1000, (total, 2))
    classes = np.random.default_rng(1).permutation(np.arange(positive + negative) < positive)
    table = table_of(points, np.concatenate([classes, np.ones(outside, dtype=bool)]))
    return table.assign(in_tumor=np.arange(total) < positive + negative)


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


@pytest.mark.parametrize(
    ("total", "flags"), [(500, [Flag.FEWER_THAN_1000_NUCLEI]), (999, [Flag.FEWER_THAN_1000_NUCLEI]), (1000, [])]
)
def test_500_nuclei_are_enough_and_1000_are_wanted(total, flags):
    assert [finding.flag for finding in ki67_index(nuclei(100, total - 100), TUMOR).findings] == flags


@pytest.mark.parametrize(
    ("positive", "negative", "percent"),
    [
        # Whole-slide counts of the published human-machine comparison and its index column; all are rounded, none cut:
        # 9.0959, 15.6153, 29.6829, 15.6801, 11.0869, 8.8713, 8.4883, 72.8666, 9.9920 and 55.1738 %
        (29961, 299428, 9.10),
        (50073, 270593, 15.62),
        (31119, 73719, 29.68),
        (20272, 109013, 15.68),
        (9854, 79026, 11.09),
        (11939, 122641, 8.87),
        (9332, 100608, 8.49),
        (232515, 86582, 72.87),
        (30003, 270266, 9.99),
        (85036, 69088, 55.17),
    ],
)
def test_published_counts_give_the_published_index(positive, negative, percent):
    classes = np.arange(positive + negative) < positive
    table = table_of(np.zeros((len(classes), 2)), classes)
    result = ki67_index(table, TUMOR)
    assert (result.positive, result.total) == (positive, positive + negative)
    assert round(100 * result.index, 2) == percent
    assert result.interval == "wilson"  # all in one place


def test_every_measure_by_hand():
    """Four nuclei: two positive ones of 30 and 50 µm², two negative ones of 20 µm²."""
    table = table_of([[1, 1], [2, 2], [3, 3], [4, 4]], [True, True, False, False], area_um2=[30.0, 50.0, 20.0, 20.0])
    result = ki67_index(table, TUMOR)
    assert (result.index, result.index_area, result.nuclei_per_mm2) == (
        0.5,
        pytest.approx(80 / 120),
        pytest.approx(4.0),
    )
    assert (result.index_low, result.index_high) == (result.wilson_low, result.wilson_high) == wilson_interval(2, 4)
    assert (result.interval, result.hot_spots) == ("wilson", ())
    assert all(
        math.isnan(value) for value in (result.index_hot_spot, result.hot_spot_gap, result.index_global_weighted)
    )
    assert result.p_above["p_above_30"] == wilson_probability_above(2, 4, 0.30)
    assert list(result.measures) == list(MEASURES)


def clustered(total: int = 20_000, side_um: float = 8000.0, seed: int = 0) -> pd.DataFrame:
    """Nuclei of which more are positive to the right."""
    random = np.random.default_rng(seed)
    points = random.uniform(0, side_um, (total, 2))
    return table_of(points, random.random(total) < 0.3 * points[:, 0] / side_um)


def test_a_large_tumour_has_the_interval_of_its_blocks_and_its_hot_spot():
    table = clustered()
    tumor = Mask(np.ones((80, 80), dtype=bool), 100.0, "ki67")
    result, found = ki67_index(table, tumor), block_bootstrap(tumor_nuclei(table))
    assert found is not None
    assert (result.interval, result.index_low, result.index_high) == ("block_bootstrap", found.low, found.high)
    assert result.index_low < result.wilson_low < result.index < result.wilson_high < result.index_high
    assert result.hot_spots == find_hot_spots(tumor_nuclei(table))
    assert result.hot_spot_gap == result.index_hot_spot - result.index > 0.05
    assert result.p_above["p_above_10"] == found.probability_above(0.10)
    assert (result.category, result.point_category) == ("10-20%", "10-20%")


@pytest.mark.parametrize(
    ("positive", "certainty", "category"),
    [
        (150, 0.8, "10-20%"),
        (105, 0.8, "indeterminate"),
        (105, 0.0, "10-20%"),
        (95, 0.8, "indeterminate"),
        (70, 0.8, "<10%"),
    ],
)
def test_a_category_that_is_not_likely_enough_is_indeterminate(positive, certainty, category):
    result = ki67_index(nuclei(positive, 1000 - positive), TUMOR, certainty=certainty)
    assert result.category == category
    assert result.point_category == category_of(positive / 1000)


def test_the_most_likely_category_by_hand():
    above = {0.05: 0.9, 0.30: 0.15}.__getitem__
    assert certain_category(above, (0.05, 0.30), ("low", "intermediate", "high"), certainty=0.75) == "intermediate"
    assert certain_category(above, (0.05, 0.30), ("low", "intermediate", "high"), certainty=0.76) == "indeterminate"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 10_000), st.floats(0, 1))
def test_measures_are_bounded_and_do_not_depend_on_the_order_of_the_table(total, seed, share):
    random = np.random.default_rng(seed)
    table = table_of(
        random.uniform(0, 3000, (total, 2)),
        random.random(total) < share,
        area_um2=random.uniform(10, 90, total),
        dab_od=random.normal(0.5, 0.3, total),
    )
    tumor = Mask(np.ones((30, 30), dtype=bool), 100.0, "ki67")
    result = ki67_index(table, tumor)
    again = ki67_index(table.sample(frac=1, random_state=seed), tumor)
    assert json.dumps(to_plain(result.measures)) == json.dumps(to_plain(again.measures))
    assert (result.category, result.findings, result.hot_spots) == (again.category, again.findings, again.hot_spots)
    fractions = {
        name: value for name, value in result.measures.items() if name.startswith(("index", "wilson", "p_above"))
    }
    assert all(math.isnan(value) or 0 <= value <= 1 for value in fractions.values())
    if total:
        assert result.index_low <= result.index <= result.index_high
        likely = list(result.p_above.values())
        assert likely == sorted(likely, reverse=True)


def test_pale_positive_nuclei_are_flagged_with_how_pale_they_are():
    table = nuclei(300, 900)
    pale = table.assign(dab_od=np.where(table["positive"], 0.25, 0.1).astype(np.float32))
    (finding,) = ki67_index(pale, TUMOR, slide_id="S1").findings
    assert finding.flag == Flag.WEAK_DAB
    assert finding.message.startswith("S1: DAB of positive nuclei is only 0.15 (optical density) above")
    assert ki67_index(table.assign(dab_od=np.where(table["positive"], 0.35, 0.1)), TUMOR).findings == ()
    few = nuclei(19, 1181)
    assert ki67_index(few.assign(dab_od=0.1), TUMOR).findings == ()


def test_an_index_that_rests_on_a_hot_spot_is_flagged():
    random = np.random.default_rng(0)
    points = random.uniform(0, 3000, (20_000, 2))
    hot = np.all(points < 700, axis=1)
    table = table_of(points, random.random(20_000) < np.where(hot, 0.8, 0.02))
    (finding,) = ki67_index(table, Mask(np.ones((30, 30), dtype=bool), 100.0, "ki67"), slide_id="S1").findings
    assert finding.flag == Flag.HOT_SPOT_DRIVEN
    assert "% of the positive nuclei lie in the hottest tenth" in finding.message


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
        "tumor": {"tumor_source": "he", "tumor_mm2": 1.2, "model": {"name": "tumor_he", "sha256": "cd"}},
        "transfer": {"tumor_source": "he", "model": None},
        "nuclei": {"model": {"name": "nuclei", "sha256": "ab"}, "seconds": 20.0},
    }
    references = {"reference_index": 0.2, "reference_index_anna": None}
    result = ki67_index(nuclei(100, 900), TUMOR)
    record = slide_record(result, slide="S1", patient="P1", stages=stages, references=references)
    assert (record["slide"], record["patient"], record["index"]) == ("S1", "P1", 0.1)
    assert record["marker"] == "Ki-67"
    assert (record["category"], record["point_category"], record["interval"]) == ("indeterminate", "10-20%", "wilson")
    assert [name for name in record if name in MEASURES] == list(MEASURES)
    assert record["hot_spots"][0]["index"] == record["index_hot_spot"]
    assert (record["reference_index"], record["reference_index_anna"]) == (0.2, None)
    assert record["registration"] == {"verdict": "accepted", "ncc": 0.8, "estimated_error_um": 12.0}
    assert record["models"] == {
        "tumor": {"name": "tumor_he", "sha256": "cd"},
        "nuclei": {"name": "nuclei", "sha256": "ab"},
    }
    assert record["tumor_he_mm2"] == 1.2
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
        ("breast_ikwg", None, ["low", "low", "intermediate", "intermediate"]),
        ("neuroendocrine", None, ["G1", "G2", "G2", "G3"]),
        ("neuroendocrine", [0.05, 0.15], ["<5%", "<5%", "5-15%", ">15%"]),
    ],
)
def test_presets_give_cutoffs_and_names_and_own_cutoffs_override_them(preset, cutoffs, expected) -> None:
    limits, names = index_categories(preset, cutoffs)
    assert [category_of(index, limits, names) for index in (0.029, 0.03, 0.12, 0.201)] == expected
    assert ki67_index(nuclei(12, 88), TUMOR, cutoffs=limits, names=names).point_category == expected[2]


def test_an_unknown_preset_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="index.preset is lung; write breast or breast_ikwg or neuroendocrine"):
        index_categories("lung")
