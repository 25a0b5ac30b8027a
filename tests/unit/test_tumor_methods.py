"""Every way of finding tumour behind one interface."""

import json
from pathlib import Path

import pytest
import yaml

from ki67.errors import Ki67Error
from ki67.networks import NETWORK_SPECS, PatchNetwork, build_network, save_network
from ki67.tumor_methods import MODELS, check_fits, load_tumor_network

ROOT = Path(__file__).resolve().parents[2]


def described(folder: Path, **record: object) -> Path:
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps(record))
    return folder


def test_a_method_loads_its_network(tmp_path):
    spec = NETWORK_SPECS["tumor_he_patches"]
    save_network(tmp_path, build_network(spec), spec, "card")
    network = load_tumor_network("patches_googlenet", tmp_path, device="cpu", precision="float32")
    assert isinstance(network, PatchNetwork)
    assert network.spec.classes == ("tumor",)


@pytest.mark.parametrize(("method", "held"), [tuple(MODELS), tuple(reversed(MODELS))])
def test_a_model_of_another_method_is_refused(tmp_path, method, held):
    folder = described(tmp_path / "mine", architecture=held, classes=["tumor"])
    check_fits(held, folder)
    with pytest.raises(Ki67Error) as error:
        load_tumor_network(method, folder)
    assert f"tumor.method is {method}, but the model mine is a {held} of 1 classes; set" in str(error.value)
    assert f"models.{MODELS[method].he} and models.{MODELS[method].ki67} to fitting ones" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_network_of_other_classes_is_refused(tmp_path):
    folder = described(tmp_path / "mine", architecture="unet_densenet121", classes=["one", "two"])
    with pytest.raises(Ki67Error, match="the model mine is a unet_densenet121 of 2 classes"):
        check_fits("unet_densenet121", folder)


@pytest.mark.parametrize("method", MODELS)
def test_a_folder_without_a_network_is_named_with_the_way_to_get_one(tmp_path, method):
    models = MODELS[method]
    with pytest.raises(Ki67Error, match=rf"needs a network, .* snakemake train_{models.he} train_{models.ki67}$"):
        check_fits(method, tmp_path)


def test_an_unknown_method_is_named_with_all_that_there_are(tmp_path):
    with pytest.raises(Ki67Error, match="tumor.method is 'eye'; write unet_densenet121 or patches_googlenet"):
        check_fits("eye", tmp_path)


def test_the_workflow_knows_the_same_methods_and_models():
    schema = yaml.safe_load((ROOT / "workflow" / "schemas" / "config.schema.yaml").read_text())
    assert schema["properties"]["tumor"]["properties"]["method"]["enum"] == list(MODELS)
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    assert config["tumor"]["method"] == "unet_densenet121"
    beside = {models.ki67_nuclei for models in MODELS.values()}
    assert {config["models"][key] for key in beside} == {"nuclei"}
    for method, models in MODELS.items():
        for key in {models.he, models.ki67, models.he_coarse} - {None}:
            assert key in config["models"]
            assert key in config["train"]
            assert NETWORK_SPECS[key].architecture == method
            assert NETWORK_SPECS[key].stain == ("ki67" if key == models.ki67 else "he")


def test_patch_networks_are_trained_without_ranges():
    rules = (ROOT / "workflow" / "rules" / "common.smk").read_text()
    names = [name for name, spec in NETWORK_SPECS.items() if spec.classifies_patches]
    assert f"PATCH_NETWORKS = ({', '.join(map(json.dumps, names))})" in rules
