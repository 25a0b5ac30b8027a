"""Annotated fields for measuring: the image, perhaps changed, its nuclei, and where they are annotated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ki67.errors import Ki67Error
from ki67.field_changes import UNCHANGED, FieldChange
from ki67.training.datasets import Dataset, image_paths, read_annotation, read_labels, read_rgb, read_roi, resampled


@dataclass(frozen=True)
class EvaluationField:
    """An annotated image at the resolution of a detector.

    Attributes
    ----------
    name
        Of the image, without suffix.
    rgb
        uint8 ``(H, W, 3)``.
    nuclei
        float64 ``(N, 3)``: x, y in pixels and class, those in the annotated region only.
    roi
        bool ``(H, W)``, where nuclei are annotated; None for everywhere.
    labels, classes
        uint16 ``(H, W)`` and class of each number, where outlines are annotated.
    """

    name: str
    rgb: NDArray[np.uint8]
    nuclei: NDArray[np.float64]
    roi: NDArray[np.bool_] | None = None
    labels: NDArray[np.uint16] | None = None
    classes: dict[int, int] | None = None

    def within(self, points_px: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which points ``(N, 2+)``, x and y, lie in the annotated region."""
        if self.roi is None:
            return np.ones(len(points_px), dtype=bool)
        height, width = self.roi.shape
        columns = np.clip(points_px[:, 0].astype(int), 0, width - 1)
        rows = np.clip(points_px[:, 1].astype(int), 0, height - 1)
        return self.roi[rows, columns]


def read_evaluation_fields(dataset: Dataset, mpp: float, change: FieldChange = UNCHANGED) -> Iterator[EvaluationField]:
    """All fields of a dataset at so many microns per pixel, each changed first.

    Raises
    ------
    Ki67Error
        If the dataset is of tumour or has no classes, or an image or annotation cannot be read.
    """
    if dataset.kind not in ("nuclei", "instances"):
        raise Ki67Error(f"dataset {dataset.name}: kind {dataset.kind} has no nuclei; it needs nuclei or instances")
    return (_read_field(dataset, path, mpp, change) for path in image_paths(dataset))


def _read_field(dataset: Dataset, path: Path, mpp: float, change: FieldChange) -> EvaluationField:
    image, image_mpp = change.apply(read_rgb(dataset, path, dataset.mpp), dataset.mpp)
    rgb = resampled(image, image_mpp / mpp)
    shape = rgb.shape[0], rgb.shape[1]
    _, nuclei = read_annotation(dataset, path.stem, shape, mpp)
    labels, classes = read_labels(dataset, path.stem, shape) if dataset.kind == "instances" else (None, None)
    field = EvaluationField(path.stem, rgb, nuclei, read_roi(dataset, path.stem, shape), labels, classes)
    return EvaluationField(path.stem, rgb, nuclei[field.within(nuclei)], field.roi, labels, classes)
