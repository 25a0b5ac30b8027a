"""How much the nuclei around tell of tumour beside the tumour network of Ki-67 slides, on annotated images.

    python -m benchmarks.nuclear_evidence DATASET [--model DIR] [--nuclei DIR]

Fits the weights of ``ki67.nuclear_evidence.NuclearEvidence`` by logistic regression, and prints them beside those that
are set, with areas under the ROC curve: of each answer alone, of both with weights from the other images (five folds),
and of both with the weights that are set.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from tqdm import tqdm

from ki67.networks import load_network
from ki67.nuclear_evidence import NuclearEvidence, log_odds
from ki67.training.datasets import read_dataset, resampled
from ki67.tumor_evaluation import predict_windows
from ki67.tumor_fields import SCORED_MPP, chosen_images, read_tumor_fields

EVERY = 40
"""One pixel of so many is taken, as neighbours say the same."""
MODELS = Path("resources/models")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--model", type=Path, default=MODELS / "tumor_ki67")
    parser.add_argument("--nuclei", type=Path, default=MODELS / "nuclei")
    options = parser.parse_args()
    dataset, network = read_dataset(options.dataset), load_network(options.model)
    evidence = NuclearEvidence(load_network(options.nuclei))
    parts, paths = [], chosen_images(dataset)
    for number, image in enumerate(tqdm(read_tumor_fields(dataset, paths), total=len(paths), unit="image")):
        rgb = resampled(image.rgb, image.mpp / SCORED_MPP)
        probability = predict_windows(network, rgb)
        nuclei = predict_windows(evidence.network, rgb, evidence.certain_nuclei)
        share = np.concatenate([strip for _, strip in evidence.share_around(nuclei, image.allowed, SCORED_MPP)])
        both = evidence.weigh(probability, nuclei, image.allowed, SCORED_MPP)
        taken = np.flatnonzero(image.known)[::EVERY]
        columns = [image.truth, share / 255, probability / 255, both / 255]
        parts.append(np.column_stack([np.full(len(taken), number), *(column.ravel()[taken] for column in columns)]))
    groups, truth, share, probability, both = np.concatenate(parts).T
    odds, truth = np.column_stack([log_odds(share), log_odds(probability)]), truth > 0
    left_out = cross_val_predict(
        LogisticRegression(), odds, truth, groups=groups, cv=GroupKFold(5), method="predict_proba"
    )[:, 1]
    fitted = LogisticRegression().fit(odds, truth)
    print("| answer | AUC |\n|---|---|")
    answers = {
        "tumour network": probability,
        "share of certain nuclei": share,
        "both, weights of other images": left_out,
        "both, weights as set": both,
    }
    for name, answer in answers.items():
        print(f"| {name} | {roc_auc_score(truth, answer):.3f} |")
    print(
        f"fitted: share_weight {fitted.coef_[0, 0]:.2f}, network_weight {fitted.coef_[0, 1]:.2f}, "
        f"offset {fitted.intercept_[0]:.2f}; set: {evidence.share_weight}, {evidence.network_weight}, {evidence.offset}"
    )


if __name__ == "__main__":
    main()
