from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
import shapely

from ki67.errors import Ki67Error
from ki67.geometry import RigidTransform
from ki67.phantom import PhantomOptions, draw_slides
from ki67.phantom.artifacts import Artifacts, Disc, Line
from ki67.phantom.draw import _glass, _stained_box
from ki67.phantom.layout import Layout
from ki67.phantom.look import random_look
from ki67.phantom.nuclei import NEGATIVE_DAB, POSITIVE_DAB, Section, Window, logit_for, place_nuclei
from ki67.phantom.paint import paint
from ki67.phantom.pair import plan_pair
from ki67.phantom.pyramid import Band, encode_tiles, reduce_image, write_pyramid

FLIPPED = PhantomOptions(
    area_mm2=1.0, tumor_share=0.5, ki67_fraction=0.3, rotation_deg=130.0, shift_um=(150.0, -80.0), flip=True, seed=11
)


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flipped")
    draw_slides(FLIPPED, folder, workers=1)
    return folder


def section(stain: str = "ki67", *, seed: int = 3, fraction: float = 0.4) -> Section:
    rng = np.random.default_rng(seed)
    axis = np.arange(0, 512, 8.0)
    x, y = np.meshgrid(axis, axis)
    layout = Layout.random(rng).with_tumor_share(0.6, x, y)
    look = random_look(rng, "he" if stain == "he" else "ki67")
    logit = logit_for(fraction, layout.hot.sample(x, y), 0.8)
    return Section(0 if stain == "he" else 1, layout, look, np.eye(3), seed, logit, (0.02, 0.1))


def pixels(slide: openslide.OpenSlide, x_um: np.ndarray, y_um: np.ndarray, mpp: float) -> np.ndarray:
    image = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
    return image[(y_um / mpp).astype(int), (x_um / mpp).astype(int)].astype(float)


def polygons(path: Path) -> shapely.Geometry:
    features = json.loads(path.read_text())["features"]
    return shapely.union_all([shapely.geometry.shape(feature["geometry"]).buffer(0) for feature in features])


def test_openslide_opens_both_slides_with_mpp_and_three_levels(flipped: Path) -> None:
    for name in ("he", "ki67"):
        with openslide.OpenSlide(flipped / f"{name}.tif") as slide:
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
            assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5)
            assert slide.level_count >= 3
            assert slide.level_downsamples[:3] == pytest.approx((1, 4, 16), rel=0.01)


def test_smaller_levels_show_what_level_0_shows(flipped: Path) -> None:
    with openslide.OpenSlide(flipped / "he.tif") as slide:
        full = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3].astype(float)
        for level in (1, 2):
            width, height = slide.level_dimensions[level]
            small = np.asarray(slide.read_region((0, 0), level, (width, height)))[..., :3].astype(float)
            factor = 4**level
            cropped = full[: height * factor, : width * factor]
            mean = cropped.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
            assert np.abs(mean - small).mean() < 3


def test_same_seed_gives_same_bytes_for_one_and_two_workers(flipped: Path, tmp_path: Path) -> None:
    draw_slides(FLIPPED, tmp_path, workers=2)
    names = sorted(path.relative_to(flipped) for path in flipped.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(names) == 7
    for name in names:
        assert (flipped / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_truth_counts_the_nuclei_of_its_table(flipped: Path) -> None:
    truth = json.loads((flipped / "truth" / "truth.json").read_text())
    nuclei = pd.read_parquet(flipped / "truth" / "nuclei.parquet")
    tumor = nuclei[nuclei["kind"] == "tumor"]
    assert truth["tumor_nuclei"] == len(tumor)
    assert truth["index"] == pytest.approx(tumor["positive"].mean())
    assert truth["index"] == pytest.approx(0.3, abs=0.05)
    assert tumor["in_tumor"].mean() > 0.99
    assert not nuclei.loc[nuclei["kind"] == "stroma", "in_tumor"].any()
    density = len(tumor) / truth["tumor_ki67_mm2"]
    assert 2500 < density < 7000


def test_transform_carries_the_tumour_of_the_he_onto_that_of_the_ki67(flipped: Path) -> None:
    transform = RigidTransform.from_json(json.loads((flipped / "truth" / "transform.json").read_text()))
    he, ki67 = (polygons(flipped / "truth" / f"tumor_{stain}.geojson") for stain in ("he", "ki67"))
    carried = shapely.transform(he, lambda points: transform.apply(points * 0.5) / 0.5)
    dice = 2 * carried.intersection(ki67).area / (carried.area + ki67.area)
    assert dice > 0.9


def test_flip_and_rotation_are_those_asked_for(flipped: Path) -> None:
    transform = RigidTransform.from_json(json.loads((flipped / "truth" / "transform.json").read_text()))
    assert transform.mirror
    assert transform.angle_deg == pytest.approx(130)


def test_transform_carries_what_is_seen_on_the_he_onto_the_ki67(flipped: Path) -> None:
    """The outline of the tissue in the pictures themselves, not in what the truth says of them."""
    transform = RigidTransform.from_json(json.loads((flipped / "truth" / "transform.json").read_text()))
    masks = {}
    for stain in ("he", "ki67"):
        with openslide.OpenSlide(flipped / f"{stain}.tif") as slide:
            image = np.asarray(slide.read_region((0, 0), 2, slide.level_dimensions[2]))[..., :3].astype(float)
            masks[stain] = np.abs(image - image[0, 0]).max(axis=2) > 12
    rows, columns = np.nonzero(masks["he"])
    carried = transform.apply(np.column_stack([columns + 0.5, rows + 0.5]) * 8.0) / 8.0
    x, y = np.floor(carried).astype(int).T
    assert masks["ki67"][y, x].mean() > 0.9


def test_positive_nuclei_are_browner_than_negative_ones(flipped: Path) -> None:
    nuclei = pd.read_parquet(flipped / "truth" / "nuclei.parquet")
    with openslide.OpenSlide(flipped / "ki67.tif") as slide:
        colours = pixels(slide, nuclei["x_um"].to_numpy(), nuclei["y_um"].to_numpy(), 0.5)
    brown = np.log((colours[:, 0] + 1) / (colours[:, 2] + 1))
    positive = nuclei["positive"].to_numpy()
    threshold = (np.median(brown[positive]) + np.median(brown[~positive])) / 2
    assert np.mean((brown > threshold) == positive) > 0.95


def test_area_of_tissue_is_that_asked_for(flipped: Path) -> None:
    with openslide.OpenSlide(flipped / "he.tif") as slide:
        image = np.asarray(slide.read_region((0, 0), 1, slide.level_dimensions[1]))[..., :3].astype(float)
    stained = np.abs(image - image[0, 0]).max(axis=2) > 12
    assert stained.sum() * 2.0**2 / 1e6 == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("area_mm2", [1.0, 30.0, 1000.0])
def test_plan_has_the_area_and_the_tumour_share_asked_for(area_mm2: float) -> None:
    plan = plan_pair(PhantomOptions(area_mm2, tumor_share=0.3, seed=4))
    assert plan.tissue_mm2 == pytest.approx(area_mm2, rel=0.02)
    layout = plan.slides["ki67"].section.layout
    x, y = layout.survey()
    tumor = layout.nest_um(x, y, 1)[layout.tissue_um(x, y) > 0] > 0
    assert tumor.mean() == pytest.approx(0.3, abs=0.03)


def test_slide_without_tumour_has_no_tumour_nuclei_and_no_index(tmp_path: Path) -> None:
    draw_slides(PhantomOptions(1.0, tumor_share=0.0, stains=("ki67",), seed=2), tmp_path, workers=1)
    truth = json.loads((tmp_path / "truth" / "truth.json").read_text())
    assert (truth["tumor_nuclei"], truth["index"]) == (0, None)
    assert json.loads((tmp_path / "truth" / "tumor_ki67.geojson").read_text())["features"] == []
    assert not (tmp_path / "he.tif").exists()
    assert len(pd.read_parquet(tmp_path / "truth" / "nuclei.parquet")) > 300


def test_windows_that_touch_fit_together() -> None:
    painted = section()
    whole = paint(painted, 0.0, 0.0, 512, 256, 0.5)
    halves = [paint(painted, left, 0.0, 256, 256, 0.5) for left in (0.0, 128.0)]
    joined = np.concatenate([half.rgb for half in halves], axis=1)
    # Rounding may differ by a grey level.
    assert np.abs(joined.astype(int) - whole.rgb.astype(int)).max() <= 2


def test_block_is_painted_where_there_is_tissue_and_the_same_as_if_painted_whole() -> None:
    plan = plan_pair(PhantomOptions(1.0, pen_mark=True, seed=1)).slides["ki67"]
    left, top, width, height = 2048, 1024, 1024, 1024
    box = _stained_box(plan.section, left, top, width, height, plan.mpp)
    assert box is not None
    assert (box.right - box.left) * (box.bottom - box.top) < width * height
    whole = paint(plan.section, left * 0.5, top * 0.5, width, height, 0.5).rgb
    part = _glass(plan.section.look, width, height).copy()
    painted = paint(
        plan.section, (left + box.left) * 0.5, (top + box.top) * 0.5, box.right - box.left, box.bottom - box.top, 0.5
    )
    part[box.top : box.bottom, box.left : box.right] = painted.rgb
    assert np.abs(part.astype(int) - whole.astype(int)).max() <= 2


def test_nuclei_do_not_depend_on_the_window_that_asks() -> None:
    asked = section()
    large = place_nuclei(asked, Window(0, 0, 400, 400))
    small = place_nuclei(asked, Window(100, 100, 150, 150))
    inside = (np.abs(large.x_um - 175) < 75) & (np.abs(large.y_um - 175) < 75)
    again = (np.abs(small.x_um - 175) < 75) & (np.abs(small.y_um - 175) < 75)
    assert inside.sum() > 50
    np.testing.assert_allclose(large.x_um[inside], small.x_um[again])
    np.testing.assert_array_equal(large.positive[inside], small.positive[again])


def test_no_nucleus_is_nearly_positive() -> None:
    nuclei = place_nuclei(section(), Window(0, 0, 600, 600))
    assert nuclei.dab[nuclei.positive].min() >= POSITIVE_DAB
    assert nuclei.dab[~nuclei.positive].max() <= NEGATIVE_DAB
    assert not place_nuclei(section("he"), Window(0, 0, 300, 300)).positive.any()


def test_sizes_of_nuclei_are_those_of_their_kinds() -> None:
    nuclei = place_nuclei(section(), Window(0, 0, 1500, 1500))
    diameter = 2 * np.sqrt(nuclei.semi_major_um * nuclei.semi_minor_um)
    tumor, stroma, lymphocyte = (np.median(diameter[nuclei.kind == kind]) for kind in range(3))
    assert 8 < tumor < 14
    assert 6 < lymphocyte < 7
    spindle = nuclei.kind == 1
    assert np.median(nuclei.semi_major_um[spindle] / nuclei.semi_minor_um[spindle]) > 2
    assert 5 < stroma < 8


def test_ki67_fraction_is_met_in_spite_of_hot_spots() -> None:
    hot = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    for fraction in (0.02, 0.2, 0.9):
        logit = logit_for(fraction, hot, 1.2)
        assert np.mean(1 / (1 + np.exp(-(logit + 1.2 * hot)))) == pytest.approx(fraction, abs=1e-4)
    assert logit_for(0.0, hot, 1.0) == -np.inf
    assert logit_for(1.0, hot, 1.0) == np.inf


def test_artifacts_are_where_the_plan_has_them() -> None:
    options = PhantomOptions(4.0, pen_mark=True, fold=True, blur=True, missing_part=True, control_tissue=True, seed=3)
    plan = plan_pair(options)
    he, ki67 = (plan.slides[stain].section for stain in ("he", "ki67"))
    assert isinstance(ki67.artifacts.defocus_disc, Disc)
    assert he.artifacts.defocus_disc is None
    assert isinstance(he.artifacts.fold_line, Line)
    x, y = he.layout.survey()
    tissue = he.layout.tissue_um(x, y) > 0
    assert 0.7 < np.mean(ki67.artifacts.remaining_um(x, y)[tissue] > 0) < 0.92
    assert (he.artifacts.remaining_um(x, y) > 0).all()
    assert 0 < np.mean(ki67.artifacts.fold(x, y)[tissue] > 0) < 0.3
    assert (ki67.artifacts.pen(x, y) > 0).any()
    assert plan.slides["he"].control is None
    assert plan.slides["ki67"].control is not None


def test_pen_mark_darkens_glass_and_control_tissue_has_nuclei_outside_the_tumour(tmp_path: Path) -> None:
    options = PhantomOptions(1.0, pen_mark=True, control_tissue=True, stains=("ki67",), seed=9)
    draw_slides(options, tmp_path, workers=1)
    strip_um = plan_pair(options).slides["ki67"].control_px * options.mpp
    nuclei = pd.read_parquet(tmp_path / "truth" / "nuclei.parquet")
    control = nuclei[nuclei["x_um"] < strip_um]
    assert len(control) > 300
    assert not control["in_tumor"].any()
    assert control["positive"].mean() > 0.05
    with openslide.OpenSlide(tmp_path / "ki67.tif") as slide:
        image = np.asarray(slide.read_region((0, 0), 2, slide.level_dimensions[2]))[..., :3].astype(float)
    assert np.mean(image.min(axis=2) < 90) > 0.01


def test_defocused_light_is_smoother() -> None:
    look = replace(section().look, noise=0.0, sharpening=0.0, blur_um=0.3)
    sharp = replace(section(), look=look)
    blurred = replace(sharp, artifacts=Artifacts(defocus_disc=Disc(64, 64, 500)))
    edges = [
        np.abs(np.diff(paint(one, 0.0, 0.0, 256, 256, 0.5).rgb.astype(float), axis=1)).mean()
        for one in (sharp, blurred)
    ]
    assert edges[1] < 0.6 * edges[0]


def test_pyramid_keeps_memory_to_one_band(tmp_path: Path) -> None:
    alive, most = 0, 0

    class Counted(Band):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def bands() -> object:
        nonlocal alive, most
        rgb = np.full((256, 512, 3), 200, dtype=np.uint8)
        for _ in range(12):
            alive += 1
            most = max(most, alive)
            yield Counted(encode_tiles(rgb), reduce_image(rgb))

    write_pyramid(tmp_path / "a.tif", 512, 12 * 256, 0.25, bands(), tmp_path)  # type: ignore[arg-type]
    assert most <= 2
    with openslide.OpenSlide(tmp_path / "a.tif") as slide:
        assert slide.dimensions == (512, 3072)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)


def test_killed_drawing_leaves_no_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ki67.phantom.draw.paint", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        draw_slides(PhantomOptions(1.0), tmp_path, workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"area_mm2": 0.5}, "phantom: area_mm2 is 0.5; give a number from 1 to 1000"),
        ({"area_mm2": 5.0, "ki67_fraction": 15}, "phantom: ki67_fraction is 15; give a number from 0 to 1"),
        ({"area_mm2": 5.0, "stains": ("cd3",)}, "phantom: stains are cd3; give he, ki67 or he,ki67"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(options: dict[str, object], message: str) -> None:
    with pytest.raises(Ki67Error, match=message):
        PhantomOptions(**options)  # type: ignore[arg-type]


def test_a_tumour_that_proliferates_looks_like_it_on_the_he_alone() -> None:
    low, high = (plan_pair(PhantomOptions(1.0, proliferation=factor, seed=4)) for factor in (-1.5, 1.5))
    looks = [plan.slides["he"].section.look for plan in (low, high)]
    assert looks[1].nucleus_um > looks[0].nucleus_um + 2.5
    assert looks[1].mitoses > 5 * looks[0].mitoses
    # The sections are of one tumour, with nuclei of one size; mitoses are counted on H&E.
    ki67 = high.slides["ki67"].section.look
    assert (ki67.nucleus_um, ki67.mitoses) == (looks[1].nucleus_um, 0)
    assert low.slides["ki67"].section.tumor_logit == high.slides["ki67"].section.tumor_logit
    with pytest.raises(Ki67Error, match="phantom: proliferation is 9; give a number from -4 to 4"):
        PhantomOptions(1.0, proliferation=9)


def test_slides_of_one_laboratory_are_stained_alike() -> None:
    looks = [
        plan_pair(PhantomOptions(1.0, laboratory=laboratory, stain_strength=1.0, seed=seed)).slides["he"].section.look
        for laboratory, seed in ((1, 1), (1, 2), (2, 2))
    ]
    assert looks[0].hematoxylin_vector == looks[1].hematoxylin_vector != looks[2].hematoxylin_vector
    assert looks[0].nucleus_strength == looks[1].nucleus_strength
    assert looks[0].nucleus_um != looks[1].nucleus_um


def test_mitotic_figures_are_dense_plates_as_often_as_asked_for() -> None:
    he = section("he")
    without = place_nuclei(he, Window(0, 0, 900, 900))
    nuclei = place_nuclei(replace(he, look=replace(he.look, mitoses=0.05)), Window(0, 0, 900, 900))
    plates = (nuclei.kind == 0) & (nuclei.semi_major_um > 2.2 * nuclei.semi_minor_um) & (nuclei.semi_minor_um < 2)
    assert plates.sum() / (nuclei.kind == 0).sum() == pytest.approx(0.05, abs=0.015)
    assert np.median(nuclei.hematoxylin[plates]) > 2 * np.median(nuclei.hematoxylin[(nuclei.kind == 0) & ~plates])
    np.testing.assert_array_equal(nuclei.x_um, without.x_um)
    np.testing.assert_array_equal(nuclei.hematoxylin[~plates], without.hematoxylin[~plates])
