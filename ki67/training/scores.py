"""How well a network does on annotated images, in the numbers that go into its card."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from ki67.extraction import Nuclei, extract_nuclei, with_membranes
from ki67.matching import MATCH_UM, match_points
from ki67.predictors import Predictor, predict_image
from ki67.training.datasets import AnnotatedImage
from ki67.training.targets import IGNORED, NEGATIVE, OTHER, POSITIVE


def score_nuclei(network: Predictor, images: list[AnnotatedImage]) -> dict[str, float]:
    """F1 of pixels for each class, and F1 of nuclei: found at all, as positive, and as negative.

    A found nucleus is right when it lies within ``MATCH_UM`` of an annotated one, each used once (Hungarian matching),
    and for the F1 of a class when both are of that class. ``index_error`` is the mean over images of the absolute
    difference between found and annotated share of positive nuclei.
    """
    if not images:
        return {}
    confusion = np.zeros((len(network.spec.classes), len(network.spec.classes)), dtype=np.int64)
    found = []
    for image in images:
        probabilities = predict_image(network, image.rgb)
        confusion += _confusion(probabilities, image.target)
        found.append(extract_nuclei(with_membranes(probabilities), mpp=network.spec.mpp))
    scores = {f"pixel_f1_{name}": value for name, value in _pixel_f1(confusion, network.spec.classes)}
    return scores | score_found_nuclei(found, images, network.spec.mpp)


def score_found_nuclei(found: list[Nuclei], images: list[AnnotatedImage], mpp: float) -> dict[str, float]:
    """F1 of nuclei and the error of the index, as in ``score_nuclei``, of what was found in each image."""
    counts = {"detection": np.zeros(3), "positive": np.zeros(3), "negative": np.zeros(3)}
    errors = []
    for nuclei, image in zip(found, images, strict=True):
        told = _told_nuclei(nuclei, image)
        known = image.nuclei[image.nuclei[:, 2] != OTHER]
        radius_px = MATCH_UM / mpp
        counts["detection"] += match_counts(told, known, radius_px)
        for name, kind in (("positive", POSITIVE), ("negative", NEGATIVE)):
            counts[name] += match_counts(told[told[:, 2] == kind], known[known[:, 2] == kind], radius_px)
        if len(told) and len(known):
            errors.append(abs(np.mean(told[:, 2] == POSITIVE) - np.mean(known[:, 2] == POSITIVE)))
    scores = {f"object_f1_{name}": f1(*values) for name, values in counts.items()}
    return scores | {"index_error": float(np.mean(errors)) if errors else float("nan")}


def score_tumor(network: Predictor, images: list[AnnotatedImage]) -> dict[str, float]:
    """Dice, sensitivity and specificity at the network's threshold and area under the ROC curve, over all pixels."""
    if not images:
        return {}
    histogram = np.zeros((2, 256), dtype=np.int64)
    for image in images:
        probability = predict_image(network, image.rgb)[0]
        for value in (0, 1):
            histogram[value] += np.bincount(probability[image.target == value], minlength=256)
    level = int(np.ceil(network.spec.threshold * 255))
    (true_negative, false_positive), (false_negative, true_positive) = (
        (row[:level].sum(), row[level:].sum()) for row in histogram
    )
    return {
        "dice": f1(true_positive, false_positive, false_negative),
        "sensitivity": _share(true_positive, true_positive + false_negative),
        "specificity": _share(true_negative, true_negative + false_positive),
        "auc": _auc(histogram),
    }


def match_counts(found: NDArray[np.float64], known: NDArray[np.float64], radius_px: float) -> NDArray[np.float64]:
    """True positives, false positives and false negatives of points ``(N, 2+)`` matched one to one within a radius."""
    matched = len(match_points(found[:, :2], known[:, :2], radius_px)[0])
    return np.array([matched, len(found) - matched, len(known) - matched], dtype=np.float64)


def f1(true_positive: float, false_positive: float, false_negative: float) -> float:
    """F1 score, which is also the Dice coefficient; NaN where there is nothing to find and nothing was found."""
    return _share(2 * true_positive, 2 * true_positive + false_positive + false_negative)


def _share(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else float("nan")


def _auc(histogram: NDArray[np.int64]) -> float:
    if not histogram.sum(axis=1).all():
        return float("nan")
    levels = np.tile(np.arange(256), 2)
    return float(roc_auc_score(np.repeat([0, 1], 256), levels, sample_weight=histogram.ravel()))


def _confusion(probabilities: NDArray[np.uint8], target: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels by true class (rows) and most probable class (columns)."""
    classes = len(probabilities)
    known = target != IGNORED
    pairs = target[known].astype(np.int64) * classes + probabilities.argmax(axis=0)[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _pixel_f1(confusion: NDArray[np.int64], classes: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    for index, name in enumerate(classes):
        right = confusion[index, index]
        yield name, f1(right, confusion[:, index].sum() - right, confusion[index].sum() - right)


def _told_nuclei(nuclei: Nuclei, image: AnnotatedImage) -> NDArray[np.float64]:
    """Found nuclei ``(N, 3)`` as in ``AnnotatedImage.nuclei``, those about which nothing is known left out."""
    kinds = np.where(nuclei.positive, POSITIVE, NEGATIVE)
    found = np.column_stack([nuclei.x_px, nuclei.y_px, kinds])
    return found[is_known(found[:, :2], image)]


def is_known(places_px: NDArray[np.float64], image: AnnotatedImage) -> NDArray[np.bool_]:
    """Whether the annotation says what is at places ``(N, 2)``, x and y in pixels of the image."""
    height, width = image.target.shape
    columns = np.clip(places_px[:, 0].astype(int), 0, width - 1)
    rows = np.clip(places_px[:, 1].astype(int), 0, height - 1)
    return np.asarray(image.target[rows, columns] != IGNORED)
