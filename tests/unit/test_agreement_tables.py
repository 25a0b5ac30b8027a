"""Agreement over a cohort: raters, left-out slides, the record, the table, the picture and the command."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ki67.agreement import pair_agreement
from ki67.agreement_figures import MOST_READERS, agreement_picture
from ki67.agreement_tables import COLUMNS, agreement_table, cohort_agreement, read_indices
from ki67.cli import app
from ki67.errors import ConfigError
from ki67.figures import NEGATIVE, REFERENCE
from ki67.storage import read_json, write_csv, write_json

NAN = float("nan")


def cohort(readers: int = 2, slides: int = 30) -> pd.DataFrame:
    """Slides with an index and readers who see nearly the same; the last slide has no index, and readers skip some."""
    random = np.random.default_rng(1)
    truth = random.beta(1.4, 5, slides)
    table = pd.DataFrame({"slide": [f"S{number}" for number in range(slides)], "index": truth})
    table["index_low"], table["index_high"] = 0.9 * truth, 1.1 * truth
    for number in range(readers):
        seen = np.clip(truth + random.normal(0.01 * number, 0.02, slides), 0, 1).round(2)
        seen[number::7] = NAN
        table["reference_index" + (f"_r{number}" if number else "")] = seen
    table.loc[slides - 1, ["index", "index_low", "index_high"]] = NAN
    return table


def test_every_pair_is_compared_on_slides_with_an_index_that_both_have():
    slides = cohort(readers=3)
    record = cohort_agreement(slides)
    assert (record["slides"], record["without_index"]) == (30, 1)
    raters = ["index", "reference_index", "reference_index_r1", "reference_index_r2"]
    assert [rater["name"] for rater in record["raters"]] == raters
    assert [(pair["first"], pair["second"]) for pair in record["pairs"]] == [
        *[("index", reader) for reader in raters[1:]],
        *[(raters[1], raters[2]), (raters[1], raters[3]), (raters[2], raters[3])],
    ]
    scored = slides[slides["index"].notna()]
    for pair in record["pairs"]:
        both = scored[[pair["first"], pair["second"]]].dropna()
        assert pair["n"] == len(both) == np.sum(pair["confusion"])
        assert pair["left_out"] == 29 - len(both)
        assert pair["measures"] == pair_agreement(both.iloc[:, 0].to_numpy(), both.iloc[:, 1].to_numpy())
    assert list(record["groups"]) == ["readers", "all"]
    assert record["groups"]["readers"]["raters"] == raters[1:]
    assert record["groups"]["all"]["measures"]["icc_2_1"].n == int(scored[raters].notna().all(axis=1).sum())


def test_the_order_of_slides_and_readers_changes_nothing():
    slides = cohort(readers=3)
    shuffled = slides.sample(frac=1, random_state=3)[list(slides.columns[::-1])]
    first, second = agreement_table(cohort_agreement(slides)), agreement_table(cohort_agreement(shuffled))
    assert first.to_csv() == second.to_csv()


def test_the_table_has_a_row_a_pair_and_measure_and_documented_columns(tmp_path):
    record = cohort_agreement(cohort(readers=2))
    table = agreement_table(record)
    assert tuple(table.columns) == COLUMNS
    assert table.groupby("comparison", sort=False).size().to_dict() == {"pair": 3 * 15, "readers": 3, "all": 3}
    biased = table[(table["second"] == "reference_index_r1") & (table["measure"] == "bias")]
    assert biased["value"].iloc[0] < 0  # this reader is a point above the index
    write_csv(tmp_path / "agreement.csv", table)
    assert len(pd.read_csv(tmp_path / "agreement.csv")) == len(table)


@pytest.mark.parametrize(
    "table", [cohort(readers=0), cohort(readers=1).assign(reference_index=NAN), cohort(slides=1)[:0]]
)
def test_a_cohort_without_references_gives_empty_tables_and_a_picture_that_says_so(table, tmp_path):
    record = cohort_agreement(table)
    assert (record["raters"], record["pairs"], record["groups"]) == ([], [], {})
    write_csv(tmp_path / "agreement.csv", agreement_table(record))
    assert (tmp_path / "agreement.csv").read_text() == ",".join(COLUMNS) + "\n"
    picture = agreement_picture(table, record)
    assert picture.shape[0] < 100
    assert (picture < 100).any()


def test_a_reader_of_slides_without_index_only_is_listed_with_reasons(tmp_path):
    slides = pd.DataFrame({"index": [NAN, NAN], "reference_index": [0.1, 0.2]})
    record = cohort_agreement(slides)
    assert record["raters"] == [{"name": "index", "slides": 0}, {"name": "reference_index", "slides": 0}]
    write_json(tmp_path / "agreement.json", record)
    measures = read_json(tmp_path / "agreement.json")["pairs"][0]["measures"]
    assert all(one["value"] is None and "there are 0" in one["reason"] for one in measures.values())
    assert agreement_picture(slides, record).shape[1] == 1000


def test_categories_follow_the_cut_offs():
    record = cohort_agreement(cohort(readers=1), (0.03, 0.20), ("G1", "G2", "G3"))
    assert record["categories"] == ["G1", "G2", "G3"]
    assert record["cutoffs"] == [0.03, 0.20]
    low = cohort(readers=1).dropna().query("index < 0.03")
    assert sum(record["pairs"][0]["confusion"][0]) == len(low)


def test_the_picture_has_a_row_a_reader_with_slides_and_limits():
    slides = cohort(readers=1)
    one = agreement_picture(slides, cohort_agreement(slides))
    several = cohort(readers=MOST_READERS + 1)
    many = agreement_picture(several, cohort_agreement(several))
    assert one.dtype == np.uint8
    assert 400 < one.shape[0] < 600
    assert many.shape[0] == pytest.approx(MOST_READERS * one.shape[0], rel=0.1)
    for color in (NEGATIVE, REFERENCE):
        # Dots are a little transparent, lines are not.
        near = np.abs(one.astype(int) - np.array(color)).sum(axis=2) < 160
        assert near.sum() > 300


# The command


def written(tmp_path, text: str, name: str = "cohort.csv", encoding: str = "utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def test_the_command_reads_the_cohort_table(tmp_path):
    slides = cohort(readers=2)
    slides["reasons"] = 'a; "quoted", with\na line feed'
    write_csv(tmp_path / "cohort.csv", slides)
    files = {option: tmp_path / f"found.{option}" for option in ("out", "csv", "picture")}
    files["picture"] = tmp_path / "found.png"
    options = [part for option, path in files.items() for part in (f"--{option}", str(path))]
    result = CliRunner().invoke(
        app, ["agreement", str(tmp_path / "cohort.csv"), *options, "--preset", "neuroendocrine"]
    )
    assert result.exit_code == 0, result.output
    record = json.loads(files["out"].read_text())
    assert record["categories"] == ["G1", "G2", "G3"]
    assert record["without_index"] == 1
    expected = cohort_agreement(slides)["pairs"][0]["measures"]["icc_2_1"].value
    assert record["pairs"][0]["measures"]["icc_2_1"]["value"] == pytest.approx(expected, abs=1e-5)
    assert len(pd.read_csv(files["csv"])) == 3 * 15 + 6
    assert files["picture"].read_bytes().startswith(b"\x89PNG")
    assert result.output.splitlines()[0].split("\t")[3] == "measure"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_any_table_with_an_index_and_references_is_read(tmp_path, separator):
    rows = [["case", "reference_index_b", "index"], ["1", "0.2", "0.25"], ["2", "", " 0.5"], ["3", "0.1", ""]]
    path = written(tmp_path, "".join(separator.join(row) + "\r\n" for row in rows), encoding="utf-8-sig")
    table = read_indices(path)
    assert list(table.columns) == ["index", "reference_index_b"]
    np.testing.assert_array_equal(table.to_numpy(), [[0.25, 0.2], [0.5, NAN], [NAN, 0.1]])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("index,reference_index\n0.1,15\n", "cohort.csv row 2: reference_index is '15'; write 0.15"),
        (
            "index,reference_index\n0.1,0.1\n-0.1,0.1\n",
            "cohort.csv row 3: index is '-0.1'; write a fraction from 0 to 1",
        ),
        ("index;reference_index\n0,1;0,2\n", "cohort.csv row 2: index is '0,1'; write a fraction from 0 to 1"),
        ("slide,reference_index\nS1,0.1\n", "cohort.csv has no columns index; it needs one"),
        ("index,reference_index,index\n0.1,0.1,0.1\n", "cohort.csv has 2 columns index; it needs one"),
        ("index,reader\n0.1,0.1\n", "cohort.csv has no column reference_index or reference_index_<reader>"),
        ("", "cohort.csv is no table"),
        ("index,reference_index\n0.1,0.2\n0.1,0.2,0.3\n", "cohort.csv is no table"),
    ],
)
def test_a_wrong_table_is_one_sentence(tmp_path, text, sentence):
    with pytest.raises(ConfigError) as caught:
        read_indices(written(tmp_path, text))
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.csv cannot be read \(No such file or directory\); give the path"):
        read_indices(tmp_path / "no.csv")
    with pytest.raises(ConfigError, match=r"cohort\.csv is not UTF-8 text; save it as CSV in UTF-8"):
        read_indices(written(tmp_path, "index,reference_index\n0.1,ä\n", encoding="latin-1"))
