from dataclasses import replace

import numpy as np
import pytest

from ki67.errors import Ki67Error
from ki67.geometry import Mask
from ki67.inference import Running
from ki67.tumor import Cascade, at_resolution, regions, segment_tumor
from tests.unit.drawn_networks import Darkness, slide_of


def section(height: int = 800, width: int = 1000) -> np.ndarray:
    return np.full((height, width, 3), 230, dtype=np.uint8)


def everywhere(pixels: np.ndarray) -> Mask:
    shape = (-(-pixels.shape[0] // 16), -(-pixels.shape[1] // 16))
    return Mask(np.ones(shape, dtype=bool), 8.0, "he")


def test_a_dark_square_is_the_tumor_at_the_resolution_of_the_mask():
    pixels = section()
    pixels[200:600, 300:700] = 20
    found = segment_tumor(slide_of(pixels, stain="he"), everywhere(pixels), Darkness(), cell_px=128)
    assert found.mask.frame == "he"
    assert found.mask.mpp == 2.0
    assert found.mask.pixels.shape == found.probability.shape == (200, 250)
    expected = np.zeros((200, 250), dtype=bool)
    expected[50:150, 75:175] = True
    # Corners are rounded.
    assert (found.mask.pixels != expected).mean() < 0.002
    assert found.mask.area_mm2 == pytest.approx(0.04, rel=0.02)
    assert found.probability[100, 100] == 235
    assert found.statistics.tiles == 56 / 4


def test_probability_outside_tissue_is_zero_and_no_tumor():
    pixels = np.full((800, 800, 3), 20, dtype=np.uint8)
    tissue = np.zeros((50, 50), dtype=bool)
    tissue[:, :25] = True
    found = segment_tumor(slide_of(pixels, stain="he"), Mask(tissue, 8.0, "he"), Darkness(), cell_px=128)
    assert found.mask.pixels[:, :100].all()
    assert not found.mask.pixels[:, 100:].any()
    assert not found.probability[:, 100:].any()


def test_no_tissue_gives_an_empty_mask_of_the_slide_s_shape():
    found = segment_tumor(slide_of(section(), stain="he"), Mask.empty("he"), Darkness())
    assert found.mask.pixels.shape == (200, 250)
    assert not found.mask.pixels.any()
    assert found.statistics.tiles == 0


def test_the_threshold_is_the_network_s_unless_given():
    pixels = section()
    pixels[200:600, 300:700] = 153  # a probability of 0.4
    slide, tissue = slide_of(pixels, stain="he"), everywhere(pixels)
    assert not segment_tumor(slide, tissue, Darkness(0.5)).mask.pixels.any()
    assert segment_tumor(slide, tissue, Darkness(0.3)).mask.pixels.any()
    assert segment_tumor(slide, tissue, Darkness(0.5), threshold=0.3).mask.pixels.any()


def test_tiles_of_any_size_give_the_same_tumor():
    pixels = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    slide, tissue = slide_of(pixels, stain="he"), everywhere(pixels)
    one = segment_tumor(slide, tissue, Darkness(), cell_px=128, running=Running(threads=1))
    other = segment_tumor(slide, tissue, Darkness(), cell_px=320, running=Running(threads=3))
    np.testing.assert_array_equal(one.probability, other.probability)
    np.testing.assert_array_equal(one.mask.pixels, other.mask.pixels)


def test_specks_are_dropped_and_pin_holes_filled_but_large_holes_stay():
    probability = np.zeros((200, 200), dtype=np.uint8)
    probability[20:180, 20:180] = 255
    probability[40:44, 40:44] = 0
    probability[100:140, 100:140] = 0
    probability[5:9, 190:194] = 255
    found = regions(
        probability,
        np.ones((200, 200), dtype=bool),
        threshold=0.5,
        smoothing_px=0.5,
        smallest_region_px=100,
        smallest_hole_px=100,
    )
    assert found[42, 42]
    assert not found[120, 120]
    assert not found[6, 191]
    assert found[21, 21]


def test_smoothing_does_not_eat_into_tumor_at_the_edge_of_the_tissue():
    allowed = np.zeros((100, 100), dtype=bool)
    allowed[:, :50] = True
    probability = np.where(allowed, 200, 0).astype(np.uint8)
    limits = {"threshold": 0.6, "smoothing_px": 4.0, "smallest_region_px": 0, "smallest_hole_px": 0}
    np.testing.assert_array_equal(regions(probability, allowed, **limits), allowed)


def test_a_mask_at_another_resolution_keeps_its_place():
    coarse = np.zeros((5, 5), dtype=bool)
    coarse[1, 2] = True
    fine = at_resolution(Mask(coarse, 8.0, "he"), (22, 18), 2.0)
    expected = np.zeros((22, 18), dtype=bool)
    expected[4:8, 8:12] = True
    np.testing.assert_array_equal(fine, expected)


def test_a_mask_resolution_that_does_not_divide_tiles_is_refused():
    with pytest.raises(Ki67Error, match=r"a tumour mask of 1.3 µm/px cannot be made from 0.5 µm/px"):
        segment_tumor(slide_of(section(), stain="he"), Mask.empty("he"), Darkness(), mask_mpp=1.3)


# ---------------------------------------------------------------------------------------------- cascade


def at_5x(network: Darkness) -> Darkness:
    network.spec = replace(network.spec, mpp=2.0)
    return network


def half_certain() -> np.ndarray:
    """Certainly none on the left, certainly tumour on the right, and a grey strip between."""
    pixels = np.full((1024, 1536, 3), 255, dtype=np.uint8)
    pixels[:, 1024:] = 0
    pixels[:, 512:768] = 120
    return pixels


def test_the_fine_network_looks_only_where_the_coarse_one_is_not_certain():
    seen = []

    class Watching(Darkness):
        def predict(self, batch):
            seen.append(batch.shape[2] - 64)
            return super().predict(batch)

    pixels = half_certain()
    slide = slide_of(pixels, stain="he")
    found = segment_tumor(slide, everywhere(pixels), Watching(0.9), cascade=Cascade(at_5x(Darkness())))
    assert seen == [256]
    assert found.fine_share == pytest.approx(1 / 6)
    assert found.mask.pixels[:, 256 + 8 :].all()
    assert not found.mask.pixels[:, : 256 - 8].any()


def test_where_both_networks_look_their_answers_are_averaged_with_the_weight_asked_for():
    class Sure(Darkness):
        def predict(self, batch):
            return np.ones((len(batch), 1, *batch.shape[1:3]), dtype=np.float32)

    pixels = half_certain()
    slide, tissue = slide_of(pixels, stain="he"), everywhere(pixels)
    # The grey strip is 135/255 dark, and the fine network is sure of tumour wherever it looks.
    for coarse_share, expected in ((0.0, 255), (0.5, 195), (1.0, 135)):
        cascade = Cascade(at_5x(Darkness()), coarse_share=coarse_share)
        found = segment_tumor(slide, tissue, Sure(), cascade=cascade, mask_mpp=1.0)
        assert (found.probability[:, 262:378] == expected).all()
        assert (found.probability[:, :256] == 0).all()
        assert (found.probability[:, 512:] == 255).all()


def test_a_cascade_that_is_never_certain_gives_what_the_fine_network_gives():
    pixels = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    slide, tissue = slide_of(pixels, stain="he"), everywhere(pixels)
    never = Cascade(at_5x(Darkness()), certain_below=-0.1, certain_above=1.1, uncertain_share=0.0, coarse_share=0.0)
    with_cascade = segment_tumor(slide, tissue, Darkness(), cascade=never)
    without = segment_tumor(slide, tissue, Darkness())
    assert with_cascade.fine_share == without.fine_share == 1.0
    np.testing.assert_array_equal(with_cascade.probability, without.probability)
    assert with_cascade.statistics.tiles > without.statistics.tiles


def test_a_cascade_without_tissue_finds_nothing():
    found = segment_tumor(
        slide_of(section(), stain="he"), Mask.empty("he"), Darkness(), cascade=Cascade(at_5x(Darkness()))
    )
    assert not found.mask.pixels.any()
    assert found.statistics.tiles == 0
