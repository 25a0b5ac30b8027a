"""Masks as polygons, and polygons as masks."""

from __future__ import annotations

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from ki67.errors import Ki67Error
from ki67.geometry import Mask
from ki67.regions import fill_polygons, outline_mask
from ki67.storage import write_tumor_geojson
from ki67.transfer import region_mask


def blobs(shape: tuple[int, int], size_px: float, *, share: float = 0.4, seed: int = 0) -> NDArray[np.bool_]:
    """Regions of about this size, with holes, some of them at the edge of the image."""
    noise = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), size_px)
    return smooth > np.quantile(smooth[::5, ::5], 1 - share)


def rings_of(polygons: list[shapely.Polygon]) -> list[list[NDArray[np.float64]]]:
    return [[shapely.get_coordinates(ring) for ring in (one.exterior, *one.interiors)] for one in polygons]


@pytest.mark.parametrize("size_px", [0.6, 1.5, 4.0, 12.0])
def test_outlines_filled_again_are_the_mask(size_px: float) -> None:
    pixels = blobs((301, 203), size_px)
    polygons = outline_mask(pixels)
    assert all(polygon.is_valid for polygon in polygons)
    np.testing.assert_array_equal(fill_polygons(rings_of(polygons), pixels.shape), pixels)


def test_outlines_are_simple_and_keep_the_area() -> None:
    pixels = blobs((600, 600), 12.0)
    polygons = outline_mask(pixels)
    assert sum(polygon.area for polygon in polygons) == pytest.approx(pixels.sum(), rel=2e-3)
    contours, _ = cv2.findContours(pixels.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    assert shapely.get_num_coordinates(polygons).sum() < 0.5 * sum(map(len, contours))


def test_a_hole_is_an_interior_ring_and_an_island_in_it_a_polygon() -> None:
    pixels = np.zeros((40, 40), dtype=bool)
    pixels[2:38, 2:38] = True
    pixels[10:30, 10:30] = False
    pixels[18:22, 18:22] = True
    outer, island = outline_mask(pixels)
    assert (len(outer.interiors), len(island.interiors)) == (1, 0)
    assert island.bounds == (18.0, 18.0, 22.0, 22.0)


def test_pixels_belong_to_a_polygon_by_their_centres() -> None:
    square = np.array([[0.4, 0.6], [2.6, 0.6], [2.6, 2.4], [0.4, 2.4]])
    expected = np.zeros((4, 5), dtype=bool)
    expected[1, 0:3] = True
    np.testing.assert_array_equal(fill_polygons([[square]], (4, 5)), expected)
    np.testing.assert_array_equal(fill_polygons([[square[::-1]], [square]], (4, 5)), expected)


def test_polygons_beyond_the_image_fill_what_lies_in_it() -> None:
    square = np.array([[-5.0, -5.0], [9.0, -5.0], [9.0, 2.0], [-5.0, 2.0]])
    assert fill_polygons([[square]], (4, 5)).sum() == 10
    assert not fill_polygons([[square + 50], [square - 50], [square[:0]]], (4, 5)).any()


def test_empty_masks_have_no_outline() -> None:
    assert outline_mask(np.zeros((5, 5), dtype=bool)) == []
    assert not fill_polygons([], (5, 5)).any()


@pytest.mark.parametrize("level0_mpp", [0.2275, 0.5])
@pytest.mark.parametrize("mask_mpp", [2.0, 4.0])
def test_a_written_tumour_read_as_regions_is_the_same_tumour(
    tmp_path: Path, level0_mpp: float, mask_mpp: float
) -> None:
    mask = Mask(blobs((400, 300), 6.0), mask_mpp, "ki67")
    path = tmp_path / "tumor_ki67.geojson"
    write_tumor_geojson(path, mask, level0_mpp, slide_id="S01")
    text = path.read_text(encoding="utf-8")
    named = {"slide_id": "S01", "stain": "ki67"}
    read = region_mask(text, shape=mask.pixels.shape, mpp=mask_mpp, level0_mpp=level0_mpp, **named)
    assert (read.pixels & mask.pixels).sum() / (read.pixels | mask.pixels).sum() > 0.999
    finer = region_mask(text, shape=(800, 600), mpp=mask_mpp / 2, level0_mpp=level0_mpp, **named)
    assert finer.area_mm2 == pytest.approx(mask.area_mm2, rel=0.01)


def test_qupath_reads_the_tumour_as_annotations(tmp_path: Path) -> None:
    path = tmp_path / "tumor_he.geojson"
    write_tumor_geojson(path, Mask(blobs((200, 200), 6.0), 2.0, "he"), 0.5, slide_id="S01")
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["type"] == "FeatureCollection"
    assert len({feature["id"] for feature in written["features"]}) == len(written["features"]) > 2
    for feature in written["features"]:
        assert (feature["type"], feature["geometry"]["type"]) == ("Feature", "Polygon")
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["classification"]["name"] == "Tumor"
        assert shapely.geometry.shape(feature["geometry"]).is_valid
        assert all(ring[0] == ring[-1] for ring in feature["geometry"]["coordinates"])
    again = tmp_path / "again.geojson"
    write_tumor_geojson(again, Mask(blobs((200, 200), 6.0), 2.0, "he"), 0.5, slide_id="S01")
    assert again.read_bytes() == path.read_bytes()


def test_no_tumour_is_an_empty_collection(tmp_path: Path) -> None:
    path = tmp_path / "tumor_he.geojson"
    write_tumor_geojson(path, Mask.empty("he"), None, slide_id="S01")
    assert json.loads(path.read_text(encoding="utf-8")) == {"type": "FeatureCollection", "features": []}
    with pytest.raises(Ki67Error, match="S01: a tumour mask without microns per pixel"):
        write_tumor_geojson(path, Mask(np.ones((2, 2), dtype=bool), 2.0, "he"), None, slide_id="S01")


@pytest.mark.slow
def test_100_mm2_of_tumour_are_written_in_seconds(tmp_path: Path) -> None:
    mask = Mask(blobs((7000, 7000), 30.0, share=0.5), 2.0, "he")
    assert mask.area_mm2 > 95
    started = time.perf_counter()
    write_tumor_geojson(tmp_path / "tumor_he.geojson", mask, 0.25, slide_id="S01")
    assert time.perf_counter() - started < 20  # 2 to 3 on an idle core
