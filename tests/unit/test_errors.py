from __future__ import annotations

import pytest

from ki67.errors import STAIN_NAMES, ConfigError, Finding, Flag, Ki67Error, SlideError


@pytest.mark.parametrize("stain", ["he", "ki67", None])
def test_a_finding_survives_json(stain):
    finding = Finding(Flag.NO_MPP, "S07: the Ki-67 slide gives no microns per pixel", stain)
    assert Finding.from_json(finding.to_json()) == finding


def test_a_finding_is_plain_json():
    record = Finding(Flag.PEN_MARK, "S07: pen", "he").to_json()
    assert record == {"flag": "pen_mark", "message": "S07: pen", "stain": "he"}
    assert type(record["flag"]) is str


def test_an_unknown_flag_is_refused():
    with pytest.raises(ValueError, match="no_such_flag"):
        Finding.from_json({"flag": "no_such_flag", "message": "", "stain": None})


def test_the_flags_that_appear_in_tables_are_not_renamed():
    assert {flag.value for flag in Flag} >= {
        "missing_file",
        "unreadable",
        "no_mpp",
        "implausible_mpp",
        "no_tissue",
        "wrong_stain",
        "stain_uncertain",
        "out_of_focus",
        "pen_mark",
        "no_he",
        "no_ki67",
        "registration_rejected",
        "registration_doubtful",
        "tumor_from_ki67",
        "no_tumor",
        "no_nuclei",
        "fewer_than_500_nuclei",
    }


def test_a_slide_error_carries_its_finding_and_reads_as_its_message():
    finding = Finding(Flag.UNREADABLE, "S07: the H&E slide is empty", "he")
    error = SlideError(finding)
    assert error.finding is finding
    assert str(error) == finding.message


def test_every_error_on_purpose_has_one_base():
    assert issubclass(SlideError, Ki67Error)
    assert issubclass(ConfigError, Ki67Error)


def test_both_stains_have_a_name_for_people():
    assert STAIN_NAMES == {"he": "H&E", "ki67": "Ki-67"}
