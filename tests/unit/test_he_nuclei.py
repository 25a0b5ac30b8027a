from __future__ import annotations

import numpy as np
import pytest

from ki67.phantom.layout import Layout
from ki67.phantom.look import random_look
from ki67.phantom.nuclei import Section
from ki67.phantom.paint import paint
from ki67.prediction.he_nuclei import count_nuclei, nucleus_limit

SIDE_UM = 128.0


def drawn(seed: int, mpp: float, patches: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Patches of one drawn H&E in a random stain, and how many nuclei have their centre in each."""
    rng = np.random.default_rng(seed)
    axis = np.arange(0, 4000, 32.0)
    layout = Layout.random(rng).with_tumor_share(0.5, *np.meshgrid(axis, axis))
    section = Section(0, layout, random_look(rng, "he"), np.eye(3), seed)
    size = round(SIDE_UM / mpp)
    pixels, counts = [], []
    for corner in rng.integers(0, 30, (patches, 2)) * SIDE_UM:
        painting = paint(section, *corner, size, size, mpp)
        places = np.column_stack([painting.nuclei.x_um, painting.nuclei.y_um]) - corner
        pixels.append(painting.rgb)
        counts.append(((places >= 0) & (places < SIDE_UM)).all(axis=1).sum())
    return np.stack(pixels), np.array(counts)


@pytest.mark.parametrize(("seed", "mpp"), [(1, 1.0), (2, 1.0), (3, 1.0), (4, 0.5), (5, 0.5)])
def test_counts_are_near_the_truth_in_any_stain(seed: int, mpp: float) -> None:
    he, truth = drawn(seed, mpp)
    found = count_nuclei(he, nucleus_limit(he, mpp), mpp)
    assert 0.7 < found.sum() / truth.sum() < 1.35
    assert np.corrcoef(found, truth)[0, 1] > 0.6


def test_scales_agree() -> None:
    coarse, fine = (count_nuclei(he, nucleus_limit(he, mpp), mpp) for mpp in (1.0, 0.5) for he, _ in [drawn(7, mpp)])
    assert coarse.sum() == pytest.approx(fine.sum(), rel=0.2)


def test_empty_patches_have_no_nuclei() -> None:
    glass = np.full((3, 64, 64, 3), 244, dtype=np.uint8)
    assert count_nuclei(glass, nucleus_limit(glass, 1.0), 1.0).tolist() == [0, 0, 0]
    nothing = glass[:0]
    assert len(count_nuclei(nothing, nucleus_limit(nothing, 1.0), 1.0)) == 0


def test_collagen_alone_holds_no_more_nuclei_than_it_has() -> None:
    """The limit comes from the whole slide, so that a patch of stroma is not searched for its darkest places."""
    he, truth = drawn(9, 1.0, patches=24)
    found = count_nuclei(he, nucleus_limit(he, 1.0), 1.0)
    few = truth < np.quantile(truth, 0.25)
    assert few.any()
    assert found[few].mean() < 1.6 * truth[few].mean() + 4
