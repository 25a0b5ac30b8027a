"""Evaluation of tumour on drawn datasets whose answer is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from ki67.cli import app
from ki67.errors import Ki67Error
from ki67.networks import build_network, nuclei_spec, save_network, tumor_spec
from ki67.storage import to_plain
from ki67.training.datasets import read_dataset
from ki67.tumor import Cascade
from ki67.tumor_evaluation import (
    PATCH_LEVELS,
    MaskSettings,
    TumorEvaluation,
    evaluate_tumor,
    patch_counts,
    predict_windows,
)
from ki67.tumor_fields import read_tumor_field
from ki67.tumor_report import roc_picture, tumor_pictures, tumor_table
from tests.unit.drawn_networks import Darkness

SCORES = {"auc", "balanced_accuracy", "sensitivity", "specificity", "accuracy", "dice", "ppv", "npv", "youden"}
RATIOS = {"positive_likelihood_ratio", "negative_likelihood_ratio", "best_threshold", "best_youden"}
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


class At(Darkness):
    """Says that a pixel is tumour as likely as it is dark, at a resolution of its own."""

    def __init__(self, mpp: float = 0.5, threshold: float = 0.5, block_px: tuple[int, int] = (1024, 1536)) -> None:
        super().__init__(threshold)
        self.spec = replace(self.spec, mpp=mpp)
        self.block_px = block_px
        self.shapes: list[tuple[int, ...]] = []

    def predict_levels(self, batch: np.ndarray, halo_px: int) -> np.ndarray:
        self.shapes.append(batch.shape)
        return super().predict_levels(batch, halo_px)


def square(side: int, rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((side, side), dtype=np.uint8)
    mask[rows, columns] = 255
    return mask


def dataset(
    folder: Path, images: dict[str, tuple[np.ndarray, np.ndarray]], *, mpp: float = 0.5, kind: str = "tumor"
) -> Path:
    """Images whose darkness is the first array, and the second the truth."""
    masks = "masks" if kind == "tumor" else "roi_masks"
    for part in ("images", masks):
        (folder / part).mkdir(parents=True)
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"kind": kind, "mpp": mpp, "stain": "he"}))
    for name, (dark, truth) in images.items():
        cv2.imwrite(str(folder / "images" / f"{name}.png"), np.repeat(255 - dark[..., None], 3, axis=2))
        cv2.imwrite(str(folder / masks / f"{name}.png"), truth)
    return folder


def shifted(side: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Tumour in the left half; found in the left quarter, and in the last eighth, where there is none."""
    truth = square(side, slice(None), slice(0, side // 2))
    said = np.maximum(
        square(side, slice(None), slice(0, side // 4)), square(side, slice(None), slice(side * 7 // 8, side))
    )
    return said, truth


def test_pixels_and_patches_are_counted_by_hand(tmp_path: Path) -> None:
    record = evaluate_tumor(dataset(tmp_path / "d", {"a": shifted()}), At()).to_json()
    pooled, patches = record["pooled"], record["patches"]
    assert pooled["count"] == 512 * 512
    assert pooled["tumor_share"] == 0.5
    assert (pooled["sensitivity"], pooled["specificity"]) == (0.5, 0.75)
    assert pooled["dice"] == pytest.approx(2 * 0.25 / (2 * 0.25 + 0.125 + 0.25))
    assert pooled["positive_likelihood_ratio"] == pytest.approx(2.0)
    assert pooled["auc"] == pytest.approx((1 + 0.5 - 0.25) / 2)
    # Of four columns of patches the first two are tumour; the last is half dark, which is no less than 0.5.
    assert patches["count"] == 16
    assert (patches["sensitivity"], patches["specificity"]) == (0.5, 0.5)
    assert set(record["images"][0]) == {"name", "mask", "patches"} | set(pooled)
    assert set(pooled) == SCORES | RATIOS | {"count", "tumor_share"}
    assert record["intervals"] is None


@pytest.mark.parametrize("dataset_mpp", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("network_mpp", [0.5, 2.0])
def test_the_scale_of_dataset_and_network_does_not_matter(
    tmp_path: Path, dataset_mpp: float, network_mpp: float
) -> None:
    side = round(512 * 0.5 / dataset_mpp)
    network = At(network_mpp)
    record = evaluate_tumor(dataset(tmp_path / "d", {"a": shifted(side)}, mpp=dataset_mpp), network).to_json()
    assert network.shapes[0][1] == 512 * 0.5 / network_mpp
    assert record["pooled"]["count"] == 512 * 512
    assert record["pooled"]["sensitivity"] == pytest.approx(0.5, abs=0.01)
    assert record["pooled"]["specificity"] == pytest.approx(0.75, abs=0.01)


def test_turning_all_images_changes_nothing(tmp_path: Path) -> None:
    said, truth = shifted()
    straight = evaluate_tumor(dataset(tmp_path / "a", {"a": (said, truth)}), At()).to_json()
    turned = evaluate_tumor(dataset(tmp_path / "b", {"a": (np.rot90(said), np.rot90(truth))}), At()).to_json()
    for part in ("pooled", "patches", "mask"):
        assert straight[part] == pytest.approx(turned[part], nan_ok=True)


def test_large_images_are_answered_in_windows_with_the_same_result() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    windows = At(block_px=(128, 96))
    whole = predict_windows(At(), rgb)
    np.testing.assert_array_equal(predict_windows(windows, rgb), whole)
    assert len(windows.shapes) > 1
    assert max(shape[1] for shape in windows.shapes) <= 128 + 64
    assert max(shape[2] for shape in windows.shapes) <= 96 + 64


def test_patches_at_the_edge_count_where_more_than_half_is_known() -> None:
    probability = np.full((10, 15), 100, dtype=np.uint8)  # patches of 10: one whole, one half
    truth = np.zeros((10, 15), dtype=bool)
    known = np.ones_like(truth)
    assert patch_counts(probability, truth, known, 10).sum() == 1
    counts = patch_counts(np.pad(probability, ((0, 0), (0, 1))), np.pad(truth, ((0, 0), (0, 1))), np.pad(known, ((0, 0), (0, 1)), constant_values=True), 10)  # fmt: skip
    assert counts.sum() == 2
    known[:, 4:] = False
    assert patch_counts(probability, truth, known, 10).sum() == 0


def test_a_patch_is_tumour_where_more_than_half_of_it_is_and_its_probability_is_the_mean() -> None:
    probability = np.array([[0, 255], [0, 128]], dtype=np.uint8)
    truth = np.array([[True, True], [False, False]])
    counts = patch_counts(probability, truth, np.ones_like(truth), 2)
    level = round(16 * 383 / 4)
    assert counts.shape == (2, PATCH_LEVELS)
    assert (counts[0, level], counts.sum()) == (1, 1)  # half is not more than half
    truth[1, 0] = True
    assert patch_counts(probability, truth, np.ones_like(truth), 2)[1, level] == 1


@pytest.mark.parametrize("value", [0, 255])
def test_images_of_one_class_have_no_curve(tmp_path: Path, value: int) -> None:
    image = np.full((256, 256), value, dtype=np.uint8)
    folder = dataset(tmp_path / "d", {"a": (image, image)})
    evaluation = evaluate_tumor(folder, At())
    record = to_plain(evaluation.to_json())
    assert record["pooled"]["accuracy"] == record["patches"]["accuracy"] == record["mask"]["accuracy"] == 1
    assert record["pooled"]["auc"] is None
    assert record["pooled"]["best_threshold"] is None
    assert record["pooled"]["dice"] == (1.0 if value else None)
    assert roc_picture(evaluation).ndim == 3
    assert set(tumor_pictures(folder, At(), evaluation)) == {"best", "median", "worst"}
    assert tumor_table([evaluation.to_json()]).count("\n") == 3


def test_what_is_not_known_does_not_count(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "d", {"a": shifted()})
    (folder / "known_masks").mkdir()
    cv2.imwrite(str(folder / "known_masks" / "a.png"), square(512, slice(None), slice(0, 384)))
    record = evaluate_tumor(folder, At()).to_json()
    assert record["pooled"]["count"] == 512 * 384
    assert record["pooled"]["specificity"] == 1.0
    assert record["patches"]["count"] == 12
    (folder / "known_masks" / "a.png").write_text("no picture")
    with pytest.raises(Ki67Error, match=r"known_masks/a.png is unreadable"):
        evaluate_tumor(folder, At())


def test_a_roi_is_the_truth_and_glass_does_not_count(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    dark = random.integers(40, 60, (1024, 1024)).astype(np.uint8)  # pale tissue
    dark[:512] = 0  # glass
    dark[768:896, 256:512] = 0  # a gap, which the mask of tissue closes
    truth = square(1024, slice(512, 1024), slice(0, 512))
    folder = dataset(tmp_path / "d", {"a": (dark, truth)}, kind="nuclei")
    cv2.imwrite(str(folder / "images" / "a.png"), np.stack([255 - dark // 2, 255 - dark, 255 - dark // 4], axis=2))
    field = read_tumor_field(read_dataset(folder), folder / "images" / "a.png")
    assert field.truth[512:, :512].all()
    assert not field.truth[:512].any()
    assert not field.known[:460].any()
    assert field.known[540:740].mean() > 0.95
    assert not field.known[800:860, 300:460].any()
    assert field.allowed[540:].mean() > 0.95


def test_the_mask_is_smooth_and_has_no_specks_but_what_the_edge_cuts(tmp_path: Path) -> None:
    said = square(512, slice(100, 400), slice(100, 400))
    said[200:240, 200:240] = 0  # a hole of 20 µm, filled
    said[450:490, 450:490] = 255  # a speck, dropped
    said[0:100, 470:] = 255  # cut by the edge, kept
    truth = square(512, slice(100, 400), slice(100, 400))
    truth[0:100, 470:] = 255
    folder = dataset(tmp_path / "d", {"a": (said, truth)})
    record = evaluate_tumor(folder, At()).to_json()
    assert record["mask"]["dice"] > record["pooled"]["dice"]
    assert record["mask"]["dice"] > 0.98
    finer = evaluate_tumor(folder, At(), settings=MaskSettings(smallest_region_mm2=0, smallest_hole_mm2=0)).to_json()
    assert finer["mask"]["dice"] < record["mask"]["dice"]


def many(tmp_path: Path) -> Path:
    said, truth = shifted(256)
    return dataset(tmp_path / "d", {"a1": (truth, truth), "a2": (said, truth), "b": (255 - truth, truth)})


def test_intervals_hold_the_pooled_score_and_are_the_same_each_time(tmp_path: Path) -> None:
    folder = many(tmp_path)
    record, again = (to_plain(evaluate_tumor(folder, At()).to_json()) for _ in range(2))
    assert record["intervals"] == again["intervals"]
    for part in ("pooled", "patches", "mask"):
        low, high = record["intervals"][part]["dice"]
        assert low <= record[part]["dice"] <= high
        assert low < high
    assert set(record["intervals"]["mask"]) == set(record["mask"])


def test_pictures_are_of_the_best_median_and_worst_image(tmp_path: Path) -> None:
    folder = many(tmp_path)
    evaluation = evaluate_tumor(folder, At())
    pictures = tumor_pictures(folder, At(), evaluation)
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for picture in pictures.values())
    assert (pictures["best"] == (255, 225, 25)).all(axis=2).any()  # the truth's outline
    assert (pictures["best"] == (0, 213, 255)).all(axis=2).any()  # the prediction's
    assert not np.array_equal(pictures["best"], pictures["worst"])
    row = tumor_table([evaluation.to_json()]).splitlines()[-1]
    assert row.startswith("| d | tumor_he | no | 3 |")


def test_only_the_images_asked_for_are_looked_at(tmp_path: Path) -> None:
    folder = many(tmp_path)
    names = [image.name for image in evaluate_tumor(folder, At(), images=["a*"]).images]
    assert names == ["a1", "a2"]
    with pytest.raises(Ki67Error, match=r"dataset d: no image is called c\*; its 3 images are a1.png to b.png"):
        evaluate_tumor(folder, At(), images=["c*"])


class Says(At):
    """Says the same of every pixel."""

    def __init__(self, level: int, mpp: float) -> None:
        super().__init__(mpp)
        self.level = level

    def predict_levels(self, batch: np.ndarray, halo_px: int) -> np.ndarray:
        return np.full_like(super().predict_levels(batch, halo_px), self.level)


def test_a_coarser_network_beside_answers_half_of_each_pixel(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "d", {"a": shifted()})
    far = Says(200, 2.0)
    far.spec = replace(far.spec, name="far", training={"datasets": [{"name": "d"}]})
    # What the first calls dark has (255 + 200) / 2, all else 100: both are told apart as before, at another level.
    record = evaluate_tumor(folder, At(), settings=MaskSettings(cascade=Cascade(far))).to_json()
    alone = evaluate_tumor(folder, At()).to_json()
    assert record["pooled"]["dice"] == alone["pooled"]["dice"]
    assert record["coarse_model"] == {"name": "far"}
    assert (record["learned_from"], alone["learned_from"], alone["coarse_model"]) == (True, False, None)
    far.level = 255
    record = evaluate_tumor(folder, At(), settings=MaskSettings(cascade=Cascade(far))).to_json()
    assert record["pooled"]["sensitivity"] == 1.0
    assert "| d | tumor_he and far | yes | 1 |" in tumor_table([record])
    far.level = 0
    record = evaluate_tumor(folder, At(), settings=MaskSettings(cascade=Cascade(far, coarse_share=0.6))).to_json()
    assert record["pooled"]["sensitivity"] == 0.0


def test_a_network_that_learned_from_the_dataset_says_so(tmp_path: Path) -> None:
    network = At()
    network.spec = replace(network.spec, training={"datasets": [{"name": "d"}]})
    assert evaluate_tumor(many(tmp_path), network).to_json()["learned_from"] is True


def test_datasets_and_networks_that_know_no_tumour_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "dataset.yaml").write_text("{kind: nuclei, mpp: 0.5}")
    with pytest.raises(Ki67Error, match="dataset d: kind nuclei without a folder roi_masks does not say where tumour"):
        evaluate_tumor(tmp_path / "d", At())
    network = At()
    network.spec = nuclei_spec()
    with pytest.raises(Ki67Error, match="network nuclei: it tells 5 classes apart"):
        evaluate_tumor(tmp_path / "d", network)
    folder = dataset(tmp_path / "e", {"a": shifted(128)}, kind="nuclei")
    (folder / "roi_masks" / "a.png").unlink()
    with pytest.raises(Ki67Error, match="dataset e: roi_masks/a.png is missing"):
        evaluate_tumor(folder, At())


def test_the_command_writes_results_and_pictures(tmp_path: Path) -> None:
    folder = many(tmp_path)
    spec = replace(tumor_spec("tumor_he", "he"), mpp=2.0)
    save_network(tmp_path / "model", build_network(spec), spec, "card")
    arguments = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "x.json"), "--images", "a*"]
    pictures = ["--pictures", str(tmp_path / "p"), "--precision", "float32", "--device", "cpu"]
    result = CliRunner().invoke(app, ["evaluate", "tumor", str(folder), *arguments, *pictures])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "x.json").read_text())
    for part in ("pooled", "patches"):
        assert set(record[part]) >= {"auc", "balanced_accuracy", "sensitivity", "specificity", "accuracy", "dice"}
    assert set(record["mask"]) >= {"dice", "sensitivity", "specificity"}
    assert [image["name"] for image in record["images"]] == ["a1", "a2"]
    assert record["intervals"] is None
    assert record["model"]["precision"] == "float32"
    assert {path.name for path in (tmp_path / "p").iterdir()} == {
        f"d_tumor_he_{name}.png" for name in ("roc", "best", "median", "worst")
    }
    assert "| d | tumor_he | no | 2 |" in result.output
    spec = replace(tumor_spec("tumor_he_coarse", "he"), mpp=4.0)
    save_network(tmp_path / "model_coarse", build_network(spec), spec, "card")
    result = CliRunner().invoke(app, ["evaluate", "tumor", str(folder), *arguments, "--device", "cpu"])
    assert "| d | tumor_he and tumor_he_coarse | no | 2 |" in result.output
    result = CliRunner().invoke(app, ["evaluate", "tumor", str(folder), *arguments, "--alone", "--device", "cpu"])
    assert "| d | tumor_he | no | 2 |" in result.output


def test_the_command_weighs_nuclei_against_a_network_for_ki67(tmp_path: Path) -> None:
    folder = many(tmp_path)
    for spec in (replace(tumor_spec("tumor_ki67", "ki67"), mpp=2.0), replace(nuclei_spec(), mpp=2.0)):
        save_network(tmp_path / "m" / spec.name, build_network(spec), spec, "card")
    command = ["evaluate", "tumor", str(folder), "--model", str(tmp_path / "m" / "tumor_ki67"), "--device", "cpu"]
    result = CliRunner().invoke(app, [*command, "--images", "a1", "--out", str(tmp_path / "x.json")])
    assert "| d | tumor_ki67 and nuclei | no | 1 |" in result.output
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["nuclei_model"]["name"] == "nuclei"
    assert record["coarse_model"] is None
    result = CliRunner().invoke(app, [*command, "--images", "a1", "--alone"])
    assert "| d | tumor_ki67 | no | 1 |" in result.output


def test_an_evaluation_of_real_fields_has_the_form_that_is_promised(shipped_networks: None) -> None:
    if not (SHARED / "he_camelyon").is_dir():
        pytest.skip("shared/data/he_camelyon is not beside the clone")
    from ki67.networks import load_network

    network = load_network(Path(__file__).resolve().parents[2] / "resources" / "models" / "tumor_he_coarse")
    evaluation = evaluate_tumor(SHARED / "he_camelyon", network, images=["1067*"])
    assert isinstance(evaluation, TumorEvaluation)
    assert evaluation.learned_from
    assert evaluation.to_json()["pooled"]["auc"] > 0.7
