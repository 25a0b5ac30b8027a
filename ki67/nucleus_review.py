"""A look at all nuclei of a slide together: which are implausible beside the others, and which class each has.

The network answers for a window. What is left of a nucleus cut by the section, or a speck of debris, can only be told
from a small nucleus by how large the nuclei of this slide are; the same holds for brown (``ki67.class_calibration``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ki67.class_calibration import CalibrationOptions, DabLevels, dab_levels, uncertainty
from ki67.errors import Ki67Error

FEWEST_NUCLEI = 20
"""With fewer nuclei there is nothing to compare one with."""


@dataclass(frozen=True)
class ReviewOptions:
    """How nuclei are reviewed.

    Attributes
    ----------
    probability_weight, size_weight, offset
        The log odds that something found is a nucleus: a weight times the network's mean probability, a weight times
        the logarithm of its area over the slide's mean area (each nucleus weighing as much as it is large), and an
        offset. A logistic regression on the validation sets: ``benchmarks/nucleus_review.py``.
    least_plausible
        Probability below which it is left out.
    calibration
        How classes follow from DAB.
    """

    probability_weight: float = 5.4
    size_weight: float = 1.3
    offset: float = -2.9
    least_plausible: float = 0.5
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)


REVIEW_FILE = "review.json"


def read_review(folder: Path) -> ReviewOptions:
    """What ``review.json`` in the folder of a network says; the usual options where there is none.

    Raises
    ------
    Ki67Error
        If the file is damaged.
    """
    path = folder / REVIEW_FILE
    if not path.exists():
        return ReviewOptions()
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        calibration = CalibrationOptions(**record.pop("calibration"))
        return ReviewOptions(**record, calibration=calibration)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Ki67Error(f"network {folder.name}: {REVIEW_FILE} is damaged; delete it or fine-tune again") from error


@dataclass(frozen=True)
class Review:
    """What is made of the nuclei of one slide; arrays ``(N,)`` over all that were found.

    Attributes
    ----------
    kept
        Whether it is a nucleus.
    positive
        Its class.
    uncertainty
        How likely it is not what it is counted as, 0 to 1.
    levels
        Of DAB on the slide; None where there were too few nuclei to tell.
    """

    kept: NDArray[np.bool_]
    positive: NDArray[np.bool_]
    uncertainty: NDArray[np.float32]
    levels: DabLevels | None


def review_nuclei(
    probability: NDArray[np.floating],
    positive: NDArray[np.bool_],
    area_um2: NDArray[np.floating],
    dab_od: NDArray[np.floating],
    options: ReviewOptions | None = None,
) -> Review:
    """Decide on all nuclei of a slide.

    Parameters
    ----------
    probability
        ``(N,)``, the network's mean probability of the class it gives the nucleus.
    positive
        ``(N,)``, that class.
    area_um2
        ``(N,)``.
    dab_od
        ``(N,)``, mean optical density of DAB.
    options
        See there.
    """
    options = options or ReviewOptions()
    plausible = plausibility(probability, area_um2, options)
    kept = plausible >= options.least_plausible
    levels = dab_levels(dab_od[kept].astype(np.float64), positive[kept], options.calibration)
    classes = positive if levels is None else dab_od > levels.threshold
    doubt = uncertainty(probability, positive, dab_od.astype(np.float64), levels)
    return Review(kept, np.asarray(classes, dtype=bool), doubt, levels)


def plausibility(
    probability: NDArray[np.floating], area_um2: NDArray[np.floating], options: ReviewOptions
) -> NDArray[np.float64]:
    """Probability ``(N,)`` that each is a nucleus; 1 for all where there are fewer than ``FEWEST_NUCLEI``."""
    if len(area_um2) < FEWEST_NUCLEI:
        return np.ones(len(area_um2))
    size = size_beside_usual(area_um2.astype(np.float64))
    odds = options.probability_weight * probability + options.size_weight * size + options.offset
    return np.asarray(1 / (1 + np.exp(-odds)), dtype=np.float64)


def size_beside_usual(area_um2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm ``(N,)`` of each area over the mean area of all, in which each weighs as much as it is large."""
    # Sorted, so that the sum does not depend on the order in which nuclei were found.
    usual = float(np.sum(np.sort(area_um2) ** 2) / np.sum(np.sort(area_um2)))
    return np.asarray(np.log(area_um2 / usual))
