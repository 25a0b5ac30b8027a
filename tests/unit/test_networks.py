import json
import socket

import numpy as np
import pytest
import torch
from torch import nn

from ki67 import networks
from ki67.errors import Ki67Error
from ki67.networks import (
    Network,
    NetworkSpec,
    build_network,
    fuse_batch_normalization,
    initialize_encoder,
    load_network,
    normalization,
    nuclei_spec,
    save_network,
    tumor_spec,
)


def lively(spec: NetworkSpec, seed: int = 0) -> nn.Module:
    """A network with random weights whose normalizations have statistics of their own, as after training."""
    torch.manual_seed(seed)
    module = build_network(spec)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.8, 1.25)
            nn.init.uniform_(part.weight, 0.8, 1.25)
    return module.eval()


def tiles(count: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks") / "nuclei"
    module = lively(nuclei_spec())
    save_network(folder, module, nuclei_spec(), "# A card\n")
    return folder, module


def test_a_saved_network_comes_back_with_its_spec_card_and_answers(saved, monkeypatch):
    folder, module = saved
    monkeypatch.setattr(networks, "computes_bfloat16", lambda device: False)
    network = load_network(folder, device="cpu")
    again = Network(module, nuclei_spec(), device="cpu")
    batch = tiles(2)
    assert network.spec.classes == nuclei_spec().classes
    assert len(network.spec.sha256) == 64
    assert (folder / "card.md").read_text() == "# A card\n"
    # Weights are stored in half precision.
    np.testing.assert_allclose(network.predict(batch), again.predict(batch), atol=0.06)
    assert {path.name for path in folder.iterdir()} == {"weights.safetensors", "model.json", "card.md"}


def test_weights_files_of_both_networks_stay_small(saved, tmp_path):
    save_network(tmp_path, build_network(tumor_spec("tumor_he", "he")), tumor_spec("tumor_he", "he"), "")
    sizes = [(folder / "weights.safetensors").stat().st_size for folder in (saved[0], tmp_path)]
    assert sum(sizes) < 80e6


def test_probabilities_have_a_channel_a_class_and_sum_to_one(saved):
    probabilities = load_network(saved[0], device="cpu").predict(tiles(3))
    assert probabilities.shape == (3, 5, 64, 64)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_a_single_class_is_a_probability_of_its_own():
    spec = tumor_spec("tumor_he", "he")
    probabilities = Network(lively(spec), spec, device="cpu").predict(tiles(1))
    assert probabilities.shape == (1, 1, 64, 64)
    assert 0 <= probabilities.min() < probabilities.max() <= 1


def test_a_tile_gets_the_same_answer_alone_and_in_company(saved):
    network = load_network(saved[0], device="cpu")
    batch = tiles(4)
    together = network.predict(batch)
    for index in range(4):
        np.testing.assert_array_equal(network.predict(batch[index : index + 1])[0], together[index])


@pytest.mark.parametrize("spec", [nuclei_spec(), tumor_spec("tumor_he", "he")], ids=["resnet34", "densenet121"])
def test_folding_normalizations_into_convolutions_changes_no_answer(spec):
    module = lively(spec)
    scale, shift = normalization(spec)
    batch = torch.from_numpy(tiles(1)).permute(0, 3, 1, 2) * scale + shift
    fused = fuse_batch_normalization(module)
    left = sum(isinstance(part, nn.BatchNorm2d) for part in fused.modules())
    assert left < sum(isinstance(part, nn.BatchNorm2d) for part in module.modules()) / 1.8
    with torch.inference_mode():
        expected = module(batch)
        torch.testing.assert_close(fused(batch), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_bfloat16_stays_close_to_float32(monkeypatch):
    spec = tumor_spec("tumor_he", "he")
    module = lively(spec)
    fast = Network(module, spec, device="cpu").predict(tiles(1))
    monkeypatch.setattr(networks, "computes_bfloat16", lambda device: False)
    exact = Network(module, spec, device="cpu")
    assert exact.dtype == torch.float32
    assert np.abs(fast - exact.predict(tiles(1))).mean() < 0.02


def test_changed_weights_are_refused_by_their_hash(saved, tmp_path):
    for path in saved[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(Ki67Error, match=r"network nuclei: weights.safetensors has sha256 \w+... where model.json says"):
        load_network(tmp_path)


def test_weights_of_another_architecture_are_refused(saved, tmp_path):
    for path in saved[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    record = json.loads((tmp_path / "model.json").read_text()) | {"architecture": "unet_densenet121"}
    (tmp_path / "model.json").write_text(json.dumps(record))
    with pytest.raises(Ki67Error, match="weights do not fit unet_densenet121 with 5 classes"):
        load_network(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architecture": "unet_vgg"},
            "unknown architecture 'unet_vgg'; use one of unet_densenet121, unet_resnet34, unet_resnet50",
        ),
        ({"mppp": 1}, "unknown key 'mppp'"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(Ki67Error, match=message):
        NetworkSpec.from_json(nuclei_spec().to_json() | change)


def test_a_folder_without_a_network_is_named(tmp_path):
    with pytest.raises(Ki67Error, match="network empty: no readable model.json"):
        load_network(tmp_path / "empty")


def test_tiles_that_do_not_fit_the_encoder_are_refused(saved):
    with pytest.raises(Ki67Error, match="tiles of 48x64 px do not fit"):
        load_network(saved[0], device="cpu").predict(np.zeros((1, 64, 48, 3), dtype=np.uint8))


def test_an_unknown_device_is_named(saved):
    with pytest.raises(Ki67Error, match="device 'warp' cannot be used on this machine"):
        load_network(saved[0], device="warp")


def test_without_the_hub_training_starts_from_scratch_at_once(monkeypatch, tmp_path):
    def unreachable(*arguments, **keywords):
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    spec = nuclei_spec()
    torch.manual_seed(0)
    module = build_network(spec)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    sentence = initialize_encoder(module, spec, "imagenet")
    assert "starts from random weights" in sentence
    assert "nor could the Hugging Face hub be reached" in sentence
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_encoder_weights_come_from_a_local_file(tmp_path):
    spec = nuclei_spec()
    donor = lively(spec, seed=1)
    file = tmp_path / "encoder.pth"
    torch.save(donor.encoder.state_dict(), file)
    module = build_network(spec)
    assert f"file {tmp_path.name}/encoder.pth." in initialize_encoder(module, spec, str(file))
    torch.testing.assert_close(module.encoder.conv1.weight, donor.encoder.conv1.weight)


def test_a_file_that_holds_no_encoder_weights_is_refused(tmp_path):
    (tmp_path / "encoder.pth").write_text("not weights")
    with pytest.raises(Ki67Error, match=r"encoder weights encoder.pth: not readable as weights of resnet34"):
        initialize_encoder(build_network(nuclei_spec()), nuclei_spec(), str(tmp_path / "encoder.pth"))
