"""The sample sheet and the settings, and the sentences that explain what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ki67.errors import ConfigError
from ki67.sheet import (
    SlideRow,
    add_scores,
    check_settings,
    decode_sheet,
    missing_file_sentence,
    read_rows,
    with_defaults,
)
from ki67.slides import COARSEST_MPP, FINEST_MPP

ROOT = Path(__file__).parents[2]
ROW_SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/slides.schema.yaml").read_text())
SETTINGS_SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
DEFAULTS = yaml.safe_load((ROOT / "config/config.yaml").read_text())


def rows_of(*lines: str) -> list[SlideRow]:
    return read_rows("\n".join(line.replace("|", "\t") for line in lines), ROW_SCHEMA, name="slides.tsv")


def test_a_full_row_keeps_every_cell() -> None:
    header = "slide | ki67 | he | mpp_ki67 | mpp_he | patient | roi_ki67 | roi_he | reference_index | reference_index_b"
    (row,) = rows_of(header, "S01 | a b.svs | ü.svs | 0.25 | 0.5 | P1 | k.geojson | h.geojson | 0.2 | 0.3")
    assert row == SlideRow(
        slide="S01",
        row=2,
        patient="P1",
        files={"he": "ü.svs", "ki67": "a b.svs"},
        regions={"he": "h.geojson", "ki67": "k.geojson"},
        mpp={"he": 0.5, "ki67": 0.25},
        references={"reference_index": 0.2, "reference_index_b": 0.3},
    )


def test_empty_cells_fall_back_and_short_rows_are_filled() -> None:
    (row,) = rows_of("slide | ki67 | he | patient", "S01 | a.svs")
    assert row.patient == "S01"
    assert row.files == {"ki67": "a.svs"}
    assert row.mpp == {}


def test_marks_of_other_systems_and_comments_are_understood() -> None:
    text = "slide\tki67 \r\n# a remark\r\n\t\r\n S01\ta.svs  \r\n"
    for content in (b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16")):
        (row,) = read_rows(decode_sheet(content, name="s.tsv"), ROW_SCHEMA, name="s.tsv")
        assert (row.slide, row.files, row.row) == ("S01", {"ki67": "a.svs"}, 4)


def test_an_empty_sheet_has_no_rows() -> None:
    assert rows_of("slide | ki67") == []


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["slide,ki67,he", "S01,a,b"], "slides.tsv has commas between its columns; save it with tabs instead (TSV)"),
        (["slide;ki67;he"], "slides.tsv has semicolons between its columns; save it with tabs instead (TSV)"),
        (["id | ki67"], "slides.tsv has no column slide in its first line; write one, columns are separated by tabs"),
        (["slide | ki67 | ki67"], "slides.tsv has the column ki67 twice; remove one"),
        (
            ["slide | ki67 | roi_he", "S01 | {slide}.tif |"],
            "slides.tsv row 2 (S01): ki67 is '{slide}.tif'; rename the file, as paths cannot hold braces",
        ),
        (["slide | kI67"], "unknown column 'kI67' in slides.tsv; did you mean 'ki67'?"),
        (["slide | ki67 | | he"], "slides.tsv has a column without a name; name it or remove it"),
        (
            ["slide | ki67 | ", "S01 | a | b"],
            "slides.tsv row 2 has 3 cells under 2 columns; remove the tabs that are too many",
        ),
        (["slide | ki67", " | a"], "slides.tsv row 2: the column slide is empty; give the slide an id"),
        (
            ["slide | ki67 | he", "S01 | | "],
            "slides.tsv row 2 (S01): he (H&E) and ki67 (Ki-67) are both empty; write the path of at least one slide file",
        ),
        (
            ["slide | ki67", "S01 | a", "S01 | b"],
            "slides.tsv row 3 (S01): the id is already used in row 2; give every slide an id of its own",
        ),
        (
            ["slide | ki67", "S01 | a", "s01 | b"],
            "slides.tsv row 3 (s01): the id differs from 'S01' in row 2 only by case; give every slide an id of its own",
        ),
        (
            ["slide | ki67", "Cohort | a"],
            "slides.tsv row 2 (Cohort): the id 'Cohort' is taken by the workflow itself; choose another",
        ),
        (
            ["slide | ki67 | reference_index", "S01 | a | 15"],
            "slides.tsv row 2 (S01): reference_index is 15; write 0.15",
        ),
        (
            ["slide | ki67 | reference_index_b", "S01 | a | -1"],
            "slides.tsv row 2 (S01): reference_index_b is -1; write a fraction from 0 to 1",
        ),
        (
            ["slide | ki67 | reference_index", "S01 | a | 15%"],
            "slides.tsv row 2 (S01): reference_index is '15%'; write a number such as 0.15",
        ),
        (["slide | ki67 | mpp_ki67", "S01 | a | 0,25"], "slides.tsv row 2 (S01): mpp_ki67 is '0,25'; write 0.25"),
        (
            ["slide | ki67 | mpp_ki67", "S01 | a | 0"],
            "slides.tsv row 2 (S01): mpp_ki67 is 0.0; write a number from 0.01 to 100",
        ),
        (
            ["slide | ki67 | mpp_ki67", "S01 | a | nan"],
            "slides.tsv row 2 (S01): mpp_ki67 is 'nan'; write a number such as 0.15",
        ),
    ],
)
def test_a_mistake_in_the_sheet_is_one_sentence_with_row_column_and_remedy(lines: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        rows_of(*lines)
    assert str(error.value) == sentence


@pytest.mark.parametrize("slide", ["../x", "a/b", "..", ".hidden", "-f", "a b", "ä", "a\\b", "x" * 101, "a:b"])
def test_an_id_that_could_leave_its_folder_is_refused(slide: str) -> None:
    with pytest.raises(ConfigError, match="slide is '.*'; write an id of at most 100 letters, digits, dots, dashes"):
        rows_of("slide | ki67", f"{slide} | a")


def test_a_workbook_and_another_encoding_are_named() -> None:
    with pytest.raises(ConfigError, match=r"s.tsv is an Excel workbook; save it as text with tabs"):
        decode_sheet(b"PK\x03\x04rest", name="s.tsv")
    with pytest.raises(ConfigError, match=r"s.tsv row 2 holds a byte that is not UTF-8; save the sheet as UTF-8 text"):
        decode_sheet("slide\nMüller".encode("latin-1"), name="s.tsv")


def test_jobs_read_the_rows_without_checking_them() -> None:
    text = "slide\tki67\nS01\ta\nS01\tb\n"
    assert len(read_rows(text, ROW_SCHEMA, name="s.tsv", check=False)) == 2


def test_the_shipped_sheet_and_settings_pass() -> None:
    text = decode_sheet((ROOT / "config/slides.tsv").read_bytes(), name="slides.tsv")
    assert read_rows(text, ROW_SCHEMA, name="slides.tsv") == []
    check_settings(DEFAULTS, SETTINGS_SCHEMA)


def test_the_sheet_takes_every_scale_that_the_readers_take() -> None:
    limits = ROW_SCHEMA["properties"]["mpp_ki67"]
    assert limits["minimum"] <= FINEST_MPP < COARSEST_MPP <= limits["maximum"]


def test_settings_of_a_section_go_before_the_defaults_key_by_key() -> None:
    merged = with_defaults({"tumor": {"threshold": 0.4}, "keep": "tables"}, DEFAULTS)
    assert merged["tumor"] == DEFAULTS["tumor"] | {"threshold": 0.4}
    assert merged["keep"] == "tables"
    assert merged["models"] == DEFAULTS["models"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tumour": {}}, "unknown key 'tumour' of config.yaml; did you mean 'tumor'?"),
        ({"slide": "x"}, "unknown key 'slide' of config.yaml; did you mean 'slides'?"),
        ({"keep": "all"}, "config.yaml: keep is 'all'; write tables or masks or probabilities"),
        ({"on_missing": "skip"}, "config.yaml: on_missing is 'skip'; write row or stop"),
        (
            {"network": {"batch_sise": 3}},
            "unknown key 'batch_sise' in section network of config.yaml; did you mean 'batch_size'?",
        ),
        ({"network": {"batch_size": 0}}, "config.yaml: network.batch_size is 0; write a whole number from 1 to 1024"),
        (
            {"network": {"batch_size": "4"}},
            "config.yaml: network.batch_size is '4'; write a whole number from 1 to 1024; within the braces of --config "
            "numbers are text, so write it into a file and name that with --configfile",
        ),
        ({"tumor": {"threshold": 2}}, "config.yaml: tumor.threshold is 2; write a number or nothing from 0 to 1"),
        ({"index": None}, "config.yaml: index is None; write a section of keys"),
    ],
)
def test_a_mistake_in_the_settings_is_one_sentence(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_settings(with_defaults(settings, DEFAULTS), SETTINGS_SCHEMA)
    assert str(error.value) == sentence


def test_every_setting_has_a_default_and_a_schema() -> None:
    def keys(settings: object, schema: dict[str, dict[str, dict[str, object]]]) -> None:
        if not isinstance(settings, dict) or "properties" not in schema:  # dataset names are any
            return
        assert set(settings) == set(schema["properties"])
        assert schema["additionalProperties"] is False
        for key, value in settings.items():
            keys(value, schema["properties"][key])

    keys(DEFAULTS, SETTINGS_SCHEMA)


def test_an_absent_file_is_named_with_both_remedies() -> None:
    (row,) = rows_of("slide | ki67", "S01 | a.svs")
    assert missing_file_sentence(row, "ki67", "a.svs", name="slides.tsv") == (
        "slides.tsv row 2 (S01): ki67 names a.svs, which is not a file; correct the path, or set on_missing: row to "
        "list the slide as flagged"
    )


SHEET = '# our slides\nslide\tki67\treference_index\t\nS1\ta.svs\t\nS2\tb "x".svs\t0.2\nS3\tc.svs\n'


def test_saved_scores_come_into_the_sheet_and_nothing_else_changes() -> None:
    text = add_scores(SHEET, "slide,reference_index,reference_index_bo\nS1,0.155,\nS3,,0.3\nS2,0.2,0\n", ROW_SCHEMA)
    assert text.splitlines()[0] == "# our slides"
    rows = {row.slide: row for row in read_rows(text, ROW_SCHEMA, name="slides.tsv")}
    assert {slide: row.references for slide, row in rows.items()} == {
        "S1": {"reference_index": 0.155},
        "S2": {"reference_index": 0.2, "reference_index_bo": 0.0},
        "S3": {"reference_index_bo": 0.3},
    }
    assert rows["S2"].files == {"ki67": 'b "x".svs'}
    assert add_scores(text, "slide;reference_index\nS1;0.155\n", ROW_SCHEMA) == text


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        (
            "slide,reference_index\nS2,0.3\n",
            "slides.tsv (S2): reference_index is 0.2, but scores.csv says 0.3; empty the cell to take the saved score",
        ),
        (
            "slide,reference_index\nS9,0.3\n",
            "scores.csv has a score of 'S9', which is no slide of slides.tsv; remove its row",
        ),
        ("slide,reference_index\nS1,15\n", "scores.csv row 2 (S1): reference_index is 15; write 0.15"),
        (
            "slide,reference_index\nS1,many\n",
            "scores.csv row 2 (S1): reference_index is 'many'; write a number such as 0.15",
        ),
        (
            "slide,score\nS1,0.1\n",
            "scores.csv is no file of scores; its first line must be slide,reference_index or the like",
        ),
        ("", "scores.csv is no file of scores; its first line must be slide,reference_index or the like"),
    ],
)
def test_scores_that_do_not_fit_are_explained(scores: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        add_scores(SHEET, scores, ROW_SCHEMA)
    assert str(error.value) == sentence
