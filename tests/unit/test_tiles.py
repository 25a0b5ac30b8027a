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


def windows_of(plan) -> list:
    return [window for block in plan.blocks() for window in block.windows]


def answered(plan) -> np.ndarray:
    """How many windows answer for each pixel of the slide."""
    count = np.zeros((plan.height_px, plan.width_px), dtype=int)
    for w in windows_of(plan):
        count[max(0, w.row_px) : w.row_px + w.height_px, max(0, w.column_px) : w.column_px + w.width_px] += 1
    return count


def test_only_cells_that_touch_the_mask_are_planned():
    # Cells of 50 µm are five mask pixels wide.
    plan = plan_tiles(mask_with((0, 0), (4, 5), (19, 29)), (300.0, 200.0), mpp=0.5, cell_px=100, halo_px=10)
    assert plan.cells.tolist() == [[0, 0], [0, 1], [3, 5]]
    assert len(plan) == 3


def test_every_true_pixel_lies_in_a_planned_cell_whatever_the_resolutions():
    random = np.random.default_rng(3)
    image = random.random((37, 53)) < 0.02
    for mask_mpp, mpp, cell, offset in ((8.0, 0.5, 448, 0), (2.0, 0.5, 64, 17), (7.3, 0.41, 96, 50)):
        mask = Mask(image, mask_mpp, "he")
        size = (53 * mask_mpp, 37 * mask_mpp)
        plan = plan_tiles(mask, size, mpp=mpp, cell_px=cell, halo_px=32, offset_px=(offset, offset))
        rows, columns = np.nonzero(image)
        # Middles of the mask pixels, in the grid of cells.
        needed = {
            (
                int(((row + 0.5) * mask_mpp / mpp + offset) / cell),
                int(((column + 0.5) * mask_mpp / mpp + offset) / cell),
            )
            for row, column in zip(rows, columns, strict=True)
        }
        assert needed <= {tuple(cell) for cell in plan.cells.tolist()}


@pytest.mark.parametrize("density", [0.02, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("offset_px", [(0, 0), (13, 50)])
def test_windows_answer_once_for_every_pixel_of_every_cell_and_stay_in_their_block(density, offset_px):
    mask = Mask(np.random.default_rng(5).random((40, 60)) < density, 10.0, "he")
    plan = plan_tiles(
        mask, (600.0, 400.0), mpp=1.0, cell_px=20, halo_px=4, block_cells=(4, 6), offset_px=offset_px, margin_um=0.0
    )
    count = answered(plan)
    assert count.max() == 1
    for row, column in plan.cells * plan.cell_px - np.array(offset_px):
        assert (count[max(0, row) : max(0, row + 20), max(0, column) : max(0, column + 20)] == 1).all()
    places = [(block.row, block.column) for block in plan.blocks()]
    assert places == sorted(set(places))
    for block in plan.blocks():
        top, left = plan.block_corner_px(block.row, block.column)
        for window in block.windows:
            assert top <= window.row_px
            assert window.row_px + window.height_px <= top + plan.block_px[0]
            assert left <= window.column_px
            assert window.column_px + window.width_px <= left + plan.block_px[1]


def test_a_full_block_is_one_window_and_a_far_cell_has_its_own():
    full = Mask(np.ones((8, 12), dtype=bool), 10.0, "he")
    (window,) = windows_of(plan_tiles(full, (120.0, 80.0), mpp=1.0, cell_px=20, halo_px=4, block_cells=(4, 6)))
    assert (window.height_px, window.width_px) == (80, 120)
    apart = mask_with((0, 0), (7, 11), shape=(8, 12))
    plan = plan_tiles(apart, (120.0, 80.0), mpp=1.0, cell_px=20, halo_px=4, block_cells=(4, 6))
    assert [(w.row_px, w.column_px, w.height_px, w.width_px) for w in windows_of(plan)] == [
        (0, 0, 20, 20),
        (60, 100, 20, 20),
    ]


def test_cells_with_a_gap_share_a_window_where_two_halos_would_cost_more():
    gap = mask_with((0, 0), (0, 4), shape=(2, 6))
    arguments = {"mpp": 1.0, "cell_px": 20, "block_cells": (1, 6)}
    wide = plan_tiles(gap, (120.0, 20.0), halo_px=16, **arguments)  # 2 * 52² pixels apart, 92 * 52 together
    assert [w.width_px for w in windows_of(wide)] == [60]
    narrow = plan_tiles(gap, (120.0, 20.0), halo_px=2, **arguments)  # 2 * 24² apart, 64 * 24 together
    assert [w.width_px for w in windows_of(narrow)] == [20, 20]


def test_a_margin_adds_the_neighbours_of_what_lies_near_a_cell_s_edge():
    mask = mask_with((2, 9), shape=(20, 30))  # 90 to 100 µm: its right edge is the seam at 100 µm
    arguments = {"mpp": 0.5, "cell_px": 100, "halo_px": 10}
    assert plan_tiles(mask, (300.0, 200.0), **arguments).cells.tolist() == [[0, 1]]
    assert plan_tiles(mask, (300.0, 200.0), margin_um=5.0, **arguments).cells.tolist() == [[0, 1], [0, 2]]


def test_an_empty_mask_has_no_cells_and_no_blocks():
    plan = plan_tiles(Mask.empty("ki67"), (300.0, 200.0), mpp=0.5)
    assert len(plan) == 0
    assert plan.cells.shape == (0, 2)
    assert list(plan.blocks()) == []


def test_the_area_counts_only_what_lies_on_the_slide():
    mask = Mask(np.ones((13, 13), dtype=bool), 10.0, "ki67")
    for offset in ((0, 0), (30, 70)):
        plan = plan_tiles(mask, (130.0, 125.0), mpp=0.5, cell_px=100, halo_px=0, offset_px=offset)
        assert plan.area_px(tuple(windows_of(plan))) == 260 * 250


def test_a_mask_larger_than_the_slide_plans_no_cell_outside():
    plan = plan_tiles(Mask(np.ones((50, 50), dtype=bool), 10.0, "ki67"), (90.0, 40.0), mpp=0.5, cell_px=100, halo_px=0)
    assert plan.cells.tolist() == [[0, 0], [0, 1]]


def test_cells_without_a_size_and_grids_that_start_inside_the_slide_are_refused():
    with pytest.raises(Ki67Error, match="cells above 0 px"):
        plan_tiles(mask_with((0, 0)), (300.0, 200.0), mpp=0.5, cell_px=0)
    with pytest.raises(Ki67Error, match="must not start inside the slide"):
        plan_tiles(mask_with((0, 0)), (300.0, 200.0), mpp=0.5, offset_px=(-1, 0))
