"""Patches that a classifier learns from: where in the images they lie, and what each is."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from ki67.errors import Ki67Error
from ki67.networks import NetworkSpec
from ki67.training.datasets import AnnotatedImage
from ki67.training.targets import IGNORED

_STEPS_A_PATCH = 4
"""Neighbouring candidates lie a quarter of a patch apart."""


def patch_label(target: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """What a patch is.

    Parameters
    ----------
    target
        uint8 ``(H, W)``: 1 tumour, 0 other, or ``IGNORED``.
    share
        The patch is tumour where more than this share of what is known of it is.

    Returns
    -------
    uint8 ``()``
        1, 0, or ``IGNORED`` where nothing is known.
    """
    known = target != IGNORED
    if not known.any():
        return np.array(IGNORED, dtype=np.uint8)
    return np.array(np.mean(target[known] == 1) > share, dtype=np.uint8)


def choose_patches(
    images: list[AnnotatedImage], spec: NetworkSpec, per_slide: int, seed: int
) -> list[NDArray[np.float64]]:
    """Where a classifier's patches lie, at most so many of tumour and of other tissue of each slide.

    The cap is that of published pipelines for breast carcinoma, where without it a few slides with much tissue decide
    what is learned. Candidates lie a quarter of a patch apart; of those of a class too many are left out at random.

    Parameters
    ----------
    images
        Those of one ``group`` are one slide.
    per_slide
        Most patches of each class of a slide.
    seed
        Of the choice.

    Returns
    -------
    list of float64 ``(N, 2)``
        For each image column and row of the patches' centres, that of the first pixel being 0.

    Raises
    ------
    Ki67Error
        If there is no patch.
    """
    candidates = [_candidates(image, spec) for image in images]
    random = np.random.default_rng(seed)
    kept = [np.zeros(len(labels), dtype=bool) for _, labels in candidates]
    for slide in sorted({image.group for image in images}):
        numbers = [number for number, image in enumerate(images) if image.group == slide]
        for kind in (0, 1):
            owned = [(number, place) for number in numbers for place in np.flatnonzero(candidates[number][1] == kind)]
            for index in random.permutation(len(owned))[:per_slide]:
                number, place = owned[index]
                kept[number][place] = True
    chosen = [centers[keep] for (centers, _), keep in zip(candidates, kept, strict=True)]
    if not any(map(len, chosen)):
        raise Ki67Error(f"network {spec.name}: its datasets hold no annotated patch to learn from; add images")
    return chosen


def _candidates(image: AnnotatedImage, spec: NetworkSpec) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Centres ``(N, 2)`` and labels ``(N,)`` of the patches of one image."""
    known = image.target != IGNORED
    of_known, of_tumor = (_sums(pixels, spec.tile_px) for pixels in (known, image.target == 1))
    labels = np.where(of_known > 0, of_tumor > spec.patch_share * of_known, IGNORED).astype(np.uint8)
    columns, rows = (_centers(length, spec.tile_px) for length in image.target.shape[::-1])
    x, y = np.meshgrid(columns, rows)
    return np.column_stack([x.ravel(), y.ravel()]), labels.ravel()


def _first(length: int, patch_px: int) -> NDArray[np.int64]:
    """First pixels of the patches on one axis; one patch in the middle where the image is smaller."""
    room = max(0, length - patch_px)
    return np.arange(0, room + 1, max(1, patch_px // _STEPS_A_PATCH))


def _centers(length: int, patch_px: int) -> NDArray[np.float64]:
    if length <= patch_px:
        return np.array([(length - 1) / 2])
    return np.asarray(_first(length, patch_px) + (patch_px - 1) / 2, dtype=np.float64)


def _sums(pixels: NDArray[np.bool_], patch_px: int) -> NDArray[np.int64]:
    """How many pixels of each patch are true ``(rows, columns)``."""
    before = np.asarray(cv2.integral(pixels.astype(np.uint8)), dtype=np.int64)
    (top, left), (height, width) = (_first(length, patch_px) for length in pixels.shape), pixels.shape
    bottom, right = np.minimum(top + patch_px, height), np.minimum(left + patch_px, width)
    return (
        before[np.ix_(bottom, right)]
        - before[np.ix_(top, right)]
        - before[np.ix_(bottom, left)]
        + before[np.ix_(top, left)]
    )


class PatchLoss(nn.Module):
    """Cross entropy of patches about which something is known."""

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of float32 logits ``(N, 1)`` against labels ``(N,)``: 1, 0 or ``IGNORED``."""
        known = target != IGNORED
        total = functional.binary_cross_entropy_with_logits(logits[known, 0], target[known].float(), reduction="sum")
        return total / known.sum().clamp(min=1)
