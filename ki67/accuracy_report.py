"""What an evaluation of nuclei shows to people: a table, pictures of fields, and what changes of fields do to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ki67.evaluation_fields import EvaluationField
from ki67.evaluation_figures import error_picture
from ki67.extraction import Nuclei
from ki67.field_changes import CHANGES
from ki67.matching import MATCH_UM
from ki67.nuclei_evaluation import (
    KINDS,
    Detects,
    FieldResult,
    evaluate_nuclei,
    f1_scores,
    joint_index_scores,
)
from ki67.score_table import best_median_worst, markdown_table, score_cell


@dataclass(frozen=True)
class _Shown:
    score: float
    name: str
    picture: NDArray[np.uint8]


def evaluate_with_pictures(folder: Path, detector: Detects) -> tuple[dict[str, Any], dict[str, NDArray[np.uint8]]]:
    """``evaluate_nuclei``, and pictures of the best, the median and the worst field by F1 of detection."""
    shown: list[_Shown] = []

    def draw(field: EvaluationField, nuclei: Nuclei, result: FieldResult) -> None:
        score = f1_scores(result.counts["detection"])["f1"]
        title = f"{result.name}: detection F1 {score:.2f}, index {result.found_index:.0%} of {result.known_index:.0%}"
        shown.append(_Shown(score, result.name, error_picture(field, nuclei, MATCH_UM / detector.mpp, title)))

    record = evaluate_nuclei(folder, detector, on_field=draw)
    places = best_median_worst([entry.score for entry in shown])
    return record, {name: shown[place].picture for name, place in places.items()}


class Identified(Detects, Protocol):
    """A way of finding nuclei that says what it is."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Method, name of the model and the like."""
        ...


def measured(
    folder: Path, detector: Identified, method: str, *, changes: bool = False
) -> tuple[dict[str, Any], dict[str, NDArray[np.uint8]]]:
    """The whole record of a method on a dataset, with what changes of the fields do if asked for, and its pictures."""
    record, pictures = evaluate_with_pictures(folder, detector)
    record |= {"method": method, "model": dict(detector.identity)}
    if changes:
        record["changes"] = evaluate_changes(folder, detector, record)
    return record, pictures


def evaluate_changes(folder: Path, detector: Detects, unchanged: dict[str, Any]) -> dict[str, Any]:
    """Scores on the fields as ``CHANGES`` make them, and how far each F1 and the RMSE of the index move."""
    changes = {}
    for name, change in CHANGES.items():
        record = evaluate_nuclei(folder, detector, change=change)
        moved = {kind: record["pooled"][kind]["f1"] - unchanged["pooled"][kind]["f1"] for kind in KINDS}
        rmse = record["index"].get("rmse", float("nan"))
        changes[name] = {"pooled": record["pooled"], "rmse": rmse, "f1_moves": moved}
    return changes


def accuracy_row(record: dict[str, Any]) -> dict[str, str]:
    """One evaluation as cells of a table: F1 and RMSE with their intervals, and what else matters most."""
    index, intervals = record["index"], record["intervals"]

    def cell(value: float | None, name: str, digits: int) -> str:
        return score_cell(value, intervals.get(name), digits)

    row = {"dataset": record["dataset"], "method": record.get("method", ""), "fields": str(len(record["images"]))}
    row |= {f"F1 {kind}": cell(record["pooled"][kind]["f1"], f"f1_{kind}", 2) for kind in KINDS}
    if not index["fields"]:
        return row | {"index RMSE": "", "bias": "", "weighted kappa": "", "category right": ""}
    return row | {
        "index RMSE": cell(index["rmse"], "rmse", 3),
        "bias": f"{index['bias']:+.3f}",
        "weighted kappa": f"{index['weighted_kappa']:.2f}",
        "category right": f"{index['category_accuracy']:.0%}",
    }


def accuracy_table(records: Sequence[dict[str, Any]]) -> str:
    """Evaluations as a Markdown table: a row for each dataset and method, and one for all fields of each method."""
    table = markdown_table([accuracy_row(record) for record in records])
    for method in dict.fromkeys(record.get("method", "") for record in records):
        joint = joint_index_scores(record for record in records if record.get("method", "") == method)
        if joint["fields"]:
            table += (
                f"| all | {method} | {joint['fields']} | | | | {joint['rmse']:.3f} | {joint['bias']:+.3f} | "
                f"{joint['weighted_kappa']:.2f} | {joint['category_accuracy']:.0%}, far from cut-offs "
                f"{joint['category_accuracy_clear']:.0%} of {joint['clear_fields']} |\n"
            )
    return table
