"""Evaluation of nuclei on drawn datasets whose answer is known."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from ki67.accuracy_report import accuracy_table, evaluate_changes, evaluate_with_pictures
from ki67.errors import Ki67Error
from ki67.extraction import Nuclei
from ki67.field_changes import CHANGES, FieldChange, restained
from ki67.instance_scores import instance_counts, instance_scores
from ki67.nuclei_evaluation import evaluate_nuclei, f1_scores, joint_index_scores

MPP = 0.5


def nuclei_at(places: list[tuple[float, float, bool]], shape: tuple[int, int] = (200, 200)) -> Nuclei:
    labels = np.zeros(shape, dtype=np.int32)
    for number, (x, y, _) in enumerate(places, start=1):
        cv2.circle(labels, (round(x), round(y)), 5, number, -1)
    x, y, positive = (np.array([place[index] for place in places]) for index in range(3))
    area = np.bincount(labels.ravel(), minlength=len(places) + 1)[1:]
    return Nuclei(labels, x.astype(float), y.astype(float), area, positive.astype(bool), np.ones(len(x), np.float32))


class Told:
    """Answers with the same nuclei whatever it is shown."""

    mpp = MPP

    def __init__(self, places: list[tuple[float, float, bool]]) -> None:
        self.nuclei = nuclei_at(places)
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, rgb: np.ndarray) -> Nuclei:
        self.shapes.append(rgb.shape)
        return self.nuclei


def dataset(folder: Path, annotated: dict[str, list[tuple[float, float, int]]], *, mpp: float = MPP) -> Path:
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True)
    names = {1: "positive", 2: "negative", 3: "lymphocyte"}
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"kind": "nuclei", "mpp": mpp, "labels": names}))
    side = round(200 * MPP / mpp)
    for name, entries in annotated.items():
        cv2.imwrite(str(folder / "images" / f"{name}.png"), np.full((side, side, 3), 220, dtype=np.uint8))
        record = [{"x": x * MPP / mpp, "y": y * MPP / mpp, "label_id": label} for x, y, label in entries]
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(record))
    return folder


def grid(count: int) -> list[tuple[float, float]]:
    return [(20.0 + 18 * (index % 10), 20.0 + 18 * (index // 10)) for index in range(count)]


def test_hits_misses_wrong_classes_and_other_cells_are_counted_as_such(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "d", {"a": [(20, 20, 1), (60, 20, 1), (100, 20, 2), (140, 20, 2), (180, 20, 3)]})
    # A hit 7 px = 3.5 µm off, a wrong class, a miss, one made up, and a lymphocyte found as positive.
    told = Told([(27, 20, True), (60, 20, False), (100, 20, False), (20, 150, False), (180, 20, True)])
    record = evaluate_nuclei(folder, told)
    assert record["images"][0]["counts"] == {"positive": [1, 0, 1], "negative": [1, 2, 1], "detection": [3, 1, 1]}
    assert record["pooled"]["positive"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}
    assert record["close"]["positive"]["f1"] == 0.0  # 3.5 µm is beyond 2.5
    assert record["others"] == {"nuclei": 1, "found": 1, "false_positive_rate": 1.0, "positive_rate": 1.0}
    assert record["index"] == {"fields": 0}


def test_nuclei_outside_of_the_annotated_region_are_left_out(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "d", {"a": [(20, 20, 1), (150, 20, 2)]})
    (folder / "roi_masks").mkdir()
    mask = np.zeros((200, 200), dtype=np.uint8)
    mask[:, :100] = 255
    cv2.imwrite(str(folder / "roi_masks" / "a.png"), mask)
    record = evaluate_nuclei(folder, Told([(20, 20, True), (160, 100, True)]))
    assert record["images"][0]["counts"]["detection"] == [1, 0, 0]


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.17])
def test_images_are_shown_at_the_scale_of_the_detector(tmp_path: Path, mpp: float) -> None:
    folder = dataset(tmp_path / "d", {"a": [(150, 30, 1)]}, mpp=mpp)
    told = Told([(150, 30, True)])
    record = evaluate_nuclei(folder, told)
    assert told.shapes[0][0] == pytest.approx(200, abs=1)
    assert record["pooled"]["positive"]["f1"] == 1.0


def test_errors_of_the_index_are_those_of_fields_with_enough_nuclei(tmp_path: Path) -> None:
    places = grid(80)
    annotated = {
        "few": [(x, y, 1) for x, y in places[:10]],
        "a": [(x, y, 1 if index < 20 else 2) for index, (x, y) in enumerate(places)],  # 25 %
        "b": [(x, y, 1 if index < 4 else 2) for index, (x, y) in enumerate(places)],  # 5 %
    }
    told = Told([(x, y, index < 12) for index, (x, y) in enumerate(places)])  # 15 % each time
    record = evaluate_nuclei(dataset(tmp_path / "d", annotated), told)
    index = record["index"]
    assert index["fields"] == 2
    assert index["rmse"] == pytest.approx(0.10)
    assert index["mae"] == pytest.approx(0.10)
    assert index["bias"] == pytest.approx(0.0)
    assert index["limits_of_agreement"] == pytest.approx([-1.96 * 0.1 * 2**0.5, 1.96 * 0.1 * 2**0.5])
    assert index["category_accuracy"] == 0.0
    assert index["confusion"] == [[0, 1, 0], [0, 0, 0], [0, 1, 0]]
    assert index["clear_fields"] == 0  # both lie 0.05 from a cut-off
    low, high = record["intervals"]["bias"]
    assert low == pytest.approx(-0.1)
    assert high == pytest.approx(0.1)
    assert joint_index_scores([record, record])["fields"] == 4


def test_the_report_shows_fields_a_table_and_what_changes_do(tmp_path: Path) -> None:
    places = grid(60)
    folder = dataset(tmp_path / "d", {"a": [(x, y, 1 + index % 2) for index, (x, y) in enumerate(places)]})
    told = Told([(x, y, index % 2 == 0) for index, (x, y) in enumerate(places)])
    record, pictures = evaluate_with_pictures(folder, told)
    assert set(pictures) == {"best", "median", "worst"}
    assert pictures["best"].shape[1] == 400
    assert (pictures["best"] == (214, 39, 40)).all(axis=2).any()  # positive nuclei are marked
    changes = evaluate_changes(folder, told, record)
    assert set(changes) == set(CHANGES)
    assert all(move == 0 for change in changes.values() for move in change["f1_moves"].values())
    text = accuracy_table([record | {"method": "told"}])
    assert "| d | told | 1 | 1.00 (1.00-1.00)" in text
    assert text.count("\n") == 4


def test_a_dataset_of_tumour_has_no_nuclei(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("{kind: tumor, mpp: 0.5}")
    with pytest.raises(Ki67Error, match="kind tumor has no nuclei"):
        evaluate_nuclei(tmp_path, Told([(1, 1, True)]))


def test_scores_of_nothing_are_not_a_number() -> None:
    assert all(np.isnan(value) for value in f1_scores(np.zeros(3, dtype=int)).values())


def test_outlines_are_compared_pixel_by_pixel_and_nucleus_by_nucleus() -> None:
    labels = np.zeros((60, 60), dtype=np.uint16)
    labels[5:15, 5:15], labels[30:40, 5:15], labels[5:15, 40:50] = 1, 2, 3
    classes = {1: 1, 2: 2}  # the third is of no known class
    found = np.zeros((60, 60), dtype=np.int32)
    found[5:15, 5:13], found[30:40, 10:20], found[5:15, 40:50] = 1, 2, 3
    middle = np.array([10.0, 10.0, 45.0])
    nuclei = Nuclei(found, middle, middle, np.array([80, 100, 100]), np.array([True, False, True]), np.ones(3))
    counts = instance_counts(labels, classes, nuclei)
    assert (counts.matched, counts.found, counts.known) == (1, 2, 2)  # 0.8 overlap, and 1/3
    scores = instance_scores([counts])
    assert scores["iou_positive"] == pytest.approx(0.8)
    assert scores["iou_negative"] == pytest.approx(50 / 150)
    assert scores["panoptic_quality"] == pytest.approx(0.5 * 0.8)
    assert scores["pixel_accuracy"] == pytest.approx(1 - (20 + 100) / 3500)


def test_stains_grow_and_shrink_by_themselves() -> None:
    rgb = np.full((2, 2, 3), (150, 120, 90), dtype=np.uint8)
    np.testing.assert_allclose(restained(rgb, 1.0, 1.0), rgb, atol=1)
    assert restained(rgb, 1.0, 1.3)[0, 0, 2] < 90  # DAB takes blue
    assert restained(rgb, 0.7, 1.0)[0, 0, 0] > 150


def test_a_change_of_scale_is_told() -> None:
    image, mpp = FieldChange(mpp=0.5).apply(np.zeros((40, 60, 3), dtype=np.uint8), 0.25)
    assert image.shape == (20, 30, 3)
    assert mpp == 0.5
