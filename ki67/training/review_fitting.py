"""How nuclei of a slide are reviewed, fitted to annotated fields; see ``ki67.nucleus_review``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from ki67.detection import Detector
from ki67.evaluation_fields import EvaluationField, read_evaluation_fields
from ki67.matching import MATCH_UM, match_points
from ki67.nuclei import stain_amounts
from ki67.nucleus_review import FEWEST_NUCLEI, ReviewOptions, review_nuclei, size_beside_usual
from ki67.training.datasets import read_dataset
from ki67.training.targets import NEGATIVE, OTHER, POSITIVE

LEAST_PLAUSIBLE = (0.0, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)
_FEWEST_TO_FIT = 200
_NOT_TOLD = -1
_AS_GOOD = 0.005
"""F1 that is within so much of the best is as good."""


@dataclass(frozen=True)
class Candidates:
    """What a network found in one annotated field, before any review; arrays ``(N,)``.

    Attributes
    ----------
    probability, positive, area_um2, dab_od
        As ``ki67.nucleus_review.review_nuclei`` takes them.
    truth
        ``POSITIVE`` or ``NEGATIVE`` of the annotated nucleus within ``MATCH_UM``, 0 where there is none, and -1 where
        there is one of another class or nothing is annotated.
    known
        Annotated nuclei by class: positive, negative.
    """

    probability: NDArray[np.float32]
    positive: NDArray[np.bool_]
    area_um2: NDArray[np.float64]
    dab_od: NDArray[np.float64]
    truth: NDArray[np.int64]
    known: tuple[int, int]


def candidates(fields: Iterable[EvaluationField], detector: Detector) -> Iterator[Candidates]:
    """What a detector finds in each field when nothing is reviewed."""
    finds_all = replace(detector, review=None)
    for field in fields:
        nuclei = finds_all(field.rgb)
        _, dab_od = stain_amounts(nuclei, field.rgb)
        places = np.column_stack([nuclei.x_px, nuclei.y_px])
        truth = np.where(field.within(places), 0, _NOT_TOLD)
        tumor = field.nuclei[field.nuclei[:, 2] != OTHER]
        others = field.nuclei[field.nuclei[:, 2] == OTHER]
        found, annotated = match_points(places, tumor[:, :2], MATCH_UM / detector.mpp)
        truth[found] = tumor[annotated, 2]
        left = np.flatnonzero(truth == 0)
        truth[left[match_points(places[left], others[:, :2], MATCH_UM / detector.mpp)[0]]] = _NOT_TOLD
        known = int(np.sum(tumor[:, 2] == POSITIVE)), int(np.sum(tumor[:, 2] == NEGATIVE))
        area_um2 = nuclei.area_px.astype(np.float64) * detector.mpp**2
        yield Candidates(nuclei.probability, nuclei.positive, area_um2, dab_od, truth, known)


def fitted_odds(sets: Sequence[Sequence[Candidates]], start: ReviewOptions | None = None) -> ReviewOptions:
    """The odds that something found is a nucleus: a logistic regression in which each set of fields weighs the same.

    Parameters
    ----------
    sets
        Fields by dataset. Fields with fewer than ``FEWEST_NUCLEI`` nuclei say nothing of what is usual.
    start
        What else the result takes over.
    """
    joined = [
        np.concatenate([_rows(field) for field in fields if len(field.truth) >= FEWEST_NUCLEI]) for fields in sets
    ]
    weights = np.concatenate([np.full(len(part), 1 / len(part)) for part in joined])
    values = np.concatenate(joined)
    model = LogisticRegression(C=10.0).fit(values[:, :2], values[:, 2] > 0, sample_weight=weights * len(values))
    (probability_weight, size_weight), (offset,) = model.coef_[0], model.intercept_
    return replace(
        start or ReviewOptions(),
        probability_weight=round(float(probability_weight), 3),
        size_weight=round(float(size_weight), 3),
        offset=round(float(offset), 3),
    )


def _rows(field: Candidates) -> NDArray[np.float64]:
    told = field.truth != _NOT_TOLD
    size = size_beside_usual(field.area_um2.astype(np.float64))
    return np.column_stack([field.probability, size, field.truth > 0])[told]


def class_f1(fields: Iterable[Candidates], options: ReviewOptions) -> tuple[float, float, float]:
    """F1 of positive nuclei, of negative nuclei, and of both whatever their class, over all fields as reviewed."""
    counts = np.zeros((3, 2))
    known = np.zeros(3)
    for field in fields:
        seen = review_nuclei(field.probability, field.positive, field.area_um2, field.dab_od, options)
        kept = seen.kept & (field.truth != _NOT_TOLD)
        for row, (kind, called) in enumerate(((POSITIVE, seen.positive), (NEGATIVE, ~seen.positive))):
            counts[row] += [np.sum(kept & called & (field.truth == kind)), np.sum(kept & called)]
        counts[2] += [np.sum(kept & (field.truth > 0)), np.sum(kept)]
        known += [*field.known, sum(field.known)]
    positive, negative, both = (2 * counts[:, 0] / np.maximum(counts[:, 1] + known, 1)).tolist()
    return positive, negative, both


def fit_review(datasets: Sequence[Path], detector: Detector) -> ReviewOptions | None:
    """The review with which a network does best on annotated fields.

    The odds are the detector's own or a logistic regression, the least plausible is one of ``LEAST_PLAUSIBLE``: those
    with the highest mean F1 of both classes. Of several that are as good, the one that leaves out the fewest: what a
    network has learned from looks more certain to it than what it has not. The threshold of DAB stays: fitted to a few
    fields, it gave a worse index on the others.

    Parameters
    ----------
    datasets
        Folders of kind ``nuclei`` or ``instances``.
    detector
        With the network.

    Returns
    -------
    ReviewOptions or None
        None where fewer than 200 nuclei are annotated, or all that was found is right or wrong.
    """
    fields = [list(candidates(read_evaluation_fields(read_dataset(path), detector.mpp), detector)) for path in datasets]
    all_fields = [field for part in fields for field in part]
    told = np.concatenate([field.truth[field.truth != _NOT_TOLD] > 0 for field in all_fields])
    if sum(sum(field.known) for field in all_fields) < _FEWEST_TO_FIT or told.all() or not told.any():
        return None
    usual = detector.review or ReviewOptions()
    odds = (usual, fitted_odds([all_fields], usual))
    choices = [replace(options, least_plausible=least) for options, least in product(odds, LEAST_PLAUSIBLE)]
    scores = [sum(class_f1(all_fields, options)[:2]) / 2 for options in choices]
    good = [options for options, score in zip(choices, scores, strict=True) if score >= max(scores) - _AS_GOOD]
    return min(good, key=lambda options: options.least_plausible)
