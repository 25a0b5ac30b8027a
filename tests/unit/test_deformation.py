from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from ki67.deformation import Deformation, DeformedTransform, Spline
from ki67.geometry import Mask, RigidTransform, warp_mask
from ki67.itk_transform import as_itk, write_itk

POINTS = np.random.default_rng(0).uniform([1200, 1200], [4800, 3800], (40, 2))
AFFINE = np.array([[1.03, 0.02, -40.0], [-0.01, 0.96, 90.0], [0.0, 0.0, 1.0]])


def spline(size_um=60.0):
    coefficients = np.random.default_rng(1).normal(0, size_um, (2, 9, 11))
    return Spline(coefficients, np.array([-2000.0, -1800.0]), np.array([900.0, 800.0]))


def deformed(mirror=True, with_spline=True):
    rigid = RigidTransform.from_parameters(
        angle_deg=37.0, shift_um=(6000.0, 2000.0), mirror=mirror, source="he", target="ki67"
    )
    return DeformedTransform(rigid, Deformation(AFFINE, spline() if with_spline else None))


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("with_spline", [False, True])
def test_the_way_back_ends_where_it_began(mirror, with_spline):
    transform = deformed(mirror, with_spline)
    back = transform.inverse().apply(transform.apply(POINTS))
    assert np.abs(back - POINTS).max() < 1.0
    assert (transform.inverse().source, transform.inverse().target) == ("ki67", "he")
    assert transform.inverse().inverse() is transform


def test_a_mask_is_carried_both_ways():
    transform = deformed()
    pixels = np.zeros((500, 600), dtype=bool)
    pixels[150:350, 180:420] = True
    there = warp_mask(Mask(pixels, 10.0, "he"), transform, (900, 900), 10.0)
    assert there.frame == "ki67"
    back = warp_mask(there, transform.inverse(), pixels.shape, 10.0)
    assert back.frame == "he"
    assert 2 * np.sum(back.pixels & pixels) / (back.pixels.sum() + pixels.sum()) > 0.98


def test_the_record_gives_back_the_deformation():
    deformation = deformed().deformation
    again = Deformation.from_json(deformation.to_json())
    np.testing.assert_allclose(again.apply(POINTS), deformation.apply(POINTS), atol=1e-3)


def test_the_jacobian_tells_a_fold_from_a_stretch():
    low, high = Deformation(AFFINE, None).jacobian_range((3000.0, 2000.0))
    assert low == pytest.approx(np.linalg.det(AFFINE))
    assert high == pytest.approx(np.linalg.det(AFFINE))
    assert Deformation(np.eye(3), spline(2000.0)).jacobian_range((4000.0, 3000.0))[0] < 0


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("transform", [deformed(), deformed(mirror=False, with_spline=False), deformed().rigid])
def test_itk_reads_the_file_and_carries_points_to_the_same_places(tmp_path, transform, dimension):
    path = tmp_path / "transform.tfm"
    write_itk(path, transform, dimension)
    read = sitk.ReadTransform(str(path))
    assert read.GetDimension() == dimension
    depth = [0.0] * (dimension - 2)
    there = np.array([read.TransformPoint([*(point / 1000), *depth]) for point in POINTS])
    np.testing.assert_allclose(there[:, :2] * 1000, transform.apply(POINTS), atol=0.01)
    assert np.all(there[:, 2:] == 0)


def test_without_a_transform_the_file_holds_the_identity(tmp_path):
    write_itk(tmp_path / "transform.tfm", None)
    assert sitk.ReadTransform(str(tmp_path / "transform.tfm")).TransformPoint([1.5, -2.0]) == (1.5, -2.0)


def test_composites_hold_a_mirror_image_and_a_rotation():
    names = [as_itk(deformed()).GetNthTransform(i).GetName() for i in range(4)]
    assert names == ["Euler2DTransform", "AffineTransform", "BSplineTransform", "AffineTransform"]
