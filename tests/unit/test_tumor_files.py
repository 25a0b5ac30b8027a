"""The files of a tumour mask, and what they say of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ki67.geometry import Mask
from ki67.storage import read_image, read_tumor_probability, read_tumor_zarr, write_image_jpeg, write_mask_png
from ki67.tumor_files import source_sentence, tumor_title, write_tumor_files
from ki67.tumor_mask import TumorMask

PIXELS = np.zeros((200, 240), dtype=bool)
PIXELS[40:160, 60:180] = True


@pytest.mark.parametrize(
    ("tumor", "sentence"),
    [
        (TumorMask(Mask(PIXELS, 2.0, "he"), "roi"), "Drawn by a person (roi_he of the sample sheet)."),
        (TumorMask(Mask(PIXELS, 2.0, "ki67"), "he"), "Found on the H&E slide and carried over by registration."),
        (
            TumorMask(Mask(PIXELS, 2.0, "ki67"), "ki67", model={"name": "tumor_ki67"}, excluded=True),
            "Found on the Ki-67 slide itself by the network tumor_ki67, without the regions that a person excluded.",
        ),
        (
            TumorMask(Mask(PIXELS, 2.0, "ki67"), "ki67", None, {"name": "tumor_ki67"}, None, {"name": "nuclei"}),
            "Found on the Ki-67 slide itself by the networks tumor_ki67 and nuclei.",
        ),
        (TumorMask.empty("ki67", 2.0), "There is no Ki-67 slide that could be used."),
    ],
)
def test_a_picture_says_where_its_mask_comes_from(tumor: TumorMask, sentence: str) -> None:
    assert source_sentence(tumor) == sentence


def test_a_title_gives_the_area() -> None:
    assert tumor_title("S1", TumorMask(Mask(PIXELS, 2.0, "he"))) == "S1: 0.06 mm² of tumour on the H&E slide"


@pytest.mark.parametrize("keep_probability", [True, False])
def test_all_files_of_a_mask_are_written(tmp_path: Path, keep_probability: bool) -> None:
    given = {"thumbnail": tmp_path / "thumbnail.jpg", "tissue": tmp_path / "tissue.png"}
    write_image_jpeg(given["thumbnail"], np.full((50, 60, 3), 200, dtype=np.uint8))
    write_mask_png(given["tissue"], Mask(np.ones((50, 60), dtype=bool), 8.0, "he"))
    output = {
        "tumor": tmp_path / "tumor_he.ome.zarr",
        "outlines": tmp_path / "t.geojson",
        "picture": tmp_path / "t.png",
    }
    tumor = TumorMask(Mask(PIXELS, 2.0, "he"), "he", PIXELS.astype(np.uint8) * 255)
    checked = {"mpp": 0.5, "tissue_mpp": 8.0}
    write_tumor_files(output, given, tumor, checked, slide_id="S1", keep_probability=keep_probability)
    np.testing.assert_array_equal(read_tumor_zarr(output["tumor"], "he").pixels, PIXELS)
    assert (read_tumor_probability(output["tumor"]) is not None) == keep_probability
    (feature,) = json.loads(output["outlines"].read_text(encoding="utf-8"))["features"]
    x, y = np.array(feature["geometry"]["coordinates"][0]).T
    assert (x.min(), x.max(), y.min(), y.max()) == (240.0, 720.0, 160.0, 640.0)
    assert read_image(output["picture"]).shape[1] > 2 * 150


def test_a_slide_that_is_not_there_has_empty_files(tmp_path: Path) -> None:
    given = {"thumbnail": tmp_path / "thumbnail.jpg", "tissue": tmp_path / "tissue.png"}
    write_image_jpeg(given["thumbnail"], np.full((1, 1, 3), 255, dtype=np.uint8))
    write_mask_png(given["tissue"], Mask.empty("ki67"))
    output = {name: tmp_path / name for name in ("tumor", "outlines", "picture")}
    write_tumor_files(output, given, TumorMask.empty("ki67", 2.0), None, slide_id="S1", keep_probability=False)
    assert json.loads(output["outlines"].read_text(encoding="utf-8"))["features"] == []
    assert read_image(output["picture"]).shape[0] < 100
