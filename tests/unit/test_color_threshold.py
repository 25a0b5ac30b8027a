"""Nuclei by colour and fixed thresholds, on drawn discs."""

import numpy as np
import pytest

from ki67.color_threshold import ColorThreshold, ColorThresholdOptions, color_levels, stain_steps
from ki67.extraction import extract_nuclei
from ki67.geometry import Mask
from ki67.networks import NUCLEUS_CLASSES
from ki67.nuclei import detect_nuclei
from ki67.stain import HED_VECTORS, separate_hed
from ki67.tiles import HALO_PX
from ki67.training.targets import NEGATIVE, POSITIVE
from tests.unit.drawn_networks import slide_of
from tests.unit.drawn_nuclei import found_by, grid
from tests.unit.stained_discs import stained


def test_discs_are_found_once_and_brown_ones_are_positive():
    ellipses = grid((320, 320), step=40)
    levels = ColorThreshold().predict_levels(stained((320, 320), ellipses)[None])[0]
    nuclei = extract_nuclei(levels, mpp=0.5)
    found = found_by(nuclei.x_px, nuclei.y_px, ellipses)
    assert [len(which) for which in found] == [1] * len(ellipses)
    assert len(nuclei.area_px) == len(ellipses)
    kinds = np.where(nuclei.positive[np.concatenate(found)], POSITIVE, NEGATIVE)
    assert kinds.tolist() == [entry[5] for entry in ellipses]


def test_the_area_of_a_disc_is_about_its_own():
    ellipses = [(60, 60, 10, 10, 0, NEGATIVE)]
    nuclei = extract_nuclei(color_levels(stained((120, 120), ellipses), 0.5, ColorThresholdOptions()), mpp=0.5)
    assert nuclei.area_px[0] == pytest.approx(np.pi * 100, rel=0.35)  # a fixed threshold lies low on a dark edge


def test_touching_discs_are_parted():
    ellipses = [(50, 60, 9, 9, 0, NEGATIVE), (69, 60, 9, 9, 0, POSITIVE)]
    nuclei = extract_nuclei(color_levels(stained((120, 120), ellipses), 0.5, ColorThresholdOptions()), mpp=0.5)
    assert nuclei.positive[np.argsort(nuclei.x_px)].tolist() == [False, True]
    assert np.sort(nuclei.x_px) == pytest.approx([50, 69], abs=1)


@pytest.mark.parametrize("shade", [255, 235])
def test_glass_and_even_stain_hold_no_nuclei(shade):
    glass = np.full((128, 128, 3), shade, dtype=np.uint8)
    assert len(extract_nuclei(color_levels(glass, 0.5, ColorThresholdOptions()), mpp=0.5).area_px) == 0
    brown = np.broadcast_to(255 * 10 ** -(0.5 * HED_VECTORS[2]), (128, 128, 3)).astype(np.uint8)
    assert len(extract_nuclei(color_levels(brown, 0.5, ColorThresholdOptions()), mpp=0.5).area_px) == 0


def test_the_answer_is_one_of_five_classes_that_add_up_to_one():
    rgb = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    predictor = ColorThreshold()
    levels = predictor.predict_levels(rgb, 16)
    assert levels.shape == (2, len(NUCLEUS_CLASSES), 32, 64)
    assert levels.dtype == np.uint8
    assert np.abs(levels.astype(int).sum(axis=1) - 255).max() <= 2


@pytest.mark.parametrize(("top", "left", "height", "width"), [(0, 0, 96, 128), (7, 3, 128, 96), (51, 77, 160, 224)])
def test_a_pixel_does_not_depend_on_the_window_it_is_seen_in(top, left, height, width):
    rgb = stained((320, 400), grid((320, 400), step=24, seed=2), noise=12)
    whole = ColorThreshold().predict_levels(rgb[None], HALO_PX)[0]
    window = rgb[top : top + height + 2 * HALO_PX, left : left + width + 2 * HALO_PX]
    found = ColorThreshold().predict_levels(window[None], HALO_PX)[0]
    np.testing.assert_array_equal(found, whole[:, top : top + height, left : left + width])


def test_no_filter_reaches_farther_than_the_halo():
    predictor = ColorThreshold()
    assert predictor.options.reach_um <= HALO_PX * predictor.spec.mpp


@pytest.mark.parametrize("offset_px", [(0, 0), (13, 41)])
def test_a_slide_gives_the_nuclei_of_the_whole_image_however_windows_lie(offset_px):
    ellipses = grid((700, 900), step=30, seed=1, margin=40)
    rgb = stained((700, 900), ellipses, noise=6)
    tumor = Mask(np.ones((44, 57), dtype=bool), 8.0, "ki67")
    found = detect_nuclei(slide_of(rgb), tumor, ColorThreshold(block_px=(256, 384)), offset_px=offset_px).table
    whole = extract_nuclei(color_levels(rgb, 0.5, ColorThresholdOptions()), mpp=0.5)
    order = np.lexsort((whole.x_px, whole.y_px))
    np.testing.assert_array_equal(found["y_um"], whole.y_px[order] * 0.5)
    np.testing.assert_array_equal(found["positive"], whole.positive[order])


def test_stains_are_parted_as_by_deconvolution():
    rgb = np.random.default_rng(1).integers(1, 256, (40, 40, 3), dtype=np.uint8)
    amounts = np.maximum(separate_hed(rgb), 0)
    for steps, channel in zip(stain_steps(rgb), (0, 2), strict=True):
        np.testing.assert_allclose(steps / 2**12, amounts[..., channel], atol=1e-3)
