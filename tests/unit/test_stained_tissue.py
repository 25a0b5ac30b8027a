"""H&E tissue in the stain of a Ki-67 slide."""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from ki67.phantom.look import random_look
from ki67.training.drawn import FieldOptions, RealNuclei, draw_field
from ki67.training.stained_tissue import Tissue, stain_amounts, stain_tissue
from ki67.training.targets import NEGATIVE, OTHER, POSITIVE

HEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])


def he_image() -> tuple[np.ndarray, np.ndarray]:
    """Purple nuclei in pink stroma, and where the nuclei are."""
    nuclei = np.zeros((128, 128), dtype=np.uint8)
    for row in range(12, 128, 26):
        for column in range(12, 128, 26):
            cv2.circle(nuclei, (column, row), 6, 1, -1)
    random = np.random.default_rng(0)
    eosin = np.abs(0.4 + 0.1 * random.standard_normal(nuclei.shape)) * (1 - nuclei)
    eosin[:, 100:] = 0  # glass
    density = (nuclei * 0.9)[..., None] * HEMATOXYLIN + eosin[..., None] * EOSIN
    return np.clip(255 * 10**-density, 0, 255).astype(np.uint8), nuclei > 0


def tissue() -> Tissue:
    rgb, nuclei = he_image()
    hematoxylin, eosin = stain_amounts(rgb)
    count, labels = cv2.connectedComponents(nuclei.astype(np.uint8))
    sure = np.ones(count, dtype=bool)
    doubtful = np.zeros(nuclei.shape, dtype=bool)
    doubtful[20:24, 50:54] = True
    return Tissue(hematoxylin, eosin, labels.astype(np.int32), sure, doubtful, 0.5)


def stained(fraction: float, seed: int = 0, **look: Any) -> Any:
    rng = np.random.default_rng(seed)
    chosen = replace(random_look(rng, "ki67"), dab_median=1.2, nucleus_strength=0.9, blur_um=0.3, noise=0.5, **look)
    return stain_tissue(tissue(), chosen, fraction, 128, 0.5, rng)


def test_stains_are_parted() -> None:
    rgb, nuclei = he_image()
    hematoxylin, eosin = stain_amounts(rgb)
    assert np.median(hematoxylin[nuclei]) > 5 * np.median(hematoxylin[~nuclei])
    stroma = ~nuclei
    stroma[:, 100:] = False
    assert np.median(eosin[stroma]) > 5 * np.median(eosin[nuclei])


def test_positive_nuclei_are_brown_and_the_others_blue() -> None:
    field = stained(0.5)
    for kind, brown in ((POSITIVE, True), (NEGATIVE, False)):
        numbers = np.flatnonzero(field.classes == kind) + 1
        assert len(numbers) > 3
        red, _, blue = np.median(field.rgb[np.isin(field.labels, numbers)], axis=0)
        assert (red > blue + 20) == brown


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_all_or_no_nuclei_can_be_positive(fraction: float) -> None:
    kinds = set(stained(fraction).classes.tolist()) - {OTHER}
    assert kinds == ({POSITIVE} if fraction else {NEGATIVE})


def test_what_is_doubtful_is_left_out() -> None:
    fields = [stained(0.3, seed) for seed in range(8)]
    assert all(field.classes[-1] == OTHER for field in fields)
    assert any((field.labels == len(field.classes)).any() for field in fields)
    uncertain = replace(tissue(), sure=np.zeros(100, dtype=bool))
    rng = np.random.default_rng(0)
    assert set(stain_tissue(uncertain, random_look(rng, "ki67"), 0.5, 128, 0.5, rng).classes.tolist()) == {OTHER}


def test_the_same_numbers_give_the_same_field() -> None:
    np.testing.assert_array_equal(stained(0.4, 3).rgb, stained(0.4, 3).rgb)


def test_drawn_tumour_turns_with_its_tissue() -> None:
    whole = tissue()
    assert not stained(0.5).tumor.any(), "nobody drew any"
    # Tumour drawn exactly around the nuclei must lie around the nuclei of the square too.
    around = replace(whole, tumor=whole.labels > 0)
    rng = np.random.default_rng(3)
    look = replace(random_look(rng, "ki67"), nucleus_strength=0.9)
    field = stain_tissue(around, look, 0.5, 128, 0.5, rng)
    nuclei = (field.labels > 0) & (field.labels < len(field.classes))
    assert field.tumor.any()
    assert np.array_equal(field.tumor, nuclei)


def test_tumour_fields_are_made_of_tissue_with_its_drawn_tumour() -> None:
    around = replace(tissue(), tumor=np.ones((128, 128), dtype=bool))
    real = RealNuclei([], None, ((around,),))
    fields = [draw_field(FieldOptions("tumor_ki67", 12, size_px=96), index, real) for index in range(12)]
    assert all(field.labels is None and field.mask is not None for field in fields)
    full = [bool((field.mask == 255).all()) for field in fields]
    assert 3 <= sum(full) < 12, "three fifths are of the tissue, the others are drawn"
