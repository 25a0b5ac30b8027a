"""Which tumour mask a Ki-67 slide gets, and the regions a person drew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ki67.errors import Flag, SlideError
from ki67.geometry import Mask, RigidTransform
from ki67.transfer import (
    carry_mask,
    draws_regions,
    own_mask_finding,
    read_regions,
    region_mask,
    registration_findings,
    tumor_source,
    within,
)

USABLE, UNUSABLE = {"usable": True}, {"usable": False}


@pytest.mark.parametrize(
    ("ki67", "segmented", "verdict", "source"),
    [
        (USABLE, True, "accepted", "he"),
        (USABLE, True, "doubtful", "he"),
        (USABLE, True, "rejected", "ki67"),
        (USABLE, False, "not_applicable", "ki67"),
        (USABLE, False, "accepted", "ki67"),
        (UNUSABLE, True, "not_applicable", None),
        (None, True, "not_applicable", None),
    ],
)
def test_the_mask_of_the_he_is_used_where_it_exists_and_fits(ki67, segmented, verdict, source) -> None:
    check = {"stains": {"he": USABLE, "ki67": ki67}}
    assert tumor_source(check, {"segmented": segmented}, {"verdict": verdict}) == source


def test_a_registration_that_does_not_hold_is_a_finding() -> None:
    assert registration_findings("S01", "accepted", "fits") == []
    (rejected,) = registration_findings("S01", "rejected", "nothing fits")
    assert rejected.flag == Flag.REGISTRATION_REJECTED
    assert rejected.message == "S01: the registration of the H&E slide was rejected: nothing fits"
    (doubtful,) = registration_findings("S01", "doubtful", "few places")
    assert doubtful.flag == Flag.REGISTRATION_DOUBTFUL
    assert own_mask_finding("S01").flag == Flag.TUMOR_FROM_KI67


def test_a_carried_mask_keeps_its_place_and_stays_in_the_tissue() -> None:
    pixels = np.zeros((50, 50), dtype=bool)
    pixels[10:20, 5:25] = True
    transform = RigidTransform.from_parameters(
        angle_deg=0, shift_um=(40.0, 20.0), mirror=False, source="he", target="ki67"
    )
    tissue = np.ones((10, 10), dtype=bool)
    tissue[:, 0] = False  # 8 to a pixel: 16 µm of glass on the left
    tissue[:, 5:] = False
    carried = carry_mask(Mask(pixels, 2.0, "he"), transform, Mask(tissue, 16.0, "ki67"), (160.0, 120.0))
    assert carried.pixels.shape == (60, 80)
    assert carried.frame == "ki67"
    expected = np.zeros((60, 80), dtype=bool)
    expected[20:30, 25:40] = True
    np.testing.assert_array_equal(carried.pixels, expected)


def test_masks_of_different_resolution_are_compared_in_microns() -> None:
    fine = Mask(np.ones((8, 8), dtype=bool), 1.0, "he")
    coarse = Mask(np.array([[True, False], [False, False]]), 4.0, "he")
    assert within(fine, coarse).area_mm2 == pytest.approx(16e-6)


def square(left: int, top: int, side: int) -> list[list[int]]:
    return [[left, top], [left + side, top], [left + side, top + side], [left, top + side], [left, top]]


@pytest.mark.parametrize("form", ["geometry", "feature", "collection", "list"])
def test_regions_of_every_form_of_geojson_are_read_with_their_holes(form: str) -> None:
    geometry = {"type": "MultiPolygon", "coordinates": [[square(0, 0, 40), square(8, 8, 16)], [square(60, 60, 20)]]}
    feature = {"type": "Feature", "geometry": geometry, "properties": {}}
    values = {
        "geometry": geometry,
        "feature": feature,
        "collection": {"type": "FeatureCollection", "features": [feature]},
        "list": [feature],
    }
    mask = region_mask(json.dumps(values[form]), shape=(20, 20), mpp=2.0, level0_mpp=0.5, slide_id="S01", stain="ki67")
    assert mask.pixels[0, 0]
    assert not mask.pixels[3, 3]
    assert mask.pixels[17, 17]
    assert not mask.pixels[12, 12]
    assert mask.area_mm2 == pytest.approx((20**2 - 8**2 + 10**2) * 1e-6, rel=0.25)


def feature(left: int, side: int, name: str | None) -> dict[str, object]:
    geometry = {"type": "Polygon", "coordinates": [square(left, 0, side)]}
    properties = {"classification": {"name": name}} if name else {}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def drawn_mask(*features: dict[str, object]) -> Mask:
    return region_mask(json.dumps(features), shape=(20, 20), mpp=2.0, level0_mpp=0.5, slide_id="S01", stain="ki67")


@pytest.mark.parametrize("name", ["Exclude", "exclude", "Ignore*", "In situ", "DCIS"])
def test_polygons_that_exclude_are_taken_from_the_others(name: str) -> None:
    mask = drawn_mask(feature(0, 40, "Tumor"), feature(20, 40, name))
    assert mask.pixels[5, 2]
    assert not mask.pixels[5, 7]
    assert not mask.pixels[5, 12]


def test_where_all_polygons_exclude_the_rest_of_the_slide_is_left() -> None:
    features = [feature(0, 40, "exclude")]
    mask = drawn_mask(*features)
    assert not mask.pixels[5, 5]
    assert mask.pixels[15, 15]
    assert not draws_regions(json.dumps(features))
    assert draws_regions(json.dumps([*features, feature(0, 40, None)]))


@pytest.mark.parametrize("text", ["", "{}", "no json", '{"type": "Point", "coordinates": [1, 2]}', "[1]", "null"])
def test_a_file_without_polygons_is_a_finding_and_not_a_crash(text: str) -> None:
    with pytest.raises(SlideError, match="S01: roi_ki67 of the Ki-67 slide holds no polygon; export it from QuPath"):
        region_mask(text, shape=(4, 4), mpp=2.0, level0_mpp=0.5, slide_id="S01", stain="ki67")


def test_regions_are_read_where_the_sheet_gives_them(tmp_path: Path) -> None:
    path = tmp_path / "regiön.geojson"
    path.write_text("{}", encoding="utf-8")
    assert read_regions(False, None, slide_id="S01", stain="he") is None
    assert read_regions(True, path, slide_id="S01", stain="he") == "{}"
    with pytest.raises(SlideError, match="S01: roi_he of the H&E slide does not exist") as missing:
        read_regions(True, [], slide_id="S01", stain="he")
    assert missing.value.finding.flag == Flag.MISSING_FILE
    path.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(SlideError, match="S01: roi_he of the H&E slide is not a text file"):
        read_regions(True, path, slide_id="S01", stain="he")
