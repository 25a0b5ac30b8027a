import numpy as np
import pytest

from ki67.errors import Ki67Error
from ki67.geometry import Mask
from ki67.tiles import plan_tiles


def mask_with(*pixels: tuple[int, int], shape: tuple[int, int] = (20, 30), mpp: float = 10.0) -> Mask:
    image = np.zeros(shape, dtype=bool)
    for row, column in pixels:
        image[row, column] = True
    return Mask(image, mpp, "ki67")


def test_only_tiles_that_touch_the_mask_are_planned():
    # Cores of 50 µm are five mask pixels wide.
    plan = plan_tiles(mask_with((0, 0), (4, 5), (19, 29)), (300.0, 200.0), mpp=0.5, core_px=100, halo_px=10)
    assert plan.tiles.tolist() == [[0, 0], [0, 1], [3, 5]]
    assert plan.window_px == 120
    assert (plan.first_column_px, plan.end_column_px) == (0, 600)


def test_every_true_pixel_lies_in_a_planned_core_whatever_the_resolutions():
    random = np.random.default_rng(3)
    image = random.random((37, 53)) < 0.02
    for mask_mpp, mpp, core in ((8.0, 0.5, 448), (2.0, 0.5, 64), (7.3, 0.41, 96)):
        mask = Mask(image, mask_mpp, "he")
        size = (53 * mask_mpp, 37 * mask_mpp)
        plan = plan_tiles(mask, size, mpp=mpp, core_px=core, halo_px=32)
        rows, columns = np.nonzero(image)
        # Middles of the mask pixels, in the grid of cores.
        needed = {
            (int((row + 0.5) * mask_mpp / mpp / core), int((column + 0.5) * mask_mpp / mpp / core))
            for row, column in zip(rows, columns, strict=True)
        }
        assert needed <= {tuple(tile) for tile in plan.tiles.tolist()}


def test_a_margin_adds_the_neighbours_of_what_lies_near_a_core_s_edge():
    mask = mask_with((2, 9), shape=(20, 30))  # 90 to 100 µm: its right edge is the seam at 100 µm
    arguments = {"mpp": 0.5, "core_px": 100, "halo_px": 10}
    assert plan_tiles(mask, (300.0, 200.0), **arguments).tiles.tolist() == [[0, 1]]
    assert plan_tiles(mask, (300.0, 200.0), margin_um=5.0, **arguments).tiles.tolist() == [[0, 1], [0, 2]]


def test_an_empty_mask_has_no_tiles():
    plan = plan_tiles(Mask.empty("ki67"), (300.0, 200.0), mpp=0.5)
    assert len(plan) == 0
    assert plan.tiles.shape == (0, 2)
    assert (plan.area_mm2, plan.first_column_px, plan.end_column_px) == (0.0, 0, 0)


def test_the_area_counts_only_what_lies_on_the_slide():
    mask = Mask(np.ones((13, 13), dtype=bool), 10.0, "ki67")
    plan = plan_tiles(mask, (130.0, 125.0), mpp=0.5, core_px=100, halo_px=0)
    assert len(plan) == 9
    assert plan.area_mm2 == pytest.approx(0.130 * 0.125)


def test_a_mask_larger_than_the_slide_plans_no_tile_outside():
    plan = plan_tiles(Mask(np.ones((50, 50), dtype=bool), 10.0, "ki67"), (90.0, 40.0), mpp=0.5, core_px=100, halo_px=0)
    assert plan.tiles.tolist() == [[0, 0], [0, 1]]


def test_tiles_without_a_core_are_refused():
    with pytest.raises(Ki67Error, match="a core above 0 px"):
        plan_tiles(mask_with((0, 0)), (300.0, 200.0), mpp=0.5, core_px=0)
