"""Tumour on Ki-67 slides from a tumour network and a nucleus network together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from ki67.geometry import Mask
from ki67.networks import nuclei_spec
from ki67.nuclear_evidence import NuclearEvidence, log_odds, smoothed_strips
from ki67.tumor import segment_tumor
from tests.unit.drawn_networks import Darkness, slide_of

CLASSES = nuclei_spec().classes


class BlackIsNucleus(Darkness):
    """Five classes: negative nucleus where a pixel is black, background elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, classes=CLASSES)

    def predict_levels(self, batch: NDArray[np.uint8], halo_px: int) -> NDArray[np.uint8]:
        black = super().predict_levels(batch, halo_px)[:, 0] > 200
        levels = np.zeros((len(batch), len(CLASSES), *black.shape[1:]), dtype=np.uint8)
        levels[:, CLASSES.index("negative_nucleus")] = black * 255
        levels[:, CLASSES.index("background")] = ~black * 255
        return levels


def evidence() -> NuclearEvidence:
    return NuclearEvidence(BlackIsNucleus())


def test_both_kinds_of_nuclei_count_and_membranes_do_not() -> None:
    levels = np.zeros((len(CLASSES), 1, 4), dtype=np.uint8)
    levels[CLASSES.index("positive_nucleus"), 0] = (100, 255, 0, 190)
    levels[CLASSES.index("negative_nucleus"), 0] = (100, 0, 0, 0)
    levels[CLASSES.index("positive_membrane"), 0] = (50, 0, 255, 65)
    assert evidence().certain_nuclei(levels).tolist() == [[255, 255, 0, 0]]


def test_log_odds_are_finite_and_symmetric() -> None:
    odds = log_odds(np.array([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert np.isfinite(odds).all()
    np.testing.assert_allclose(odds, -odds[::-1], atol=1e-12)
    assert odds[3] == pytest.approx(np.log(3), rel=0.03)


def test_the_share_is_that_of_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = np.zeros((300, 80), dtype=np.uint8)
    levels[:, :40] = 255
    allowed = levels > 0
    (whole,) = [strip for _, strip in smoothed_strips(levels, allowed, 5.0)]
    np.testing.assert_allclose(whole[:, :40], 255, rtol=1e-4)
    assert next(smoothed_strips(levels, np.zeros_like(allowed), 5.0))[1].max() == 0
    noise = np.random.default_rng(0).integers(0, 256, levels.shape, dtype=np.uint8)
    (whole,) = [strip for _, strip in smoothed_strips(noise, allowed, 5.0)]
    monkeypatch.setattr("ki67.nuclear_evidence._STRIP_ROWS", 64)
    strips = np.concatenate([strip for _, strip in smoothed_strips(noise, allowed, 5.0)])
    np.testing.assert_array_equal(strips[:, :40], whole[:, :40])


def test_more_nuclei_and_a_surer_network_are_more_likely_tumor() -> None:
    shape, allowed = (200, 200), np.ones((200, 200), dtype=bool)

    def weighed(probability: int, share: int) -> int:
        filled = (np.full(shape, value, dtype=np.uint8) for value in (probability, share))
        return int(evidence().weigh(*filled, allowed, 2.0)[100, 100])

    assert weighed(20, 10) < weighed(128, 10) < weighed(128, 30) < weighed(250, 60)
    assert weighed(0, 0) < 3
    assert weighed(255, 128) > 252


def cells(every_px: int) -> NDArray[np.uint8]:
    """Pale tissue, 500 x 500 µm, with a black nucleus of 6 µm every so many pixels on its left half."""
    pixels = np.full((1000, 1000, 3), 220, dtype=np.uint8)
    for row in range(20, 980, every_px):
        for column in range(20, 480, every_px):
            pixels[row : row + 12, column : column + 12] = 0
    return pixels


def test_where_nuclei_lie_close_together_is_tumor_and_elsewhere_is_none() -> None:
    pixels = cells(every_px=24)
    tissue = Mask(np.ones((63, 63), dtype=bool), 8.0, "ki67")
    slide = slide_of(pixels, stain="ki67")
    alone = segment_tumor(slide, tissue, Darkness())
    found = segment_tumor(slide, tissue, Darkness(), evidence=evidence())
    assert found.mask.pixels[20:-20, 20:100].mean() > 0.99
    assert found.mask.pixels[:, 140:].mean() < 0.01
    assert not alone.mask.pixels.any()
    assert found.statistics.tiles == 2 * alone.statistics.tiles


def test_the_same_whatever_the_size_of_tiles() -> None:
    slide, tissue = slide_of(cells(every_px=40), stain="ki67"), Mask(np.ones((63, 63), dtype=bool), 8.0, "ki67")
    one, other = (segment_tumor(slide, tissue, Darkness(), evidence=evidence(), cell_px=size) for size in (128, 256))
    np.testing.assert_array_equal(one.probability, other.probability)


def test_no_tissue_gives_no_tumor() -> None:
    found = segment_tumor(slide_of(cells(24), stain="ki67"), Mask.empty("ki67"), Darkness(), evidence=evidence())
    assert not found.mask.pixels.any()
    assert not found.probability.any()
