"""Features of nuclei say how many there are, how large, how varied and how dark, in microns, whatever the stain."""

from __future__ import annotations

import numpy as np
import pytest

from ki67.prediction.nuclear_features import NUCLEAR_FEATURES, nuclear_features
from ki67.stain import HED_VECTORS


def nuclei_on_eosin(radii_um: list[float], amounts: list[float], mpp: float = 0.5, stain: float = 1.0) -> np.ndarray:
    """Discs far apart, in rows, on even eosin: uint8 ``(1, size, size, 3)`` of 100 µm."""
    x, y = np.meshgrid(*[(np.arange(round(100 / mpp)) + 0.5) * mpp] * 2)
    hematoxylin = np.zeros_like(x)
    for number, (radius, amount) in enumerate(zip(radii_um, amounts, strict=True)):
        row, column = divmod(number, 4)
        depth = radius - np.hypot(x - 12.5 - 25 * column, y - 12.5 - 25 * row)
        hematoxylin = np.maximum(hematoxylin, amount * np.clip(depth / mpp + 0.5, 0, 1))
    density = stain * (0.8 * hematoxylin[..., None] * HED_VECTORS[0] + 0.25 * HED_VECTORS[1])
    return np.rint(255 * 10.0**-density).astype(np.uint8)[None]


def measured(he: np.ndarray, mpp: float = 0.5) -> dict[str, float]:
    return dict(zip(NUCLEAR_FEATURES, nuclear_features(he, mpp)[0].tolist(), strict=True))


def test_number_and_size_are_those_that_were_drawn() -> None:
    found = measured(nuclei_on_eosin([5.0] * 12, [1.0] * 12))
    assert found["nuclei_per_mm2"] == pytest.approx(1200, rel=0.01)
    assert found["radius_um_mean"] == pytest.approx(5.0, abs=0.5)
    assert found["radius_um_deviation"] == pytest.approx(0, abs=0.1)
    assert np.sqrt(found["area_um2_median"] / np.pi) == pytest.approx(5.0, abs=0.5)
    assert found["nuclear_share"] == pytest.approx(12 * found["area_um2_median"] / 1e4, rel=0.05)


def test_touching_nuclei_are_two() -> None:
    he = nuclei_on_eosin([5.0], [1.0])
    he = np.minimum(he, np.roll(he, 18, axis=2))  # 9 µm to the right
    assert measured(he)["nuclei_per_mm2"] == pytest.approx(200, rel=0.01)


def test_varied_and_darker_nuclei_are_seen() -> None:
    even = measured(nuclei_on_eosin([5.0] * 12, [0.7] * 12))
    varied = measured(nuclei_on_eosin([3.5, 6.5] * 6, [0.7] * 12))
    dark = measured(nuclei_on_eosin([5.0] * 12, [0.7] * 11 + [1.6]))
    assert varied["radius_um_deviation"] > even["radius_um_deviation"] + 1
    assert varied["radius_um_high"] > even["radius_um_high"] + 1
    assert dark["hematoxylin_deviation"] > even["hematoxylin_deviation"] + 0.05


def test_features_are_of_microns_and_not_of_pixels() -> None:
    radii, amounts = [3.5, 5.0, 6.5] * 4, [0.6, 0.8, 1.0] * 4
    coarse, fine = (nuclear_features(nuclei_on_eosin(radii, amounts, mpp), mpp)[0] for mpp in (0.5, 0.25))
    np.testing.assert_allclose(fine, coarse, rtol=0.12, atol=0.02)


def test_more_stain_changes_little() -> None:
    radii, amounts = [3.5, 5.0, 6.5] * 4, [0.6, 0.8, 1.0] * 4
    pale, strong = (nuclear_features(nuclei_on_eosin(radii, amounts, stain=by), 0.5)[0] for by in (0.8, 1.2))
    np.testing.assert_allclose(strong, pale, rtol=0.1, atol=0.02)


def test_glass_and_nothing_have_numbers() -> None:
    white = np.full((2, 32, 32, 3), 250, np.uint8)
    assert np.isfinite(nuclear_features(white, 1.0)).all()
    assert nuclear_features(white[:0], 1.0).shape == (0, len(NUCLEAR_FEATURES))
