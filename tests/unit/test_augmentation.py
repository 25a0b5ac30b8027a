import numpy as np

from ki67.training.augmentation import mix
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
