from __future__ import annotations

import cv2
import numpy as np

from ki67.perturbation import LARGEST_CROP, glass_colour, perturb

MPP = 8.0
SPOTS = np.array([[30.0, 40.0], [120.0, 60.0], [60.0, 110.0], [150.0, 120.0]])


def spotted():
    """Gray tissue on pale glass with four dark spots."""
    image = np.full((160, 200, 3), (240, 238, 242), dtype=np.uint8)
    cv2.rectangle(image, (10, 10), (190, 150), (190, 150, 180), -1)
    for x, y in SPOTS:
        cv2.circle(image, (int(x), int(y)), 6, (60, 20, 70), -1)
    return image


def test_points_stay_on_what_they_mark():
    for seed in range(12):
        perturbed = perturb(spotted(), SPOTS + 0.5, MPP, (seed,))
        moved = SPOTS[perturbed.kept] @ perturbed.matrix[:2, :2].T + perturbed.matrix[:2, 2]
        columns, rows = moved.astype(int).T
        gray = cv2.cvtColor(perturbed.rgb, cv2.COLOR_RGB2GRAY)
        assert np.all(gray[rows, columns] < np.percentile(gray, 20))
        assert bool(np.linalg.det(perturbed.matrix[:2, :2]) < 0) == perturbed.mirror
        assert 0 <= perturbed.cropped_share <= LARGEST_CROP + 0.02


def test_the_same_seed_does_the_same_and_others_do_not():
    one, again, other = (perturb(spotted(), SPOTS, MPP, (seed,)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.rgb, again.rgb)
    assert one.angle_deg == again.angle_deg != other.angle_deg


def test_everything_is_done_to_some():
    done = [perturb(spotted(), SPOTS, MPP, (seed,)) for seed in range(16)]
    assert {one.mirror for one in done} == {False, True}
    assert {one.control_tissue for one in done} == {False, True}
    assert not all(one.kept.all() for one in done)


def test_glass_is_the_colour_of_the_brightest_pixels():
    np.testing.assert_array_equal(glass_colour(spotted()), [240, 238, 242])
