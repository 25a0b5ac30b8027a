import numpy as np
import pytest
import zarr

from ki67.pyramid import add_coarser_levels, create_level, shards_of, shrink


def image_in(path, pixels: np.ndarray, shard_px: int = 4096):
    group = zarr.create_group(path, zarr_format=3)
    level = create_level(group, 0, pixels.shape, chunk_px=256, shard_px=(shard_px, shard_px), zstd_level=1)
    level[:] = pixels
    return group


def test_a_square_of_pixels_becomes_its_mean_and_edges_are_repeated():
    image = np.arange(25, dtype=np.uint8).reshape(1, 5, 5)
    corner = round(image[0, :4, :4].mean())
    assert shrink(image).tolist() == [[[corner, round(image[0, :4, 4].mean())], [round(image[0, 4, :4].mean()), 24]]]


@pytest.mark.parametrize("workers", [1, 3])
def test_coarser_levels_are_the_means_of_the_whole_image_whatever_the_shards(tmp_path, monkeypatch, workers):
    monkeypatch.setattr("ki67.pyramid.COARSE_SHARD_PX", 256)
    monkeypatch.setattr("ki67.pyramid.LARGEST_COARSE_LEVEL_PX", 64)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1100, 3001), dtype=np.uint8)
    group = image_in(tmp_path / "i.zarr", pixels, shard_px=512)
    assert add_coarser_levels(group, chunk_px=256, zstd_level=1, workers=workers) == 3
    assert len(list(shards_of(group["s1"]))) == 6
    np.testing.assert_array_equal(group["s1"][:], shrink(pixels))
    np.testing.assert_array_equal(group["s2"][:], shrink(shrink(pixels)))


def test_a_small_image_needs_no_coarser_level(tmp_path):
    assert (
        add_coarser_levels(image_in(tmp_path / "i.zarr", np.ones((1, 30, 40), np.uint8)), chunk_px=256, zstd_level=1)
        == 1
    )


def test_where_there_is_nothing_no_file_is_written(tmp_path):
    add_coarser_levels(image_in(tmp_path / "i.zarr", np.zeros((1, 3000, 3000), np.uint8)), chunk_px=256, zstd_level=1)
    assert {path.name for path in (tmp_path / "i.zarr").rglob("*") if path.is_file()} == {"zarr.json"}
