from __future__ import annotations

import numpy as np
import pytest

from ki67.errors import Ki67Error
from ki67.geometry import Mask, RigidTransform, warp_mask


def transform(angle_deg=0.0, shift_um=(0.0, 0.0), mirror=False):
    return RigidTransform.from_parameters(
        angle_deg=angle_deg, shift_um=shift_um, mirror=mirror, source="he", target="ki67"
    )


def disc(center_um, radius_um, shape, mpp):
    rows, columns = np.indices(shape)
    x, y = (columns + 0.5) * mpp, (rows + 0.5) * mpp
    return Mask(np.hypot(x - center_um[0], y - center_um[1]) < radius_um, mpp, "he")


def test_area_counts_true_pixels_in_square_millimetres():
    pixels = np.zeros((1000, 1000), dtype=bool)
    pixels[:500] = True
    assert Mask(pixels, 2.0, "he").area_mm2 == pytest.approx(2.0)


def test_an_empty_mask_has_no_area_and_holds_no_point():
    mask = Mask.empty("ki67")
    assert mask.area_mm2 == 0
    assert not mask.contains(np.array([[1.0, 1.0]])).any()
    assert mask.frame == "ki67"


def test_a_pixel_covers_its_square_up_to_the_next():
    pixels = np.zeros((4, 5), dtype=bool)
    pixels[2, 3] = True
    points = np.array([[24.0, 16.0], [31.99, 23.99], [32.0, 16.0], [24.0, 24.0], [23.99, 16.0], [24.0, 15.99]])
    assert Mask(pixels, 8.0, "he").contains(points).tolist() == [True, True, False, False, False, False]


def test_points_outside_a_mask_are_not_in_it():
    mask = Mask(np.ones((2, 3), dtype=bool), 10.0, "he")
    points = np.array([[-0.1, 5.0], [5.0, -0.1], [30.0, 5.0], [5.0, 20.0], [1e9, 1e9]])
    assert not mask.contains(points).any()


def test_a_mask_answers_for_no_points():
    assert mask_of_ones().contains(np.zeros((0, 2))).shape == (0,)


def mask_of_ones():
    return Mask(np.ones((2, 2), dtype=bool), 1.0, "he")


def test_a_positive_angle_turns_x_towards_y():
    assert transform(angle_deg=90).apply(np.array([[1.0, 0.0]])) == pytest.approx(np.array([[0.0, 1.0]]), abs=1e-12)


def test_the_mirror_comes_before_the_rotation_and_the_shift_last():
    moved = transform(angle_deg=90, shift_um=(10, 20), mirror=True).apply(np.array([[1.0, 2.0]]))
    assert moved == pytest.approx(np.array([[8.0, 19.0]]))


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("angle", [-179.0, -90.0, -12.5, 0.0, 33.0, 90.0, 180.0])
def test_angle_and_mirror_are_read_back_from_the_matrix(angle, mirror):
    rigid = transform(angle, (3.0, -4.0), mirror)
    assert rigid.mirror is mirror
    assert (rigid.angle_deg - angle) % 360 == pytest.approx(0, abs=1e-9)


def test_the_inverse_leads_back():
    rigid = transform(37.0, (1234.5, -88.0), mirror=True)
    points = np.array([[0.0, 0.0], [1e4, 2e4], [-5.0, 7.0]])
    assert rigid.inverse().apply(rigid.apply(points)) == pytest.approx(points, abs=1e-8)
    assert (rigid.inverse().source, rigid.inverse().target) == ("ki67", "he")


def test_a_transform_survives_json():
    rigid = transform(37.0, (1234.5, -88.0), mirror=True)
    again = RigidTransform.from_json(rigid.to_json())
    assert np.array_equal(again.matrix, rigid.matrix)
    assert (again.source, again.target, rigid.to_json()["unit"]) == ("he", "ki67", "micrometer")


@pytest.mark.parametrize(
    "matrix", [np.diag([2.0, 2.0, 1.0]), np.eye(2), np.array([[1, 0.1, 0], [0, 1, 0], [0, 0, 1.0]])]
)
def test_scale_and_shear_are_no_rigid_transform(matrix):
    with pytest.raises(Ki67Error, match="a rigid transform needs a 3x3 matrix with orthonormal 2x2 part"):
        RigidTransform(matrix, "he", "ki67")


@pytest.mark.parametrize("mirror", [False, True])
def test_a_carried_disc_lies_where_its_centre_is_carried(mirror):
    rigid = transform(30.0, (900.0, 200.0), mirror)
    mask = disc((400, 300), 150, (90, 100), 8.0)
    carried = warp_mask(mask, rigid, (220, 250), 8.0)
    rows, columns = np.nonzero(carried.pixels)
    center = (np.column_stack([columns, rows]).mean(axis=0) + 0.5) * 8.0
    assert center == pytest.approx(rigid.apply(np.array([[400.0, 300.0]]))[0], abs=2.0)
    assert carried.area_mm2 == pytest.approx(mask.area_mm2, rel=0.02)
    assert carried.frame == "ki67"


def test_a_carried_mask_may_change_its_resolution():
    mask = disc((400, 300), 150, (90, 100), 8.0)
    carried = warp_mask(mask, transform(), (300, 400), 2.0)
    assert carried.area_mm2 == pytest.approx(mask.area_mm2, rel=0.01)
    assert carried.mpp == 2.0


def test_what_is_carried_outside_the_target_is_lost():
    assert not warp_mask(
        disc((400, 300), 150, (90, 100), 8.0), transform(shift_um=(1e5, 0)), (90, 100), 8.0
    ).pixels.any()


def test_a_mask_of_the_other_frame_is_refused():
    with pytest.raises(Ki67Error, match="a mask in frame ki67 cannot be carried by a transform from he"):
        warp_mask(Mask.empty("ki67"), transform(), (4, 4), 8.0)
