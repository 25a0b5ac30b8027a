"""What a model learns from: slides as features or pixels, with targets in log odds; and slides from their patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.prediction.patch_pairs import PatchPairs
from ki67.prediction.slide_stain import commonly_stained, slide_stain
from ki67.prediction.splits import patient_key

SMOOTHING = 0.02
"""Added to positive and negative shares, so that an index of 0 or 1 has log odds that are a number."""

_FEWEST_UNSEEN = 3
_STEEPEST = 3.0
"""With few patients the slope of ``line_of_unseen`` is not known well."""

Floats = NDArray[np.float64]


def log_odds(share: NDArray[np.floating[Any]] | float) -> Floats:
    """Log odds of shares 0 to 1, a little drawn in so that they end; NaN stays.

    >>> log_odds(np.array([0.0, 0.5, 1.0])).round(2)
    array([-3.93,  0.  ,  3.93])
    """
    share = np.asarray(share, dtype=np.float64)
    return np.asarray(np.log((share + SMOOTHING) / (1 - share + SMOOTHING)))


def share_of(odds: NDArray[np.floating[Any]] | float) -> Floats:
    """The share 0 to 1 that has these log odds; inverse of ``log_odds``.

    >>> share_of(log_odds(np.array([0.0, 0.15, 1.0]))).round(6)
    array([0.  , 0.15, 1.  ])
    """
    positive = 1 / (1 + np.exp(-np.asarray(odds, dtype=np.float64)))
    return np.clip(positive * (1 + 2 * SMOOTHING) - SMOOTHING, 0, 1)


@dataclass(frozen=True)
class Example:
    """A slide as a model sees it.

    Attributes
    ----------
    slide
        Id.
    patient
        Id as ``ki67.prediction.splits.patient_key`` tells patients apart.
    inputs
        Of each patch: features float32 ``(n, F)``, or pixels uint8 ``(n, size, size, 3)``.
    weight
        Of each patch in its slide, float64 ``(n,)``, above 0.
    target
        Log odds of the label of each patch, NaN without one, float64 ``(n,)``.
    counted
        Nuclei behind each label, float64 ``(n,)``.
    slide_target
        Log odds of the slide's index; NaN where it is not known.
    mpp
        Microns per pixel of the patches before they became inputs.
    ki67
        Patches of the Ki-67 slide, uint8 ``(m, size, size, 3)``, for those who learn from them.
    """

    slide: str
    patient: str
    inputs: NDArray[Any]
    weight: Floats
    target: Floats
    counted: Floats
    slide_target: float
    mpp: float
    ki67: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.inputs)


def example_of(pairs: PatchPairs, inputs: NDArray[Any], ki67: NDArray[np.uint8] | None = None) -> Example:
    """The patches of a slide with these inputs."""
    known = pairs.slide_index is not None
    return Example(
        slide=pairs.slide,
        patient=patient_key(pairs.patient),
        inputs=inputs,
        # A patch without a nucleus that anybody found still counts a little, so that a slide of such has a mean.
        weight=np.maximum(pairs.nuclei_he.astype(np.float64), 0.1),
        target=log_odds(pairs.label),
        counted=(pairs.positive + pairs.negative).astype(np.float64),
        slide_target=float(log_odds(float(pairs.slide_index))) if known else float("nan"),  # type: ignore[arg-type]
        mpp=pairs.mpp,
        ki67=ki67,
    )


def common_pixels(pairs: PatchPairs, size_px: int | None = None) -> NDArray[np.uint8]:
    """The patches in common stains, shrunk or enlarged to a side of ``size_px`` if one is given."""
    pixels = commonly_stained(pairs.he, slide_stain(pairs.he))
    if size_px is None or not len(pixels) or pixels.shape[1] == size_px:
        return pixels
    way = cv2.INTER_AREA if size_px < pixels.shape[1] else cv2.INTER_LINEAR
    return np.stack([cv2.resize(patch, (size_px, size_px), interpolation=way) for patch in pixels]).astype(np.uint8)


@dataclass(frozen=True)
class Answer:
    """What a model says of a slide.

    Attributes
    ----------
    odds
        Log odds of the slide's index (``log_odds``); NaN where it says nothing.
    patches
        Index of each patch 0 to 1, NaN where it says nothing, float64 ``(n,)``; None where it looks at slides alone.
    """

    odds: float
    patches: Floats | None = None


class Model(Protocol):
    """A trained model of any method."""

    def answer(self, example: Example) -> Answer:
        """What it says of a slide."""
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything it has learned, for a file without code."""
        ...


@dataclass(frozen=True)
class Learned:
    """The labelled patches of all slides, one below the other.

    Attributes
    ----------
    inputs
        ``(N, ...)`` as in ``Example``.
    target
        Log odds, float64 ``(N,)``.
    weight
        float64 ``(N,)``: by nuclei counted, with a mean of 1 over patches and the same sum for every patient.
    patient
        Number of the patient, int64 ``(N,)``.
    """

    inputs: NDArray[Any]
    target: Floats
    weight: Floats
    patient: NDArray[np.int64]


def labelled_patches(examples: Sequence[Example]) -> Learned:
    """All patches with a label; many patches of one patient weigh no more than few of another."""
    numbers = {patient: number for number, patient in enumerate(sorted({one.patient for one in examples}))}
    known = [np.isfinite(one.target) for one in examples]
    patient = np.concatenate([np.full(k.sum(), numbers[e.patient]) for e, k in zip(examples, known, strict=True)])
    counted = np.concatenate([np.maximum(e.counted[k], 1.0) for e, k in zip(examples, known, strict=True)])
    # Between patches of one patient places differ as well as chance, so that many nuclei say little more than some.
    certain = counted / (counted + 20.0)
    weight = certain / np.bincount(patient, certain)[patient] if len(patient) else certain
    return Learned(
        inputs=np.concatenate([e.inputs[k] for e, k in zip(examples, known, strict=True)]),
        target=np.concatenate([e.target[k] for e, k in zip(examples, known, strict=True)]),
        weight=weight * len(weight) / max(weight.sum(), 1e-12),
        patient=patient.astype(np.int64),
    )


def answer_of_patches(odds: Floats, weight: Floats) -> Answer:
    """The answer of a model that knows log odds of patches ``(n,)``: their mean, weighted by their nuclei."""
    shares = share_of(odds)
    return Answer(float(log_odds(slide_share(shares, weight))), shares)


def slide_share(shares: Floats, weight: Floats) -> float:
    """The index of a slide from those of its patches, weighted by their nuclei; NaN without any.

    Parameters
    ----------
    shares
        Of the patches 0 to 1, NaN for those that say nothing, ``(n,)``.
    """
    known = np.isfinite(shares)
    return float(np.average(shares[known], weights=weight[known])) if known.any() else float("nan")


def patient_weights(examples: Sequence[Example]) -> Floats:
    """Weight of each slide so that all patients weigh the same, with a mean of 1."""
    patients = [one.patient for one in examples]
    weight = np.array([1 / patients.count(patient) for patient in patients])
    return np.asarray(weight * len(weight) / weight.sum())


def line_of_unseen(odds: Floats, target: Floats, weight: Floats) -> tuple[float, float]:
    """Intercept and slope that bring what a model says of slides it has not seen nearest to the truth (least squares).

    Where these answers do not rise with the truth the slope is 0: a model that has learned nothing says the mean of
    its training, which is nearer than anything else that it may say.

    Parameters
    ----------
    odds, target
        Log odds ``(slides,)``, of the model and true.
    weight
        Of each slide.
    """
    if len(odds) < _FEWEST_UNSEEN:
        return 0.0, 1.0
    middle, mean = np.average(odds, weights=weight), np.average(target, weights=weight)
    spread = np.average((odds - middle) ** 2, weights=weight)
    covariance = np.average((odds - middle) * (target - mean), weights=weight)
    slope = float(np.clip(covariance / max(spread, 1e-12), 0.0, _STEEPEST))
    return float(mean - slope * middle), slope
