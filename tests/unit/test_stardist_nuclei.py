"""StarDist: what of a model's folder is read, what a slide's stains are shown as, and a model that learned drawn discs."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ki67.errors import Ki67Error
from ki67.geometry import Mask
from ki67.predictors import NamedDevice
from ki67.slides import ImageReader
from ki67.stain import HED_VECTORS, USUAL_STAINS, StainPair, slide_stains
from ki67.star_polygons import candidates
from ki67.stardist_model import read_star_spec, start_tensorflow
from ki67.stardist_nuclei import StarPredictor, in_colour, sample_slide, stain_channels
from ki67.training.targets import POSITIVE
from tests.unit.drawn_nuclei import found_by, grid
from tests.unit.stained_discs import stained

ROOT = Path(__file__).resolve().parents[2]

# ---------------------------------------------------------------------------------------------- stains


def pixels_of(stains, amounts):
    """RGB of amounts ``(..., 2)`` of hematoxylin and DAB."""
    vectors = np.array([stains.hematoxylin, stains.dab])
    return np.clip(np.rint(255 * 10 ** -(amounts @ vectors)), 0, 255).astype(np.uint8)


def unit(*vector):
    return tuple((np.array(vector) / np.linalg.norm(vector)).tolist())


def test_the_colours_of_a_slide_are_those_of_its_pixels():
    known = StainPair(unit(0.80, 0.55, 0.24), unit(0.30, 0.52, 0.80))
    random = np.random.default_rng(0)
    amounts = np.zeros((60_000, 2))
    amounts[:30_000, 0], amounts[30_000:50_000, 1] = random.uniform(0.1, 0.8, 30_000), random.uniform(0.1, 1.0, 20_000)
    amounts[50_000:] = random.uniform(0, 1, (10_000, 2))
    seen = slide_stains(pixels_of(known, amounts))
    assert np.dot(seen.hematoxylin, known.hematoxylin) > 0.998
    assert np.dot(seen.dab, known.dab) > 0.998
    assert np.dot(USUAL_STAINS.hematoxylin, known.hematoxylin) < 0.98
    np.testing.assert_allclose(seen.amounts(pixels_of(known, amounts[:30_000]))[:, 0], amounts[:30_000, 0], atol=0.06)


def test_a_slide_without_dab_has_the_usual_brown():
    blue = np.column_stack([np.random.default_rng(0).uniform(0, 0.8, 50_000), np.zeros(50_000)])
    seen = slide_stains(pixels_of(StainPair(unit(0.8, 0.55, 0.24), USUAL_STAINS.dab), blue))
    assert seen.dab == pytest.approx(USUAL_STAINS.dab)
    assert slide_stains(np.zeros((0, 3), dtype=np.uint8)) == USUAL_STAINS


def test_both_channels_are_shown_from_glass_to_the_darkest_nuclei():
    ellipses = grid((400, 400))
    rgb = stained((400, 400), ellipses, noise=3)
    shown = stain_channels(rgb).shown(rgb)
    assert shown.shape == (2, 400, 400)
    assert shown.dtype == np.float32
    for x, y, *_, kind in ellipses:
        blue, brown = shown[:, round(y), round(x)]
        assert (brown > 0.4 > blue) if kind == POSITIVE else (blue > 0.4 > brown)
    assert np.median(shown[0]) < 0.2
    assert np.median(shown[1]) < 0.1


def test_strong_dab_does_not_make_the_other_nuclei_pale():
    amounts = np.zeros((200, 200, 2))
    amounts[20:60, 20:60, 0], amounts[100:180, 100:180, 1] = 0.4, 3.0
    rgb = pixels_of(USUAL_STAINS, amounts)
    shown = stain_channels(rgb).shown(rgb)
    assert shown[0, 40, 40] > 0.7
    assert shown[1, 140, 140] > 0.9


def test_black_pixels_do_not_tell_how_strong_hematoxylin_is():
    """Where no light passes, what lies under the DAB is anyone's guess: here a little more red is gone than blue."""
    rgb = np.full((300, 300, 3), 240, dtype=np.uint8)
    rgb[20:60, 20:60] = 255 * 10 ** -(0.35 * HED_VECTORS[0])
    rgb[100:250, 100:250] = (2, 6, 9)
    assert stain_channels(rgb).shown(rgb)[0, 40, 40] > 0.6


def test_noise_of_a_slide_without_dab_is_not_blown_up():
    random = np.random.default_rng(0)
    amounts = np.abs(random.normal(0, [0.3, 0.02], (200, 200, 2)))
    rgb = pixels_of(USUAL_STAINS, amounts)
    assert np.percentile(stain_channels(rgb).shown(rgb)[1], 99) < 0.2


def test_a_slide_is_sampled_in_its_tumour_alone():
    rgb = np.full((1024, 1024, 3), 200, dtype=np.uint8)
    rgb[:512, :512] = (90, 90, 170)
    slide = ImageReader(rgb, "png", mpp=0.5, slide_id="S01", stain="ki67")
    mask = np.zeros((64, 64), dtype=bool)
    mask[2:30, 2:30] = True
    sample = sample_slide(slide, Mask(mask, 8.0, "ki67"), 0.5)
    assert len(sample) > 20_000
    assert (sample == (90, 90, 170)).all()
    assert len(sample_slide(slide, Mask(np.zeros((64, 64), dtype=bool), 8.0, "ki67"), 0.5)) == 0


def test_a_network_for_colours_is_shown_hematoxylin():
    channel = np.linspace(0, 1, 11, dtype=np.float32)[None]
    colours = in_colour(channel)
    assert colours.shape == (1, 11, 3)
    np.testing.assert_allclose(colours[0, 0], 1, atol=1e-6)
    assert (np.diff(colours[0], axis=0) < 0).all(), "darker and darker"
    assert colours[0, -1].argmax() == HED_VECTORS[0].argmin()


# ---------------------------------------------------------------------------------------------- predictor


@dataclass
class StandIn:
    """Answers a cell by what it is shown there: as probable as dark, as wide as the spec says."""

    spec: object
    device = NamedDevice()

    def __call__(self, images):
        self.shapes = [*getattr(self, "shapes", []), images.shape]
        cells = images[:, :: self.spec.grid_px, :: self.spec.grid_px]
        probability = np.clip(cells[..., 0], 0, 1).astype(np.float32)
        return probability, np.full((*probability.shape, self.spec.rays), 6.0, dtype=np.float32)


@pytest.mark.parametrize("grid_px", [1, 2, 4])
def test_a_predictor_answers_for_the_inside_of_a_window(tmp_path, grid_px):
    spec = read_star_spec(write_model(tmp_path / "model", grid=[grid_px, grid_px]))
    ellipses = [(100.0, 80.0, 9.0, 9.0, 0.0, POSITIVE)]
    rgb = stained((192, 192), ellipses)
    predictor = StarPredictor(StandIn(spec), stain_channels(rgb))
    answer = predictor.predict_levels(rgb[None], 32)
    assert answer.shape[2:] == (128, 128)
    whole = predictor.predict_levels(rgb[None], 0)
    np.testing.assert_array_equal(answer[0], whole[0, :, 32:-32, 32:-32])
    stars = candidates(answer[0], 1, spec.rays, grid_px, 0.5)
    assert np.hypot(*(stars.centers - [80 - 32, 100 - 32]).T).max() < 10
    assert len(stars.probability) > 0
    np.testing.assert_array_equal(stars.distances, 6.0)


def test_no_nucleus_is_looked_for_in_a_faint_brown_shade(tmp_path):
    class Certain(StandIn):
        def __call__(self, images):
            probability, distances = super().__call__(images)
            return np.ones_like(probability), distances

    spec = read_star_spec(write_model(tmp_path / "model"))
    amounts = np.zeros((64, 128, 2))
    amounts[:, :64, 1], amounts[:, 64:, 1] = 0.05, 0.6
    rgb = pixels_of(USUAL_STAINS, amounts)
    answer = StarPredictor(Certain(spec), stain_channels(rgb)).predict_levels(rgb[None])[0]
    assert candidates(answer, 1, spec.rays, 2, 0.5).centers[:, 1].min() > 56
    assert candidates(answer, 0, spec.rays, 2, 0.5).centers[:, 1].min() == 0


# ---------------------------------------------------------------------------------------------- folder


CONFIG = {
    "n_dim": 2,
    "axes": "YXC",
    "n_channel_in": 1,
    "n_channel_out": 33,
    "n_rays": 32,
    "grid": [2, 2],
    "backbone": "unet",
    "n_classes": None,
    "unet_n_depth": 2,
    "unet_kernel_size": [3, 3],
    "unet_n_filter_base": 32,
    "unet_n_conv_per_depth": 2,
    "unet_pool": [2, 2],
}


def write_model(folder, *, described=None, thresholds=None, **config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "thresholds.json").write_text(json.dumps(thresholds or {"prob": 0.48, "nms": 0.3}))
    (folder / "weights_best.h5").write_bytes(b"weights")
    if described is not None:
        (folder / "model.json").write_text(json.dumps(described))
    return folder


def test_a_folder_that_stardist_wrote_is_read_as_it_is(tmp_path):
    spec = read_star_spec(write_model(tmp_path / "theirs"))
    assert (spec.name, spec.rays, spec.grid_px, spec.inputs, spec.mpp) == ("theirs", 32, 2, 1, 0.5)
    assert (spec.probability, spec.overlap) == (0.48, 0.3)
    assert (spec.stride_px, spec.halo_px) == (8, 64)
    colours = read_star_spec(write_model(tmp_path / "colours", n_channel_in=3, unet_n_depth=3, described={"mpp": 0.25}))
    assert (colours.inputs, colours.mpp, colours.stride_px, colours.halo_px) == (3, 0.25, 16, 96)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"n_dim": 3}, "its n_dim is 3, and only 2 can be read"),
        ({"n_channel_in": 2}, "its n_channel_in is 2, and only 1 or 3 can be read"),
        ({"grid": [2, 4]}, "its grid is [2, 4], and only [1, 1] or [2, 2] or [4, 4] can be read"),
        ({"backbone": "resnet"}, "its backbone is 'resnet', and only unet can be read"),
        ({"unet_n_depth": 5}, "need windows in multiples of 64 px, and only divisors of 32 can be had"),
        ({"n_rays": None}, "config.json, thresholds.json or model.json lacks what is needed"),
        (
            {"thresholds": {"prob": 0.5}},
            "config.json, thresholds.json or model.json lacks what is needed (KeyError('nms'))",
        ),
        ({"thresholds": {"prob": 5, "nms": 0.4}}, "lacks what is needed (ValueError('threshold 5'))"),
        ({"described": {"mpp": 0}}, "lacks what is needed (ValueError('mpp 0'))"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_sentence(tmp_path, changed, words):
    folder = write_model(tmp_path / "model", **changed)
    with pytest.raises(Ki67Error) as error:
        read_star_spec(folder)
    assert words in str(error.value)
    assert str(error.value).startswith("StarDist model model: ")
    assert "\n" not in str(error.value)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("missing", ["config.json", "thresholds.json", "weights_best.h5"])
def test_a_folder_without_a_file_is_named_with_the_way_to_get_one(tmp_path, missing):
    (write_model(tmp_path / "model") / missing).unlink()
    with pytest.raises(Ki67Error, match=rf"model.*{missing}.*(snakemake train_stardist|train it anew)$"):
        read_star_spec(tmp_path / "model")


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_file_is_named(tmp_path, text):
    (write_model(tmp_path / "model") / "config.json").write_text(text)
    with pytest.raises(Ki67Error, match="nuclei.method stardist needs a model, but .*config.json"):
        read_star_spec(tmp_path / "model")


def test_altered_weights_are_refused(tmp_path):
    digest = read_star_spec(write_model(tmp_path / "theirs")).sha256
    folder = write_model(tmp_path / "ours", described={"mpp": 0.5, "sha256": digest})
    assert read_star_spec(folder).sha256 == digest
    (folder / "weights_best.h5").write_bytes(b"weighty")
    with pytest.raises(Ki67Error, match="weights_best.h5 has sha256 .* where model.json says .*; the file was changed"):
        read_star_spec(folder)


def test_tensorflow_is_not_started_beside_pytorch():
    pytest.importorskip("torch")
    with pytest.raises(Ki67Error, match="cannot run beside PyTorch in one process"):
        start_tensorflow("cpu")
    assert "tensorflow" not in sys.modules


# ---------------------------------------------------------------------------------------------- a trained model


@pytest.fixture(scope="session")
def tiny(tiny_stardist):
    return json.loads((tiny_stardist.parent / "results.json").read_text())


def test_training_lowers_the_loss_and_finds_the_discs(tiny):
    losses = tiny["whole"]["losses"]
    assert len(losses) == tiny["whole"]["steps"] == 160
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:5])
    assert tiny["whole"]["scores"]["panoptic_quality"] > 0.6
    assert tiny["whole"]["scores"]["f1_at_half_overlap_of_discs"] == tiny["whole"]["scores"]["f1_at_half_overlap"] > 0.8


def test_training_leaves_a_folder_that_stardist_can_read(tiny, tiny_stardist):
    files = ["card.md", "config.json", "curve.csv", "curve.png", "model.json", "scores.json", "thresholds.json"]
    assert tiny["whole"]["files"] == [*files, "weights_best.h5"]
    spec = read_star_spec(tiny_stardist)
    record = json.loads((tiny_stardist / "model.json").read_text())
    assert record["sha256"] == spec.sha256
    assert record["training"]["validation"] == tiny["whole"]["scores"]
    assert {"prob", "nms"} == set(json.loads((tiny_stardist / "thresholds.json").read_text()))
    code = "from stardist.models import StarDist2D; import sys; StarDist2D(None, sys.argv[2], sys.argv[1])"
    loaded = run_python("-c", code, tiny_stardist.parent, tiny_stardist.name)
    assert loaded.returncode == 0, loaded.stdout
    assert "Loading network weights from 'weights_best.h5'" in loaded.stdout


def test_a_training_that_was_stopped_ends_as_it_would_have(tiny, tiny_stardist):
    assert tiny["stopped"]["steps_before_the_stop"] == list(range(1, 61))
    assert tiny["stopped"]["losses"] == pytest.approx(tiny["whole"]["losses"], rel=1e-4)
    assert tiny["stopped"]["scores"] == pytest.approx(tiny["whole"]["scores"], abs=0.02)
    assert "checkpoint.npz" not in tiny["stopped"]["files"]


def test_nuclei_of_an_image_are_found_with_their_class(tiny):
    from tests.unit.tiny_stardist import ellipses_of

    ellipses, found = ellipses_of(100, (512, 640)), tiny["answers"]["image"]
    x, y = np.array(found["x_px"]), np.array(found["y_px"])
    matched = found_by(x, y, ellipses, radius=5.0)
    once = [which[0] for which in matched if len(which) == 1]
    assert len(once) > 0.9 * len(ellipses)
    assert len(x) < 1.1 * len(ellipses)
    right = [
        found["positive"][which[0]] == (entry[5] == POSITIVE)
        for which, entry in zip(matched, ellipses, strict=True)
        if len(which) == 1
    ]
    assert np.mean(right) > 0.97


def test_a_slide_gives_the_same_nuclei_whatever_the_threads(tiny):
    answers = tiny["answers"]
    assert answers["slide"] == answers["again"]
    assert answers["identity"]["method"] == "stardist"
    assert answers["record"]["stains"]["dark_od"][0] > answers["record"]["stains"]["glass_od"][0]
    assert answers["record"]["statistics"]["threads"] == 1
    assert not answers["torch"]


def test_probabilities_of_both_stains_are_kept_for_people_to_see(tiny):
    kept = tiny["answers"]["probabilities"]
    assert kept["shape"] == [2, 512, 640]
    assert min(kept["highest"]) > 150
    assert kept["told"]["channels"] == ["hematoxylin", "dab"]


def test_nuclei_in_a_part_of_the_tumour_are_those_of_the_whole(tiny):
    """Other windows, of other sizes and places: the halo is as wide as the network sees."""
    part, whole = (np.array(tiny["answers"][name]) for name in ("part", "whole"))
    assert len(part) > 40
    for nucleus in part:
        distance = np.hypot(*(whole[:, :2] - nucleus[:2]).T)
        nearest = whole[distance.argmin()]
        assert distance.min() < 0.25
        np.testing.assert_allclose(nearest[2:], nucleus[2:], rtol=0.1)


def test_the_command_line_evaluates_a_model(tiny_stardist, tmp_path):
    said = run_python("-m", "ki67", "evaluate", "nuclei", tiny_stardist.parent / "discs", "--method", "stardist",
                      "--model", tiny_stardist, "--device", "cpu", "--out", tmp_path / "found.json")  # fmt: skip
    assert said.returncode == 0, said.stdout
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["method"] == record["model"]["method"] == "stardist"
    assert record["pooled"]["detection"]["f1"] > 0.9
    assert record["instances"]["panoptic_quality"] > 0.6
    assert all(abs(image["found_index"] - image["known_index"]) < 0.05 for image in record["images"])
    refused = run_python("-m", "ki67", "evaluate", "nuclei", tiny_stardist.parent / "discs", "--method", "stardist",
                         "--model", tmp_path)  # fmt: skip
    assert refused.returncode == 1
    assert "error: nuclei.method stardist needs a model" in refused.stdout
    assert "Traceback" not in refused.stdout


def run_python(*arguments):
    """A process of its own, with what it says on either stream."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
