"""Features of patches: what the laboratory does to a slide changes little, what nuclei look like changes them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ki67.prediction.examples import common_pixels, labelled_patches, log_odds, share_of, slide_share
from ki67.prediction.methods import PredictOptions, prepare
from ki67.prediction.patch_features import FEATURES, patch_features
from ki67.prediction.slide_stain import slide_stain, stain_amounts
from ki67.stain import HED_VECTORS, optical_density
from tests.unit.drawn_examples import drawn_slide


def restained(he: np.ndarray, strength: float, turn: float) -> np.ndarray:
    """The same tissue from a laboratory that takes more stain, of another hue."""
    amounts = optical_density(he) @ np.linalg.pinv(HED_VECTORS[:2])
    other = HED_VECTORS[:2] + turn * np.array([[-0.1, 0.1, 0.1], [0.1, -0.1, 0.15]])
    return np.clip(np.rint(255 * 10.0 ** -(strength * amounts @ other)), 0, 255).astype(np.uint8)


def test_stains_of_a_slide_are_found() -> None:
    pairs = drawn_slide(0, 0.3)
    stain = slide_stain(pairs.he)
    for found, known in zip(stain.vectors, HED_VECTORS[:2], strict=True):
        assert found @ known / np.linalg.norm(found) > 0.97
    assert stain.strength[0] == pytest.approx(0.9, abs=0.3)


def test_a_slide_of_one_colour_has_usual_stains() -> None:
    white = np.full((2, 16, 16, 3), 250, np.uint8)
    np.testing.assert_array_equal(slide_stain(white).vectors, HED_VECTORS[:2])
    assert np.isfinite(patch_features(white, 1.0)).all()
    assert patch_features(white[:0], 1.0).shape == (0, len(FEATURES))


def test_what_the_laboratory_does_is_taken_out() -> None:
    one, large = drawn_slide(0, 0.1).he, drawn_slide(1, 0.6).he
    other = restained(one, 1.3, 0.6)
    before = np.abs(other.astype(float) - one).mean()
    after = np.abs(stain_amounts(other, slide_stain(other)) - stain_amounts(one, slide_stain(one))).mean()
    assert before > 15
    assert after < 0.06
    features = [patch_features(he, 1.0).mean(axis=0) for he in (one, other, large)]
    scale = np.abs(features[2] - features[0])
    of_nuclei = [place for place, name in enumerate(FEATURES) if name.startswith("hematoxylin_smoothed")]
    moved = np.abs(features[1] - features[0])[of_nuclei].mean()
    assert moved < 0.35 * scale[of_nuclei].mean()


def test_larger_nuclei_have_their_edges_at_larger_scales() -> None:
    shares = []
    for radius in (3, 8):
        nuclei = np.zeros((96, 96), np.uint8)
        for x, y in np.random.default_rng(0).integers(8, 88, (14, 2)):
            cv2.circle(nuclei, (int(x), int(y)), radius, 255, -1, cv2.LINE_AA)
        density = 0.9 * nuclei[..., None] / 255 * HED_VECTORS[0] + 0.1 * HED_VECTORS[1]
        he = np.rint(255 * 10.0**-density).astype(np.uint8)[None]
        found = dict(zip(FEATURES, patch_features(he, 1.0)[0], strict=True))
        shares.append(found["hematoxylin_edge_6.3um_mean"] / found["hematoxylin_edge_1um_mean"])
    assert shares[1] > 1.3 * shares[0]


def test_features_are_of_microns_and_not_of_pixels() -> None:
    he = drawn_slide(0, 0.4, size=96, patches=3).he
    finer = np.stack([cv2.resize(patch, (192, 192), interpolation=cv2.INTER_CUBIC) for patch in he])
    coarse, fine = (patch_features(one, mpp).mean(axis=0) for one, mpp in ((he, 1.0), (finer, 0.5)))
    places = [FEATURES.index(f"hematoxylin_{name}_4um_mean") for name in ("smoothed", "edge", "hessian_large")]
    np.testing.assert_allclose(fine[places], coarse[places], rtol=0.15, atol=0.01)


def test_log_odds_and_shares_are_inverse() -> None:
    shares = np.linspace(0, 1, 21)
    np.testing.assert_allclose(share_of(log_odds(shares)), shares, atol=1e-12)
    assert np.isnan(log_odds(np.nan))
    np.testing.assert_array_equal(share_of(np.array([-np.inf, np.inf])), [0, 1])


def test_a_slide_is_the_mean_of_its_patches_by_nuclei() -> None:
    shares, nuclei = np.array([0.1, 0.5, np.nan]), np.array([30.0, 10.0, 99.0])
    assert slide_share(shares, nuclei) == pytest.approx(0.2)
    assert np.isnan(slide_share(np.array([np.nan]), np.array([3.0])))


def test_patients_weigh_the_same_however_many_patches_they_have() -> None:
    slides = [drawn_slide(0, 0.2, patches=3), drawn_slide(1, 0.3, patches=9), drawn_slide(2, 0.4, patient="P01")]
    learned = labelled_patches([prepare(one, PredictOptions("forest")) for one in slides])
    sums = np.bincount(learned.patient, learned.weight)
    np.testing.assert_allclose(sums, sums[0])
    assert learned.weight.mean() == pytest.approx(1)


def test_networks_see_common_stains_in_the_size_asked_for() -> None:
    strong, usual = drawn_slide(0, 0.3, strength=1.5), drawn_slide(0, 0.3)
    pixels = common_pixels(strong, 32)
    assert pixels.shape == (6, 32, 32, 3)
    assert pixels.dtype == np.uint8
    differ = [
        np.abs(a.astype(float) - b).mean() for a, b in ((strong.he, usual.he), (pixels, common_pixels(usual, 32)))
    ]
    assert differ[1] < 0.5 * differ[0]
    assert common_pixels(usual).shape == usual.he.shape
