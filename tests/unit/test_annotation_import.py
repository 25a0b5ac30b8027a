import gzip
import json
import zipfile

import cv2
import h5py
import numpy as np
import pytest
import yaml
from shapely.geometry import Point, Polygon, box, mapping
from typer.testing import CliRunner

from ki67.cli import app
from ki67.errors import Ki67Error
from ki67.networks import nuclei_spec
from ki67.training.annotation_import import import_annotations, label_image, roi_mask
from ki67.training.datasets import image_paths, read_dataset, read_images, read_roi
from ki67.training.fit import FitOptions, fit
from ki67.training.qupath_annotations import Annotations, class_of
from ki67.training.targets import IGNORED, NEGATIVE, OTHER, POSITIVE

MPP = 0.5  # that of the network, so that pixels read back are pixels written
SIZE = (120, 160)  # rows and columns, which differ so that x and y cannot be swapped unseen
NUCLEI = [(20.0, 90.0, POSITIVE), (140.0, 30.0, NEGATIVE), (80.0, 60.0, OTHER)]
LABELS = {POSITIVE: "Tumor: Positive", NEGATIVE: "negative", OTHER: "Immune cells"}


def write_image(path, value=200):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*SIZE, 3), value, np.uint8)
    image[:, :, 0] = np.arange(SIZE[1])
    cv2.imwrite(str(path), image)
    return path


def write_shidc(folder, stems=("p1_0299_1", "p1_0299_5", "p2_0191_1"), part="Train", nuclei=NUCLEI):
    for stem in stems:
        write_image(folder / part / f"{stem}.jpg")
        entries = [{"x": x, "y": y, "label_id": kind} for x, y, kind in nuclei]
        (folder / part / f"{stem}.json").write_text(json.dumps(entries))
    return folder


def write_bcdata(folder, parts=("train", "test"), nuclei=NUCLEI):
    for part in parts:
        write_image(folder / "images" / part / "0.png")
        for name, kind in (("positive", POSITIVE), ("negative", NEGATIVE)):
            path = folder / "annotations" / part / name / "0.h5"
            path.parent.mkdir(parents=True)
            with h5py.File(path, "w") as file:
                file["coordinates"] = np.array([(x, y) for x, y, label in nuclei if label == kind])
    return folder


def feature(geometry, name=None, *, object_type="annotation", **properties):
    classification = {"classification": {"name": name, "color": [200, 0, 0]}} if name else {}
    return {
        "type": "Feature",
        "id": "7d8c",
        "geometry": mapping(geometry),
        "properties": {"objectType": object_type, **classification, **properties},
    }


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


def write_qupath(folder, record, stem="S07_a"):
    write_image(folder / f"{stem}.png")
    (folder / f"{stem}.geojson").write_text(json.dumps(record))
    return folder


def outlines(nuclei=NUCLEI, radius=7):
    return [
        feature(Point(x, y).buffer(radius), LABELS[kind], object_type="detection", isLocked=False)
        for x, y, kind in nuclei
    ]


def sorted_nuclei(nuclei):
    return np.array(sorted(map(tuple, nuclei)))


def read_back(folder):
    return read_images(read_dataset(folder), nuclei_spec())


# ---------------------------------------------------------------------------------------------- published forms


def test_shidc_is_read_back_with_its_nuclei_and_its_patients(tmp_path):
    found = import_annotations("shidc", write_shidc(tmp_path / "source"), tmp_path / "out", mpp=MPP)
    assert (found.kind, found.images, found.groups) == ("nuclei", 3, 2)
    assert found.nuclei == {POSITIVE: 3, NEGATIVE: 3, OTHER: 3}
    images = read_back(tmp_path / "out")
    assert [image.name for image in images] == ["p1_0299_1", "p1_0299_5", "p2_0191_1"]
    assert [image.group for image in images] == ["out/p1_0299", "out/p1_0299", "out/p2_0191"]
    for image in images:
        np.testing.assert_array_equal(image.nuclei, NUCLEI)
        assert image.target.shape == SIZE
        assert [image.target[int(y), int(x)] for x, y, _ in NUCLEI] == [1, 3, IGNORED]


def test_images_are_copied_byte_for_byte(tmp_path):
    source = write_shidc(tmp_path / "source")
    import_annotations("shidc", source, tmp_path / "out", mpp=MPP)
    for path in image_paths(read_dataset(tmp_path / "out")):
        assert path.read_bytes() == (source / "Train" / path.name).read_bytes()


def test_bcdata_holds_x_before_y_and_numbers_that_begin_anew_in_each_part(tmp_path):
    found = import_annotations("bcdata", write_bcdata(tmp_path / "source"), tmp_path / "out", mpp=MPP)
    assert (found.kind, found.images, found.groups) == ("nuclei", 2, 2)
    images = read_back(tmp_path / "out")
    assert [image.name for image in images] == ["test_0", "train_0"]
    for image in images:
        np.testing.assert_array_equal(image.nuclei, NUCLEI[:2])
    assert "no patient ids" in read_dataset(tmp_path / "out").origin


def test_bcdata_is_found_one_folder_further_down_and_images_without_nuclei_are_kept(tmp_path):
    write_bcdata(tmp_path / "source" / "BCData", nuclei=NUCLEI[:1])
    import_annotations("bcdata", tmp_path / "source", tmp_path / "out", mpp=MPP)
    assert [image.nuclei.tolist() for image in read_back(tmp_path / "out")] == [[list(NUCLEI[0])]] * 2


def test_a_part_can_be_taken_alone(tmp_path):
    source = write_shidc(tmp_path / "source")
    write_shidc(source, stems=("p3_0001_1",), part="Test")
    assert import_annotations("shidc", source, tmp_path / "test", mpp=MPP, parts=["test"]).images == 1
    assert import_annotations("shidc", source, tmp_path / "all", mpp=MPP).images == 4
    with pytest.raises(Ki67Error, match=r"no images in subfolders named validation; name the folder that holds them"):
        import_annotations("shidc", source, tmp_path / "none", mpp=MPP, parts=["validation"])


def test_images_of_one_name_in_two_folders_keep_their_folder_in_their_name(tmp_path):
    source = write_shidc(write_shidc(tmp_path / "source"), stems=("p1_0299_1",), part="Test")
    import_annotations("shidc", source, tmp_path / "out", mpp=MPP)
    names = [image.name for image in read_back(tmp_path / "out")]
    assert names == ["Test_p1_0299_1", "Train_p1_0299_1", "p1_0299_5", "p2_0191_1"]


# ---------------------------------------------------------------------------------------------- QuPath


def test_points_of_qupath_are_read_back_with_their_classes(tmp_path):
    more = [(100.5, 100.25), (40.0, 12.0)]
    record = collection(
        *[feature(Point(x, y), LABELS[kind]) for x, y, kind in NUCLEI],
        {
            "type": "Feature",
            "geometry": {"type": "MultiPoint", "coordinates": more},
            "properties": {"object_type": "annotation", "classification": {"name": "POSITIVE", "colorRGB": -377282}},
        },
    )
    found = import_annotations("qupath", write_qupath(tmp_path / "source", record), tmp_path / "out", mpp=MPP)
    assert (found.kind, found.nuclei) == ("nuclei", {POSITIVE: 3, NEGATIVE: 1, OTHER: 1})
    (image,) = read_back(tmp_path / "out")
    expected = [*NUCLEI, *[(x, y, POSITIVE) for x, y in more]]
    np.testing.assert_array_equal(sorted_nuclei(image.nuclei), sorted_nuclei(expected))


@pytest.mark.parametrize("form", [".geojson.gz", ".zip", ".png.geojson"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_outlines_of_qupath_are_read_back_as_instances(tmp_path, form, wrapped):
    source = tmp_path / "source"
    write_image(source / "S07_a.png")
    text = json.dumps(collection(*outlines()) if wrapped else outlines())
    path = source / f"S07_a{form}"
    if form == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("S07_a.geojson", text)
    else:
        path.write_bytes(gzip.compress(text.encode()) if form == ".geojson.gz" else text.encode())
    found = import_annotations("qupath", source, tmp_path / "out", mpp=MPP)
    assert (found.kind, found.nuclei) == ("instances", {POSITIVE: 1, NEGATIVE: 1, OTHER: 1})
    (image,) = read_back(tmp_path / "out")
    np.testing.assert_allclose(sorted_nuclei(image.nuclei), sorted_nuclei(NUCLEI), atol=0.2)
    assert [image.target[int(y), int(x)] for x, y, _ in NUCLEI] == [1, 3, IGNORED]
    labels = cv2.imread(str(tmp_path / "out" / "labels" / "S07_a.png"), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint16
    np.testing.assert_allclose(np.bincount(labels.ravel())[1:], np.pi * 7**2, rtol=0.03)


def test_of_a_cell_the_nucleus_is_taken(tmp_path):
    cell = feature(box(20, 20, 60, 60), "Positive", object_type="cell")
    cell["nucleusGeometry"] = mapping(box(30, 30, 50, 40))
    import_annotations("qupath", write_qupath(tmp_path / "source", [cell]), tmp_path / "out", mpp=MPP)
    labels = cv2.imread(str(tmp_path / "out" / "labels" / "S07_a.png"), cv2.IMREAD_UNCHANGED)
    expected = np.zeros(SIZE, np.uint16)
    expected[30:40, 30:50] = 1
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("marked", ["outlines", "points"])
@pytest.mark.parametrize("region", [{"name": "Region*"}, {"name": None, "named": "ROI 1"}])
def test_a_region_limits_where_nuclei_are_annotated(tmp_path, marked, region):
    nuclei = outlines() if marked == "outlines" else [feature(Point(x, y), LABELS[kind]) for x, y, kind in NUCLEI]
    properties = {"name": region["named"]} if "named" in region else {}
    area = {"type": "Feature", "geometry": mapping(box(0, 0, 100, 120)), "properties": properties}
    if region["name"]:
        area["properties"]["classification"] = {"name": region["name"]}
    hole = feature(box(0, 0, 30, 30), "Ignore*")
    source = write_qupath(tmp_path / "source", collection(*nuclei, area, hole))
    write_qupath(source, collection(*nuclei), stem="S08")
    import_annotations("qupath", source, tmp_path / "out", mpp=MPP)
    limited, whole = read_back(tmp_path / "out")
    known = np.zeros(SIZE, bool)
    known[:, :100] = True
    known[:30, :30] = False
    dataset = read_dataset(tmp_path / "out")
    np.testing.assert_array_equal(read_roi(dataset, "S07_a", SIZE), known)
    assert read_roi(dataset, "S07_a", (60, 80)).shape == (60, 80)
    assert read_roi(dataset, "S08", SIZE) is None
    assert (limited.target[~known] == IGNORED).all()
    assert limited.target[90, 20] == 1
    np.testing.assert_array_equal(limited.target[known], whole.target[known])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Positive"], POSITIVE),
        (["Tumor: Positive"], POSITIVE),
        (["TUMOUR: NEGATIVE"], NEGATIVE),
        (["Tumor", "Negative"], NEGATIVE),
        (["Tumor: 2+"], POSITIVE),
        (["Stroma: Positive"], OTHER),
        (["Immune cells: Negative"], OTHER),
        (["Tumor"], OTHER),
        ([], OTHER),
    ],
)
def test_classes_are_known_by_their_names(names, expected):
    assert class_of(names) == expected


def test_smaller_outlines_lie_on_larger_ones_and_the_smallest_keep_a_pixel():
    labels = label_image([box(10, 10, 12, 12), box(5, 5, 20, 20), Point(30.2, 8.7).buffer(0.1)], (30, 40))
    assert (labels == 1).sum() == 4
    assert (labels == 2).sum() == 15**2 - 4
    assert labels[8, 30] == 3
    assert (labels == 3).sum() == 1


def test_holes_of_regions_are_outside_and_islands_in_them_inside():
    ring = Polygon(box(2, 2, 28, 28).exterior.coords, [box(6, 6, 24, 24).exterior.coords])
    mask = roi_mask(Annotations(regions=[box(12, 12, 18, 18), ring]), (30, 30))
    assert mask[15, 15] == mask[4, 4] == 255
    assert mask[8, 8] == mask[0, 0] == 0
    assert (mask == 255).sum() == 26**2 - 18**2 + 6**2


# ---------------------------------------------------------------------------------------------- what may be done with it


def test_licence_and_use_are_written_and_without_them_training_is_refused(tmp_path):
    source = write_shidc(tmp_path / "source")
    import_annotations("shidc", source, tmp_path / "mine", mpp=MPP, licence="own images", use="training allowed")
    mine = read_dataset(tmp_path / "mine")
    assert (mine.licence, mine.use, mine.training_allowed) == ("own images", "training allowed", True)
    import_annotations("shidc", source, tmp_path / "unknown", mpp=MPP)
    assert read_dataset(tmp_path / "unknown").use == "not stated"
    options = FitOptions(spec=nuclei_spec(), encoder_weights="none", device="cpu")
    with pytest.raises(Ki67Error, match=r"dataset unknown: its use is 'not stated' .* does not allow training"):
        fit(options, [tmp_path / "unknown"], tmp_path / "network")


def test_the_command_says_what_it_found(tmp_path):
    source = write_qupath(tmp_path / "source", collection(*outlines()))
    out = tmp_path / "out"
    arguments = ["import-annotations", "qupath", str(source), str(out), "--mpp", "0.5", "--use", "training allowed"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "1 images of 1 groups (kind instances), 1 positive, 1 negative and 1 other nuclei" in result.output
    record = yaml.safe_load((out / "dataset.yaml").read_text())
    assert record["groups"] == {"S07_a": "S07_a"}
    assert (record["mpp"], record["use"]) == (0.5, "training allowed")


# ---------------------------------------------------------------------------------------------- bad input


def without_a_json(folder):
    (write_shidc(folder) / "Train" / "p1_0299_5.json").unlink()


def with_an_unknown_label(folder):
    write_shidc(folder, nuclei=[*NUCLEI, (5, 5, 4)])


def with_a_broken_nucleus(folder):
    (write_shidc(folder) / "Train" / "p1_0299_5.json").write_text('[{"x": 3, "label_id": 1}]')


def with_a_point_outside(folder):
    write_shidc(folder, nuclei=[*NUCLEI, (30, 130, POSITIVE)])


def with_a_broken_image(folder):
    (write_shidc(folder) / "Train" / "p1_0299_5.jpg").write_bytes(b"no image")


def with_nuclei_of_no_use(folder):
    write_shidc(folder, nuclei=NUCLEI[2:])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_a_json, r"^p1_0299_5.json is missing or no JSON; add it beside its image, or remove the image$"),
        (with_an_unknown_label, r"^p1_0299_1.json: nucleus 4 has the unknown label_id 4; 1 is positive"),
        (with_a_broken_nucleus, r"^p1_0299_5.json: nucleus 1 is .* it needs numbers x, y and label_id$"),
        (with_a_point_outside, r"^p1_0299_1: the nucleus at \(30, 130\) lies outside the image of 160 x 120 px;"),
        (with_a_broken_image, r"^p1_0299_5.jpg is no readable image; replace or remove it$"),
        (with_nuclei_of_no_use, r"none of its 3 nuclei is positive or negative; class them"),
    ],
)
def test_bad_published_data_is_one_sentence_and_nothing_is_written(tmp_path, spoil, message):
    spoil(tmp_path / "source")
    with pytest.raises(Ki67Error, match=message) as caught:
        import_annotations("shidc", tmp_path / "source", tmp_path / "out", mpp=MPP)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_missing_file_of_bcdata_is_named(tmp_path):
    (write_bcdata(tmp_path / "source") / "annotations" / "test" / "negative" / "0.h5").unlink()
    with pytest.raises(Ki67Error, match=r"test/negative/0.h5 is missing or has no \(N, 2\) array coordinates"):
        import_annotations("bcdata", tmp_path / "source", tmp_path / "out", mpp=MPP)


def line():
    return {"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[0, 0], [9, 9]]}, "properties": {}}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("[", r"^S07_a.geojson: not readable as GeoJSON"),
        ("7", r"^S07_a.geojson: holds no list of features"),
        (
            [line()],
            r"^S07_a.geojson: object 1 is a LineString without area, and nuclei are points or outlines; correct",
        ),
        ([{"type": "Feature"}], r"^S07_a.geojson: object 1 is no GeoJSON feature \(KeyError\('geometry'\)\); correct"),
        (
            [feature(box(0, 0, 150, 110), "Tumor")],
            r"object 1 of class Tumor at \(75, 55\) has 4125 µm², too much for a",
        ),
        ([feature(Point(170, 20), "Positive")], r"^S07_a: the nucleus at \(170, 20\) lies outside the image of 160 x"),
        (
            [*outlines(), feature(Point(9, 9), "Positive")],
            r"marked by points on S07_a and by outlines on S07_a; export",
        ),
        ([*outlines(), feature(box(300, 300, 400, 400), "Region*")], r"^S07_a: its regions hold no pixel of the image"),
    ],
)
def test_bad_exports_are_one_sentence_and_nothing_is_written(tmp_path, record, message):
    source = write_qupath(tmp_path / "source", [])
    (source / "S07_a.geojson").write_text(record if isinstance(record, str) else json.dumps(record))
    with pytest.raises(Ki67Error, match=message) as caught:
        import_annotations("qupath", source, tmp_path / "out", mpp=MPP)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_image_without_export_is_named_and_a_folder_in_use_is_kept(tmp_path):
    source = write_qupath(tmp_path / "source", collection(*outlines()))
    with pytest.raises(Ki67Error, match=r"exists; name a new folder or remove it first"):
        import_annotations("qupath", source, source, mpp=MPP)
    write_image(source / "S09.png")
    with pytest.raises(Ki67Error, match=r"^S09.png has no S09.geojson beside it; export its objects, or remove"):
        import_annotations("qupath", source, tmp_path / "out", mpp=MPP)


def test_clicks_a_pixel_outside_are_moved_to_the_edge(tmp_path):
    write_shidc(tmp_path / "source", nuclei=[(160.6, -0.5, POSITIVE)])
    import_annotations("shidc", tmp_path / "source", tmp_path / "out", mpp=MPP)
    np.testing.assert_array_equal(read_back(tmp_path / "out")[0].nuclei, [[160, 0, POSITIVE]])
