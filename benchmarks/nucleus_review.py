"""Fit the odds that something found is a nucleus, on validation sets: the numbers of ``ki67.nucleus_review``.

    python -m benchmarks.nucleus_review FITTED_TO [FITTED_TO ...] [--check OTHERS ...]

A logistic regression (``ki67.training.review_fitting``) in which each dataset weighs the same. F1 of detection is
printed for several least probabilities, for the sets it was fitted to and for those to check on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ki67.detectors import load_detector
from ki67.evaluation_fields import read_evaluation_fields
from ki67.training.datasets import read_dataset
from ki67.training.review_fitting import LEAST_PLAUSIBLE, candidates, class_f1, fitted_odds


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--check", nargs="*", type=Path, default=[])
    parser.add_argument("--model", type=Path)
    chosen = parser.parse_args()
    detector = load_detector("unet_resnet34", chosen.model)
    found = {
        folder: list(candidates(read_evaluation_fields(read_dataset(folder), detector.mpp), detector))
        for folder in [*chosen.datasets, *chosen.check]
    }
    odds = fitted_odds([found[folder] for folder in chosen.datasets])
    print(f"{odds.probability_weight:.2f} {odds.size_weight:.2f} {odds.offset:.2f}")
    print("\t".join(["dataset", *(f"{least:g}" for least in LEAST_PLAUSIBLE)]))
    for folder, fields in found.items():
        scores = [class_f1(fields, replace(odds, least_plausible=least))[2] for least in LEAST_PLAUSIBLE]
        print("\t".join([folder.name, *(f"{score:.3f}" for score in scores)]))


if __name__ == "__main__":
    main()
