"""How well nuclei are found and told apart on annotated fields, and how far the index of a field is off."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score
from tqdm import tqdm

from ki67.bootstrap import percentile_intervals
from ki67.categories import CUTOFFS, category_names, category_of
from ki67.evaluation_fields import EvaluationField, read_evaluation_fields
from ki67.extraction import Nuclei
from ki67.field_changes import UNCHANGED, FieldChange
from ki67.instance_scores import InstanceCounts, instance_counts, instance_scores
from ki67.matching import MATCH_UM, match_points
from ki67.training.datasets import Dataset, image_paths, read_dataset
from ki67.training.targets import NEGATIVE, OTHER, POSITIVE

log = logging.getLogger(__name__)

CLOSE_MATCH_UM = 2.5
FEWEST_NUCLEI = 50
"""Fields of fewer annotated tumour nuclei say too little about an index."""
CUTOFF_MARGIN = 0.05
"""Fields whose index is farther from every cut-off should be of the right category."""
KINDS = {"positive": (POSITIVE,), "negative": (NEGATIVE,), "detection": (POSITIVE, NEGATIVE)}


class Detects(Protocol):
    """Finds the nuclei of an image uint8 ``(H, W, 3)`` at its microns per pixel."""

    @property
    def mpp(self) -> float:
        """Microns per pixel of the images it takes."""
        ...

    def __call__(self, rgb: NDArray[np.uint8]) -> Nuclei:
        """The nuclei of an image."""
        ...


@dataclass(frozen=True)
class FieldResult:
    """What was counted on one field.

    Attributes
    ----------
    name
        Of the image.
    counts
        Name of a kind (``KINDS``) to true positives, false positives and false negatives ``(3,)`` within ``MATCH_UM``.
    close_counts
        The same within ``CLOSE_MATCH_UM``.
    known, found
        Annotated and found tumour nuclei by class: positive, negative.
    others
        Annotated nuclei of other classes, how many of these were found, and how many found as positive.
    instances
        Pixels and nuclei compared, where outlines are annotated.
    shift_um
        How far found nuclei lie right of and below the annotated ones that they match, in the median; of each field
        with outlines.
    aligned
        As ``instances``, with the outlines of the field moved by that: some were drawn on another picture of it.
    """

    name: str
    counts: dict[str, NDArray[np.int64]]
    close_counts: dict[str, NDArray[np.int64]]
    known: tuple[int, int]
    found: tuple[int, int]
    others: tuple[int, int, int]
    instances: InstanceCounts | None = None
    shift_um: tuple[float, float] | None = None
    aligned: InstanceCounts | None = None

    @property
    def known_index(self) -> float:
        """Annotated share of positive nuclei, NaN where there are none."""
        return _share(self.known[0], sum(self.known))

    @property
    def found_index(self) -> float:
        """Found share of positive nuclei; 0 where none was found."""
        return _share(self.found[0], sum(self.found)) if sum(self.found) else 0.0

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        scores = {name: f1_scores(values)["f1"] for name, values in self.counts.items()}
        return {
            "name": self.name,
            **{f"f1_{name}": value for name, value in scores.items()},
            "counts": {name: [int(value) for value in values] for name, values in self.counts.items()},
            "known_positive": self.known[0],
            "known_negative": self.known[1],
            "found_positive": self.found[0],
            "found_negative": self.found[1],
            "known_index": self.known_index,
            "found_index": self.found_index,
            **({"shift_um": [round(value, 2) for value in self.shift_um]} if self.shift_um is not None else {}),
        }


def evaluate_nuclei(
    folder: Path,
    detector: Detects,
    *,
    change: FieldChange = UNCHANGED,
    on_field: Callable[[EvaluationField, Nuclei, FieldResult], None] | None = None,
) -> dict[str, Any]:
    """Compare found with annotated nuclei on all fields of a dataset.

    Parameters
    ----------
    folder
        Dataset of kind ``nuclei`` or ``instances``.
    detector
        Finds the nuclei.
    change
        What is done to every image first.
    on_field
        Called with each field, what was found in it and its result.

    Returns
    -------
    dict
        JSON values: ``pooled``, ``close``, ``intervals``, ``index``, ``others``, ``images``; where outlines are
        annotated ``instances``, and ``instances_aligned`` with the outlines of each field moved by its ``shift_um``.

    Raises
    ------
    Ki67Error
        If the dataset cannot be read or holds no nuclei.
    """
    dataset = read_dataset(folder)
    results = []
    fields = read_evaluation_fields(dataset, detector.mpp, change)
    for field in tqdm(fields, desc=f"nuclei of {dataset.name}", unit="field", total=len(image_paths(dataset))):
        nuclei = detector(field.rgb)
        result = score_field(field, nuclei, detector.mpp)
        results.append(result)
        if on_field is not None:
            on_field(field, nuclei, result)
    log.info("%s: %d fields, %d annotated nuclei", dataset.name, len(results), sum(sum(r.known) for r in results))
    return summary(dataset, results)


def score_field(field: EvaluationField, nuclei: Nuclei, mpp: float) -> FieldResult:
    """Compare the nuclei found in a field with those annotated.

    Found nuclei that match an annotated one of another class than positive and negative, and no tumour nucleus, are
    left out, as are nuclei outside of the annotated region.

    Parameters
    ----------
    field
        At ``mpp``.
    nuclei
        Found in it.
    mpp
        Microns per pixel.
    """
    known = field.nuclei[field.nuclei[:, 2] != OTHER]
    other = field.nuclei[field.nuclei[:, 2] == OTHER]
    kinds = np.where(nuclei.positive, POSITIVE, NEGATIVE)
    found = np.column_stack([nuclei.x_px, nuclei.y_px, kinds]).astype(np.float64)
    kept, others = _without_others(found[field.within(found)], known, other, MATCH_UM / mpp)
    counts, close = (
        {name: _counted(kept, known, of, radius / mpp) for name, of in KINDS.items()}
        for radius in (MATCH_UM, CLOSE_MATCH_UM)
    )
    result = FieldResult(
        name=field.name,
        counts=counts,
        close_counts=close,
        known=_by_class(known),
        found=_by_class(kept),
        others=others,
    )
    if field.labels is None:
        return result
    matched, to = match_points(kept[:, :2], known[:, :2], MATCH_UM / mpp)
    x_px, y_px = np.median(kept[matched, :2] - known[to, :2], axis=0) if len(matched) else np.zeros(2)
    moved = _moved(field.labels, round(float(y_px)), round(float(x_px)))
    return replace(
        result,
        instances=instance_counts(field.labels, field.classes or {}, nuclei),
        shift_um=(float(x_px) * mpp, float(y_px) * mpp),
        aligned=instance_counts(moved, field.classes or {}, nuclei),
    )


def _moved(labels: NDArray[np.uint16], down: int, right: int) -> NDArray[np.uint16]:
    """Labels moved by whole pixels; what leaves the image is lost."""
    padded = np.pad(labels, ((max(down, 0), max(-down, 0)), (max(right, 0), max(-right, 0))))
    height, width = labels.shape
    return padded[max(-down, 0) :, max(-right, 0) :][:height, :width]


def _without_others(
    found: NDArray[np.float64], known: NDArray[np.float64], other: NDArray[np.float64], radius_px: float
) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Found nuclei but those of other classes; and how many of these there are, were found, and were found positive."""
    matched, _ = match_points(found[:, :2], known[:, :2], radius_px)
    left = np.setdiff1d(np.arange(len(found)), matched)
    of_left, _ = match_points(found[left, :2], other[:, :2], radius_px)
    dropped = left[of_left]
    as_positive = int(np.count_nonzero(found[dropped, 2] == POSITIVE))
    return np.delete(found, dropped, axis=0), (len(other), len(dropped), as_positive)


def _counted(
    found: NDArray[np.float64], known: NDArray[np.float64], kinds: Sequence[int], radius_px: float
) -> NDArray[np.int64]:
    found, known = (points[np.isin(points[:, 2], kinds)] for points in (found, known))
    right = len(match_points(found[:, :2], known[:, :2], radius_px)[0])
    return np.array([right, len(found) - right, len(known) - right], dtype=np.int64)


def _by_class(nuclei: NDArray[np.float64]) -> tuple[int, int]:
    positive = int(np.count_nonzero(nuclei[:, 2] == POSITIVE))
    return positive, len(nuclei) - positive


def _share(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else float("nan")


# ---------------------------------------------------------------------------------------------- over fields


def f1_scores(counts: NDArray[np.int64]) -> dict[str, float]:
    """Precision, recall and F1 of true positives, false positives and false negatives; NaN where undefined.

    >>> f1_scores(np.array([8, 2, 2]))
    {'precision': 0.8, 'recall': 0.8, 'f1': 0.8}
    """
    right, wrong, missed = (int(value) for value in counts)
    return {
        "precision": _share(right, right + wrong),
        "recall": _share(right, right + missed),
        "f1": _share(2 * right, 2 * right + wrong + missed),
    }


def summary(dataset: Dataset, results: Sequence[FieldResult]) -> dict[str, Any]:
    """All numbers over the fields of a dataset, with 95 % intervals from resampled fields (Efron 1979)."""
    record: dict[str, Any] = {
        "dataset": dataset.name,
        "radius_um": MATCH_UM,
        "pooled": _pooled(results),
        "close": {"radius_um": CLOSE_MATCH_UM, **_pooled(results, close=True)},
        "index": index_scores(results),
        "intervals": bootstrap_intervals(results),
        "others": _other_scores(results),
    }
    if counted := [result.instances for result in results if result.instances is not None]:
        record["instances"] = instance_scores(counted)
        record["instances_aligned"] = instance_scores([r.aligned for r in results if r.aligned is not None])
    return record | {"images": [result.to_json() for result in results]}


def _pooled(results: Iterable[FieldResult], *, close: bool = False) -> dict[str, dict[str, float]]:
    counts = [result.close_counts if close else result.counts for result in results]
    return {name: f1_scores(np.sum([entry[name] for entry in counts], axis=0)) for name in KINDS}


def _other_scores(results: Sequence[FieldResult]) -> dict[str, float]:
    total, found, positive = np.sum([result.others for result in results], axis=0)
    return {
        "nuclei": int(total),
        "found": int(found),
        "false_positive_rate": _share(found, total),
        "positive_rate": _share(positive, total),
    }


def index_scores(results: Sequence[FieldResult]) -> dict[str, Any]:
    """Errors of the index over fields of at least ``FEWEST_NUCLEI`` annotated tumour nuclei.

    Limits of agreement: Bland & Altman (1986). Kappa with quadratic weights: Cohen (1968).
    """
    told = [(r.found_index, r.known_index) for r in results if sum(r.known) >= FEWEST_NUCLEI]
    if not told:
        return {"fields": 0}
    found, known = np.array(told).T
    error = found - known
    spread = float(error.std(ddof=1)) if len(error) > 1 else float("nan")
    names = list(category_names())
    ours, theirs = ([names.index(str(category_of(value))) for value in values] for values in (found, known))
    right = np.equal(ours, theirs)
    clear = np.min([np.abs(known - cutoff) for cutoff in CUTOFFS], axis=0) > CUTOFF_MARGIN
    confusion = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(confusion, (theirs, ours), 1)
    return {
        "fields": len(error),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "mae": float(np.abs(error).mean()),
        "bias": float(error.mean()),
        "limits_of_agreement": [float(error.mean() - 1.96 * spread), float(error.mean() + 1.96 * spread)],
        "category_accuracy": float(right.mean()),
        "category_accuracy_clear": float(right[clear].mean()) if clear.any() else float("nan"),
        "clear_fields": int(clear.sum()),
        "weighted_kappa": _kappa(theirs, ours, len(names)),
        "categories": names,
        "confusion": confusion.tolist(),
    }


def _kappa(theirs: list[int], ours: list[int], categories: int) -> float:
    """1 where all are of one category and right, where the formula divides nothing by nothing."""
    if theirs == ours:
        return 1.0
    return float(cohen_kappa_score(theirs, ours, labels=list(range(categories)), weights="quadratic"))


def bootstrap_intervals(results: Sequence[FieldResult], *, seed: int = 0) -> dict[str, list[float]]:
    """95 % percentile intervals of the pooled scores and errors of the index, from draws of fields."""

    def statistics(drawn: NDArray[np.int64]) -> dict[str, float]:
        fields = [results[index] for index in drawn]
        values = {f"f1_{name}": scores["f1"] for name, scores in _pooled(fields).items()}
        index = index_scores(fields)
        return values | {name: index[name] for name in ("rmse", "mae", "bias", "weighted_kappa") if name in index}

    return percentile_intervals(len(results), statistics, seed=seed)


def joint_index_scores(evaluations: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """``index_scores`` over the fields of several datasets, from what ``evaluate_nuclei`` returned."""
    return index_scores([_result_of(image) for evaluation in evaluations for image in evaluation["images"]])


def _result_of(image: dict[str, Any]) -> FieldResult:
    return FieldResult(
        name=image["name"],
        counts={},
        close_counts={},
        known=(image["known_positive"], image["known_negative"]),
        found=(image["found_positive"], image["found_negative"]),
        others=(0, 0, 0),
    )
