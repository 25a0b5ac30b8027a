"""Small slides for tests of predictions: dark discs on pink, larger ones the higher the index."""

from __future__ import annotations

import cv2
import numpy as np

from ki67.prediction.patch_pairs import PatchPairs
from ki67.stain import HED_VECTORS


def drawn_slide(
    number: int,
    index: float | None,
    *,
    patient: str | None = None,
    patches: int = 6,
    size: int = 48,
    strength: float = 1.0,
    told: bool = True,
    seed: int = 0,
) -> PatchPairs:
    """A slide whose nuclei are the larger the higher its index, if they are to tell it; stains by ``strength``."""
    random = np.random.default_rng([seed, number])
    shown = index if told and index is not None else float(random.uniform(0.05, 0.6))
    he = np.zeros((patches, size, size, 3), np.uint8)
    for place in range(patches):
        he[place] = _patch(random, 2.0 + 5.0 * shown, size, strength)
    total = random.integers(20, 60, patches)
    positive = random.binomial(total, index) if index is not None else np.zeros(patches, int)
    known = index is not None
    return PatchPairs(
        slide=f"S{number:02d}",
        patient=f"P{number:02d}" if patient is None else patient,
        marker="Ki-67",
        mpp=1.0,
        he=he,
        center_um=random.uniform(0, 5000, (patches, 2)),
        positive=positive.astype(np.int32),
        negative=(total - positive).astype(np.int32) if known else np.zeros(patches, np.int32),
        label=(positive / total).astype(np.float32) if known else np.full(patches, np.nan, np.float32),
        nuclei_he=total.astype(np.float32),
        slide_index=index,
    )


def _patch(random: np.random.Generator, radius_px: float, size: int, strength: float) -> np.ndarray:
    """Discs of hematoxylin on uneven eosin with a little noise, uint8 ``(size, size, 3)``."""
    nuclei = np.zeros((size, size), np.uint8)
    for _ in range(12):
        place = tuple(int(value) for value in random.integers(0, size, 2))
        cv2.circle(nuclei, place, round(radius_px), 255, -1, cv2.LINE_AA)
    hematoxylin = 0.9 * strength * nuclei.astype(np.float32) / 255
    eosin = (
        0.4 * strength * (1 + 0.3 * cv2.GaussianBlur(random.normal(size=(size, size)).astype(np.float32), (0, 0), 2))
    )
    density = np.stack([hematoxylin, eosin], axis=-1) @ HED_VECTORS[:2]
    return np.clip(np.rint(250 * 10.0**-density + random.normal(0, 2, (size, size, 3))), 0, 255).astype(np.uint8)


def drawn_slides(count: int, *, told: bool = True, seed: int = 0, **changes: object) -> list[PatchPairs]:
    """Slides with indices spread from 5 % to 60 %, one a patient."""
    indices = np.random.default_rng(seed).permutation(np.linspace(0.05, 0.6, count))
    return [drawn_slide(n, float(i), told=told, seed=seed, **changes) for n, i in enumerate(indices)]  # type: ignore[arg-type]
