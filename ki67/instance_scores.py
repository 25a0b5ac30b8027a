"""How well the outlines of nuclei are found: pixels, overlap and panoptic quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ki67.extraction import Nuclei
from ki67.training.targets import NEGATIVE, OTHER, POSITIVE

CLASSES = ("background", "positive", "negative")


@dataclass(frozen=True)
class InstanceCounts:
    """What was compared on one field.

    Attributes
    ----------
    confusion
        int64 ``(3, 3)``: pixels by annotated (rows) and found class, in the order of ``CLASSES``.
    overlap
        Sum of intersection over union of matched nuclei.
    matched, found, known
        Nuclei.
    """

    confusion: NDArray[np.int64]
    overlap: float
    matched: int
    found: int
    known: int


def instance_counts(labels: NDArray[np.uint16], classes: Mapping[int, int], nuclei: Nuclei) -> InstanceCounts:
    """Compare annotated with found outlines; nuclei whose class is not known are left out.

    Parameters
    ----------
    labels
        uint16 ``(H, W)``, 0 or the number of the annotated nucleus.
    classes
        Number of a nucleus to its class.
    nuclei
        Found, with ``labels`` of the same shape.
    """
    kind_of = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.int64)
    kind_of[1:] = OTHER
    for number, kind in classes.items():
        if 0 < number < len(kind_of):
            kind_of[number] = kind
    theirs = kind_of[labels]
    kept = theirs != OTHER
    ours = np.concatenate([[0], np.where(nuclei.positive, POSITIVE, NEGATIVE)])[nuclei.labels]
    confusion = np.bincount(theirs[kept] * 3 + ours[kept], minlength=9).reshape(3, 3)
    overlaps = _overlaps(np.where(kept, labels, 0).astype(np.int64), nuclei.labels.astype(np.int64), kept)
    known = int(np.count_nonzero(np.isin(kind_of[np.unique(labels)], (POSITIVE, NEGATIVE))))
    return InstanceCounts(confusion, float(overlaps.sum()), len(overlaps), _mostly_within(nuclei.labels, kept), known)


def _overlaps(known: NDArray[np.int64], found: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Intersection over union of all pairs above one half, which can only be one for each nucleus."""
    found = np.where(kept, found, 0)
    columns = int(found.max(initial=0)) + 1
    pairs, common = np.unique((known * columns + found).ravel(), return_counts=True)
    rows, others = np.divmod(pairs, columns)
    both = (rows > 0) & (others > 0)
    union = np.bincount(known.ravel())[rows[both]] + np.bincount(found.ravel())[others[both]] - common[both]
    overlap = common[both] / union
    return np.asarray(overlap[overlap > 0.5], dtype=np.float64)


def _mostly_within(labels: NDArray[np.int32], kept: NDArray[np.bool_]) -> int:
    """Found nuclei of which at least half lies where something is known."""
    area = np.bincount(labels.ravel())[1:]
    within = np.bincount(labels[kept].ravel(), minlength=len(area) + 1)[1:]
    return int(np.count_nonzero(within * 2 >= area))


def instance_scores(counted: Sequence[InstanceCounts]) -> dict[str, float]:
    """Pixel accuracy, intersection over union of each class, and panoptic quality regardless of class.

    Panoptic quality is recognition (F1 of nuclei that overlap by more than half) times segmentation (their mean
    intersection over union): Kirillov et al. 2019.
    """
    confusion = np.sum([entry.confusion for entry in counted], axis=0)
    matched = sum(entry.matched for entry in counted)
    recognised = 2 * matched / max(1, sum(entry.found + entry.known for entry in counted))
    overlap = sum(entry.overlap for entry in counted) / max(1, matched)
    scores = {"pixel_accuracy": float(np.trace(confusion) / max(1, confusion.sum()))}
    for index, name in enumerate(CLASSES):
        union = confusion[index].sum() + confusion[:, index].sum() - confusion[index, index]
        scores[f"iou_{name}"] = float(confusion[index, index] / max(1, union))
    nuclear = confusion[1:, 1:].sum()
    scores["iou_nuclei"] = float(nuclear / max(1, confusion.sum() - confusion[0, 0]))
    return scores | {
        "recognition_quality": recognised,
        "segmentation_quality": overlap,
        "panoptic_quality": recognised * overlap,
    }
