"""A classifier of patches as a network that answers for every pixel."""

import logging
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from ki67 import networks
from ki67.errors import Ki67Error
from ki67.geometry import Mask
from ki67.inference import Running
from ki67.networks import (
    NetworkSpec,
    PatchNetwork,
    build_network,
    initialize_encoder,
    load_network,
    normalization,
    predict_image,
    save_network,
    tumor_patches_spec,
)
from ki67.patch_classifier import between_cells, cut_patches, patch_halo_px
from ki67.tumor import segment_tumor
from tests.unit.drawn_networks import slide_of
from tests.unit.test_networks import lively

SPEC = tumor_patches_spec("tumor_he_patches", "he")


class MeanDarkness(torch.nn.Module):
    """Says that a patch is tumour as likely as it is dark, whatever its precision."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        scale, shift = normalization(SPEC)
        red = ((patches.float() - shift) / scale / 255)[:, 0].mean(dim=(1, 2))
        return torch.logit((1 - red).clamp(0.001, 0.999))[:, None]


def drawn_network(spec: NetworkSpec = SPEC) -> PatchNetwork:
    return PatchNetwork(MeanDarkness(), spec, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    """With random weights and the statistics of some patches, so that others are told apart."""
    torch.manual_seed(0)
    made = build_network(SPEC).train()
    for part in made.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    scale, shift = normalization(SPEC)
    patches = torch.from_numpy(cut_patches(cloudy(192, 192)[None], 0, 128, 64)[0]).permute(0, 3, 1, 2)
    torch.nn.init.normal_(made.classifier.weight, 0, 0.2)
    with torch.no_grad():
        made.classifier.bias -= made(patches * scale + shift).median()
    return made.eval()


def real_network(module: torch.nn.Module, precision: networks.Precision = "float32") -> PatchNetwork:
    return PatchNetwork(module, SPEC, device="cpu", precision=precision)


def cloudy(height: int, width: int) -> np.ndarray:
    """Noise with large and small clouds, so that patches differ."""
    random = np.random.default_rng(0)
    small = random.integers(0, 200, (-(-height // 64), -(-width // 64), 3), dtype=np.uint8)
    large = np.repeat(np.repeat(small, 64, axis=0), 64, axis=1)[:height, :width]
    return large + random.integers(0, 56, (height, width, 3), dtype=np.uint8)


# ---------------------------------------------------------------------------------------------- patches and cells


@pytest.mark.parametrize("stride_px", [32, 64, 128])
def test_a_patch_lies_around_the_centre_of_each_cell_and_of_one_more_on_every_side(stride_px):
    halo = patch_halo_px(128, stride_px)
    rows, columns = np.indices((256 + 2 * halo, 384 + 2 * halo), dtype=np.int64)
    pixels = np.stack([rows // 256, rows % 256, columns % 256], axis=-1).astype(np.uint8)[None]
    patches, (count, high, wide) = cut_patches(pixels, halo, 128, stride_px)
    assert (count, high, wide) == (1, 256 // stride_px + 2, 384 // stride_px + 2)
    grid = patches.reshape(high, wide, 128, 128, 3).astype(int)
    # Rows and columns counted from the window's corner.
    middle = (grid[:, :, 63, 63] + grid[:, :, 64, 64]) / 2
    wanted = (np.arange(-1, high - 1) + 0.5) * stride_px - 0.5
    np.testing.assert_array_equal(middle[:, 0, 0] * 256 + middle[:, 0, 1] - halo, wanted)
    assert grid[1, 1, 0, 0].tolist()[1:] == [halo + (stride_px - 128) // 2] * 2


def test_what_the_halo_lacks_is_mirrored_and_what_it_has_too_much_is_left_out():
    pixels = cloudy(256, 192)[None]
    lacking, grid = cut_patches(pixels, 0, 128, 64)
    assert grid == (1, 6, 5)
    mirrored = np.pad(pixels, ((0, 0), (96, 96), (96, 96), (0, 0)), "symmetric")
    for halo in (96, 128):
        more = np.pad(pixels, ((0, 0), (halo, halo), (halo, halo), (0, 0)), "symmetric")
        np.testing.assert_array_equal(cut_patches(more, halo, 128, 64)[0], lacking)
    np.testing.assert_array_equal(lacking[0], mirrored[0, :128, :128])


def test_an_image_smaller_than_a_patch_or_that_no_cell_divides_has_an_answer_for_every_pixel():
    for height, width in ((20, 33), (100, 129), (256, 300)):
        levels = predict_image(drawn_network(), np.full((height, width, 3), 51, dtype=np.uint8))
        assert levels.shape == (1, height, width)
        assert (levels == 204).all()


def test_at_the_centre_of_a_cell_is_the_cell_s_own_answer_and_between_two_their_mean():
    cells = torch.rand((1, 1, 5, 6), generator=torch.Generator().manual_seed(0))
    pixels = between_cells(cells, 64, 192, 256)[0, 0]
    assert pixels.shape == (192, 256)
    around_centres = (pixels[31::64, 31::64] + pixels[32::64, 32::64]) / 2
    torch.testing.assert_close(around_centres, cells[0, 0, 1:-1, 1:-1], atol=0.02, rtol=0)
    torch.testing.assert_close(pixels[63:65, 31:33].mean(), cells[0, 0, 1:3, 1].mean(), atol=0.02, rtol=0)


@pytest.mark.parametrize("stride_px", [32, 64])
def test_the_map_has_its_edge_where_the_image_has_it(stride_px):
    pixels = np.full((512, 512, 3), 255, dtype=np.uint8)
    pixels[:, 256:] = 0
    network = drawn_network(replace(SPEC, patch_stride_px=stride_px))
    levels = predict_image(network, pixels)[0].astype(int)
    assert (np.diff(levels, axis=1) >= 0).all()
    np.testing.assert_allclose(levels[:, 255:257].mean(), 127.5, atol=3)
    np.testing.assert_array_equal(levels, 255 - levels[:, ::-1])
    assert levels[0, 150] <= 3
    assert levels[0, 361] >= 252


# ---------------------------------------------------------------------------------------------- invariance


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_pixel_has_the_same_answer_in_any_window_and_batch(module, precision):
    network, halo = real_network(module, precision), 96
    pixels = cloudy(128 + 2 * halo, 192 + 2 * halo)
    whole = network.predict_levels(pixels[None], halo)[0, 0]
    assert whole.std() > 5
    for top, left, height, width in ((0, 0, 64, 128), (64, 128, 64, 64)):
        window = pixels[top : top + height + 2 * halo, left : left + width + 2 * halo]
        found = network.predict_levels(np.stack([window, window[::-1]]), halo)
        np.testing.assert_array_equal(found[0, 0], whole[top : top + height, left : left + width])
    np.testing.assert_array_equal(network.predict_levels(np.stack([pixels[::-1], pixels]), halo)[1, 0], whole)


def test_tumour_of_a_slide_depends_neither_on_tiles_nor_on_threads(module):
    pixels = cloudy(200, 280)
    slide, tissue = slide_of(pixels, stain="he"), Mask(np.ones((25, 35), dtype=bool), 8.0, "he")
    network = real_network(module)
    one = segment_tumor(slide, tissue, network, cell_px=256, running=Running(threads=1))
    other = segment_tumor(slide, tissue, network, cell_px=64, running=Running(threads=3))
    np.testing.assert_array_equal(one.probability, other.probability)
    assert one.probability.shape == (50, 70)
    assert one.probability.std() > 5


def test_tumour_is_where_the_patches_say_at_the_resolution_of_the_mask():
    pixels = np.full((768, 768, 3), 255, dtype=np.uint8)
    pixels[:, 384:] = 0
    tissue = Mask(np.ones((48, 48), dtype=bool), 8.0, "he")
    found = segment_tumor(slide_of(pixels, stain="he"), tissue, drawn_network())
    # Patches that reach beyond the slide see white there, where tissue never goes.
    assert not found.mask.pixels[:, : 96 - 2].any()
    assert found.mask.pixels[16:-16, 96 + 2 : -16].all()


# ---------------------------------------------------------------------------------------------- on disk


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks") / "tumor_he_patches"
    spec = save_network(folder, lively(SPEC), SPEC, "# A card\n")
    return folder, spec


def test_a_saved_classifier_comes_back_and_computes_without_a_word_in_what_the_machine_has(saved, caplog):
    folder, spec = saved
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings():
        warnings.simplefilter("error")
        network = load_network(folder, device="cpu")
    assert not caplog.text
    assert isinstance(network, PatchNetwork)
    assert network.spec == spec
    assert network.precision in {"bfloat16", "float32"}
    assert network.halo_px == 96
    assert (folder / "weights.safetensors").stat().st_size < 12.5e6
    assert network.predict(cloudy(64, 96)[None]).shape == (1, 1, 64, 96)
    batch = network.random_input(2, 128, 192)
    assert batch.shape == (2 * 6, 3, 128, 128)
    network.run_bare(batch)


def test_bfloat16_stays_close_to_float32(module):
    pixels = cloudy(128, 128)[None]
    exact, fast = (real_network(module, precision).predict(pixels) for precision in ("float32", "bfloat16"))
    assert np.abs(exact - fast).mean() < 0.03


def test_changed_weights_are_refused_by_their_hash(saved, tmp_path):
    for path in saved[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "weights.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:-1])
    with pytest.raises(
        Ki67Error, match=r"tumor_he_patches: weights.safetensors has sha256 \w+... where model.json says"
    ):
        load_network(tmp_path)


def test_insisting_on_integers_is_refused(saved):
    with pytest.raises(
        Ki67Error, match="a patches_googlenet does not compute in 8-bit integers; set precision to auto"
    ):
        load_network(saved[0], device="cpu", precision="int8")


@pytest.mark.parametrize("stride_px", [0, 48, 256])
def test_a_stride_that_fits_no_window_is_refused(stride_px):
    with pytest.raises(Ki67Error, match=rf"a patch_stride_px of {stride_px} does not fit patches of 128 px; use 32"):
        replace(SPEC, patch_stride_px=stride_px)


# ---------------------------------------------------------------------------------------------- first weights


def test_without_the_hub_training_starts_from_scratch_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(networks, "_answers", lambda url: False)
    sentence = initialize_encoder(build_network(SPEC), SPEC, "imagenet")
    assert sentence.startswith("The googlenet encoder starts from random weights, as its ImageNet weights are neither")
    assert "nor could download.pytorch.org be reached; name a local file" in sentence
    assert "as asked for" in initialize_encoder(build_network(SPEC), SPEC, "none")


@pytest.mark.parametrize("source", ["imagenet", "file"])
def test_the_encoder_starts_from_torchvision_s_file_without_its_classifiers(monkeypatch, tmp_path, source):
    donor = lively(SPEC, seed=1)
    extra = {"fc.weight": torch.zeros(1000, 1024), "fc.bias": torch.zeros(1000), "aux1.fc2.bias": torch.zeros(1000)}
    path = tmp_path / "checkpoints" / "googlenet-1378be20.pth"
    path.parent.mkdir()
    torch.save(donor.encoder.state_dict() | extra, path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    module = build_network(SPEC)
    sentence = initialize_encoder(module, SPEC, source if source == "imagenet" else str(path))
    assert "ImageNet weights of torchvision" in sentence or "/googlenet-1378be20.pth" in sentence
    torch.testing.assert_close(module.encoder.conv1.conv.weight, donor.encoder.conv1.conv.weight)


def test_weights_of_another_encoder_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "encoder.pth")
    with pytest.raises(Ki67Error, match="encoder weights encoder.pth: not readable as weights of googlenet"):
        initialize_encoder(build_network(SPEC), SPEC, str(tmp_path / "encoder.pth"))
