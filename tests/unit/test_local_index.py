import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki67.geometry import Mask
from ki67.local_index import _tumor_pixels, local_index_map
from ki67.nucleus_squares import TumorNuclei
from tests.unit.drawn_tables import counted


def test_the_local_index_and_the_density_by_hand():
    pixels = np.zeros((350, 500), dtype=bool)  # 2 µm/px: cells are 25 pixels, 14 rows and 20 columns of them
    pixels[:, :250] = True
    points = np.repeat([[125.0, 125.0], [225.0, 125.0]], [30, 10], axis=0)  # cells (2, 2) and (2, 4)
    nuclei = TumorNuclei(points, np.arange(40) < 24)  # 24 of 30, and none of 10
    found = local_index_map(nuclei, Mask(pixels, 2.0, "ki67"))
    assert (found.mpp, found.frame, found.index.shape) == (50.0, "ki67", (14, 20))
    assert (found.index.dtype, found.nuclei_per_mm2.dtype) == (np.float32, np.float32)
    assert found.index[2, 2] == pytest.approx(24 / 40)  # the window reaches two cells to each side
    assert found.index[2, 1] == pytest.approx(24 / 30)
    assert found.nuclei_per_mm2[2, 2] == pytest.approx(40 / 0.25**2)
    assert found.nuclei_per_mm2[2, 0] == pytest.approx(
        30 / (0.15 * 0.25)
    )  # two columns of the window are off the slide
    assert np.isnan(found.index[2, 6])  # ten nuclei are too few
    assert found.nuclei_per_mm2[2, 6] == pytest.approx(10 / 0.25**2)
    assert found.nuclei_per_mm2[10, 2] == 0
    assert np.isnan(found.nuclei_per_mm2[2, 10])  # no tumour


def test_cells_are_whole_pixels_and_reach_beyond_the_edge():
    found = local_index_map(counted(100, 300, side_um=330.0), Mask(np.ones((33, 17), dtype=bool), 10.0, "ki67"))
    assert found.index.shape == (7, 4)
    assert found.mpp == 50.0
    assert local_index_map(counted(0, 0), Mask(np.ones((9, 9), dtype=bool), 30.0, "ki67")).mpp == 60.0


def test_no_tumour_is_a_map_without_numbers():
    found = local_index_map(counted(0, 0), Mask.empty("ki67"))
    assert np.isnan(found.index).all()
    assert np.isnan(found.nuclei_per_mm2).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9000), (30, 124)])
def test_a_small_mask_is_no_work(shape):
    # The mask of a slide that cannot be scored is one pixel; padded by dask it was 15,000 blocks and 8 seconds.
    pixels = _tumor_pixels(np.ones(shape, dtype=bool), 25, (5, max(5, -(-shape[1] // 25))))
    assert len(pixels.__dask_graph__()) < 60
    assert pixels.sum().compute(scheduler="synchronous") == np.prod(shape)


def test_blocks_of_a_large_map_fit_together():
    nuclei = counted(2000, 8000, side_um=2000.0)
    shifted = TumorNuclei(nuclei.points_um + np.array([256 * 50.0 - 1000, 0.0]), nuclei.positive)
    large = local_index_map(shifted, Mask(np.ones((40, 300), dtype=bool), 50.0, "ki67"))
    small = local_index_map(nuclei, Mask(np.ones((40, 40), dtype=bool), 50.0, "ki67"))
    assert np.array_equal(large.index[:, 236:276], small.index)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_the_map_does_not_depend_on_the_order_and_holds_fractions(seed):
    nuclei = counted(600, 1400, seed=seed)
    order = np.random.default_rng(seed).permutation(2000)
    tumor = Mask(np.ones((450, 450), dtype=bool), 2.0, "ki67")
    found = local_index_map(nuclei, tumor)
    again = local_index_map(TumorNuclei(nuclei.points_um[order], nuclei.positive[order]), tumor)
    assert np.array_equal(found.index, again.index, equal_nan=True)
    known = found.index[np.isfinite(found.index)]
    assert len(known) > 0
    assert ((known >= 0) & (known <= 1)).all()
