from dataclasses import replace

import numpy as np

from ki67.training.augmentation import NO_AUGMENTATION, mix
from ki67.training.targets import IGNORED


def tile(level: int, answer: int, size: int = 64):
    return np.full((size, size, 3), level, np.uint8), np.full((size, size), answer, np.uint8)


def test_a_mixed_tile_has_the_answer_of_the_tile_that_each_pixel_is_of():
    for seed in range(20):
        rgb, target = mix(tile(40, 1), tile(200, IGNORED), np.random.default_rng(seed))
        assert rgb.dtype == target.dtype == np.uint8
        assert set(np.unique(target)) == {1, IGNORED}
        share = np.mean(target == 1)
        assert 0.15 < share < 0.85
        # Only a seam of few pixels lies between the two.
        assert np.mean((rgb[..., 0] < 110) == (target == 1)) > 0.98
        assert np.mean((rgb[..., 0] > 45) & (rgb[..., 0] < 195)) < 0.5


def test_mixing_two_equal_tiles_changes_nothing():
    rgb, target = mix(tile(90, 1), tile(90, 1), np.random.default_rng(0))
    assert (rgb == 90).all()
    assert (target == 1).all()


def two_halves(size: int = 128):
    """Tissue of one even stain, whose left half is tumour."""
    target = np.zeros((size, size), np.uint8)
    target[:, : size // 2] = 1
    return np.full((size, size, 3), (170, 120, 180), np.uint8), target


def densities(gain: float, seeds: int = 60):
    """Median optical density of tumour over that of the rest in tiles stained unevenly."""
    rgb, target = two_halves()
    uneven = replace(NO_AUGMENTATION, local_gain=gain)
    for seed in range(seeds):
        tile, answer = uneven.apply(rgb, target, 128, np.random.default_rng(seed))
        density = -np.log((tile.astype(float) + 1) / 256).sum(axis=2)
        yield np.median(density[answer == 1]) / np.median(density[answer == 0]), density


def test_uneven_stain_makes_tumour_darker_as_often_as_paler_within_the_limit():
    ratios = np.array([ratio for ratio, _ in densities(0.4)])
    assert 0.3 < np.mean(ratios > 1) < 0.7
    assert ratios.max() > 1.15
    assert ratios.min() < 1 / 1.15
    # The class and the place each change a stain by up to 1.4, and the waves of the place overshoot a little.
    assert (np.abs(np.log(ratios)) < 2.5 * np.log(1.4)).all()


def test_uneven_stain_has_no_edge_that_could_be_learned():
    for _, density in densities(0.4, 10):
        steps = np.abs(np.diff(density, axis=1))
        assert steps.max() < 0.12 * density.mean()


def test_without_a_local_gain_the_stain_is_even():
    assert all(np.ptp(density) < 1e-9 for _, density in densities(0.0, 4))
