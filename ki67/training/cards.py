"""What every training tells people: what was learned from, how well it does, and how the loss fell."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ki67.errors import Ki67Error
from ki67.storage import whole, write_text
from ki67.training.datasets import Dataset, Grouped


def check_allowed(described: list[Dataset], name: str, *, allow_unlicensed: bool) -> None:
    """That there are datasets, and that all may be learned from.

    Raises
    ------
    Ki67Error
        If there is none, or one of them does not allow training and is not to be used all the same.
    """
    if not described:
        raise Ki67Error(f"network {name}: no datasets to train on; name at least one folder")
    for dataset in described:
        if not dataset.training_allowed and not allow_unlicensed:
            raise Ki67Error(
                f"dataset {dataset.name}: its use is {dataset.use or 'not stated'!r} under licence "
                f"{dataset.licence or 'none'!r}, which does not allow training; leave it out, or set allow_unlicensed "
                "for weights that are never shared"
            )


def dataset_record(dataset: Dataset, training: Sequence[Grouped], validation: Sequence[Grouped]) -> dict[str, Any]:
    """What is written down of a dataset that was learned from: plain JSON values."""
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "origin": dataset.origin,
        "licence": dataset.licence,
        "use": dataset.use,
        "training_allowed": dataset.training_allowed,
        "training_images": sum(image.dataset == dataset.name for image in training),
        "validation_images": sum(image.dataset == dataset.name for image in validation),
    }


def card_tables(record: Mapping[str, Any]) -> list[str]:
    """Lines of a card: the datasets of a training, and how well what it made does."""
    lines = [
        "",
        "## Trained on",
        "",
        "| dataset | images | held out | origin | licence | use |",
        "|---|---|---|---|---|---|",
    ]
    for entry in record["datasets"]:
        lines.append(
            f"| {entry['name']} | {entry['training_images']} | {entry['validation_images']} | {entry['origin']} "
            f"| {entry['licence']} | {entry['use']} |"
        )
    refused = [entry["name"] for entry in record["datasets"] if not entry["training_allowed"]]
    if refused:
        lines += [
            "",
            f"**Not to be shared:** {', '.join(refused)} does not allow training; allow_unlicensed was set.",
        ]
    lines += ["", "## Accuracy on the held-out images", ""]
    if not record["validation"]:
        return [*lines, "None were held out.", ""]
    lines += ["| measure | value |", "|---|---|"]
    for name, value in record["validation"].items():
        lines.append(f"| {name.replace('_', ' ')} | {'-' if value is None else f'{value:.3f}'} |")
    return [*lines, ""]


def write_curve(folder: Path, curve: list[dict[str, float]], name: str) -> None:
    """Write the learning curve as ``curve.csv`` and ``curve.png``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    text = io.StringIO()
    writer = csv.DictWriter(text, ["step", "seconds", "learning_rate", "training_loss", "validation_loss"])
    writer.writeheader()
    writer.writerows(curve)
    write_text(folder / "curve.csv", text.getvalue())
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    steps = [row["step"] for row in curve]
    for key in ("training_loss", "validation_loss"):
        axes.plot(steps, [row[key] for row in curve], label=key.replace("_", " "))
    axes.set(xlabel="step", ylabel="loss", title=name)
    axes.legend()
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    with whole(folder / "curve.png") as partial:
        partial.write_bytes(picture.getvalue())
