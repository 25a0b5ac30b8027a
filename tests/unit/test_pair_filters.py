from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ki67.prediction.pair_filters import (
    PairMeasures,
    PairSettings,
    Rejection,
    field_px,
    rejections,
    similarities,
    white_share,
)

SETTINGS = PairSettings(fewest_nuclei=20, density_ratio=2.0, white_ki67=0.6, ssim=0.4)
GOOD = PairMeasures(
    white_ki67=np.full(9, 0.1),
    nuclei_he=np.full(9, 60, np.float32),
    nuclei_ki67=np.full(9, 40),
    tumor_nuclei=np.full(9, 30),
    similarity=np.full(9, 0.8),
)


def one_changed(name: str, value: float) -> PairMeasures:
    """All patches good but the fourth."""
    values = getattr(GOOD, name).copy()
    values[3] = value
    return replace(GOOD, **{name: values})


def test_a_patch_that_passes_all_has_no_reason() -> None:
    assert rejections(GOOD, SETTINGS) == [None] * 9


@pytest.mark.parametrize(
    ("name", "wrong", "right", "reason"),
    [
        ("white_ki67", 0.6, 0.59, Rejection.WHITE_KI67),
        ("tumor_nuclei", 19, 20, Rejection.FEW_NUCLEI),
        ("nuclei_ki67", 100, 80, Rejection.DENSITY_DIFFERS),
        ("nuclei_he", 20, 40, Rejection.DENSITY_DIFFERS),
        ("similarity", 0.4, 0.41, Rejection.STRUCTURE_DIFFERS),
        ("similarity", np.nan, 0.5, Rejection.STRUCTURE_DIFFERS),
    ],
)
def test_each_limit_rejects_the_patch_beyond_it_and_no_other(
    name: str, wrong: float, right: float, reason: Rejection
) -> None:
    assert rejections(one_changed(name, wrong), SETTINGS) == [None] * 3 + [reason] + [None] * 5
    assert rejections(one_changed(name, right), SETTINGS) == [None] * 9


def test_a_limit_is_that_of_the_settings() -> None:
    changed = one_changed("tumor_nuclei", 15)
    assert rejections(changed, replace(SETTINGS, fewest_nuclei=15)) == [None] * 9
    assert rejections(one_changed("similarity", 0.3), replace(SETTINGS, ssim=0.2)) == [None] * 9
    assert rejections(one_changed("white_ki67", 0.9), replace(SETTINGS, white_ki67=0.95)) == [None] * 9
    assert rejections(one_changed("nuclei_ki67", 100), replace(SETTINGS, density_ratio=3.0)) == [None] * 9


def test_the_first_reason_counts() -> None:
    nothing = replace(one_changed("white_ki67", 1.0), tumor_nuclei=np.where(np.arange(9) == 3, 0, 30))
    assert rejections(nothing, SETTINGS)[3] is Rejection.WHITE_KI67


def test_densities_are_compared_with_what_is_usual_on_the_slide() -> None:
    """A method that finds half of the nuclei on one stain does so everywhere."""
    half = replace(GOOD, nuclei_ki67=np.full(9, 12))
    assert rejections(half, SETTINGS) == [None] * 9
    assert half.density_factor == pytest.approx(1)


def test_white_is_what_takes_away_no_more_light_than_the_glass() -> None:
    rgb = np.full((10, 10, 3), (228, 230, 226), dtype=np.uint8)
    glass = np.array([230, 231, 229], dtype=np.uint8)
    assert white_share(rgb, glass) == 1
    rgb[:4] = (200, 140, 180)
    assert white_share(rgb, glass) == pytest.approx(0.6)


def structure(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(39), np.arange(39))
    places = rng.uniform(0, 39, (4, 2))
    return np.sum([np.exp(-((x - a) ** 2 + (y - b) ** 2) / 60) for a, b in places], axis=0).astype(np.float32)


def test_the_same_structure_in_other_amounts_is_alike_and_another_is_not() -> None:
    fields = np.stack([structure(seed) for seed in range(12)])
    noise = np.random.default_rng(0).normal(0, 0.02, fields.shape).astype(np.float32)
    assert similarities(fields, 3 * fields + 0.5 + noise).min() > 0.9
    assert np.median(similarities(fields, np.roll(fields, 1, axis=0))) < 0.3
    assert len(similarities(fields[:0], fields[:0])) == 0


def test_two_places_of_even_tumour_are_alike() -> None:
    """Beside fields with structure, one that shows none in both stains passes."""
    fields = np.stack([structure(seed) for seed in range(12)])
    fields[5] = fields.mean()
    assert similarities(fields, fields)[5] > 0.9
    assert similarities(fields, np.roll(fields, 2, axis=2))[5] > 0.9


@pytest.mark.parametrize(("side_um", "pixels"), [(128.0, 39), (64.0, 31), (256.0, 55)])
def test_the_field_around_a_patch_has_an_odd_side(side_um: float, pixels: int) -> None:
    assert field_px(side_um) == pixels
