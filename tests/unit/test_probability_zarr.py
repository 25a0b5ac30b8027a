import numpy as np
import pytest
import zarr

from ki67.geometry import Mask
from ki67.inference import InferenceRun, Running
from ki67.networks import NUCLEUS_CLASSES
from ki67.probability_zarr import probability_zarr
from ki67.tiles import plan_tiles
from tests.unit.drawn_networks import COLOURS, PaintedNuclei, slide_of


def patches(height: int, width: int) -> np.ndarray:
    """Squares of 8 px in the colours of the five classes."""
    kinds = np.random.default_rng(0).integers(0, 5, (-(-height // 8), -(-width // 8)))
    return COLOURS[np.kron(kinds, np.ones((8, 8), dtype=int))[:height, :width]]


def write(path, pixels, mask=None, **sizes):
    slide, network = slide_of(pixels), PaintedNuclei()
    size = slide.size_um
    mask = mask or Mask(np.ones((int(size[1]), int(size[0])), dtype=bool), 1.0, "ki67")
    plan = plan_tiles(mask, size, mpp=0.5, **({"cell_px": 256, "block_cells": (1, 2), "halo_px": 0} | sizes))
    with (
        probability_zarr(path, plan, network.spec.classes, "ki67") as writer,
        InferenceRun(slide, plan, network, label="S01", running=Running(threads=2)) as run,
    ):
        for future in [run.submit(writer.write, block) for block in run.blocks()]:
            future.result()
    return zarr.open_group(path, mode="r")


def test_the_finest_level_is_what_the_network_said(tmp_path):
    pixels = patches(600, 1100)
    group = write(tmp_path / "p.ome.zarr", pixels)
    expected = (PaintedNuclei().predict(pixels[None])[0] * 255).astype(np.uint8)
    np.testing.assert_array_equal(group["s0"][:], expected)
    assert group.attrs["ki67"] == {"frame": "ki67", "channels": list(NUCLEUS_CLASSES)}


def test_where_no_window_was_it_is_zero_and_takes_no_file(tmp_path):
    mask = np.zeros((512, 512), dtype=bool)
    mask[5, 5] = True
    group = write(tmp_path / "p.ome.zarr", patches(1024, 1024), Mask(mask, 1.0, "ki67"))
    level = group["s0"][:]
    assert (level[:, :256, :256].sum(axis=0) == 255).all()
    level[:, :256, :256] = 0
    assert not level.any()
    assert len([path for path in (tmp_path / "p.ome.zarr" / "s0").rglob("*") if path.name != "zarr.json"]) <= 4


def test_coarser_levels_are_means_over_squares(tmp_path):
    group = write(tmp_path / "p.ome.zarr", patches(2100, 2300))
    fine, coarse = group["s0"][:].astype(float), group["s1"][:]
    assert sorted(group.array_keys()) == ["s0", "s1"]
    assert coarse.shape == (5, 525, 575)
    np.testing.assert_allclose(coarse, fine.reshape(5, 525, 4, 575, 4).mean(axis=(2, 4)), atol=0.51)


def test_it_is_valid_ome_zarr_in_microns(tmp_path):
    from ome_zarr_models import open_ome_zarr
    from ome_zarr_models.v05 import Image

    write(tmp_path / "p.ome.zarr", patches(2100, 2300))
    image = open_ome_zarr(tmp_path / "p.ome.zarr", version="0.5")
    assert isinstance(image, Image)
    multiscale = image.ome_attributes.multiscales[0]
    scales = [dataset.coordinateTransformations[0].scale for dataset in multiscale.datasets]
    assert scales == [[1.0, 0.5, 0.5], [1.0, 2.0, 2.0]]


def test_a_run_that_fails_leaves_nothing(tmp_path):
    plan = plan_tiles(Mask.empty("ki67"), (100.0, 100.0), mpp=0.5)
    with pytest.raises(RuntimeError, match="stopped"), probability_zarr(tmp_path / "p", plan, ("a",), "ki67"):
        raise RuntimeError("stopped")
    assert list(tmp_path.iterdir()) == []
