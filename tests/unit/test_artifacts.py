"""Folds, parts out of focus and control tissue are kept out of the tissue; everything else stays in it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ki67.artifacts import blurred_squares, doubled_parts, find_control_tissue, find_folds, sharpness_of_squares
from ki67.errors import Flag, Stain
from ki67.geometry import Mask
from ki67.phantom import PhantomOptions, draw_slides
from ki67.phantom.pair import plan_pair
from ki67.slides import open_slide
from ki67.tissue import StainCheck, check_slide, find_tissue, without_control_tissue

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
STAINS: tuple[Stain, ...] = ("he", "ki67")
ARTIFACTS = PhantomOptions(area_mm2=4, fold=True, blur=True, control_tissue=True, seed=5)
CLEAN = PhantomOptions(area_mm2=4, seed=1)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory):
    """The check of either slide of a drawn pair."""

    @cache
    def folder_of(options: PhantomOptions) -> Path:
        folder = tmp_path_factory.mktemp("pair")
        draw_slides(options, folder, workers=1)
        return folder

    @cache
    def check(options: PhantomOptions, stain: Stain) -> tuple[StainCheck, NDArray[np.bool_]]:
        with open_slide(folder_of(options) / f"{stain}.tif", slide_id="S1", stain=stain) as slide:
            before = find_tissue(slide.thumbnail(8.0), 8.0, stain)
            return check_slide(slide), before.mask.pixels

    return check


def places(stain: Stain, shape: tuple[int, ...]):
    """Points of the layout at the pixels of a mask of a slide with artifacts, and its plan."""
    plan = plan_pair(ARTIFACTS).slides[stain]
    x, y = np.meshgrid((np.arange(shape[1]) + 0.5) * 8, (np.arange(shape[0]) + 0.5) * 8)
    return plan, plan.section.layout_points(x, y), plan.section.site(x, y).tissue_um > 0


@pytest.mark.parametrize("stain", STAINS)
def test_folds_are_left_out_of_the_tissue_and_flagged(checked, stain) -> None:
    result, _ = checked(ARTIFACTS, stain)
    plan, points, tissue = places(stain, result.tissue.pixels.shape)
    folded = (plan.section.artifacts.fold(*points) > 0.7) & tissue
    # Over the pale stroma of an immunostain a double layer is no denser than tumour beside it.
    assert (~result.tissue.pixels)[folded].mean() >= (0.8 if stain == "he" else 0.7)
    assert Flag.FOLD in {finding.flag for finding in result.findings}


def test_parts_out_of_focus_are_left_out_of_the_tissue_and_flagged(checked) -> None:
    result, _ = checked(ARTIFACTS, "ki67")
    plan, points, tissue = places("ki67", result.tissue.pixels.shape)
    blurred = (plan.section.artifacts.defocus(*points) > 0.5) & tissue
    assert (~result.tissue.pixels)[blurred].mean() >= 0.8
    assert Flag.BLURRED_PART in {finding.flag for finding in result.findings}


@pytest.mark.parametrize("stain", STAINS)
def test_tissue_without_artifacts_stays(checked, stain) -> None:
    result, before = checked(CLEAN, stain)
    assert result.findings == ()
    assert result.tissue.pixels.sum() >= 0.99 * before.sum()


def test_control_tissue_has_no_counterpart_and_is_left_out(checked) -> None:
    (ki67, _), (he, _) = (checked(ARTIFACTS, stain) for stain in ("ki67", "he"))
    without = without_control_tissue(ki67, he, slide_id="S1")
    plan = plan_pair(ARTIFACTS).slides["ki67"]
    strip = int(plan.control_px * plan.mpp / 8)
    assert ki67.tissue.pixels[:, :strip].any()
    assert not without.tissue.pixels[:, :strip].any()
    assert (without.tissue.pixels == ki67.tissue.pixels)[:, strip:].all()
    assert without.tissue_mm2 == pytest.approx(without.tissue.area_mm2)
    assert without.findings[-1].flag == Flag.CONTROL_TISSUE_SEEN
    assert "has no counterpart on the H&E and is left out" in without.findings[-1].message


def test_control_tissue_is_flagged_and_kept_without_an_h_and_e(checked) -> None:
    ki67, _ = checked(ARTIFACTS, "ki67")
    alone = without_control_tissue(ki67, None, slide_id="S1")
    assert alone.findings[-1].flag == Flag.CONTROL_TISSUE_SEEN
    assert "may be control tissue and is not left out" in alone.findings[-1].message
    np.testing.assert_array_equal(alone.tissue.pixels, ki67.tissue.pixels)


def pieces(*boxes: tuple[int, int, int, int], frame: Stain = "ki67") -> Mask:
    pixels = np.zeros((400, 600), dtype=bool)
    for top, left, bottom, right in boxes:
        pixels[top:bottom, left:right] = True
    return Mask(pixels, 8.0, frame)


SECTION, FAR, NEAR = (50, 250, 350, 550), (100, 20, 180, 100), (100, 160, 180, 240)


def test_a_piece_that_the_h_and_e_has_too_is_no_control() -> None:
    he = pieces(SECTION, (300, 20, 370, 110), frame="he")
    assert not find_control_tissue(pieces(SECTION, FAR), he).pixels.any()
    assert find_control_tissue(pieces(SECTION, FAR), pieces(SECTION, frame="he")).pixels.sum() == 80 * 80


@pytest.mark.parametrize("boxes", [(SECTION,), (SECTION, NEAR), (SECTION, (60, 10, 340, 180)), ()])
def test_one_piece_pieces_nearby_and_large_pieces_are_no_control(boxes) -> None:
    assert not find_control_tissue(pieces(*boxes), pieces(SECTION, frame="he")).pixels.any()


def test_dense_round_regions_and_specks_are_no_folds() -> None:
    density = np.random.default_rng(0).normal(0.6, 0.05, (300, 300)).astype(np.float32)
    tissue = np.ones((300, 300), dtype=bool)
    assert not find_folds(density, tissue, 8.0).any()
    cv2.circle(density, (100, 100), 20, 2.0, -1)
    for x, y in np.random.default_rng(1).integers(0, 300, (40, 2)):
        cv2.circle(density, (int(x), int(y)), 2, 2.0, -1)
    assert not find_folds(density, tissue, 8.0)[100, 100]
    cv2.line(density, (10, 280), (290, 200), 2.0, 9)
    found = find_folds(density, tissue, 8.0)
    assert found[240, 150]
    assert found.mean() < 0.12
    assert not find_folds(density, np.zeros_like(tissue), 8.0).any()


def test_a_fold_is_denser_than_what_is_around_it_and_of_its_hue() -> None:
    tissue = np.ones((200, 200), dtype=bool)
    band = np.zeros_like(tissue)
    band[90:100, 20:180] = True
    around = np.array([0.10, 0.25, 0.10], dtype=np.float32)

    def kept(inside: list[float]) -> bool:
        density = np.where(band[..., None], np.array(inside, dtype=np.float32), around)
        return bool(doubled_parts(band, density, tissue, 8.0).all(where=band))

    assert kept([0.20, 0.50, 0.20])
    assert not kept([0.12, 0.31, 0.12]), "hardly denser"
    assert not kept([0.30, 0.30, 0.10]), "bluer: lymphocytes"
    assert not kept([0.15, 0.30, 0.45]), "browner: positive nuclei"
    assert not doubled_parts(np.zeros_like(band), np.ones((200, 200, 3), np.float32), tissue, 8.0).any()


def test_pale_tissue_is_as_sharp_as_dense_tissue_and_blur_is_not() -> None:
    noise = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    texture = cv2.GaussianBlur(noise, (0, 0), 1.0) + 2 * cv2.GaussianBlur(noise, (0, 0), 3.0)
    images = [180 + strength * texture for strength in (90, 25)]
    images.append(cv2.GaussianBlur(images[0], (0, 0), 2.4))
    dense, pale, blurred = (
        np.nanmedian(sharpness_of_squares(np.repeat(image[..., None], 3, axis=2).clip(0, 255).astype(np.uint8), 64))
        for image in images
    )
    assert pale == pytest.approx(dense, rel=0.2)
    assert blurred < 0.4 * dense
    assert np.isnan(sharpness_of_squares(np.full((128, 128, 3), 230, dtype=np.uint8), 64)).all()


def test_single_squares_are_not_called_blurred() -> None:
    sharpness = np.full((20, 20), 0.6, dtype=np.float32)
    sharpness[3, 3] = 0.1
    assert not blurred_squares(sharpness).any()
    sharpness[10:14, 10:14] = 0.15
    assert blurred_squares(sharpness).sum() == 16


def test_a_real_slide_keeps_its_tissue() -> None:
    path = DATA / "slides" / "CMU-1-Small-Region.svs"
    if not path.exists():
        pytest.skip("the shared slides are not here")
    with open_slide(path, slide_id="S1", stain="he") as slide:
        result = check_slide(slide)
        before = find_tissue(slide.thumbnail(8.0), 8.0, "he").mask
    assert result.findings == ()
    assert result.tissue.area_mm2 >= 0.97 * before.area_mm2
