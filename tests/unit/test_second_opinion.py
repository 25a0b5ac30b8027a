import math

import pytest

from ki67.counted_index import area_index, counted_index
from ki67.errors import Flag
from ki67.index import flags_of, ki67_index, slide_findings, slide_record
from ki67.second_opinion import second_opinion, second_opinion_findings
from ki67.storage import to_plain
from tests.unit.test_index import TUMOR, check, nuclei


def opinion(index, *, index_area=0.2, positive=10, total=100):
    """A record as it is read back from JSON, where NaN has become None."""
    counts = {"index": index, "index_area": index_area, "positive": positive, "total": total}
    return to_plain({"settings": {"second_opinion": "stardist"}, "model": {"name": "stardist"}, **counts})


def test_the_index_is_counted_in_the_tumour_by_number_and_by_area():
    table = nuclei(3, 1, outside=2).assign(area_um2=[10.0, 20.0, 30.0, 40.0, 50.0, 60.0])
    inside = table[table["in_tumor"]]
    counted = counted_index(table)
    assert (counted.positive, counted.total, counted.index) == (3, 4, 0.75)
    assert counted.index_area == pytest.approx(inside["area_um2"][inside["positive"]].sum() / inside["area_um2"].sum())
    assert counted == counted_index(table.sample(frac=1, random_state=1))
    none = counted_index(nuclei(0, 0, outside=3))
    assert (none.positive, none.total) == (0, 0)
    assert math.isnan(none.index)
    assert math.isnan(none.index_area)


def test_the_index_by_area_is_the_one_of_the_slide():
    table = nuclei(150, 850, outside=100)
    result = ki67_index(table, TUMOR)
    assert result.index_area == counted_index(table).index_area
    assert math.isnan(area_index(table["area_um2"].to_numpy()[:0], table["positive"].to_numpy()[:0]))


@pytest.mark.parametrize(
    ("index", "limit", "words"),
    [
        (0.199, 0.05, None),
        (0.20, 0.05, None),
        (0.201, 0.05, "the second opinion (stardist) is 20.1%, 5.1 points from the index 15.0%"),
        (0.099, 0.05, "the second opinion (stardist) is 9.9%, 5.1 points from the index 15.0%"),
        (0.201, 0.2, None),
        (0.16, "interval", None),
        (0.30, "interval", "the second opinion (stardist) is 30.0%, outside of the interval of the index 15.0% ("),
        (None, 0.05, "the second opinion (stardist) found no nuclei where the index is 15.0%"),
        (None, "interval", "the second opinion (stardist) found no nuclei where the index is 15.0%"),
    ],
)
def test_a_second_opinion_that_differs_is_flagged_with_both_numbers(index, limit, words):
    result = ki67_index(nuclei(150, 850), TUMOR, slide_id="S1")
    found = list(second_opinion_findings(result, opinion(index), "S1", limit))
    assert [finding.flag for finding in found] == ([] if words is None else [Flag.SECOND_OPINION_DIFFERS])
    for finding in found:
        assert finding.message.startswith(f"S1: {words}")
        assert finding.message.endswith("; look at the nuclei of both in QuPath, and at stain and focus of the slide")


def test_nothing_differs_where_there_is_no_index_or_no_second_opinion():
    assert not list(second_opinion_findings(ki67_index(nuclei(0, 0), TUMOR), opinion(0.5), "S1"))
    assert not list(second_opinion_findings(ki67_index(nuclei(150, 850), TUMOR), None, "S1"))
    assert second_opinion(None) is None


def test_a_slide_tells_of_its_second_opinion():
    result = ki67_index(nuclei(150, 850), TUMOR, slide_id="S1")
    stages = {"check": check(True), "nuclei": {"model": {"name": "nuclei"}}, "second_opinion": opinion(0.4)}
    record = slide_record(result, slide="S1", patient="P1", stages=stages, references={})
    assert record["second_opinion"] == {
        "method": "stardist", "index": 0.4, "index_area": 0.2, "positive": 10, "total": 100
    }  # fmt: skip
    assert record["flags"] == ["second_opinion_differs"]
    assert record["models"]["second_opinion"] == {"name": "stardist"}
    assert flags_of(slide_findings(result, stages, second_opinion_differs=0.3)) == []
    without = slide_record(result, slide="S1", patient="P1", stages={"check": check(True)}, references={})
    assert (without["second_opinion"], without["flags"]) == (None, [])
