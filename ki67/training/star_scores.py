"""How well a StarDist model finds annotated nuclei, and which thresholds suit it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ki67.instance_scores import InstanceCounts, instance_counts, instance_scores
from ki67.predictors import STRIDE_PX
from ki67.star_polygons import StarOptions, Stars, candidates, nuclei_of, packed, suppressed
from ki67.training.star_tiles import UNKNOWN, StarImage
from ki67.training.targets import NEGATIVE, OTHER

Answers = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Probability ``(N, h, w)`` and distances ``(N, h, w, rays)`` of images float32 ``(N, H, W, 1)``."""
PROBABILITIES = tuple(round(0.3 + 0.05 * step, 2) for step in range(10))
OVERLAPS = (0.3, 0.4, 0.5)
"""Thresholds that are tried, all probabilities with all overlaps."""
_MEASURES = {
    "f1_at_half_overlap": "recognition_quality",
    "mean_overlap": "segmentation_quality",
    "panoptic_quality": "panoptic_quality",
}


@dataclass(frozen=True)
class Answered:
    """An annotated image at a network's resolution and its answer, as ``ki67.star_polygons`` has it.

    Attributes
    ----------
    image
        See there.
    answer
        uint8 ``(C, H, W)``, the channel's as that of both stains.
    rays, grid_px, mpp
        Of the network.
    """

    image: StarImage
    answer: NDArray[np.uint8]
    rays: int
    grid_px: int
    mpp: float


def answered(network: Answers, image: StarImage, grid_px: int, mpp: float) -> Answered:
    """A network's answer to a whole image, which is mirrored at its edges to a fitting size."""
    height, width = image.amount.shape
    padded = np.pad(image.amount, ((0, -height % STRIDE_PX), (0, -width % STRIDE_PX)), mode="symmetric")
    probability, distances = network(padded[None, ..., None])
    answer = packed(np.concatenate([probability] * 2), np.concatenate([distances] * 2), grid_px)
    return Answered(image, answer[:, :height, :width], distances.shape[-1], grid_px, mpp)


def count_instances(one: Answered, stars: StarOptions) -> InstanceCounts:
    """Annotated nuclei beside those that are found with such thresholds."""
    return _counted(one, _found(one, stars.probability, stars.overlap), stars)


def _found(one: Answered, probability: float, overlap: float) -> Stars:
    return suppressed(candidates(one.answer, 0, one.rays, one.grid_px, probability), overlap)


def _counted(one: Answered, found: Stars, stars: StarOptions) -> InstanceCounts:
    labels, classes = _as_instances(one.image.labels)
    return instance_counts(labels, classes, nuclei_of(found, one.image.labels.shape, one.mpp, stars))


def _as_instances(labels: NDArray[np.int32]) -> tuple[NDArray[np.uint16], dict[int, int]]:
    """Labels and classes as ``instance_counts`` takes them; what is unknown is a nucleus of another class."""
    unknown = int(labels.max(initial=0)) + 1
    classes = dict.fromkeys(range(1, unknown), NEGATIVE) | {unknown: OTHER}
    return np.where(labels == UNKNOWN, unknown, labels).astype(np.uint16), classes


def best_thresholds(held_out: Sequence[Answered]) -> StarOptions:
    """The thresholds with the best panoptic quality; the usual ones where nothing was held out."""
    counts: dict[StarOptions, list[InstanceCounts]] = {}
    for one in tqdm(held_out, desc="thresholds", unit="image"):
        for overlap in OVERLAPS:
            # Less probable ones suppress no more probable ones, so all are parted once.
            found = _found(one, min(PROBABILITIES), overlap)
            for probability in PROBABILITIES:
                stars = StarOptions(probability, overlap)
                counted = _counted(one, found.chosen(found.probability >= probability), stars)
                counts.setdefault(stars, []).append(counted)
    return max(counts, key=lambda stars: instance_scores(counts[stars])["panoptic_quality"], default=StarOptions())


def star_scores(held_out: Sequence[Answered], stars: StarOptions) -> dict[str, float]:
    """Of all images, and of each dataset: F1 of nuclei that overlap by more than half, their overlap, panoptic quality.

    Empty where nothing was held out.
    """
    counts = [(one.image.dataset, count_instances(one, stars)) for one in held_out]
    scores: dict[str, float] = {}
    for name in ["", *sorted({dataset for dataset, _ in counts})] if counts else []:
        told = instance_scores([counted for dataset, counted in counts if name in ("", dataset)])
        suffix = f"_of_{name}" if name else ""
        scores |= {f"{measure}{suffix}": round(told[key], 4) for measure, key in _MEASURES.items()}
    return scores
