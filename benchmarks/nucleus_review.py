"""Fit the odds that something found is a nucleus, on validation sets: the numbers of ``ki67.nucleus_review``.

    python -m benchmarks.nucleus_review FITTED_TO [FITTED_TO ...] [--check OTHERS ...]

A logistic regression on the network's mean probability of a nucleus and the logarithm of its area over the slide's mean
area, over nuclei found in annotated fields, each dataset weighing the same. F1 of detection is printed for several
least probabilities, for the sets it was fitted to and for those to check on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from ki67.detectors import Detector, load_detector
from ki67.evaluation_fields import read_evaluation_fields
from ki67.matching import MATCH_UM, match_points
from ki67.nucleus_review import FEWEST_NUCLEI, ReviewOptions, plausibility
from ki67.training.datasets import read_dataset
from ki67.training.targets import OTHER

LEAST = (0.0, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)


def candidates(folder: Path, detector: Detector) -> tuple[list[NDArray[np.float64]], int]:
    """For each field ``(N, 3)``: probability, area, and 1 where a nucleus is annotated; and how many are in all."""
    fields, known_count = [], 0
    for field in read_evaluation_fields(read_dataset(folder), detector.mpp):
        nuclei = detector(field.rgb)
        places = np.column_stack([nuclei.x_px, nuclei.y_px])
        known = field.nuclei[field.nuclei[:, 2] != OTHER]
        others = field.nuclei[field.nuclei[:, 2] == OTHER]
        right, _ = match_points(places, known[:, :2], MATCH_UM / detector.mpp)
        true = np.zeros(len(places))
        true[right] = 1
        of_others, _ = match_points(places[true == 0], others[:, :2], MATCH_UM / detector.mpp)
        told = field.within(places)
        told[np.flatnonzero(true == 0)[of_others]] = False
        known_count += len(known)
        if told.sum() >= FEWEST_NUCLEI:
            fields.append(np.column_stack([nuclei.probability, nuclei.area_px * detector.mpp**2, true])[told])
    return fields, known_count


def features(field: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(N, 2)``: probability, and logarithm of the area over the mean area of the field's nuclei by area."""
    area = field[:, 1]
    return np.column_stack([field[:, 0], np.log(area / (np.sum(area**2) / np.sum(area)))])


def fitted(sets: list[list[NDArray[np.float64]]]) -> ReviewOptions:
    """The odds fitted to the fields of some datasets."""
    joined = [np.concatenate([np.column_stack([features(field), field[:, 2]]) for field in fields]) for fields in sets]
    weights = np.concatenate([np.full(len(part), 1 / len(part)) for part in joined])
    values = np.concatenate(joined)
    model = LogisticRegression(C=10.0).fit(values[:, :2], values[:, 2] > 0, sample_weight=weights * len(values))
    (probability_weight, size_weight), (offset,) = model.coef_[0], model.intercept_
    return ReviewOptions(float(probability_weight), float(size_weight), float(offset))


def f1_at(fields: list[NDArray[np.float64]], known: int, options: ReviewOptions) -> float:
    """F1 of detection when the implausible are left out."""
    kept = [plausibility(field[:, 0], field[:, 1], options) >= options.least_plausible for field in fields]
    right = sum(float(field[keep, 2].sum()) for field, keep in zip(fields, kept, strict=True))
    return 2 * right / (sum(int(keep.sum()) for keep in kept) + known)


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--check", nargs="*", type=Path, default=[])
    parser.add_argument("--model", type=Path)
    chosen = parser.parse_args()
    detector = replace(load_detector("unet_resnet34", chosen.model), review=None)
    found = {folder: candidates(folder, detector) for folder in [*chosen.datasets, *chosen.check]}
    options = fitted([found[folder][0] for folder in chosen.datasets])
    print(f"{options.probability_weight:.2f} {options.size_weight:.2f} {options.offset:.2f}")
    print("\t".join(["dataset", *(f"{least:g}" for least in LEAST)]))
    for folder, (fields, known) in found.items():
        scores = [f1_at(fields, known, replace(options, least_plausible=least)) for least in LEAST]
        print("\t".join([folder.name, *(f"{score:.3f}" for score in scores)]))


if __name__ == "__main__":
    main()
