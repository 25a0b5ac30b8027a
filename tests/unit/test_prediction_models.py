"""Every method learns, answers, and comes back from its file the same; no order, batch or number of workers matters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ki67.errors import ConfigError
from ki67.prediction.cross_validation import CrossValidation, cross_validate
from ki67.prediction.ensemble import load_ensemble
from ki67.prediction.evaluation import within_folds
from ki67.prediction.examples import Example, Model, line_of_unseen
from ki67.prediction.folder_scores import evaluate_folder, evaluation_pictures, prediction_table
from ki67.prediction.forest import fit_forest, forest_of
from ki67.prediction.methods import LEVELS, PredictOptions, fit, prepare, restore
from ki67.prediction.patch_networks import build_network
from ki67.prediction.patch_pairs import PatchPairs, write_patch_pairs
from ki67.prediction.pooling import fit_mean_pooling, mean_pooling_of
from ki67.prediction.training import train_prediction
from tests.unit.drawn_examples import drawn_slide, drawn_slides

SMALL: dict[str, dict[str, Any]] = {
    "forest": {"trees": 20},
    "mean_pooling": {},
    "attention": {},
    "resnet18": {"input_px": 32, "steps": 2, "batch_size": 2},
    "vit_b16": {"input_px": 16, "steps": 1, "batch_size": 2},
    "cyclegan": {"channels": 2, "blocks": 1, "steps": 2, "nuclei_method": "color_threshold"},
}
LEARN = ("forest", "mean_pooling", "attention")


def options_of(method: str) -> PredictOptions:
    return PredictOptions(method, device="cpu", **SMALL[method])  # type: ignore[arg-type]


def validated(method: str, slides: list[PatchPairs], **more: Any) -> CrossValidation:
    shown = {one.slide: one.he[::-1] for one in slides} if method == "cyclegan" else None
    return cross_validate(slides, options_of(method), folds=2, ki67=shown, **more)


def spearman(found: CrossValidation) -> float:
    columns = (found.slides[name].to_numpy() for name in ("predicted", "index"))
    return within_folds(*columns, found.slides["fold"].to_numpy(), ranks=True)


@pytest.mark.parametrize("method", LEARN)
def test_a_method_learns_what_the_tissue_tells_and_nothing_where_it_tells_nothing(method: str) -> None:
    assert spearman(validated(method, drawn_slides(24))) > 0.75
    by_chance = [spearman(validated(method, drawn_slides(24, told=False, seed=seed))) for seed in range(3)]
    assert abs(np.mean(by_chance)) < 0.3


@pytest.mark.parametrize("method", LEARN)
def test_a_method_that_learned_nothing_is_hardly_worse_than_the_mean(method: str) -> None:
    ratios = []
    for seed in range(4):
        slides = validated(method, drawn_slides(24, told=False, seed=seed, patches=4)).slides
        others = [slides["index"][slides["fold"] != fold].mean() for fold in slides["fold"]]
        ratios.append((slides["predicted"] - slides["index"]).abs().mean() / (others - slides["index"]).abs().mean())
    assert np.mean(ratios) < 1.1


@pytest.mark.parametrize("fitted", [lambda *args: fit_forest(*args, trees=20, seed=0), fit_mean_pooling])
def test_a_few_features_that_count_more_often_are_not_drowned_by_many(fitted: Callable[..., Model]) -> None:
    random = np.random.default_rng(3)
    examples = [_of_features(random, number) for number in range(60)]
    learned, told = examples[:30], examples[30:]
    target = np.array([one.slide_target for one in told])
    times = np.repeat([1, 200], [200, 1])
    once, often = (fitted(learned, of) for of in (None, times))
    errors = [np.mean([(model.answer(one).odds - one.slide_target) ** 2 for one in told]) for model in (once, often)]
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.5 * target.var()
    back = forest_of(often.arrays(), 201) if "roots" in often.arrays() else mean_pooling_of(often.arrays())
    assert [back.answer(one).odds for one in told] == [often.answer(one).odds for one in told]


def _of_features(random: np.random.Generator, number: int) -> Example:
    """A slide of which the last of 201 features tells the index, with noise."""
    odds = float(random.normal())
    inputs = random.normal(size=(8, 201)) + random.normal(size=201)
    inputs[:, -1] = odds + 0.3 * random.normal(size=8)
    shown = np.full(8, odds)
    return Example(f"S{number}", f"P{number}", inputs.astype(np.float32), np.ones(8), shown, 50 * np.ones(8), odds, 1.0)


@pytest.mark.parametrize("rise", [-0.7, 0.0, 0.7])
def test_answers_are_believed_as_far_as_they_held_for_slides_that_were_not_seen(rise: float) -> None:
    odds = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    weight = np.array([1.0, 1.0, 4.0, 1.0, 1.0])
    intercept, slope = line_of_unseen(odds, 0.3 + rise * odds, weight)
    assert (intercept, slope) == pytest.approx((0.3, max(0.0, rise)))


@pytest.mark.parametrize("method", [method for method in SMALL if method != "vit_b16"])
def test_a_model_comes_back_from_its_arrays_the_same(method: str) -> None:
    options = options_of(method)
    slides = drawn_slides(4, patches=3)
    examples = [prepare(one, options, one.he) for one in slides]
    first = fit(examples, options, seed=3)
    arrays = first.arrays()
    again = restore({name: array.copy() for name, array in arrays.items()}, options)
    one, other = (model.answer(examples[0]) for model in (first, again))
    assert one.odds == pytest.approx(other.odds, abs=1e-6, nan_ok=True)
    assert (one.patches is None) == (LEVELS[options.method] == "slide")
    if one.patches is not None:
        np.testing.assert_allclose(one.patches, other.patches, atol=1e-6)
        assert len(one.patches) == 3
    same = fit(examples, options, seed=3).arrays()
    assert all(np.array_equal(arrays[name], same[name]) for name in arrays)


@pytest.mark.parametrize("method", ["resnet18", "cyclegan"])
def test_no_answer_depends_on_what_else_is_asked(method: str) -> None:
    options = options_of(method)
    slides = drawn_slides(3, patches=5)
    examples = [prepare(one, options, one.he) for one in slides]
    model = fit(examples, options, seed=0)
    alone = replace(examples[0], inputs=examples[0].inputs[2:3], weight=examples[0].weight[2:3])
    together, single = model.answer(examples[0]).patches, model.answer(alone).patches
    assert together is not None
    assert single is not None
    np.testing.assert_array_equal(together[2:3], single)


@pytest.mark.parametrize("method", ["forest", "attention"])
def test_shuffled_slides_give_the_same_predictions(method: str) -> None:
    slides = drawn_slides(12)
    order = np.random.default_rng(1).permutation(12)
    first, again = validated(method, slides), validated(method, [slides[place] for place in order])
    assert first.slides.equals(again.slides)
    assert first.patches.equals(again.patches)


def test_the_number_of_workers_changes_nothing() -> None:
    slides = drawn_slides(12)
    one, two = (validated("attention", slides, workers=workers) for workers in (1, 2))
    assert one.slides.equals(two.slides)


@pytest.mark.parametrize("method", ["forest", "attention"])
def test_two_slides_of_a_patient_are_told_by_models_that_saw_neither(method: str) -> None:
    slides = drawn_slides(12)
    twice = [replace(one, slide=f"{one.slide}b", he=np.rot90(one.he, axes=(1, 2)).copy()) for one in slides]
    found = validated(method, slides + twice).slides
    assert (found.groupby("patient")["fold"].nunique() == 1).all()


def test_slides_without_an_index_or_a_patch_are_left_out() -> None:
    slides = [*drawn_slides(12), drawn_slide(50, None), drawn_slide(51, 0.3, patches=0)]
    assert set(validated("mean_pooling", slides).slides["slide"]) == {f"S{number:02d}" for number in range(12)}


def test_slides_of_other_patches_are_refused() -> None:
    slides = [*drawn_slides(12), drawn_slide(30, 0.2, size=64)]
    with pytest.raises(ConfigError, match=r"S30: its patches have 64 px of 1 µm, those of S00 48 px of 1 µm; make all"):
        validated("mean_pooling", slides)


def test_slides_of_another_marker_are_refused() -> None:
    slides = [*drawn_slides(12), replace(drawn_slide(30, 0.2), marker="ER")]
    with pytest.raises(ConfigError, match="S30: its pairs are of ER, those of S00 of Ki-67; make all"):
        validated("mean_pooling", slides)


def test_methods_of_patches_need_labels_and_those_of_slides_do_not() -> None:
    slides = [replace(one, label=np.full(len(one), np.nan, np.float32)) for one in drawn_slides(12)]
    with pytest.raises(ConfigError, match="predict.method forest learns from labelled patches, which only 0 patients"):
        validated("forest", slides)
    assert spearman(validated("mean_pooling", slides)) > 0.6
    some = [*slides[:2], *drawn_slides(14)[2:]]
    assert validated("forest", some).slides["predicted"].notna().all()


def test_settings_that_cannot_be_are_refused_in_a_sentence(tmp_path: Path) -> None:
    for changes, said in (
        ({"method": "oracle"}, "predict.method is 'oracle'; write forest, resnet18, "),
        ({"method": "vit_b16", "input_px": 40}, "predict.input_px is 40; vit_b16 needs a multiple of 16"),
        (
            {"method": "attention", "features": "network"},
            "predict.features is network and predict.weights names no file",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            PredictOptions(**changes)  # type: ignore[arg-type]
    (tmp_path / "no.pt").write_bytes(b"nothing")
    wrong = replace(options_of("resnet18"), weights=tmp_path / "no.pt")
    with pytest.raises(ConfigError, match="predict.weights names no.pt, which is not readable as weights of resnet18"):
        fit([prepare(one, wrong) for one in drawn_slides(2, patches=2)], wrong, seed=0)
    with pytest.raises(ConfigError, match="cyclegan learns from patches of both stains"):
        cross_validate(drawn_slides(10, patches=1), options_of("cyclegan"), folds=2)


def test_networks_begin_with_weights_of_a_file_and_give_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = build_network("resnet18", 32, outputs=10)
    save_file(source.state_dict(), tmp_path / "first.safetensors")
    options = replace(options_of("resnet18"), weights=tmp_path / "first.safetensors", learning_rate=1e-12, steps=1)
    arrays = fit([prepare(one, options) for one in drawn_slides(2, patches=2)], options, seed=0).arrays()
    np.testing.assert_allclose(arrays["conv1.weight"], source.state_dict()["conv1.weight"].numpy(), atol=1e-3)
    seen = PredictOptions(
        "mean_pooling", features="network", weights=tmp_path / "first.safetensors", input_px=32, device="cpu"
    )
    features = prepare(drawn_slide(0, 0.3, patches=3), seen).inputs
    assert features.shape == (3, 512)
    assert features.std(axis=0).max() > 0


def written(folder: Path, slides: list[PatchPairs]) -> list[Path]:
    paths = [folder / "pairs" / f"{one.slide}.zarr" for one in slides]
    for path, one in zip(paths, slides, strict=True):
        write_patch_pairs(path, one, ki67=one.he[::-1])
    return paths


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] * (name == "vit_b16")) for name in SMALL]
)
def test_from_pairs_on_disk_to_a_prediction_with_an_interval(method: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    train_prediction(written(tmp_path, drawn_slides(20, patches=5)), folder, options_of(method), folds=2)
    assert not [path for path in folder.iterdir() if path.suffix in {".pt", ".pkl", ".pickle", ".joblib"}]
    record = evaluate_folder(folder)
    assert record["slide"]["slides"] == 20
    assert (record["patch"] is not None) == (LEVELS[record["method"]] == "patch")
    assert "| slide | spearman | " in prediction_table(record)
    pictures = evaluation_pictures(folder, record)
    assert set(pictures) == {"slides", "patches", "correlations"}
    assert all(np.ptp(picture) == 255 for picture in pictures.values())
    ensemble = load_ensemble(folder, device="cpu")
    found = ensemble.predict(drawn_slide(90, None, patches=5))
    assert found.reason == ""
    assert 0 <= found.low <= found.index <= found.high <= 1  # type: ignore[operator]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train_prediction(written(folder, drawn_slides(20)), folder / "model", PredictOptions("mean_pooling"), folds=2)
    return folder / "model"


def test_a_new_slide_is_told_about_right_whatever_its_stain(trained: Path) -> None:
    ensemble = load_ensemble(trained)
    low, high = ensemble.predict(drawn_slide(70, 0.06)), ensemble.predict(drawn_slide(71, 0.55))
    assert low.index is not None
    assert high.index is not None
    assert low.index < 0.25 < 0.35 < high.index
    assert high.low > low.index  # type: ignore[operator]


@pytest.mark.parametrize(
    ("slide", "reason"),
    [
        (drawn_slide(90, None, strength=3.0), "S90: the hematoxylin, in optical density, is .* far outside of the"),
        (drawn_slide(90, None, patches=2), "S90: 2 patches of tumour on the H&E are too few to predict from"),
        (drawn_slide(90, None, patches=0), "S90: 0 patches of tumour on the H&E are too few to predict from"),
        (drawn_slide(90, None, size=64), "S90: its patches have 64 px of 1 µm, those of the training 48 px of 1 µm"),
        (replace(drawn_slide(90, None), mpp=0.5), "S90: its patches have 48 px of 0.5 µm"),
        (replace(drawn_slide(90, None), marker="ER"), "S90: the model learned the index of Ki-67 and not of ER"),
    ],
    ids=["stain", "few", "none", "size", "scale", "marker"],
)
def test_a_slide_unlike_the_training_has_a_reason_instead_of_a_number(
    trained: Path, slide: PatchPairs, reason: str
) -> None:
    import re

    found = load_ensemble(trained).predict(slide)
    assert (found.index, found.low, found.high) == (None, None, None)
    assert re.match(reason, found.reason), found.reason


def test_tissue_of_another_texture_is_refused(trained: Path) -> None:
    usual = drawn_slide(90, None)
    # Nuclei drawn out to fibres, in the same stains.
    stretched = np.stack([np.repeat(patch[:, ::16], 16, axis=1) for patch in usual.he])
    found = load_ensemble(trained).predict(replace(usual, he=stretched))
    assert found.index is None
    assert "S90: the " in found.reason


def test_ids_of_patients_do_not_leave_with_a_model(trained: Path) -> None:
    text = (trained / "model.json").read_text(encoding="utf-8")
    assert "P00" not in text
    assert "S00" not in text


def changed(folder: Path, target: Path, changes: Mapping[str, Any]) -> Path:
    import shutil

    shutil.copytree(folder, target)
    record = json.loads((target / "model.json").read_text(encoding="utf-8"))
    (target / "model.json").write_text(json.dumps(record | changes), encoding="utf-8")
    return target


def test_damaged_models_are_refused_in_a_sentence(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="predict.model names nothing, which holds no readable model.json"):
        load_ensemble(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="written by another version of the workflow; train it again"):
        load_ensemble(changed(trained, tmp_path / "old", {"form": 0}))
    cut = changed(trained, tmp_path / "cut", {})
    content = (cut / "fold_2.safetensors").read_bytes()
    (cut / "fold_2.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"prediction model cut: .*fold_2.safetensors is not the file"):
        load_ensemble(cut)
    (cut / "fold_2.safetensors").unlink()
    with pytest.raises(ConfigError, match="prediction model cut: a file is missing"):
        load_ensemble(cut)
    (cut / "out_of_fold.csv").unlink()
    with pytest.raises(ConfigError, match="holds no out_of_fold.csv"):
        evaluate_folder(cut)
