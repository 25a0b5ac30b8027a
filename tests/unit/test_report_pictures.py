"""Pictures of a bounded size, and outlines as paths."""

from __future__ import annotations

import base64
import io
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from PIL import Image

from ki67.geometry import Mask
from ki67.nucleus_table import empty_nuclei
from ki67.report_pictures import (
    LONGEST_PATH,
    PictureSize,
    SlideFiles,
    geojson_polygons,
    picture,
    polygons_path,
    ring_path,
    slide_page,
)

WHITE = np.full((300, 400, 3), 250, dtype=np.uint8)
SQUARE = [[100.0, 100.0], [500.0, 100.0], [500.0, 500.0], [100.0, 500.0], [100.0, 100.0]]
TUMOR = {"features": [{"geometry": {"type": "Polygon", "coordinates": [SQUARE]}}]}
NOTHING = {"features": []}
SHIFT = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def decoded(src: str) -> np.ndarray:
    head, data = src.split(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def stain(*, usable: bool = True) -> dict[str, Any]:
    return {"usable": usable, "mpp": 0.5, "tissue_mpp": 1.0}


def files(**changes: Any) -> SlideFiles:
    known: dict[str, Any] = {
        "check": {"stains": {"he": stain(), "ki67": stain()}},
        "transform": {"matrix": SHIFT, "source": "he", "target": "ki67", "deformation": None, "reason": "it fits"},
        "thumbnails": {"he": WHITE, "ki67": WHITE},
        "tumor": {"he": TUMOR, "ki67": TUMOR},
        "tumor_mask": Mask(np.arange(200) < np.full((150, 1), 150), 2.0, "ki67"),
    }
    return SlideFiles(**known | changes)


def nuclei(count: int = 40) -> geopandas.GeoDataFrame:
    """Nuclei in a row of the field whose corner is the slide's, every fourth positive."""
    x = np.linspace(10, 190, count)
    outlines = shapely.buffer(shapely.points(x, np.full(count, 100.0)), 2.0)
    columns = {"x_um": x, "y_um": 100.0, "positive": np.arange(count) % 4 == 0, "in_tumor": True}
    return geopandas.GeoDataFrame(columns, geometry=outlines)


def read(x_um: float, y_um: float, width_px: int, height_px: int, mpp: float) -> np.ndarray:
    return np.full((height_px, width_px, 3), 200, dtype=np.uint8)


@pytest.mark.parametrize("most_bytes", [3_000, 20_000])
def test_a_picture_of_noise_fits_into_its_bytes(most_bytes: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8)
    found = picture(noise, PictureSize(600, most_bytes))
    image = decoded(found.src)
    assert len(base64.b64decode(found.src.split(",")[1])) <= most_bytes
    assert image.shape == (found.height, found.width, 3)
    assert max(image.shape) <= 600
    assert found.width / found.height == pytest.approx(1.4, rel=0.05)


def test_a_small_picture_is_neither_enlarged_nor_spoiled() -> None:
    found = picture(WHITE, PictureSize(1000, 10_000))
    assert (found.width, found.height) == (400, 300)
    assert abs(decoded(found.src).astype(int) - WHITE).max() <= 2


def test_a_path_leaves_out_points_that_do_not_move() -> None:
    ring = np.array([[0, 0], [0.1, 0], [2, 0], [2, 2], [0, 2], [0, 0]])
    assert ring_path(ring) == "M0 0l4 0 0 4-4 0z"
    assert ring_path(np.array([[5.0, 5.0], [5.1, 5.0], [5.0, 5.0]])) == ""
    assert ring_path(np.array([[0.0, 0.0], [1.0, 1.0]]), closed=False) == "M0 0l2 2"


def test_a_very_ragged_outline_stays_short() -> None:
    angle = np.linspace(0, 2 * np.pi, 20_000)
    radius = 3000 + 60 * np.random.default_rng(1).random(len(angle))
    ragged = shapely.Polygon(np.column_stack([4000 + radius * np.cos(angle), 4000 + radius * np.sin(angle)]))
    path = polygons_path([ragged], 11.0)
    assert 100 < len(path) <= LONGEST_PATH


def test_polygons_of_a_file_are_in_microns() -> None:
    assert geojson_polygons(TUMOR, 0.5)[0].bounds == (50, 50, 250, 250)
    assert geojson_polygons(None, 0.5) == geojson_polygons(TUMOR, None) == geojson_polygons(NOTHING, 0.5) == []


def test_a_page_shows_all_that_there_is() -> None:
    page = slide_page(files(hot_spots=TUMOR), nuclei(), read, slide_id="S1")
    assert page["absent"] == {}
    assert page["overview"]["stain"] == "Ki-67"
    # 50 to 250 µm at 1 µm/px, in halves of a pixel.
    assert page["overview"]["tumor"] == page["overview"]["hot_spots"] == "M100 100l400 0 0 400-400 0z"
    assert page["overview"]["scale_bar"] == {"length": 200, "label": "100 µm"}
    assert page["overview"]["fields"] == [[0, 0, 400]]
    assert [(one["words"], one["top"]) for one in page["heatmaps"]] == [
        ("local index", "30 %"),
        ("tumour nuclei", "1500 per mm²"),  # 31 nuclei in the 150 x 150 µm of the corner's window
    ]
    for one in page["heatmaps"]:
        assert one["hot_spots"] == one["tumor"] == page["overview"]["tumor"]
        image = decoded(one["picture"]["src"]).astype(int)
        # Coloured in the tumour within reach of the nuclei, gray outside it.
        assert np.ptp(image[100, 100]) > 60
        assert np.ptp(image[280, 380]) < 12
    assert page["registration"]["reason"] == "it fits"
    (field,) = page["fields"]
    assert (field["positive"], field["total"]) == (10, 40)
    assert field["positive_path"].count("M") == 10
    assert field["negative_path"].count("M") == 30
    assert field["tumor"].count("M") == 1
    assert decoded(field["picture"]["src"]).shape == (400, 400, 3)


def test_the_same_slide_gives_the_same_page() -> None:
    pages = [slide_page(files(), nuclei(), read, slide_id="S1") for _ in range(2)]
    assert pages[0] == pages[1]


def test_what_cannot_be_shown_is_said_in_words() -> None:
    unusable = {"stains": {"he": None, "ki67": stain(usable=False)}}
    none = files(
        check=unusable, transform={"reason": "there are no two slides"}, tumor={"he": NOTHING, "ki67": NOTHING}
    )
    page = slide_page(none, empty_nuclei(), None, slide_id="S1")
    assert (page["overview"], page["heatmaps"], page["registration"], page["fields"]) == (None, [], None, [])
    assert page["absent"] == {
        "overview": "S1: there is no slide that can be shown",
        "heatmaps": "S1: no tumour nuclei were counted, so there is no map of the index",
        "registration": "S1: there are no two slides",
        "fields": "S1: no tumour nuclei were counted, so no fields are shown",
    }


def test_a_slide_without_ki67_shows_its_he() -> None:
    page = slide_page(files(check={"stains": {"he": stain(), "ki67": None}}), empty_nuclei(), None, slide_id="S1")
    assert page["overview"]["stain"] == "H&E"
    assert page["overview"]["tumor"]
