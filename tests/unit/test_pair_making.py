from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ki67.geometry import Mask
from ki67.phantom.pair import PhantomOptions
from ki67.prediction.pair_filters import Rejection
from ki67.prediction.pair_making import (
    MadePairs,
    PairSettings,
    carried_patch,
    drawn_order,
    make_pairs,
    needed_stains,
    tumor_squares,
    unlabelled_reason,
)
from ki67.prediction.pair_pictures import pairs_picture
from ki67.prediction.patch_pairs import read_patch_pairs, write_patch_pairs
from tests.unit.drawn_pairs import DrawnPair, draw_pair, moved

SETTINGS = PairSettings(patches_per_slide=30, ssim=-1.0, density_ratio=100.0)
TURNED = PhantomOptions(
    1.5, tumor_share=0.6, ki67_fraction=0.3, rotation_deg=130.0, shift_um=(150.0, -80.0), flip=True, mpp=0.5, seed=11
)


@pytest.fixture(scope="module")
def pair() -> DrawnPair:
    return draw_pair(TURNED)


@pytest.fixture(scope="module")
def made(pair: DrawnPair) -> MadePairs:
    return make_pairs(pair.he, pair.tumor, pair.ki67, SETTINGS, slide_id="S01", patient="P1", slide_index=0.3)


def test_labels_are_those_of_the_nuclei_at_the_same_place_of_the_tissue(pair: DrawnPair, made: MadePairs) -> None:
    assert made.pairs.labelled.sum() >= 15
    tumor, positive = (pair.ki67.nuclei[name].to_numpy() for name in ("in_tumor", "positive"))
    for patch in np.flatnonzero(made.pairs.labelled):
        corner = made.pairs.center_um[patch] - SETTINGS.side_um / 2
        inside = ((pair.nuclei_on_he_um >= corner) & (pair.nuclei_on_he_um < corner + SETTINGS.side_um)).all(axis=1)
        assert made.pairs.positive[patch] == (inside & tumor & positive).sum()
        assert made.pairs.negative[patch] == (inside & tumor & ~positive).sum()
        assert made.pairs.label[patch] == pytest.approx(positive[inside & tumor].mean(), abs=1e-6)
    assert made.pairs.label[made.pairs.labelled].std() > 0.02


def test_pixels_of_the_ki67_slide_lie_where_the_h_and_e_has_the_place(pair: DrawnPair, made: MadePairs) -> None:
    """Positive nuclei are brown where the truth puts them on the H&E, though the section is turned and mirrored."""
    assert made.ki67 is not None
    positive = pair.ki67.nuclei["positive"].to_numpy()
    brown: dict[bool, list[float]] = {True: [], False: []}
    for patch, pixels in enumerate(made.ki67):
        places = pair.nuclei_on_he_um - (made.pairs.center_um[patch] - SETTINGS.side_um / 2)
        inside = ((places >= 2) & (places < SETTINGS.side_um - 2)).all(axis=1)
        for (x, y), one in zip(places[inside], positive[inside], strict=True):
            red, _, blue = pixels[int(y), int(x)].astype(float)
            brown[bool(one)].append(np.log((red + 1) / (blue + 1)))
    assert np.median(brown[True]) > np.quantile(brown[False], 0.95)


def test_a_wrong_registration_is_seen_in_the_structure(pair: DrawnPair, made: MadePairs) -> None:
    wrong = make_pairs(pair.he, pair.tumor, moved(pair, (250.0, 100.0)), SETTINGS, slide_id="S01")
    assert np.median(made.similarity) > np.median(wrong.similarity) + 0.2
    strict = replace(SETTINGS, ssim=0.4)
    right, wrong = (
        make_pairs(pair.he, pair.tumor, side, strict, slide_id="S01")
        for side in (pair.ki67, moved(pair, (250.0, 100.0)))
    )
    assert right.pairs.labelled.sum() > 2 * wrong.pairs.labelled.sum()
    assert wrong.pairs.rejected["structure_differs"] > len(wrong.pairs) / 3


def test_area_may_be_the_label(pair: DrawnPair, made: MadePairs) -> None:
    by_area = make_pairs(pair.he, pair.tumor, pair.ki67, replace(SETTINGS, label="area"), slide_id="S01")
    patch = int(np.flatnonzero(made.pairs.labelled)[0])
    corner = made.pairs.center_um[patch] - SETTINGS.side_um / 2
    inside = ((pair.nuclei_on_he_um >= corner) & (pair.nuclei_on_he_um < corner + SETTINGS.side_um)).all(axis=1)
    nuclei = pair.ki67.nuclei[inside & pair.ki67.nuclei["in_tumor"].to_numpy()]
    area = nuclei.loc[nuclei["positive"], "area_um2"].sum() / nuclei["area_um2"].sum()
    assert by_area.pairs.label[patch] == pytest.approx(area, abs=1e-5)
    np.testing.assert_array_equal(by_area.pairs.positive, made.pairs.positive)


def test_a_slide_without_a_registration_that_holds_has_patches_without_labels(pair: DrawnPair, made: MadePairs) -> None:
    doubtful = make_pairs(
        pair.he, pair.tumor, None, SETTINGS, slide_id="S01", unlabelled=Rejection.REGISTRATION_DOUBTFUL
    )
    assert not doubtful.pairs.labelled.any()
    assert not doubtful.pairs.positive.any()
    assert doubtful.ki67 is None
    assert doubtful.pairs.rejected["registration_doubtful"] == len(doubtful.pairs)
    np.testing.assert_array_equal(doubtful.pairs.he, made.pairs.he)
    np.testing.assert_array_equal(doubtful.pairs.nuclei_he, made.pairs.nuclei_he)


@pytest.mark.parametrize(
    ("ki67", "verdict", "reason"),
    [
        ({"usable": True}, "accepted", None),
        ({"usable": True}, "doubtful", Rejection.REGISTRATION_DOUBTFUL),
        ({"usable": True}, "rejected", Rejection.REGISTRATION_REJECTED),
        ({"usable": True}, "not_applicable", Rejection.NOT_REGISTERED),
        ({"usable": False}, "not_applicable", Rejection.NO_KI67),
        (None, "not_applicable", Rejection.NO_KI67),
    ],
)
def test_only_an_accepted_registration_labels_patches(
    ki67: dict[str, bool] | None, verdict: str, reason: Rejection | None
) -> None:
    assert unlabelled_reason({"he": {"usable": True}, "ki67": ki67}, verdict) is reason
    tumor = Mask(np.ones((4, 4), dtype=bool), 2.0, "he")
    assert needed_stains(tumor, reason) == (("he", "ki67") if reason is None else ("he",))
    assert needed_stains(Mask.empty("he"), reason) == ()


def test_a_slide_without_tumour_or_without_an_h_and_e_has_no_patches(pair: DrawnPair) -> None:
    empty = make_pairs(pair.he, Mask.empty("he"), pair.ki67, SETTINGS, slide_id="S01")
    absent = make_pairs(None, pair.tumor, None, SETTINGS, slide_id="S01")
    for nothing in (empty, absent):
        assert len(nothing.pairs) == 0
        assert nothing.to_json()["mean_label"] is None
        assert pairs_picture(nothing).shape[2] == 3
    assert absent.candidates > 0


def test_patches_that_are_white_are_replaced_by_others(pair: DrawnPair) -> None:
    """All of the slide is called tumour, so that squares of glass are among those that are drawn."""
    everything = Mask(np.ones_like(pair.tumor.pixels), 1.0, "he")
    found = make_pairs(pair.he, everything, None, SETTINGS, slide_id="S01")
    assert found.pairs.rejected["white_he"] > 10
    assert len(found.pairs) == SETTINGS.patches_per_slide
    assert np.median(found.pairs.he.reshape(len(found.pairs), -1).mean(axis=1)) < 215


def test_which_patches_are_chosen_depends_on_slide_and_seed_alone(pair: DrawnPair) -> None:
    few = replace(SETTINGS, patches_per_slide=8)

    def places(settings: PairSettings, slide_id: str) -> set[tuple[float, ...]]:
        found = make_pairs(pair.he, pair.tumor, None, settings, slide_id=slide_id).pairs.center_um
        assert found.tolist() == sorted(found.tolist(), key=lambda point: (point[1], point[0]))
        return set(map(tuple, found))

    chosen = places(few, "S01")
    assert len(chosen) == 8
    assert places(few, "S01") == chosen
    assert places(few, "S02") != chosen
    assert places(replace(few, seed=2), "S01") != chosen
    assert places(replace(few, patches_per_slide=9), "S01") > chosen


def test_orders_of_two_slides_have_nothing_in_common() -> None:
    one, other = drawn_order(1000, 1, "S01"), drawn_order(1000, 1, "S02")
    assert sorted(one) == list(range(1000))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.15
    assert abs(np.corrcoef(one, np.arange(1000))[0, 1]) < 0.15


def test_squares_hold_the_share_of_tumour_that_is_asked_for() -> None:
    pixels = np.zeros((40, 60), dtype=bool)
    pixels[0:20, 20:40] = True
    pixels[20:35, 0:20] = True
    mask = Mask(pixels, 2.0, "he")
    assert tumor_squares(mask, 40.0, 0.75).tolist() == [[40.0, 0.0], [0.0, 40.0]]
    assert tumor_squares(mask, 40.0, 0.76).tolist() == [[40.0, 0.0]]
    assert tumor_squares(Mask.empty("he"), 40.0, 0.5).shape == (0, 2)


def test_a_patch_beyond_the_edge_of_the_ki67_slide_is_white(pair: DrawnPair) -> None:
    beyond = moved(pair, (1e5, 0.0))
    patch = carried_patch(beyond.slide.read, np.array([0.0, 0.0]), beyond.transform, 32, 1.0)
    assert patch.shape == (32, 32, 3)
    assert patch.min() == 255


def test_pairs_survive_the_disk_and_their_picture_shows_labels_and_reasons(made: MadePairs, tmp_path: Path) -> None:
    write_patch_pairs(tmp_path / "pairs.zarr", made.pairs, made.ki67)
    again = read_patch_pairs(tmp_path / "pairs.zarr")
    np.testing.assert_array_equal(again.label, made.pairs.label)
    assert again.settings == vars(SETTINGS)
    assert again.rejected == made.pairs.rejected
    record = made.to_json()
    assert (
        record["patches"]
        == len(made.pairs)
        == record["labelled"] + sum(count for reason, count in record["rejected"].items() if reason != "white_he")
    )
    picture = pairs_picture(made)
    assert picture.shape[1] > 1000
    assert picture.std() > 20
