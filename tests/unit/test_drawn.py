from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from ki67.cli import app
from ki67.errors import Ki67Error
from ki67.phantom.look import random_look
from ki67.training import drawn
from ki67.training.drawn import FieldOptions, RealNuclei, Sources, draw_field, draw_fields
from ki67.training.restained import nucleus_stamps, real_field, restain

REAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "nuclei_dsb2018"


def purple_field(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Purple discs on a greyish ground and their labels."""
    rng = np.random.default_rng(seed)
    rgb = np.full((256, 320, 3), (214, 212, 217), dtype=np.uint8)
    labels = np.zeros((256, 320), dtype=np.int32)
    for number in range(1, 31):
        row, column = divmod(number - 1, 6)
        centre = (30 + 50 * column, 26 + 50 * row)
        axes = (int(rng.integers(9, 16)), int(rng.integers(7, 10)))
        cv2.ellipse(labels, centre, axes, float(rng.uniform(0, 180)), 0, 360, number, -1)
    texture = rng.normal(0, 8, (256, 320, 1))
    rgb[labels > 0] = np.clip(np.array([130, 75, 165]) + texture[labels > 0], 0, 255).astype(np.uint8)
    return cv2.GaussianBlur(rgb, (0, 0), 1.0), labels


def real_nuclei() -> RealNuclei:
    fields = [real_field(*purple_field(seed)) for seed in range(3)]
    known = [field for field in fields if field is not None]
    return RealNuclei(known, np.stack([stamp for field in known for stamp in nucleus_stamps(field)]))


def brown(rgb: np.ndarray) -> np.ndarray:
    red, _, blue = np.moveaxis(rgb.astype(float), -1, 0) + 1
    return np.log(red / blue)


def test_a_field_is_the_same_each_time_and_differs_from_the_next() -> None:
    options = FieldOptions("nuclei", 2, size_px=128)
    first, again, other = draw_field(options, 0), draw_field(options, 0), draw_field(options, 1)
    np.testing.assert_array_equal(first.rgb, again.rgb)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert not np.array_equal(first.rgb, other.rgb)


@pytest.mark.parametrize("index", range(4))
def test_labels_of_drawn_nuclei_lie_on_what_is_stained(index: int) -> None:
    field = draw_field(FieldOptions("nuclei", 1, size_px=256, seed=5), index)
    assert field.labels is not None
    assert field.classes is not None
    assert field.labels.dtype == np.uint16
    assert set(np.unique(field.labels)) - {0} == set(field.classes)
    assert set(field.classes.values()) <= {1, 2}
    darkness = 255 - field.rgb.astype(float).mean(axis=2)
    assert darkness[field.labels > 0].mean() > 1.15 * darkness[field.labels == 0].mean()


def test_positive_labels_are_brown_in_fields_of_every_look() -> None:
    right, total = 0, 0
    for index in range(12):
        field = draw_field(FieldOptions("nuclei", 1, size_px=256, seed=8), index)
        assert field.classes is not None
        colour = brown(cv2.GaussianBlur(field.rgb, (0, 0), 1.0))
        values = {number: float(np.median(colour[field.labels == number])) for number in field.classes}
        positive = [values[number] for number, kind in field.classes.items() if kind == 1]
        negative = [values[number] for number, kind in field.classes.items() if kind == 2]
        if min(len(positive), len(negative)) < 5:
            continue
        total += len(positive)
        right += sum(value > np.median(negative) + 0.15 for value in positive)
    assert total > 100
    assert right / total > 0.9


def test_fields_cover_ki67_fractions_from_none_to_all() -> None:
    fractions = []
    for index in range(40):
        field = draw_field(FieldOptions("nuclei", 1, size_px=128, seed=1), index)
        if field.classes:
            fractions.append(np.mean([kind == 1 for kind in field.classes.values()]))
    assert min(fractions) < 0.02
    assert max(fractions) > 0.85
    assert np.mean(np.array(fractions) < 0.3) > 0.3


@pytest.mark.parametrize("kind", ["tumor_he", "tumor_ki67"])
def test_tumour_masks_cover_from_none_to_all_of_a_field(kind: str) -> None:
    shares = []
    for index in range(30):
        field = draw_field(FieldOptions(kind, 1, size_px=128), index)  # type: ignore[arg-type]
        assert field.mask is not None
        assert field.labels is None
        assert set(np.unique(field.mask)) <= {0, 255}
        shares.append(np.mean(field.mask > 0))
    assert min(shares) == 0
    assert max(shares) > 0.9
    assert 0.3 < np.mean(shares) < 0.75


@pytest.mark.parametrize("kind", ["tumor_he", "tumor_ki67"])
def test_benign_nests_are_drawn_and_are_no_tumour(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = FieldOptions(kind, 1, size_px=256, seed=4)
    monkeypatch.setattr(drawn, "_BENIGN_SHARE", 1.0)
    fields = [draw_field(options, index) for index in range(12)]
    assert all(field.mask is not None and not field.mask.any() for field in fields)


def test_nuclei_of_benign_nests_are_smaller_and_more_even_than_those_of_tumour() -> None:
    options = FieldOptions("tumor_he", 1, size_px=256)
    sizes = {}
    for benign in (False, True):
        sizes[benign] = []
        for seed in range(8):
            painting = drawn._random_painting(np.random.default_rng(seed), options, None, benign=benign)
            areas = np.bincount(painting.labels[painting.tumor_um > 5])[1:]
            sizes[benign].append(np.median(areas[areas > 20]) if (areas > 20).any() else np.nan)
    assert np.nanmedian(sizes[True]) < 0.6 * np.nanmedian(sizes[False])


def test_brown_is_no_sign_of_tumour() -> None:
    inside, outside = [], []
    for index in range(30):
        field = draw_field(FieldOptions("tumor_ki67", 1, size_px=192, seed=2), index)
        assert field.mask is not None
        is_brown = brown(field.rgb) > np.median(brown(field.rgb)) + 0.5
        for values, part in ((inside, field.mask > 0), (outside, field.mask == 0)):
            if part.mean() > 0.2:
                values.append(is_brown[part].mean())
    assert np.mean(np.array(inside) < 0.01) > 0.1, "some tumour has hardly any brown"
    assert np.mean(np.array(outside) > 0.005) > 0.2, "some stroma has brown"


def test_dataset_folder_has_the_form_of_instances(tmp_path: Path) -> None:
    folder = tmp_path / "fields"
    result = CliRunner().invoke(
        app,
        [
            *[
                "draw-fields",
                "--kind",
                "nuclei",
                "--count",
                "3",
                "--size-px",
                "96",
                "--workers",
                "1",
                "--seed",
                "4",
                "--out",
            ],
            str(folder),
        ],
    )
    assert result.exit_code == 0, result.output
    description = yaml.safe_load((folder / "dataset.yaml").read_text())
    assert description["kind"] == "instances"
    assert (description["mpp"], description["stain"], description["licence"]) == (0.5, "ki67", "CC0")
    stems = {part: sorted(path.stem for path in (folder / part).iterdir()) for part in ("images", "labels", "classes")}
    assert stems["images"] == stems["labels"] == stems["classes"] == ["000000", "000001", "000002"]
    labels = cv2.imread(str(folder / "labels" / "000001.png"), cv2.IMREAD_UNCHANGED)
    classes = json.loads((folder / "classes" / "000001.json").read_text())
    expected = draw_field(FieldOptions("nuclei", 3, size_px=96, seed=4), 1)
    np.testing.assert_array_equal(labels, expected.labels)
    assert {int(number): kind for number, kind in classes.items()} == expected.classes
    image = cv2.imread(str(folder / "images" / "000001.png"))[..., ::-1]
    np.testing.assert_array_equal(image, expected.rgb)


def test_dataset_folder_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    options = FieldOptions("tumor_he", 3, size_px=96)
    for workers in (1, 2):
        draw_fields(options, tmp_path / str(workers), workers=workers)
    names = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file())
    assert len(names) == 7
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_full_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(Ki67Error, match="is not empty; name a new folder"):
        draw_fields(FieldOptions("nuclei", 1, size_px=96), tmp_path, workers=1)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_restained_nuclei_keep_their_labels_and_take_their_colours() -> None:
    rng = np.random.default_rng(3)
    result = restain(real_nuclei().fields, random_look(rng, "ki67"), 0.5, 256, 0.5, rng)
    assert len(result.positive) == result.labels.max()
    assert len(np.unique(result.labels)) == len(result.positive) + 1
    assert 0.2 < result.positive.mean() < 0.8
    colour = brown(result.rgb)
    values = np.array([np.median(colour[result.labels == number + 1]) for number in range(len(result.positive))])
    # However faint a positive nucleus is, it is browner than nearly all negative ones of its slide.
    assert np.mean(values[result.positive][:, None] > values[~result.positive]) > 0.95


def test_stamps_hold_one_nucleus_with_its_long_axis_along_x() -> None:
    field = real_field(*purple_field())
    assert field is not None
    stamps = np.stack(nucleus_stamps(field))
    assert len(stamps) >= 25
    cover = stamps[..., 1] > 0.5
    columns, rows = cover.any(axis=1).sum(axis=1), cover.any(axis=2).sum(axis=1)
    # Both semi-axes are scaled to one, a third of the picture's width.
    assert np.abs(np.median(columns) - 32) < 3
    assert np.abs(np.median(rows) - 32) < 3
    assert np.median(stamps[..., 0][cover]) == pytest.approx(1.0, abs=0.15)


def test_field_without_nuclei_is_no_real_field() -> None:
    rgb, labels = purple_field()
    assert real_field(rgb, np.zeros_like(labels)) is None


def test_real_nuclei_give_fields_of_both_kinds() -> None:
    real = real_nuclei()
    fields = [draw_field(FieldOptions("nuclei", 1, size_px=160), index, real) for index in range(6)]
    for field in fields:
        assert field.labels is not None
        assert field.classes is not None
        assert len(field.classes) == len(np.unique(field.labels)) - 1
    assert sum(len(field.classes or {}) for field in fields) > 60


def test_dataset_of_real_nuclei_is_restained(tmp_path: Path) -> None:
    if not REAL.exists():
        pytest.skip("../shared/data/nuclei_dsb2018 is absent")
    draw_fields(FieldOptions("nuclei", 2, size_px=128), tmp_path / "fields", sources=Sources(REAL), workers=1)
    assert "re-stained" in (tmp_path / "fields" / "dataset.yaml").read_text()
    assert len(list((tmp_path / "fields" / "images").iterdir())) == 2


def test_folder_without_nuclei_and_tumour_fields_of_real_nuclei_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = Sources(nuclei_from=tmp_path / "empty")
    with pytest.raises(Ki67Error, match=r"empty holds no images/\*\.png with labels"):
        draw_fields(FieldOptions("nuclei", 1), tmp_path / "a", sources=empty, workers=1)
    with pytest.raises(Ki67Error, match="kind tumor_he cannot be made from nuclei or tissue; leave both out"):
        draw_fields(FieldOptions("tumor_he", 1), tmp_path / "b", sources=empty, workers=1)
    with pytest.raises(Ki67Error, match="kind tumor_ki67 cannot be made from nuclei; leave nuclei_from out"):
        draw_fields(FieldOptions("tumor_ki67", 1), tmp_path / "c", sources=empty, workers=1)


def test_tissue_without_a_teacher_or_nuclei_beside_it_is_refused(tmp_path: Path) -> None:
    options = FieldOptions("nuclei", 1)
    with pytest.raises(Ki67Error, match="tissue_from needs a teacher"):
        draw_fields(options, tmp_path / "a", sources=Sources(REAL, (tmp_path,)), workers=1)
    with pytest.raises(Ki67Error, match="needs nuclei_from beside it"):
        draw_fields(options, tmp_path / "b", sources=Sources(None, (tmp_path,), tmp_path), workers=1)
