import csv
import itertools
import json
import logging
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import yaml

from ki67.errors import Ki67Error
from ki67.networks import load_network, nuclei_spec, tumor_spec
from ki67.training import calibration
from ki67.training.augmentation import NO_AUGMENTATION, Augmentation
from ki67.training.datasets import AnnotatedImage, read_dataset, read_images, split
from ki67.training.fit import (
    FitOptions,
    SegmentationLoss,
    class_weights,
    fit,
    image_shares,
    learning_rate_factor,
)
from ki67.training.scores import f1, match_counts, score_nuclei, score_tumor
from ki67.training.targets import IGNORED, NEGATIVE, OTHER, POSITIVE, discs, five_class_target
from tests.unit.drawn_networks import COLOURS, Darkness, PaintedNuclei

# ---------------------------------------------------------------------------------------------- targets


def test_touching_nuclei_are_parted_by_membrane():
    labels = np.zeros((40, 60), dtype=np.uint16)
    cv2.circle(labels, (20, 20), 10, 1, -1)
    labels[(labels == 0) & (cv2.circle(np.zeros_like(labels), (38, 20), 10, 1, -1) > 0)] = 2
    target = five_class_target(labels, {1: POSITIVE, 2: NEGATIVE})
    assert target[20, 20] == 1
    assert target[20, 38] == 3
    # From one middle to the other: nucleus, its membrane, the other's membrane, the other nucleus; no background.
    assert list(dict.fromkeys(target[20, 20:39].tolist())) == [1, 2, 4, 3]
    interiors = np.isin(target, (1, 3)).astype(np.uint8)
    assert cv2.connectedComponents(interiors)[0] == 3


def test_membrane_is_a_rim_inside_the_nucleus_and_not_at_the_edge_of_the_image():
    labels = np.zeros((30, 30), dtype=np.uint16)
    labels[10:25, 10:30] = 7
    target = five_class_target(labels, {7: NEGATIVE}, membrane_px=2)
    np.testing.assert_array_equal(target > 0, labels > 0)
    assert target[17].tolist() == [0] * 10 + [4] * 2 + [3] * 18


def test_thin_nuclei_keep_an_interior():
    labels = np.zeros((40, 40), dtype=np.uint16)
    labels[10:14, 5:35] = 1
    target = five_class_target(labels, {1: POSITIVE})
    assert target[8:16, 20].tolist() == [0, 0, 2, 1, 1, 2, 0, 0]


def test_nuclei_of_unknown_class_are_ignored():
    labels = np.zeros((20, 40), dtype=np.uint16)
    labels[5:15, 5:15] = 1
    labels[5:15, 20:30] = 2
    target = five_class_target(labels, {1: OTHER})
    assert set(target[labels > 0].tolist()) == {IGNORED}
    assert not target[labels == 0].any()


def test_discs_that_overlap_are_shared_by_the_nearest_centre():
    labels = discs(np.array([[10.0, 10.0], [16.0, 10.0]]), (20, 30), 5.0)
    assert labels[10, 9] == 1
    assert labels[10, 16] == 2
    assert labels[9, 12] == 1
    assert labels[9, 13] == 2
    assert (labels > 0).sum() < 2 * np.pi * 25
    assert not discs(np.zeros((0, 2)), (5, 5), 3.0).any()


# ---------------------------------------------------------------------------------------------- datasets


def write_dataset(folder, *, count=6, size=96, mpp=0.5, classes=True, seed=0, **record):
    """A dataset of brown and blue discs on white."""
    random = np.random.default_rng(seed)
    for part in ("images", "labels", "classes"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        image, labels, kinds = np.full((size, size, 3), 240, dtype=np.uint8), np.zeros((size, size), np.uint16), {}
        places = [(x, y) for y in range(12, size, 20) for x in range(12, size, 20) if random.random() < 0.7]
        for number, (x, y) in enumerate(places, start=1):
            kinds[number] = int(random.integers(1, 3))
            cv2.circle(image, (x, y), 8, COLOURS[1 if kinds[number] == POSITIVE else 3].tolist(), -1)
            cv2.circle(labels, (x, y), 8, number, -1)
        cv2.imwrite(str(folder / "images" / f"{index:02d}.png"), image[..., ::-1])
        cv2.imwrite(str(folder / "labels" / f"{index:02d}.png"), labels)
        (folder / "classes" / f"{index:02d}.json").write_text(json.dumps(kinds))
    if not classes:
        for path in (folder / "classes").iterdir():
            path.unlink()
        (folder / "classes").rmdir()
    record = {"kind": "instances", "mpp": mpp, "licence": "CC0", "use": "training allowed"} | record
    (folder / "dataset.yaml").write_text(yaml.safe_dump(record))
    return folder


def write_tumor_dataset(folder, *, count=5, size=96):
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        image, mask = np.full((size, size, 3), 230, np.uint8), np.zeros((size, size), np.uint8)
        cv2.circle(image, (size // 2, 30 + 8 * index), 24, (60, 40, 90), -1)
        cv2.circle(mask, (size // 2, 30 + 8 * index), 24, 255, -1)
        cv2.imwrite(str(folder / "images" / f"{index}.png"), image[..., ::-1])
        cv2.imwrite(str(folder / "masks" / f"{index}.png"), mask)
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"kind": "tumor", "mpp": 0.5, "licence": "CC0"}))
    return folder


def test_instances_are_brought_to_the_network_s_resolution(tmp_path):
    dataset = read_dataset(write_dataset(tmp_path / "fine", mpp=0.25))
    images = read_images(dataset, nuclei_spec())
    assert len(images) == 6
    assert images[0].rgb.shape == (48, 48, 3)
    assert images[0].target.shape == (48, 48)
    assert set(np.unique(images[0].target)) <= {0, 1, 2, 3, 4}
    assert (images[0].nuclei[:, :2] < 48).all()
    x, y, kind = images[0].nuclei[0]
    middle = images[0].target[int(y), int(x)]
    assert middle == (1 if kind == POSITIVE else 3)


def test_centroids_become_discs_limited_to_the_annotated_region(tmp_path):
    for part in ("images", "annotations", "roi_masks"):
        (tmp_path / part).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.full((100, 100, 3), 255, np.uint8))
    entries = [{"x": 30, "y": 40, "label": 1}, {"x": 60, "y": 40, "label_id": 2}, {"x": 30, "y": 70, "label": 3}]
    (tmp_path / "annotations" / "a.json").write_text(json.dumps(entries))
    roi = np.zeros((100, 100), np.uint8)
    roi[:, :90] = 255
    cv2.imwrite(str(tmp_path / "roi_masks" / "a.png"), roi)
    names = {1: "positive", 2: "negative", 3: "lymphocyte"}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump({"kind": "nuclei", "mpp": 0.5, "labels": names}))
    (image,) = read_images(read_dataset(tmp_path), nuclei_spec())
    assert image.target[40, 30] == 1
    assert image.target[40, 60] == 3
    assert image.target[70, 30] == IGNORED
    assert (image.target[:, 90:] == IGNORED).all()
    assert 0.9 < (image.target == 0)[:, :90].mean() < 1
    np.testing.assert_array_equal(image.nuclei, [[30, 40, POSITIVE], [60, 40, NEGATIVE], [30, 70, OTHER]])


def test_a_dataset_without_classes_is_refused_for_the_five_class_network(tmp_path):
    dataset = read_dataset(write_dataset(tmp_path / "nuclei_dsb", classes=False))
    with pytest.raises(Ki67Error, match=r"nuclei_dsb: its instances have no classes .* re-stained"):
        read_images(dataset, nuclei_spec())


def test_a_dataset_of_another_kind_is_refused(tmp_path):
    with pytest.raises(Ki67Error, match="kind tumor cannot train network nuclei; it needs instances or nuclei"):
        read_images(read_dataset(write_tumor_dataset(tmp_path / "d")), nuclei_spec())


def test_a_missing_annotation_is_named(tmp_path):
    folder = write_dataset(tmp_path / "d")
    (folder / "labels" / "03.png").unlink()
    with pytest.raises(Ki67Error, match=r"dataset d: labels/03.png is unreadable"):
        read_images(read_dataset(folder), nuclei_spec())


TAGS = "kind: nuclei\nmpp: !!python/object/apply:float [0.5]"  # YAML may ask for objects of Python


@pytest.mark.parametrize("text", ["", "kind: nuclei", "kind: nuclei\nmpp: -1", "[1", "kind: nuclei\nmpp: many", TAGS])
def test_an_incomplete_description_is_refused(tmp_path, text):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "dataset.yaml").write_text(text)
    with pytest.raises(Ki67Error, match=r"dataset d: dataset.yaml is missing or incomplete .* needs kind and mpp"):
        read_dataset(tmp_path / "d")


@pytest.mark.parametrize(
    ("use", "licence", "allowed"),
    [
        ("training allowed", "CC0", True),
        ("validation", "CC BY 4.0", False),
        ("evaluation only, never trained on", "research use", False),
        ("evaluation, not for training", "CC0", False),
        ("", "CC0", True),
        ("", "all rights reserved", False),
    ],
)
def test_only_datasets_that_say_so_allow_training(tmp_path, use, licence, allowed):
    folder = write_dataset(tmp_path / "d", count=1, use=use, licence=licence)
    assert read_dataset(folder).training_allowed is allowed


def image_named(name, group=None, dataset="d", size=8):
    pixels = np.zeros((size, size, 3), np.uint8)
    return AnnotatedImage(dataset, name, group or name, pixels, np.zeros((size, size), np.uint8), np.zeros((0, 3)))


def test_groups_are_never_parted_between_training_and_validation():
    images = [image_named(f"{index:02d}", group=f"patient {index // 3}") for index in range(30)]
    for seed in range(5):
        training, validation = split(images, 0.2, seed)
        assert len(training) + len(validation) == 30
        assert len({image.group for image in validation}) == 2
        assert not {image.group for image in training} & {image.group for image in validation}


def test_every_dataset_large_enough_gives_to_validation():
    images = [image_named(str(index), dataset="large") for index in range(20)]
    images += [image_named("a", dataset="small"), image_named("b", dataset="small")]
    training, validation = split(images, 0.1, 0)
    assert [image.dataset for image in validation] == ["large", "large"]
    assert split(images, 0.1, 0)[1] == validation
    assert {image.name for image in training} >= {"a", "b"}


# ---------------------------------------------------------------------------------------------- augmentation


def test_image_and_target_move_together():
    target = np.zeros((200, 200), np.uint8)
    cv2.circle(target, (90, 110), 40, 1, -1)
    cv2.circle(target, (150, 60), 20, 3, -1)
    rgb = COLOURS[target]
    augmentation = replace(NO_AUGMENTATION, rotation_deg=15, scale=0.3)
    for seed in range(10):
        tile, answer = augmentation.apply(rgb, target, 96, np.random.default_rng(seed))
        assert tile.shape == (96, 96, 3)
        seen = np.abs(tile[:, :, None].astype(int) - COLOURS).sum(axis=-1).argmin(axis=-1)
        assert (seen == answer).mean() > 0.94


def test_the_same_number_gives_the_same_tile_and_another_another():
    rgb = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    target = (rgb[..., 0] > 128).astype(np.uint8)

    def tile(seed):
        return Augmentation().apply(rgb, target, 64, np.random.default_rng(seed))

    np.testing.assert_array_equal(tile(1)[0], tile(1)[0])
    assert (tile(1)[0] != tile(2)[0]).mean() > 0.5


def test_stains_change_but_white_stays_nearly_white_and_brown_stays_browner_than_blue():
    target = np.zeros((64, 64), np.uint8)
    target[:, 20:40], target[:, 40:] = 1, 3
    augmentation = replace(Augmentation(), rotation_deg=0, scale=0, blur_px=0, noise=0, jpeg_quality=100)
    whites, browns = [], []
    for seed in range(20):
        tile, answer = augmentation.apply(COLOURS[target], target, 64, np.random.default_rng(seed))
        whites.append(tile[answer == 0].mean())
        browns.append(tile[answer == 1].mean(axis=0))
        red, _, blue = (tile[answer == 1].mean(axis=0) - tile[answer == 3].mean(axis=0)).tolist()
        assert red > blue
    assert min(whites) > 215
    assert np.std(browns, axis=0).min() > 5


def test_images_smaller_than_a_tile_are_mirrored():
    rgb = np.full((20, 30, 3), 7, np.uint8)
    tile, answer = NO_AUGMENTATION.apply(rgb, np.ones((20, 30), np.uint8), 64, np.random.default_rng(0))
    assert np.abs(tile.astype(int) - 7).max() <= 1
    assert (answer == 1).all()


# ---------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("classes", [1, 5])
def test_the_loss_is_small_for_right_answers_and_blind_to_ignored_pixels(classes):
    target = torch.randint(0, max(2, classes), (2, 16, 16), generator=torch.Generator().manual_seed(0))
    loss = SegmentationLoss(torch.ones(classes))
    right = (
        (20.0 * target[:, None] - 10)
        if classes == 1
        else 20.0 * torch.nn.functional.one_hot(target, classes).permute(0, 3, 1, 2)
    )
    assert loss(right, target) < 0.01
    assert loss(-right, target) > 1
    ignoring = target.clone()
    ignoring[:, :8] = IGNORED
    wrong_where_ignored = right.clone()
    wrong_where_ignored[:, :, :8] = -right[:, :, :8]
    assert loss(wrong_where_ignored, ignoring) < 0.01


def test_rare_classes_weigh_more():
    image = image_named("a", size=20)
    image.target[:2] = 1
    image.target[3, :10] = 3
    weights = class_weights([image], 5)
    assert weights[3] > weights[1] > weights[0]
    assert weights[2] == weights[4] == 0


def test_the_learning_rate_rises_and_falls():
    factors = [learning_rate_factor(step, 100, 10) for step in range(101)]
    assert factors[0] == 0.1
    assert max(factors) == 1.0 == factors[10]
    assert factors[-1] == pytest.approx(0.01)
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[10:]))


def test_tiles_come_from_datasets_as_asked_and_by_area_within():
    images = [image_named("a", size=10), image_named("b", size=20), image_named("c", dataset="e", size=10)]
    sizes = [image.target.size for image in images]
    np.testing.assert_allclose(image_shares(images, {}, sizes), [1 / 6, 4 / 6, 1 / 6])
    np.testing.assert_allclose(image_shares(images, {"d": 1.0, "e": 3.0}, sizes), [0.05, 0.2, 0.75])
    with pytest.raises(Ki67Error, match="dataset_shares names f"):
        image_shares(images, {"f": 1.0}, sizes)


# ---------------------------------------------------------------------------------------------- scores


def test_nuclei_are_matched_one_to_one_within_the_radius():
    known = np.array([[10.0, 10.0], [20.0, 10.0], [90.0, 90.0]])
    found = np.array([[11.0, 10.0], [12.0, 10.0], [50.0, 50.0]])
    # 11 is nearer to 10 than 12 is, but both 10 and 20 find a partner only if 12 goes to 20.
    assert match_counts(found, known, 8.0).tolist() == [2, 1, 1]
    assert match_counts(found[:0], known, 8.0).tolist() == [0, 0, 3]
    assert np.isnan(f1(0, 0, 0))


def test_a_network_that_is_right_scores_one_and_one_that_swaps_classes_finds_but_mistakes(tmp_path):
    images = read_images(read_dataset(write_dataset(tmp_path / "d", count=3)), nuclei_spec())
    images = [replace(image, rgb=COLOURS[image.target]) for image in images]
    scores = score_nuclei(PaintedNuclei(), images)
    assert scores["pixel_f1_positive_nucleus"] == 1
    assert scores["object_f1_detection"] > 0.9

    class Swapped(PaintedNuclei):
        def predict(self, batch):
            return super().predict(batch)[:, [0, 3, 4, 1, 2]]

    swapped = score_nuclei(Swapped(), images)
    assert swapped["object_f1_detection"] == scores["object_f1_detection"]
    assert swapped["object_f1_positive"] < 0.4
    assert score_nuclei(PaintedNuclei(), []) == {}


def test_tumor_scores_have_the_values_of_a_known_case():
    rgb = np.full((64, 64, 3), 255, np.uint8)
    rgb[:, :32] = 0
    target = np.zeros((64, 64), np.uint8)
    target[:, 16:32] = 1
    target[:, 60:] = IGNORED
    image = replace(image_named("a"), rgb=rgb, target=target)
    scores = score_tumor(Darkness(), [image])
    assert scores["dice"] == pytest.approx(2 * 16 / (2 * 16 + 16))
    assert scores["sensitivity"] == 1
    assert scores["specificity"] == pytest.approx(28 / 44)
    assert scores["auc"] == pytest.approx(1 - 0.5 * 16 / 44)


# ---------------------------------------------------------------------------------------------- fit


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _few_tiles_to_calibrate(monkeypatch):
    monkeypatch.setattr(calibration, "TILES", 6)


def quick(**changes) -> FitOptions:
    options = FitOptions(
        spec=replace(nuclei_spec(), tile_px=64),
        steps=3,
        batch_size=2,
        warmup_steps=2,
        encoder_weights="none",
        validation_share=0.2,
        workers=0,
        device="cpu",
    )
    return replace(options, **changes)


def test_training_learns_and_leaves_weights_card_and_curve(tmp_path):
    data = write_dataset(tmp_path / "discs", origin="drawn here")
    fitted = fit(quick(steps=20, batch_size=4, workers=1), [data], tmp_path / "nuclei")
    names = {path.name for path in (tmp_path / "nuclei").iterdir()}
    weights = {"weights.safetensors", "int8.safetensors", "familiar.json"}
    assert names == {*weights, "model.json", "card.md", "scores.json", "curve.csv", "curve.png"}
    rows = list(csv.DictReader((tmp_path / "nuclei" / "curve.csv").open()))
    losses = [float(row["training_loss"]) for row in rows]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert all(np.isfinite(float(row["validation_loss"])) for row in rows)
    network = load_network(tmp_path / "nuclei", device="cpu")
    assert network.spec == fitted.spec
    assert network.spec.training["datasets"][0]["validation_images"] == 1
    assert set(fitted.scores) >= {"object_f1_detection", "pixel_f1_positive_nucleus", "index_error"}
    card = (tmp_path / "nuclei" / "card.md").read_text()
    assert "| discs | 5 | 1 | drawn here | CC0 | training allowed |" in card
    assert "random weights" in card
    assert "object f1 detection" in card


class StopTrainingError(Exception):
    pass


def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, caplog):
    data = write_dataset(tmp_path / "discs")

    def interrupt(step: int) -> None:
        if step == 2:
            raise StopTrainingError

    with pytest.raises(StopTrainingError):
        fit(quick(checkpoint_seconds=0.0), [data], tmp_path / "resumed", on_step=interrupt)
    assert (tmp_path / "resumed" / "checkpoint.pt").exists()
    with caplog.at_level(logging.INFO):
        resumed = fit(quick(), [data], tmp_path / "resumed")
    assert "going on from step 2 of 3" in caplog.text
    assert not (tmp_path / "resumed" / "checkpoint.pt").exists()
    whole = fit(quick(), [data], tmp_path / "whole")
    assert resumed.steps == whole.steps == 3
    assert resumed.spec.sha256 == whole.spec.sha256


def test_a_checkpoint_of_other_options_is_not_gone_on_from(tmp_path, caplog):
    data = write_dataset(tmp_path / "discs")
    stop = pytest.raises(StopTrainingError)

    def interrupt(step: int) -> None:
        raise StopTrainingError

    with stop:
        fit(quick(checkpoint_seconds=0.0), [data], tmp_path / "out", on_step=interrupt)
    with stop, caplog.at_level(logging.WARNING):
        fit(quick(learning_rate=2e-3), [data], tmp_path / "out", on_step=interrupt)
    assert "the checkpoint is of other options or images; starting anew" in caplog.text


def test_the_tumor_network_trains_too(tmp_path):
    data = write_tumor_dataset(tmp_path / "discs")
    spec = replace(tumor_spec("tumor_he", "he"), tile_px=64)
    fitted = fit(quick(spec=spec, steps=3, threshold=0.3), [data], tmp_path / "tumor_he")
    assert set(fitted.scores) == {"dice", "sensitivity", "specificity", "auc"}
    network = load_network(tmp_path / "tumor_he", device="cpu")
    assert network.spec.classes == ("tumor",)
    assert network.spec.threshold == 0.3


@pytest.mark.slow
def test_training_for_minutes_sets_the_number_of_steps(tmp_path):
    data = write_dataset(tmp_path / "discs")
    fitted = fit(quick(steps=10_000, minutes=0.001), [data], tmp_path / "out")
    assert fitted.steps < 10


def test_datasets_that_do_not_allow_training_are_refused(tmp_path):
    data = write_dataset(tmp_path / "private", use="validation", licence="none stated")
    with pytest.raises(Ki67Error, match=r"dataset private: its use is 'validation' .* does not allow training"):
        fit(quick(), [data], tmp_path / "out")


def test_a_card_says_that_a_dataset_did_not_allow_training(tmp_path):
    data = write_dataset(tmp_path / "private", use="validation", licence="none stated")
    fit(quick(steps=1, allow_unlicensed=True), [data], tmp_path / "out")
    assert "**Not to be shared:** private does not allow training" in (tmp_path / "out" / "card.md").read_text()


def test_training_without_datasets_is_refused(tmp_path):
    with pytest.raises(Ki67Error, match="network nuclei: no datasets to train on"):
        fit(quick(), [], tmp_path / "out")


def test_where_the_tumour_is_not_known_nothing_is_learned(tmp_path):
    folder = tmp_path / "d"
    for part in ("images", "masks", "known_masks"):
        (folder / part).mkdir(parents=True)
    (folder / "dataset.yaml").write_text("kind: tumor\nmpp: 0.5\n")
    known = np.zeros((40, 40), np.uint8)
    known[:, :20] = 255
    for part, pixels in (("images", np.zeros((40, 40, 3), np.uint8)), ("masks", known.T), ("known_masks", known)):
        cv2.imwrite(str(folder / part / "a.png"), pixels)
    (image,) = read_images(read_dataset(folder), tumor_spec("tumor_he", "he"))
    assert (image.target[:20, :20] == 1).all()
    assert (image.target[20:, :20] == 0).all()
    assert (image.target[:, 20:] == IGNORED).all()
