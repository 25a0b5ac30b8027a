from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.ndimage import gaussian_filter, map_coordinates

from ki67.deformation import Deformation, DeformedTransform, Spline
from ki67.elastix import Refinement, refine_rigid
from ki67.geometry import Mask, RigidTransform, warp_mask
from ki67.local_shifts import Chessboard, PlaceCheck, measure_local_shifts
from ki67.registration import Registration, judge, register, sane, settle
from ki67.section import Section, carry_back

SLOW = pytest.mark.slow
MPP = 8.0
SHAPE = (300, 330)


def smooth_noise(generator, sigma_px, shape=SHAPE):
    noise = gaussian_filter(generator.normal(size=shape), sigma_px)
    return noise / noise.std()


def drawn_section(seed):
    """Tissue outline, dense nests and fine texture of a drawn section of about 1.8 mm, each (rows, columns)."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    radius = np.hypot((x - 165) / 118, (y - 150) / 100)
    tissue = radius + 0.12 * smooth_noise(generator, 22) < 1
    nests = (smooth_noise(generator, 6) > 0.5).astype(float)
    return tissue.astype(float), nests, smooth_noise(generator, 1.5)


def he_colours(tissue, nests, texture, seed):
    noise = np.random.default_rng(seed + 1000).normal(scale=0.02, size=(*tissue.shape, 3))
    density = tissue[..., None] * (0.12 + nests[..., None] * [0.30, 0.45, 0.20] + [0.02, 0.16, 0.08])
    density += 0.05 * (tissue * texture)[..., None]
    return to_rgb(density + noise)


def ki67_colours(tissue, nests, texture, seed):
    generator = np.random.default_rng(seed + 2000)
    brown = np.clip(smooth_noise(generator, 1.0, tissue.shape) - 1.2, 0, 1) * nests * tissue
    density = tissue[..., None] * (0.06 + nests[..., None] * [0.20, 0.14, 0.06]) + brown[..., None] * [0.2, 0.4, 0.6]
    density += 0.03 * (tissue * texture)[..., None] + generator.normal(scale=0.02, size=(*tissue.shape, 3))
    return to_rgb(density)


def to_rgb(density):
    return np.clip(245 * 10.0 ** -np.clip(density, 0, 2), 0, 255).astype(np.uint8)


def truth_of(angle_deg, mirror, shift_um=(40.0, -56.0)):
    """A turn about the middle of the drawn section, and a shift."""
    turn = RigidTransform.from_parameters(
        angle_deg=angle_deg, shift_um=(0.0, 0.0), mirror=mirror, source="he", target="ki67"
    )
    middle = np.array([SHAPE[1], SHAPE[0]]) / 2 * MPP
    matrix = turn.matrix.copy()
    matrix[:2, 2] = middle + shift_um + 160 - turn.apply(middle[None])[0]
    return RigidTransform(matrix, "he", "ki67")


def seen_from_ki67(layer, truth, shape=(340, 370)):
    """A layer of the H&E frame resampled on the Ki-67 slide, coordinate by coordinate."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    points = truth.inverse().apply(np.column_stack([columns.ravel() + 0.5, rows.ravel() + 0.5]) * MPP) / MPP - 0.5
    return map_coordinates(layer, [points[:, 1], points[:, 0]], order=1, cval=0.0).reshape(shape)


def drawn_pair(seed, truth):
    """RGB thumbnail and tissue of both slides."""
    layers = drawn_section(seed)
    moved = [seen_from_ki67(layer, truth) for layer in layers]
    he_tissue, ki67_tissue = Mask(layers[0] > 0.5, MPP, "he"), Mask(moved[0] > 0.5, MPP, "ki67")
    return he_colours(*layers, seed), he_tissue, ki67_colours(*moved, seed), ki67_tissue


def errors_um(found, truth, he_tissue):
    rows, columns = np.nonzero(he_tissue.pixels)
    points = np.column_stack([columns + 0.5, rows + 0.5])[::50] * he_tissue.mpp
    return np.linalg.norm(found.apply(points) - truth.apply(points), axis=1)


@pytest.fixture(scope="module")
def flipped():
    truth = truth_of(-112.0, mirror=True)
    return truth, drawn_pair(1, truth)


@pytest.fixture(scope="module")
def flipped_found(flipped):
    return register(*flipped[1], mpp=MPP)


def test_rigid_fit_recovers_a_flipped_section(flipped, flipped_found):
    truth, pair = flipped
    assert flipped_found.verdict == "accepted"
    assert flipped_found.transform.mirror
    assert (flipped_found.transform.source, flipped_found.transform.target) == ("he", "ki67")
    assert np.max(errors_um(flipped_found.transform, truth, pair[1])) < 8


@pytest.mark.parametrize(
    ("angle_deg", "mirror"),
    [pytest.param(47.0, False, marks=SLOW), pytest.param(180.0, False, marks=SLOW), (-62.0, True)],
)
def test_any_angle_is_found(angle_deg, mirror):
    truth = truth_of(angle_deg, mirror)
    pair = drawn_pair(2, truth)
    found = register(*pair, mpp=MPP)
    assert found.verdict == "accepted"
    assert np.max(errors_um(found.transform, truth, pair[1])) < 8


def test_estimated_error_and_overlap_are_those_of_a_good_fit(flipped_found):
    assert flipped_found.estimated_error_um < 10
    assert flipped_found.tissue_dice > 0.97
    assert flipped_found.ncc > 0.5
    agree = flipped_found.check.agree
    assert agree.sum() >= 6
    assert f"{agree.sum()} of {len(agree)} places" in flipped_found.reason
    assert 0.98 < flipped_found.scale < 1.02
    assert flipped_found.discord_um < 15


def test_same_input_gives_the_same_transform_whatever_the_number_of_threads(flipped, flipped_found):
    threads_before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), cv2.getNumThreads()
    try:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(3)
        cv2.setNumThreads(1)
        again = register(*flipped[1], mpp=MPP)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads_before[0])
        cv2.setNumThreads(threads_before[1])
    np.testing.assert_array_equal(again.transform.matrix, flipped_found.transform.matrix)
    assert again.reason == flipped_found.reason


def test_tumour_mask_carried_by_a_mirrored_fit_covers_the_tumour(flipped, flipped_found):
    truth, (_, he_tissue, ki67_rgb, _) = flipped
    tumour = np.zeros(SHAPE, dtype=bool)
    tumour[90:180, 100:150] = True
    carried = warp_mask(Mask(tumour & he_tissue.pixels, MPP, "he"), flipped_found.transform, ki67_rgb.shape[:2], MPP)
    expected = seen_from_ki67((tumour & he_tissue.pixels).astype(float), truth) > 0.5
    assert carried.frame == "ki67"
    assert 2 * np.sum(carried.pixels & expected) / (carried.pixels.sum() + expected.sum()) > 0.97


def test_control_tissue_and_a_missing_part_do_not_mislead():
    truth = truth_of(70.0, mirror=True)
    he_rgb, he_tissue, ki67_rgb, ki67_tissue = drawn_pair(3, truth)
    ki67_rgb, torn = ki67_rgb.copy(), ki67_tissue.pixels.copy()
    ki67_rgb[:120], torn[:120] = 245, False
    control, nests, texture = (layer[60:240, 60:270] for layer in drawn_section(30))
    beside = np.full((ki67_rgb.shape[0], 230, 3), 245, dtype=np.uint8)
    beside[100:280, 10:220] = ki67_colours(control, nests, texture, 30)
    beside_tissue = np.zeros(beside.shape[:2], dtype=bool)
    beside_tissue[100:280, 10:220] = control > 0.5
    tissue = Mask(np.hstack([torn, beside_tissue]), MPP, "ki67")
    found = register(he_rgb, he_tissue, np.hstack([ki67_rgb, beside]), tissue, mpp=MPP)
    assert found.verdict == "accepted"
    assert np.max(errors_um(found.transform, truth, he_tissue)) < 12


@pytest.mark.parametrize("seed", [4, pytest.param(5, marks=SLOW)])
def test_a_different_section_is_rejected(seed):
    he_rgb, he_tissue, *_ = drawn_pair(seed, truth_of(0.0, mirror=False))
    *_, ki67_rgb, ki67_tissue = drawn_pair(seed + 50, truth_of(30.0, mirror=False))
    found = register(he_rgb, he_tissue, ki67_rgb, ki67_tissue, mpp=MPP)
    assert found.verdict == "rejected"
    assert "check that both slides are sections of the same block" in found.reason


@pytest.mark.parametrize(("empty", "name"), [("he", "H&E"), ("ki67", "Ki-67")])
def test_a_slide_without_tissue_is_rejected_with_the_reason(flipped, empty, name):
    he_rgb, he_tissue, ki67_rgb, ki67_tissue = flipped[1]
    he_tissue = Mask.empty("he") if empty == "he" else he_tissue
    ki67_tissue = Mask.empty("ki67") if empty == "ki67" else ki67_tissue
    found = register(he_rgb, he_tissue, ki67_rgb, ki67_tissue, mpp=MPP)
    assert (found.verdict, found.transform) == ("rejected", None)
    assert found.reason == f"there is no tissue on the {name} slide to register"
    assert found.to_json()["matrix"] is None


def test_a_blank_slide_taken_for_tissue_is_rejected(flipped):
    he_rgb, he_tissue, *_ = flipped[1]
    blank = np.full((300, 300, 3), 240, dtype=np.uint8)
    found = register(he_rgb, he_tissue, blank, Mask(np.ones((300, 300), dtype=bool), MPP, "ki67"), mpp=MPP)
    assert found.verdict == "rejected"


def test_tissue_may_come_at_another_resolution(flipped, flipped_found):
    truth, (he_rgb, he_tissue, ki67_rgb, ki67_tissue) = flipped
    coarse = Mask(he_tissue.pixels[2::4, 2::4], 4 * MPP, "he")
    found = register(he_rgb, coarse, ki67_rgb, ki67_tissue, mpp=MPP)
    assert np.max(errors_um(found.transform, truth, he_tissue)) < 8


def test_record_gives_back_the_transform(flipped_found):
    record = flipped_found.to_json()
    again = RigidTransform.from_json(record)
    np.testing.assert_array_equal(again.matrix, flipped_found.transform.matrix)
    assert record["mirror"] is True
    assert record["verdict"] == "accepted"
    assert {"reason", "ncc", "tissue_dice", "estimated_error_um", "seconds", "angle_deg"} <= set(record)


def test_a_single_slide_is_not_applicable():
    record = Registration.not_applicable("there is no H&E slide").to_json()
    assert (record["verdict"], record["reason"], record["matrix"]) == (
        "not_applicable",
        "there is no H&E slide",
        None,
    )


def sections(pair):
    he_rgb, he_tissue, ki67_rgb, ki67_tissue = pair
    return Section.of_thumbnail(he_rgb, he_tissue, MPP), Section.of_thumbnail(ki67_rgb, ki67_tissue, MPP)


def test_elastix_brings_back_a_displaced_mirrored_start_and_leaves_no_trace(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    truth = truth_of(180.0, mirror=True)
    pair = drawn_pair(7, truth)
    nudge = RigidTransform.from_parameters(
        angle_deg=2.0, shift_um=(70.0, -90.0), mirror=False, source="ki67", target="ki67"
    )
    start = RigidTransform(nudge.matrix @ truth.matrix, "he", "ki67")
    assert np.median(errors_um(start, truth, pair[1])) > 40
    refined = refine_rigid(*sections(pair), start, Refinement(resolutions=3, iterations=150, samples=2000))
    assert np.max(errors_um(refined, truth, pair[1])) < 3
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def shift_by(x_um, y_um):
    return np.array([[0, 0, x_um], [0, 0, y_um], [0, 0, 0]])


def test_elastix_gives_nothing_where_the_sections_do_not_meet(flipped):
    truth, pair = flipped
    away = RigidTransform(truth.matrix + shift_by(9000, 0), "he", "ki67")
    assert refine_rigid(*sections(pair), away, Refinement(resolutions=1, iterations=5, samples=500)) is None


def test_local_shifts_show_an_offset_where_it_is(flipped):
    truth, pair = flipped
    off = RigidTransform(truth.matrix + shift_by(40, -24), "he", "ki67")
    he, ki67 = sections(pair)
    for colour in (0, 1):
        shifts = measure_local_shifts(he, ki67, off, colour, Chessboard())
        assert len(shifts.places_um) >= 4
        assert pair[1].contains(shifts.places_um).mean() > 0.7
        found_um = off.apply(shifts.places_um + shifts.shifts_um) - off.apply(shifts.places_um)
        np.testing.assert_allclose(np.median(found_um, axis=0), [-40, 24], atol=4)


def test_squares_of_one_colour_are_those_that_a_fit_to_the_other_has_not_seen():
    board, tissue = Chessboard(400.0), np.ones((100, 150), dtype=bool)
    white, black = (board.squares(colour, tissue.shape, 16.0) for colour in (0, 1))
    np.testing.assert_array_equal(white, ~black)
    for colour, seen in ((0, white), (1, black)):
        column, row = (board.centres_um(colour, tissue, 16.0) / 16).astype(int).T
        assert len(row) == 12
        assert seen[row, column].all()


def test_settling_gives_back_a_rigid_transform_and_spreads_a_stretch(flipped):
    truth, pair = flipped
    he, ki67 = sections(pair)
    near = RigidTransform(truth.matrix + shift_by(60, 30), "he", "ki67")
    assert np.max(errors_um(settle(he, ki67, near, [truth]), truth, pair[1])) < 1e-6
    centre = he.centre_um
    stretch = np.array([[1.06, 0, -0.06 * centre[0]], [0, 1.06, -0.06 * centre[1]], [0, 0, 1]])
    settled = settle(he, ki67, near, [DeformedTransform(truth, Deformation(stretch))])
    assert np.linalg.norm(settled.apply(centre[None]) - truth.apply(centre[None])) < 20


def checked(agreeing, others, length_um=20.0):
    count = agreeing + others
    found = np.zeros((count, 2))
    found[:, 0] = np.where(np.arange(count) < agreeing, length_um, 200.0)
    return PlaceCheck(np.zeros((count, 2)), np.zeros((count, 2)), found)


IDENTITY = RigidTransform(np.eye(3), "he", "ki67")
AWAY = RigidTransform(np.eye(3) + np.array([[0, 0, 150.0], [0, 0, 0], [0, 0, 0]]), "he", "ki67")


@pytest.mark.parametrize(
    ("check", "verdict", "words"),
    [
        (checked(30, 3), "accepted", "30 of 33 places of the tissue were found where they should be"),
        (checked(10, 12), "accepted", "estimated error 20 µm"),
        (checked(5, 1), "accepted", "5 of 6"),
        (checked(3, 0), "doubtful", "too few to be sure"),
        (checked(8, 15), "doubtful", "too few to be sure"),
        (checked(2, 0), "rejected", "only 2 of 2 places"),
        (checked(6, 4, length_um=60.0), "rejected", "only 0 of 10 places"),
        (checked(12, 8, length_um=60.0), "accepted", "12 of 20 places"),
        (checked(10, 40), "rejected", "only 10 of 50 places"),
        (checked(0, 0), "rejected", "no structure in common"),
    ],
)
def test_verdict_follows_the_share_of_agreeing_places(check, verdict, words):
    given, reason = judge(check, IDENTITY, 10.0, 1.0)
    assert given == verdict
    assert words in reason


@pytest.mark.parametrize(
    ("transform", "discord_um", "scale", "words"),
    [
        (AWAY, 10.0, 1.0, "the estimated error is 130 µm, more than 120 µm"),
        (IDENTITY, 200.0, 1.0, "fits to two halves of the tissue lie 200 µm apart"),
        (IDENTITY, 10.0, 1.25, "if the H&E is enlarged by a factor of 1.25; check the microns per pixel"),
        (IDENTITY, 10.0, 0.8, "by a factor of 0.80"),
    ],
)
def test_a_fit_that_agrees_but_is_strange_is_doubtful(transform, discord_um, scale, words):
    given, reason = judge(checked(30, 0), transform, discord_um, scale)
    assert given == "doubtful"
    assert words in reason


def test_a_deformation_that_folds_loses_its_spline_and_one_that_swells_is_refused(flipped):
    he = sections(flipped[1])[0]
    folding = Spline(np.random.default_rng(0).normal(0, 900, (2, 8, 8)), np.full(2, -1000.0), np.full(2, 700.0))
    assert sane(Deformation(np.eye(3), folding), he).spline is None
    assert sane(Deformation(np.diag([1.5, 1.5, 1.0]), None), he) is None
    assert sane(None, he) is None


@pytest.mark.parametrize("refine", [pytest.param("affine", marks=SLOW), "bspline"])
def test_refinement_follows_a_section_that_is_stretched(refine):
    truth = truth_of(30.0, mirror=False)
    he_rgb, he_tissue, ki67_rgb, ki67_tissue = drawn_pair(8, truth)
    wide = (round(ki67_rgb.shape[1] * 1.05), ki67_rgb.shape[0])
    ki67_rgb = cv2.resize(ki67_rgb, wide, interpolation=cv2.INTER_AREA)
    tissue = Mask(
        cv2.resize(ki67_tissue.pixels.astype(np.uint8), wide, interpolation=cv2.INTER_NEAREST) > 0, MPP, "ki67"
    )
    found = register(he_rgb, he_tissue, ki67_rgb, tissue, mpp=MPP, refine=refine)
    assert found.verdict == "accepted"
    places = found.check.places_um
    stretched = truth.apply(places) * [wide[0] / 370, 1.0]
    refined = np.median(np.linalg.norm(found.transform.apply(places) - stretched, axis=1))
    rigid = np.median(np.linalg.norm(found.transform.rigid.apply(places) - stretched, axis=1))
    assert refined < 10
    assert refined < 0.6 * rigid
    assert found.to_json()["deformation"]["spline"] is None or refine == "bspline"


@pytest.mark.parametrize("seed", [1, pytest.param(23, marks=SLOW)])
def test_mirrored_sections_are_not_accepted_where_mirror_images_are_switched_off(seed):
    found = register(*drawn_pair(seed, truth_of(-112.0, mirror=True)), mpp=MPP, mirror=False)
    assert not found.transform.mirror
    assert found.verdict == "rejected"


def test_coarser_pixels_keep_everything_in_place():
    density = np.zeros((101, 120), dtype=np.float32)
    density[40:61, 70:95] = 1.0
    section = Section(density, density > 0, 8.0)
    for mpp in (20.0, 32.0):
        coarse = section.at(mpp)
        rows, columns = np.mgrid[: coarse.density.shape[0], : coarse.density.shape[1]] + 0.5
        centre = [np.average(axis, weights=coarse.density) * mpp for axis in (columns, rows)]
        np.testing.assert_allclose(centre, [82.5 * 8, 50.5 * 8], atol=1.0)
    assert section.at(8.0) is section


def test_glass_has_no_density_and_far_ink_counts_as_glass():
    rgb = np.full((100, 200, 3), 238, dtype=np.uint8)
    rgb[30:60, 30:60] = (150, 90, 140)
    rgb[40:60, 150:180] = (10, 10, 200)
    tissue = np.zeros((100, 200), dtype=bool)
    tissue[30:60, 30:60] = True
    section = Section.of_thumbnail(rgb, Mask(tissue, 8.0, "he"), 8.0)
    assert section.density[45, 45] > 0.2
    assert section.density[:, 100:].max() == 0
    assert section.density[5, 5] == 0


@pytest.mark.parametrize("deformed", [False, True])
def test_carrying_back_samples_where_the_transform_points(deformed):
    transform = RigidTransform.from_parameters(
        angle_deg=110.0, shift_um=(1900.0, 1100.0), mirror=True, source="he", target="ki67"
    )
    if deformed:
        transform = DeformedTransform(transform, Deformation(np.array([[1.1, 0.02, 5], [0, 0.9, -9], [0, 0, 1]])))
    ramp_um = np.tile((np.arange(300, dtype=np.float32) + 0.5) * 8, (300, 1))  # x of every pixel of the Ki-67 slide
    back = carry_back(ramp_um, transform, 8.0, (60, 50))
    rows, columns = np.mgrid[:60, :50]
    points = np.column_stack([columns.ravel() + 0.5, rows.ravel() + 0.5]) * 8
    np.testing.assert_allclose(back.ravel(), transform.apply(points)[:, 0], atol=0.5)


def test_registering_loads_no_network_library():
    code = "import sys, ki67.registration; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
