"""Every way of finding nuclei behind one interface."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ki67.detection import MODELS, detect
from ki67.detectors import WithMembranes, load_detector
from ki67.errors import Ki67Error
from ki67.extraction import with_membranes
from ki67.networks import NUCLEUS_CLASSES, Network, build_network, nuclei_spec, save_network, whole_nuclei_spec
from ki67.training.targets import IGNORED, NEGATIVE, POSITIVE, five_class_target, without_membranes
from tests.unit.drawn_nuclei import found_by, grid
from tests.unit.stained_discs import stained


def write_network(folder, spec):
    torch.manual_seed(0)
    save_network(folder, build_network(spec), spec, "card")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "unet_resnet34": write_network(folder / "nuclei", nuclei_spec()),
        "unet_resnet50": write_network(folder / "nuclei_resnet50", whole_nuclei_spec()),
    }


@pytest.mark.parametrize("method", ["unet_resnet34", "unet_resnet50"])
def test_networks_answer_in_five_classes(folders, method):
    detector = load_detector(method, folders[method], device="cpu", precision="float32")
    levels = detector.predictor.predict_levels(np.zeros((1, 64, 96, 3), dtype=np.uint8), 16)
    assert levels.shape == (1, 5, 32, 64)
    assert detector.predictor.spec.classes == NUCLEUS_CLASSES
    assert detector.mpp == 0.5
    assert detector.identity["method"] == method
    assert detector.identity["precision"] == "float32"
    assert len(detector.identity["sha256"]) == 64
    assert detector.revise is None


def test_three_classes_are_interiors_without_membranes():
    network = Network(build_network(whole_nuclei_spec()), whole_nuclei_spec(), device="cpu", precision="float32")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    three, five = network.predict_levels(pixels, 0), WithMembranes(network).predict_levels(pixels, 0)
    np.testing.assert_array_equal(five[:, [0, 1, 3]], three)
    assert not five[:, [2, 4]].any()
    np.testing.assert_array_equal(with_membranes(three[0]), five[0])
    np.testing.assert_array_equal(with_membranes(five), five)


def test_color_threshold_needs_no_model_and_finds_drawn_nuclei():
    detector = load_detector("color_threshold")
    ellipses = grid((200, 250), step=40)
    nuclei = detect(detector, stained((200, 250), ellipses))
    found = found_by(nuclei.x_px, nuclei.y_px, ellipses)
    assert [len(which) for which in found] == [1] * len(ellipses)
    np.testing.assert_array_equal(nuclei.positive[np.concatenate(found)], [entry[5] == POSITIVE for entry in ellipses])
    assert detector.identity == {"method": "color_threshold", "name": "color_threshold"}
    np.testing.assert_array_equal(detector(stained((200, 250), ellipses)).labels, nuclei.labels)


def test_an_unknown_method_is_named_with_all_that_there_are():
    with pytest.raises(Ki67Error, match="nuclei.method is 'cellpose'; write unet_resnet34 or unet_resnet50 or"):
        load_detector("cellpose")


def test_stardist_is_refused_beside_pytorch():
    with pytest.raises(Ki67Error, match="stardist needs TensorFlow, which cannot run beside PyTorch in one process"):
        load_detector("stardist")


@pytest.mark.parametrize(
    ("method", "held"),
    [("unet_resnet34", "unet_resnet50"), ("unet_resnet50", "unet_resnet34"), ("random_forest", "unet_resnet34")],
)
def test_a_model_of_another_method_is_refused(folders, method, held):
    with pytest.raises(Ki67Error) as error:
        load_detector(method, folders[held], device="cpu")
    assert f"nuclei.method is {method}, but the model {folders[held].name} is a {held} of" in str(error.value)
    assert f"models.{MODELS[method]}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_network_of_other_classes_is_refused(tmp_path, folders):
    record = json.loads((folders["unet_resnet34"] / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(record | {"classes": ["tumor"]}))
    with pytest.raises(Ki67Error, match="is a unet_resnet34 of 1 classes"):
        load_detector("unet_resnet34", tmp_path)


@pytest.mark.parametrize("method", [method for method, model in MODELS.items() if model and method != "stardist"])
def test_a_folder_without_a_model_is_named_with_the_way_to_get_one(tmp_path, method):
    with pytest.raises(Ki67Error, match=rf"needs a model, .* snakemake train_{MODELS[method]}$"):
        load_detector(method, tmp_path)


def test_the_workflow_knows_the_same_methods_and_models():
    root = Path(__file__).resolve().parents[2]
    schema = yaml.safe_load((root / "workflow" / "schemas" / "config.schema.yaml").read_text())
    assert schema["properties"]["nuclei"]["properties"]["method"]["enum"] == list(MODELS)
    rules = (root / "workflow" / "rules" / "common.smk").read_text()
    for method, model in MODELS.items():
        assert f'"{method}": {"None" if model is None else json.dumps(model)},' in rules


# ---------------------------------------------------------------------------------------------- targets


def test_whole_nuclei_are_told_from_membranes_and_kept_apart_where_they_touch():
    labels = np.zeros((20, 32), dtype=np.uint16)
    labels[4:16, 4:16], labels[4:16, 16:28] = 1, 2
    target = without_membranes(five_class_target(labels, {1: POSITIVE, 2: NEGATIVE}))
    expected = np.zeros((20, 32), dtype=np.uint8)
    expected[4:16, 4:15], expected[4:16, 17:28] = 1, 2
    np.testing.assert_array_equal(target, expected)


def test_what_is_not_known_stays_so():
    target = np.full((8, 8), IGNORED, dtype=np.uint8)
    target[2:6, 2:6] = 0
    np.testing.assert_array_equal(without_membranes(target), target)
