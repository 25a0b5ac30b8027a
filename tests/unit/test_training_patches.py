"""Training a classifier of patches."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ki67.errors import Ki67Error
from ki67.networks import load_network, tumor_patches_spec
from ki67.training.augmentation import NO_AUGMENTATION
from ki67.training.calibration import calibrate_folder
from ki67.training.datasets import AnnotatedImage
from ki67.training.fit import FitOptions, TrainingTiles, fit
from ki67.training.patches import PatchLoss, choose_patches, patch_label
from ki67.training.targets import IGNORED
from tests.unit.test_training import StopTrainingError, write_tumor_dataset
from tests.unit.test_training import quick as quick_training

SPEC = tumor_patches_spec("tumor_he_patches", "he")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def half_tumor(name: str, group: str, *, size: int = 512) -> AnnotatedImage:
    """Tumour, black, on the right."""
    target = np.zeros((size, size), dtype=np.uint8)
    target[:, size // 2 :] = 1
    rgb = np.repeat((255 * (1 - target))[..., None], 3, axis=2).astype(np.uint8)
    return AnnotatedImage("d", name, f"d/{group}", rgb, target, np.zeros((0, 3)))


def labels_of(image: AnnotatedImage, centers: np.ndarray) -> list[int]:
    """Of the patches around centres, cut out by hand."""
    corners = (centers - 63.5).astype(int)
    return [int(patch_label(image.target[row : row + 128, column : column + 128], 0.5)) for column, row in corners]


def test_a_patch_is_tumour_where_more_than_its_share_is_and_nothing_where_nothing_is_known():
    target = np.zeros((128, 128), dtype=np.uint8)
    target[:, :64] = 1
    assert patch_label(target, 0.5) == 0
    assert patch_label(target, 0.49) == 1
    target[0, 64] = 1
    assert patch_label(target, 0.5) == 1
    target[:, 32:] = IGNORED
    assert patch_label(target, 0.9) == 1
    assert patch_label(np.full((8, 8), IGNORED, dtype=np.uint8), 0.5) == IGNORED


def test_each_slide_gives_at_most_so_many_patches_of_each_class():
    images = [
        half_tumor("a", "one"),
        half_tumor("b", "one"),
        half_tumor("c", "two"),
        half_tumor("e", "three", size=160),
    ]
    chosen = choose_patches(images, SPEC, 20, seed=0)
    labels = [labels_of(image, centers) for image, centers in zip(images, chosen, strict=True)]
    assert sorted(labels[0] + labels[1]) == sorted(labels[2]) == [0] * 20 + [1] * 20
    # The smallest has fewer than that, and gives all.
    assert len(labels[3]) == 4
    for image, centers in zip(images, chosen, strict=True):
        assert len(np.unique(centers, axis=0)) == len(centers)
        assert (centers >= 63.5).all()
        assert (centers <= len(image.target) - 64.5).all()


def test_the_choice_is_the_seed_s():
    images = [half_tumor("a", "one"), half_tumor("b", "two")]
    one, same, other = (choose_patches(images, SPEC, 10, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(np.concatenate(one), np.concatenate(same))
    assert not np.array_equal(np.concatenate(one), np.concatenate(other))


def test_without_a_cap_all_known_patches_are_chosen():
    image = half_tumor("a", "one", size=256)
    image.target[:, :] = np.where(np.arange(256) < 160, np.uint8(IGNORED), image.target)
    (centers,) = choose_patches([image], SPEC, 2000, 0)
    assert sorted({float(column) for column, _ in centers}) == [127.5, 159.5, 191.5]


def test_an_image_smaller_than_a_patch_is_one_patch():
    (centers,) = choose_patches([half_tumor("a", "one", size=90)], SPEC, 2000, 0)
    assert centers.tolist() == [[44.5, 44.5]]


def test_nothing_annotated_is_refused():
    image = half_tumor("a", "one")
    image.target[:] = IGNORED
    with pytest.raises(Ki67Error, match="network tumor_he_patches: its datasets hold no annotated patch to learn from"):
        choose_patches([image], SPEC, 2000, 0)


def test_a_tile_is_a_chosen_patch_with_its_label():
    image = half_tumor("a", "one", size=256)
    options = FitOptions(spec=SPEC, augmentation=NO_AUGMENTATION, patches_per_slide=3)
    tiles = TrainingTiles([image], options)
    for number in range(20):
        rgb, label = tiles[number]
        assert rgb.shape == (128, 128, 3)
        assert label.shape == ()
        assert label == (np.mean(rgb < 128) > 0.5)
    np.testing.assert_array_equal(tiles[7][0], TrainingTiles([image], options, first=7)[0][0])


def test_the_loss_is_small_for_right_answers_and_blind_to_unknown_patches():
    logits, target = torch.tensor([[9.0], [-9.0], [50.0]]), torch.tensor([1, 0, IGNORED], dtype=torch.uint8)
    assert PatchLoss()(logits, target) < 0.001
    assert PatchLoss()(-logits, target) > 5
    assert PatchLoss()(logits[2:], target[2:]) == 0


def quick(**changes) -> FitOptions:
    return quick_training(spec=replace(SPEC, tile_px=64), **changes)


def test_training_leaves_weights_card_and_curve_but_no_ranges(tmp_path):
    data = write_tumor_dataset(tmp_path / "discs")
    folder = tmp_path / "tumor_he_patches"
    fitted = fit(quick(steps=12, batch_size=8, workers=1, patches_per_slide=7), [data], folder)
    assert {path.name for path in folder.iterdir()} == {
        *("weights.safetensors", "model.json", "card.md", "scores.json", "curve.csv", "curve.png")
    }
    losses = [float(row["training_loss"]) for row in csv.DictReader((folder / "curve.csv").open())]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert set(fitted.scores) == {"dice", "sensitivity", "specificity", "auc"}
    assert load_network(folder, device="cpu").spec == fitted.spec
    assert json.loads((folder / "model.json").read_text())["training"]["patches_per_slide"] == 7
    card = (folder / "card.md").read_text()
    assert "trained on at most 7 patches of tumour and as many of other tissue a slide, each of 64 px." in card
    with pytest.raises(Ki67Error, match="does not compute in 8-bit integers; there is nothing to calibrate"):
        calibrate_folder(folder, [data])


def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    data = write_tumor_dataset(tmp_path / "discs")

    def interrupt(step: int) -> None:
        if step == 2:
            raise StopTrainingError

    with pytest.raises(StopTrainingError):
        fit(quick(checkpoint_seconds=0.0), [data], tmp_path / "resumed", on_step=interrupt)
    # What was drawn in between must not matter to dropout.
    torch.manual_seed(99)
    resumed = fit(quick(), [data], tmp_path / "resumed")
    whole = fit(quick(), [data], tmp_path / "whole")
    assert resumed.steps == whole.steps == 3
    assert resumed.spec.sha256 == whole.spec.sha256
