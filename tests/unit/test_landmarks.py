from __future__ import annotations

import numpy as np
import pytest

from ki67.errors import Ki67Error
from ki67.geometry import RigidTransform
from ki67.landmarks import distances, fit_affine, fit_rigid

POINTS = np.random.default_rng(0).uniform(0, 1000, (20, 2))


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("angle_deg", [0.0, 33.0, 180.0, -95.0])
def test_rigid_fit_of_points_finds_turn_and_mirror(angle_deg, mirror):
    truth = RigidTransform.from_parameters(
        angle_deg=angle_deg, shift_um=(50.0, -7.0), mirror=mirror, source="he", target="ki67"
    )
    fitted = fit_rigid(POINTS, truth.apply(POINTS))
    np.testing.assert_allclose(fitted, truth.matrix, atol=1e-8)
    np.testing.assert_allclose(distances(fitted, POINTS, truth.apply(POINTS)), 0, atol=1e-8)


def test_rigid_fit_holds_a_mirror_image_only_if_told_to():
    mirrored = POINTS * [-1, 1]
    assert np.linalg.det(fit_rigid(POINTS, mirrored, mirror=False)[:2, :2]) == pytest.approx(1)
    assert np.linalg.det(fit_rigid(POINTS, mirrored, mirror=True)[:2, :2]) == pytest.approx(-1)


def test_points_without_weight_do_not_count():
    target = POINTS + np.array([10, 20])
    target[0] += 5000
    weights = np.ones(20)
    weights[0] = 0
    np.testing.assert_allclose(fit_rigid(POINTS, target, weights=weights)[:2, 2], [10, 20], atol=1e-6)


def test_affine_fit_finds_stretch_and_shear():
    truth = np.array([[1.1, 0.2, 5.0], [-0.1, 0.9, 7.0], [0.0, 0.0, 1.0]])
    target = POINTS @ truth[:2, :2].T + truth[:2, 2]
    np.testing.assert_allclose(fit_affine(POINTS, target), truth, atol=1e-8)


def test_too_few_or_unequal_points_are_refused():
    with pytest.raises(Ki67Error, match="2 or more pairs, got 1 and 1 points"):
        fit_rigid(POINTS[:1], POINTS[:1])
    with pytest.raises(Ki67Error, match="3 or more pairs, got 20 and 5 points"):
        fit_affine(POINTS, POINTS[:5])
