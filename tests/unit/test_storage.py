import gzip
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import zarr

from ki67.errors import Finding, Flag, Ki67Error
from ki67.geometry import Mask
from ki67.hot_spots import HotSpot
from ki67.nuclei_geojson import write_nuclei_geojson
from ki67.storage import (
    guard_text,
    read_image,
    read_json,
    read_mask_png,
    read_nuclei_parquet,
    read_tumor_probability,
    read_tumor_zarr,
    to_plain,
    whole,
    write_cohort_zarr,
    write_csv,
    write_empty_probabilities,
    write_hot_spots_geojson,
    write_image_jpeg,
    write_image_png,
    write_json,
    write_mask_png,
    write_nuclei_parquet,
    write_slide_zarr,
    write_tumor_zarr,
)


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def drawn_nuclei(count: int, *, outside: int = 0) -> gpd.GeoDataFrame:
    """Octagons of radius 4 µm, 10 µm apart; every fifth positive, the last ``outside`` ones not in the tumour."""
    number = np.arange(count)
    x_um, y_um = 10.0 + 10.0 * (number % 100), 20.0 + 10.0 * (number // 100)
    angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    ring = 4 * np.column_stack([np.cos(angles), np.sin(angles)])
    outlines = np.column_stack([x_um, y_um])[:, None, :] + ring[None]
    return gpd.GeoDataFrame(
        {
            "nucleus_id": number.astype(np.int64),
            "x_um": x_um,
            "y_um": y_um,
            "positive": number % 5 == 0,
            "probability": np.full(count, 0.75, dtype=np.float32),
            "area_um2": np.full(count, 45.25, dtype=np.float32),
            "dab_od": np.full(count, 0.3, dtype=np.float32),
            "hematoxylin_od": np.full(count, np.nan, dtype=np.float32),
            "in_tumor": number < count - outside,
        },
        geometry=shapely.polygons(outlines),
    )


def write_detections(path: Path, nuclei: gpd.GeoDataFrame, mpp: float, **options) -> dict:
    """Write nuclei for QuPath by way of their table, and read them again."""
    table = path.with_suffix(".parquet")
    write_nuclei_parquet(table, nuclei)
    write_nuclei_geojson(path, table, mpp, **options)
    return json.loads(gzip.decompress(path.read_bytes()))


def drawn_mask(shape: tuple[int, int] = (70, 90), frame: str = "ki67") -> Mask:
    pixels = np.zeros(shape, dtype=bool)
    pixels[shape[0] // 4 : shape[0] // 2, shape[1] // 3 :] = True
    return Mask(pixels, 2.0, frame)


# whole


def write_until_interrupted(target: Path, write: Callable[[Path], object]) -> None:
    with whole(target) as partial:
        write(partial)
        raise KeyboardInterrupt


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "nuclei.geojson.gz"
    with whole(target) as partial:
        partial.write_text("new")
        assert partial.parent == target.parent
        assert partial.name.endswith(".geojson.gz")
        assert not target.exists()
    assert target.read_text() == "new"
    assert files_in(tmp_path) == [target]


def test_an_interrupted_write_leaves_the_old_file_in_place(tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_until_interrupted(target, lambda partial: partial.write_text("half"))
    assert target.read_text() == "old"
    assert files_in(tmp_path) == [target]


def test_an_interrupted_write_leaves_the_old_folder_in_place(tmp_path):
    target = tmp_path / "store.zarr"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(KeyboardInterrupt):
        write_until_interrupted(target, lambda partial: partial.mkdir())
    assert files_in(tmp_path) == [target / "old"]
    with pytest.raises(FileNotFoundError), whole(target):
        pass  # nothing was written under the temporary name
    assert files_in(tmp_path) == [target / "old"]


@pytest.mark.parametrize("old_is_folder", [True, False])
def test_a_folder_takes_the_place_of_what_was_there(tmp_path, old_is_folder):
    target = tmp_path / "store.zarr"
    if old_is_folder:
        target.mkdir()
        (target / "old").touch()
    else:
        target.touch()
    with whole(target) as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert files_in(tmp_path) == [target / "new"]


def test_what_a_killed_run_left_behind_is_cleared(tmp_path):
    with whole(tmp_path / "store.zarr") as partial:
        name = partial.name
        partial.mkdir()
    (tmp_path / name).mkdir()
    (tmp_path / name / "stale").touch()
    with whole(tmp_path / "store.zarr") as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert files_in(tmp_path) == [tmp_path / "store.zarr" / "new"]


# records and tables


@dataclass(frozen=True)
class Amounts:
    tiles: np.int64
    seconds: float


def test_json_holds_plain_values_and_null_for_what_is_not_a_number(tmp_path):
    record = {
        "index": float("nan"),
        "high": np.float32("inf"),
        "counts": np.array([1, 2]),
        "flags": {Flag.PEN_MARK, Flag.NO_HE},
        "amounts": Amounts(np.int64(3), 0.5),
        "finding": Finding(Flag.NO_HE, "S1: Gewebe für µm"),
        1: (True, None),
    }
    write_json(tmp_path / "record.json", record)
    text = (tmp_path / "record.json").read_bytes()
    assert read_json(tmp_path / "record.json") == {
        "index": None,
        "high": None,
        "counts": [1, 2],
        "flags": ["no_he", "pen_mark"],
        "amounts": {"tiles": 3, "seconds": 0.5},
        "finding": {"flag": "no_he", "message": "S1: Gewebe für µm", "stain": None},
        "1": [True, None],
    }
    assert "für µm".encode() in text
    assert b"NaN" not in text
    assert text.endswith(b"}\n")


def test_a_path_is_no_part_of_a_record():
    with pytest.raises(Ki67Error, match="Path"):
        to_plain({"file": Path("slide.svs")})


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+cmd", "'+1+cmd"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1+1", "'=1+1"),
        ("\r\n@x", "'@x"),
        ("＝1+1", "'＝1+1"),
        ("two\nlines", "two lines"),
        ("line\u2028=1", "line =1"),
        ("\ufeff=1", "'=1"),
        ('"=1+1', "\"'=1+1"),
        ("P1; =1+1;-0.5;@x", "P1; '=1+1;-0.5;'@x"),
        ("10-20%", "10-20%"),
        ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"),
        ("S1", "S1"),
        ("", ""),
    ],
)
def test_text_that_a_spreadsheet_would_run_is_guarded(text, written):
    assert guard_text(text) == written


def test_a_table_is_written_the_same_way_each_time(tmp_path):
    table = pd.DataFrame(
        {
            "slide": ["S1", "=1+1"],
            "index": [1 / 3, np.nan],
            "change": [-0.25, 2.0],
            "total": pd.array([12, None], dtype="Int64"),
            "reasons": ['says "no", really', None],
        }
    )
    write_csv(tmp_path / "a.csv", table)
    write_csv(tmp_path / "b.csv", table)
    expected = 'slide,index,change,total,reasons\nS1,0.333333,-0.25,12,"says ""no"", really"\n\'=1+1,,2,,\n'
    assert (tmp_path / "a.csv").read_bytes() == expected.encode()
    assert (tmp_path / "b.csv").read_bytes() == expected.encode()
    assert table["slide"][1] == "=1+1"


# pictures


def test_a_mask_comes_back_from_png(tmp_path):
    mask = drawn_mask()
    write_mask_png(tmp_path / "Gewebe ä.png", mask)
    back = read_mask_png(tmp_path / "Gewebe ä.png", mask.mpp, mask.frame)
    assert np.array_equal(back.pixels, mask.pixels)
    assert (back.mpp, back.frame) == (2.0, "ki67")
    assert set(np.unique(read_image(tmp_path / "Gewebe ä.png"))) == {0, 255}


def test_pictures_keep_the_order_of_their_colours(tmp_path):
    image = np.zeros((32, 48, 3), dtype=np.uint8)
    image[..., 0], image[..., 2] = 200, 40
    write_image_png(tmp_path / "a.png", image)
    write_image_jpeg(tmp_path / "a.jpg", image)
    assert np.array_equal(read_image(tmp_path / "a.png"), image)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - image).max() < 12


def test_a_broken_picture_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"")
    with pytest.raises(Ki67Error, match=r"mask\.png is no readable image; delete it"):
        read_mask_png(tmp_path / "mask.png", 8.0, "he")


# tumour images


@pytest.mark.parametrize(
    ("shape", "levels", "files"), [((1, 1), 1, 3), ((70, 90), 1, 3), ((2100, 3001), 2, 5), ((8300, 20), 3, 9)]
)
def test_a_tumour_mask_and_its_probability_come_back(tmp_path, shape, levels, files):
    mask = drawn_mask(shape)
    probability = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "tumor_ki67.ome.zarr"
    write_tumor_zarr(path, mask, probability)
    back = read_tumor_zarr(path, "ki67")
    assert np.array_equal(back.pixels, mask.pixels)
    assert (back.mpp, back.frame) == (2.0, "ki67")
    assert np.array_equal(read_tumor_probability(path), probability)
    assert len(list(path.glob("s*"))) == levels
    assert len(files_in(path)) == files


def test_without_probability_there_is_one_channel(tmp_path):
    write_tumor_zarr(tmp_path / "t.ome.zarr", drawn_mask())
    assert read_tumor_probability(tmp_path / "t.ome.zarr") is None


def test_a_mask_of_the_wrong_frame_or_shape_is_refused(tmp_path):
    write_tumor_zarr(tmp_path / "t.ome.zarr", drawn_mask(frame="he"))
    with pytest.raises(Ki67Error, match="frame he, not ki67"):
        read_tumor_zarr(tmp_path / "t.ome.zarr", "ki67")
    with pytest.raises(Ki67Error, match="differ in shape"):
        write_tumor_zarr(tmp_path / "u.ome.zarr", drawn_mask(), np.zeros((3, 3), dtype=np.uint8))


def test_tumour_images_are_valid_ome_zarr_with_scales_in_microns(tmp_path):
    from ome_zarr_models import open_ome_zarr
    from ome_zarr_models.v05 import Image

    path = tmp_path / "t.ome.zarr"
    write_tumor_zarr(path, drawn_mask((2101, 3000)), np.zeros((2101, 3000), dtype=np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = open_ome_zarr(path, version="0.5")
    assert isinstance(image, Image)
    (multiscale,) = image.ome_attributes.multiscales
    assert [(axis.name, axis.type, axis.unit) for axis in multiscale.axes] == [
        ("c", "channel", None),
        ("y", "space", "micrometer"),
        ("x", "space", "micrometer"),
    ]
    scales = [dataset.coordinateTransformations[0].scale for dataset in multiscale.datasets]
    assert scales == [[1.0, 2.0, 2.0], [1.0, 8.0, 8.0]]
    # the first coarse pixel covers 0-8 µm, so its centre lies at 4 µm, where that of the first fine pixel lies at 1 µm
    assert multiscale.datasets[1].coordinateTransformations[1].translation == [0.0, 3.0, 3.0]


def test_viewers_read_tumour_images_through_ome_zarr(tmp_path):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    mask = drawn_mask((2100, 2200))
    write_tumor_zarr(tmp_path / "t.ome.zarr", mask, np.full((2100, 2200), 7, dtype=np.uint8))
    (node,) = Reader(parse_url(tmp_path / "t.ome.zarr"))()
    assert node.metadata["channel_names"] == ["mask", "probability"]
    assert [level.shape for level in node.data] == [(2, 2100, 2200), (2, 525, 550)]
    assert np.array_equal(np.asarray(node.data[0][0]) > 0, mask.pixels)
    coarse = np.asarray(node.data[1][0])
    assert set(np.unique(coarse)) == {0, 255}
    assert (coarse > 0).mean() == pytest.approx(mask.pixels.mean(), rel=0.01)


def test_a_slide_without_nuclei_has_valid_probabilities_of_one_pixel(tmp_path):
    from ome_zarr_models import open_ome_zarr

    from ki67.networks import NUCLEUS_CLASSES

    path = tmp_path / "p.ome.zarr"
    write_empty_probabilities(None)
    write_empty_probabilities(path)
    open_ome_zarr(path, version="0.5")
    group = zarr.open_group(path, mode="r")
    assert group.attrs["ki67"] == {"frame": "ki67", "channels": list(NUCLEUS_CLASSES)}
    assert group["s0"].shape == (5, 1, 1)
    write_tumor_zarr(tmp_path / "t.ome.zarr", drawn_mask())
    before = files_in(tmp_path / "t.ome.zarr")
    write_empty_probabilities(tmp_path / "t.ome.zarr")  # what a network wrote stays
    assert files_in(tmp_path / "t.ome.zarr") == before


# nuclei


@pytest.mark.parametrize("count", [0, 250])
def test_nuclei_come_back_from_parquet_with_their_types(tmp_path, count):
    nuclei = drawn_nuclei(count).iloc[::-1]
    write_nuclei_parquet(tmp_path / "nuclei.parquet", nuclei)
    back = read_nuclei_parquet(tmp_path / "nuclei.parquet")
    pd.testing.assert_frame_equal(pd.DataFrame(back), pd.DataFrame(nuclei.reset_index(drop=True)))
    assert isinstance(back, gpd.GeoDataFrame)
    assert back.crs is None
    write_nuclei_parquet(tmp_path / "again.parquet", nuclei)
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "nuclei.parquet").read_bytes()


def test_qupath_finds_detections_in_pixels_of_level_0(tmp_path):
    collection = write_detections(tmp_path / "n.geojson.gz", drawn_nuclei(10, outside=3), 0.3, slide_id="S1")
    assert collection["type"] == "FeatureCollection"
    features = collection["features"]
    assert len(features) == 7
    first, second = features[:2]
    assert first["type"] == "Feature"
    assert first["properties"] == {
        "objectType": "detection",
        "classification": {"name": "Positive", "color": [213, 32, 32]},
        "measurements": {"Probability": 0.75, "Area um^2": 45.25, "DAB OD": 0.3},
    }
    assert second["properties"]["classification"]["name"] == "Negative"
    assert first["geometry"]["type"] == "Polygon"
    (ring,) = first["geometry"]["coordinates"]
    assert ring[0] == ring[-1] == [46.7, 66.7]  # (10 + 4, 20) µm at 0.3 µm/px
    assert len(ring) == 9


def test_every_outline_survives_the_parts_of_the_stream(tmp_path, monkeypatch):
    monkeypatch.setattr("ki67.nuclei_geojson.NUCLEI_AT_ONCE", 64)
    monkeypatch.setattr("ki67.storage.NUCLEI_IN_GROUP", 100)
    nuclei = drawn_nuclei(300, outside=150)
    collection = write_detections(tmp_path / "n.geojson.gz", nuclei, 0.25, slide_id="S1", only_in_tumor=False)
    back = gpd.GeoDataFrame.from_features(collection)
    assert len(back) == 300
    distance = shapely.hausdorff_distance(
        back.geometry.to_numpy(), shapely.transform(nuclei.geometry.to_numpy(), lambda xy: xy / 0.25)
    )
    assert distance.max() < 0.1
    inside = write_detections(tmp_path / "i.geojson.gz", nuclei, 0.25, slide_id="S1")
    assert inside["features"] == collection["features"][:150]


def test_detections_are_the_same_bytes_each_time_with_ids_of_their_own(tmp_path):
    ids = []
    for name, slide in [("a", "S1"), ("b", "S1"), ("c", "S2")]:
        collection = write_detections(tmp_path / f"{name}.geojson.gz", drawn_nuclei(40), 0.25, slide_id=slide)
        ids.append({feature["id"] for feature in collection["features"]})
    assert (tmp_path / "a.geojson.gz").read_bytes() == (tmp_path / "b.geojson.gz").read_bytes()
    assert ids[0] == {str(uuid5(NAMESPACE_URL, f"ki67:S1:{number}")) for number in range(40)}
    assert not ids[0] & ids[2]


@pytest.mark.parametrize(("count", "outside"), [(0, 0), (5, 5)])
def test_no_nuclei_give_an_empty_collection(tmp_path, count, outside):
    nuclei = drawn_nuclei(count, outside=outside)
    content = write_detections(tmp_path / "n.geojson.gz", nuclei, 0.25, slide_id="S1")
    assert content == {"type": "FeatureCollection", "features": []}


# stores

RECORD = {"slide": "S1", "index": 0.2, "total": 100, "tumor_mm2": None, "flags": ["pen_mark"], "ncc": float("nan")}
MEASURES = ("index", "total", "tumor_mm2")


def test_spatialdata_opens_a_slide_in_few_files(tmp_path):
    import spatialdata
    from spatialdata.transformations import get_transformation

    nuclei, tumor = drawn_nuclei(100, outside=5), drawn_mask()
    for _ in range(2):  # the second takes the place of the first
        write_slide_zarr(tmp_path / "ki67.zarr", nuclei, tumor, RECORD, MEASURES)
    data = spatialdata.read_zarr(tmp_path / "ki67.zarr")
    assert data.coordinate_systems == ["ki67"]
    back = data.shapes["nuclei"]
    assert back["in_tumor"].sum() == 95
    assert shapely.equals(back.geometry.to_numpy(), nuclei.geometry.to_numpy()).all()
    assert np.array_equal(np.asarray(data.labels["tumor"]) == 1, tumor.pixels)
    scale = get_transformation(data.labels["tumor"], "ki67").to_affine_matrix(("x", "y"), ("x", "y"))
    assert np.allclose(scale, np.diag([2.0, 2.0, 1.0]))
    table = data.tables["index"]
    assert (list(table.obs_names), list(table.var_names)) == (["S1"], list(MEASURES))
    assert np.allclose(table.X, [[0.2, 100.0, np.nan]], equal_nan=True)
    assert data.attrs["ki67"] == RECORD | {"ncc": None}
    assert len(files_in(tmp_path)) <= 20


def test_spatialdata_opens_a_slide_without_nuclei(tmp_path):
    import spatialdata

    write_slide_zarr(tmp_path / "ki67.zarr", drawn_nuclei(0), Mask.empty("ki67"), RECORD, MEASURES)
    data = spatialdata.read_zarr(tmp_path / "ki67.zarr")
    assert "nuclei" not in data.shapes
    assert data.labels["tumor"].shape == (1, 1)


def test_the_cohort_opens_as_anndata(tmp_path):
    import anndata

    slides = pd.DataFrame(
        {
            "slide": ["S2", "S1"],
            "patient": ["P1", None],
            "index": [0.2, np.nan],
            "total": pd.array([100, None], dtype="Int64"),
            "flags": ["", "no_ki67;pen_mark"],
            "reference_index": [0.25, np.nan],
        }
    )
    write_cohort_zarr(tmp_path / "cohort.zarr", slides, {"versions": {"ki67": "1"}})
    table = anndata.read_zarr(tmp_path / "cohort.zarr")
    assert list(table.obs_names) == ["S2", "S1"]
    assert list(table.var_names) == ["index", "total", "reference_index"]
    assert np.allclose(table.X, [[0.2, 100, 0.25], [np.nan] * 3], equal_nan=True)
    assert list(table.obs["flags"]) == ["", "no_ki67;pen_mark"]
    assert list(table.obs["patient"]) == ["P1", ""]
    assert json.loads(table.uns["provenance"]) == {"versions": {"ki67": "1"}}
    assert "index" in slides.columns


def test_a_large_slide_stays_within_its_files_and_megabytes(tmp_path):
    """Every file of a slide of 100 mm²; bytes a nucleus measured on a tenth of the 200,000 nuclei it may hold."""
    nuclei, tumor = drawn_nuclei(20_000), drawn_mask((5000, 5000))
    write_tumor_zarr(tmp_path / "tumor_he.ome.zarr", tumor)
    write_tumor_zarr(tmp_path / "tumor_ki67.ome.zarr", tumor)
    write_nuclei_parquet(tmp_path / "nuclei.parquet", nuclei)
    write_nuclei_geojson(tmp_path / "nuclei.geojson.gz", tmp_path / "nuclei.parquet", 0.25, slide_id="S1")
    write_slide_zarr(tmp_path / "ki67.zarr", nuclei, tumor, RECORD, MEASURES)
    records_and_pictures = 13
    assert len(files_in(tmp_path)) + records_and_pictures <= 45
    assert sum(path.stat().st_size for path in files_in(tmp_path)) * 200_000 / len(nuclei) < 150e6


def test_hot_spots_are_annotations_in_level_0_pixels_hottest_first(tmp_path):
    spots = [HotSpot(500.0, 1000.0, 350.0, 300, 500), HotSpot(50.0, 0.0, 150.0, 100, 500)]
    for name in ("a.geojson", "b.geojson"):
        write_hot_spots_geojson(tmp_path / name, spots, 0.25, slide_id="S1")
    first, second = read_json(tmp_path / "a.geojson")["features"]
    assert shapely.geometry.shape(first["geometry"]).bounds == (2000.0, 4000.0, 3400.0, 5400.0)
    assert (first["properties"]["name"], first["properties"]["classification"]["name"]) == ("Hot spot 1", "Hot spot")
    assert first["properties"]["measurements"] == {"Ki-67 index": 0.6, "Positive": 300, "Nuclei": 500}
    assert second["properties"]["name"] == "Hot spot 2"
    assert first["id"] != second["id"]
    assert (tmp_path / "a.geojson").read_bytes() == (tmp_path / "b.geojson").read_bytes()


def test_no_hot_spots_are_an_empty_collection(tmp_path):
    write_hot_spots_geojson(tmp_path / "none.geojson", [], None, slide_id="S1")
    assert read_json(tmp_path / "none.geojson") == {"type": "FeatureCollection", "features": []}


def test_a_link_in_the_results_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """Also where the link is one to a folder, which an output that is a folder must not empty."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept.json").write_text("kept")
    (tmp_path / "record.json").symlink_to(elsewhere / "kept.json")
    write_json(tmp_path / "record.json", {"a": 1})
    assert (elsewhere / "kept.json").read_text() == "kept"
    assert not (tmp_path / "record.json").is_symlink()
    (tmp_path / "mask.ome.zarr").symlink_to(elsewhere)
    write_tumor_zarr(tmp_path / "mask.ome.zarr", Mask(np.ones((4, 4), dtype=bool), 2.0, "he"))
    assert [path.name for path in elsewhere.iterdir()] == ["kept.json"]
    assert not (tmp_path / "mask.ome.zarr").is_symlink()
