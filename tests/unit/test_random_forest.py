"""A random forest on nuclei found by colour: features, training, and its folder."""

import json

import cv2
import numpy as np
import pytest
import safetensors.numpy
from sklearn.ensemble import RandomForestClassifier

from ki67.color_threshold import color_levels
from ki67.detectors import load_detector
from ki67.errors import Ki67Error
from ki67.extraction import extract_nuclei
from ki67.geometry import Mask
from ki67.nuclei import detect_nuclei
from ki67.random_forest import (
    CANDIDATES,
    FEATURES,
    FOREST_FILE,
    NEGATIVE,
    NO_NUCLEUS,
    POSITIVE,
    load_forest,
    nucleus_features,
)
from ki67.training.forest import ForestOptions, train_forest, trees_of
from tests.unit.drawn_networks import slide_of
from tests.unit.drawn_nuclei import grid
from tests.unit.stained_discs import stained

SMALL = ForestOptions(trees=10, leaves=20)
SHAPE = (240, 240)


def sticks(shape, seed):
    """Blue fibres: dark and long, and no nuclei."""
    random = np.random.default_rng(seed)
    return [
        (float(x), float(y), 2.5, 14.0, float(random.uniform(0, 180)), NEGATIVE)
        for y in range(40, shape[0] - 20, 80)
        for x in range(40, shape[1] - 20, 80)
    ]


def field_of(seed):
    """Discs between fibres, and which of both they are."""
    discs = [entry for entry in grid(SHAPE, step=40, seed=seed, margin=24) if not near(entry, sticks(SHAPE, seed), 26)]
    return stained(SHAPE, [*discs, *sticks(SHAPE, seed)], noise=4, seed=seed), discs


def near(entry, others, reach):
    return any(np.hypot(entry[0] - other[0], entry[1] - other[1]) < reach for other in others)


def write_fields(folder, count=6, **record):
    for part in ("images", "labels", "classes"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        rgb, discs = field_of(index)
        labels = np.zeros(SHAPE, dtype=np.uint16)
        for number, (x, y, axis, other, angle, _) in enumerate(discs, start=1):
            cv2.ellipse(labels, ((x, y), (2 * axis, 2 * other), angle), number, -1)
        cv2.imwrite(str(folder / "images" / f"{index}.png"), rgb[..., ::-1])
        cv2.imwrite(str(folder / "labels" / f"{index}.png"), labels)
        kinds = {number: entry[5] for number, entry in enumerate(discs, start=1)}
        (folder / "classes" / f"{index}.json").write_text(json.dumps(kinds))
    (folder / "dataset.yaml").write_text(json.dumps({"kind": "instances", "mpp": 0.5, "licence": "CC0", **record}))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forest")
    train_forest([write_fields(folder / "fields")], folder / "nuclei_forest", SMALL)
    return folder / "nuclei_forest"


def candidates_of(rgb):
    return extract_nuclei(color_levels(rgb, 0.5, CANDIDATES), mpp=0.5)


# ---------------------------------------------------------------------------------------------- features


def test_features_of_a_disc_are_those_of_a_circle_of_its_colour():
    rgb = stained((120, 120), [(60, 60, 10, 10, 0, POSITIVE)])
    found = dict(zip(FEATURES, nucleus_features(candidates_of(rgb), rgb, 0.5)[0], strict=True))
    assert found["axis_ratio"] == pytest.approx(1, abs=0.03)
    assert found["roundness"] == pytest.approx(1, abs=0.1)
    assert found["ellipse_fill"] == pytest.approx(1, abs=0.03)
    assert found["long_axis_um"] == pytest.approx(2 * np.sqrt(found["area_um2"] / np.pi), rel=0.03)
    assert found["dab_mean"] > 3 * found["hematoxylin_mean"]
    assert found["dab_over_ring"] > 0.3


def test_the_axes_of_an_ellipse_are_measured_at_any_angle():
    for angle in (0, 30, 90):
        rgb = stained((120, 120), [(60, 60, 6, 12, angle, NEGATIVE)])
        found = dict(zip(FEATURES, nucleus_features(candidates_of(rgb), rgb, 0.5)[0], strict=True))
        assert found["axis_ratio"] == pytest.approx(7.2 / 13.2, abs=0.06)


def test_features_do_not_depend_on_where_a_nucleus_lies():
    rgb, _ = field_of(3)
    whole, part = candidates_of(rgb), candidates_of(rgb[17:, 23:])
    features, shifted = nucleus_features(whole, rgb, 0.5), nucleus_features(part, rgb[17:, 23:], 0.5)
    inner = (part.x_px > 40) & (part.y_px > 40)
    places = {(x, y): row for x, y, row in zip(whole.x_px.round(3), whole.y_px.round(3), features, strict=True)}
    assert inner.sum() > 8
    for x, y, row in zip(part.x_px[inner], part.y_px[inner], shifted[inner], strict=True):
        np.testing.assert_array_equal(row, places[round(x + 23, 3), round(y + 17, 3)])


def test_no_nuclei_have_no_features():
    glass = np.full((64, 64, 3), 255, dtype=np.uint8)
    assert nucleus_features(candidates_of(glass), glass, 0.5).shape == (0, len(FEATURES))


# ---------------------------------------------------------------------------------------------- forest


def test_trees_as_arrays_answer_as_scikit_learn_does():
    random = np.random.default_rng(0)
    features = random.normal(size=(500, len(FEATURES))).astype(np.float32)
    kinds = (features[:, 0] > 0).astype(int) + (features[:, 3] > 0.5)
    forest = RandomForestClassifier(20, max_leaf_nodes=30, random_state=0).fit(features, kinds)
    trees = trees_of(forest)
    assert trees.sound(len(FEATURES), 3)
    np.testing.assert_allclose(trees.probabilities(features), forest.predict_proba(features), atol=1e-6)


def test_a_trained_forest_keeps_discs_drops_fibres_and_tells_brown_from_blue(trained):
    forest = load_forest(trained)
    rgb, discs = field_of(99)
    found = candidates_of(rgb)
    assert len(found.area_px) > len(discs)
    kept = forest.revise(found, rgb, 0.5)
    assert len(kept.area_px) == len(discs)
    places = np.array([entry[:2] for entry in discs])
    for x, y, positive in zip(kept.x_px, kept.y_px, kept.positive, strict=True):
        nearest = discs[np.argmin(np.hypot(*(places - (x, y)).T))]
        assert positive == (nearest[5] == POSITIVE)
    assert kept.labels.max() == len(discs)
    assert (kept.probability > 0.3).all()


def test_the_folder_gives_the_same_answers_as_the_forest_that_was_written(tmp_path):
    forest, scores = train_forest([write_fields(tmp_path / "fields")], tmp_path / "nuclei_forest", SMALL)
    again = load_forest(tmp_path / "nuclei_forest")
    features = np.random.default_rng(0).normal(size=(50, len(FEATURES))).astype(np.float32)
    np.testing.assert_array_equal(again.trees.probabilities(features), forest.trees.probabilities(features))
    assert (again.candidates, again.sha256, again.training) == (forest.candidates, forest.sha256, forest.training)
    assert scores["object_f1_detection"] > 0.8
    assert "| fields | 5 | 1 |" in (tmp_path / "nuclei_forest" / "card.md").read_text()


def test_training_again_gives_the_same_file(tmp_path, trained):
    train_forest([write_fields(tmp_path / "fields")], tmp_path / "again", SMALL)
    assert (tmp_path / "again" / FOREST_FILE).read_bytes() == (trained / FOREST_FILE).read_bytes()


def test_a_slide_gives_the_same_nuclei_however_its_windows_lie(trained):
    detector = load_detector("random_forest", trained)
    rgb = np.vstack([np.hstack([field_of(column + 4 * row)[0] for column in range(4)]) for row in range(3)])
    tumor = Mask(np.ones((45, 60), dtype=bool), 8.0, "ki67")
    first, second = (
        detect_nuclei(
            slide_of(rgb),
            tumor,
            detector.predictor,
            options=detector.options,
            revise=detector.revise,
            offset_px=offset,
        ).table
        for offset in ((0, 0), (19, 50))
    )
    assert len(first) > 150
    assert first.drop(columns="geometry").equals(second.drop(columns="geometry"))


# ---------------------------------------------------------------------------------------------- refusals


def test_a_dataset_that_does_not_allow_training_is_refused(tmp_path):
    folder = write_fields(tmp_path / "fields", count=1, use="evaluation only")
    with pytest.raises(Ki67Error, match=r"dataset fields: its use is 'evaluation only' .* does not allow training"):
        train_forest([folder], tmp_path / "out", SMALL)


def test_a_class_that_no_dataset_shows_is_named(tmp_path):
    folder = write_fields(tmp_path / "fields", count=2)
    for path in (folder / "classes").iterdir():
        path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), NEGATIVE)))
    with pytest.raises(Ki67Error, match="no nucleus found in the datasets is positive; add images with such"):
        train_forest([folder], tmp_path / "out", SMALL)


def test_a_changed_file_is_refused(tmp_path, trained):
    for path in trained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    arrays = safetensors.numpy.load_file(tmp_path / FOREST_FILE)
    arrays["threshold"] = arrays["threshold"] + 1
    safetensors.numpy.save_file(arrays, tmp_path / FOREST_FILE)
    with pytest.raises(Ki67Error, match="is not the one that model.json describes"):
        load_forest(tmp_path)
    (tmp_path / FOREST_FILE).write_bytes(b"nothing")
    with pytest.raises(Ki67Error, match=r"missing or damaged .* train_nuclei_forest"):
        load_forest(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("below", 0), ("above", 10**6), ("feature", len(FEATURES)), ("roots", -1)])
def test_trees_that_would_lead_astray_are_refused(tmp_path, trained, name, value):
    (tmp_path / "model.json").write_bytes((trained / "model.json").read_bytes())
    arrays = safetensors.numpy.load_file(trained / FOREST_FILE)
    arrays[name] = arrays[name].copy()
    arrays[name][0] = value
    safetensors.numpy.save_file(arrays, tmp_path / FOREST_FILE)
    with pytest.raises(Ki67Error, match="its trees do not end"):
        load_forest(tmp_path)


def test_classes_of_forests_are_those_of_annotations():
    assert (NO_NUCLEUS, POSITIVE, NEGATIVE) == (0, 1, 2)
