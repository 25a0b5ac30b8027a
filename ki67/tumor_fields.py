"""Images on which the tumour is known, for measuring: what is tumour, and where that is known at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.errors import Ki67Error
from ki67.stain import optical_density
from ki67.tissue import TISSUE_OD_RANGE, find_tissue
from ki67.training.datasets import Dataset, image_paths, read_annotation, read_known, read_rgb, read_roi, resampled

SCORED_MPP = 0.5
"""Microns per pixel at which truth and probability are compared, whatever those of the dataset and the network."""
TISSUE_MPP = 8.0
GLASS_SMOOTHING_UM = 4.0
"""Standard deviation of the Gaussian over optical density: what is glass over more than a nucleus is a gap."""


@dataclass(frozen=True)
class TumorField:
    """An image with its tumour.

    Attributes
    ----------
    name
        Of the image, without suffix.
    rgb
        uint8 ``(H, W, 3)`` at ``mpp``.
    mpp
        Microns per pixel of the dataset.
    truth
        bool ``(h, w)`` at ``SCORED_MPP``, where there is tumour.
    known
        bool ``(h, w)``, where the truth is known. The rest does not count.
    allowed
        bool ``(h, w)``, where the workflow would look for tumour: the tissue, or everywhere where the mask of the
        dataset covers whole images.
    """

    name: str
    rgb: NDArray[np.uint8]
    mpp: float
    truth: NDArray[np.bool_]
    known: NDArray[np.bool_]
    allowed: NDArray[np.bool_]


def chosen_images(dataset: Dataset, patterns: Sequence[str] = ()) -> list[Path]:
    """Images of a dataset whose name, with or without suffix, fits one of the patterns; all where there is no pattern.

    Raises
    ------
    Ki67Error
        If the dataset has no images, or a pattern fits none.
    """
    paths = image_paths(dataset)
    for pattern in patterns:
        if not any(_fits(path, pattern) for path in paths):
            raise Ki67Error(
                f"dataset {dataset.name}: no image is called {pattern}; its {len(paths)} images are "
                f"{paths[0].name} to {paths[-1].name}"
            )
    return [path for path in paths if not patterns or any(_fits(path, pattern) for pattern in patterns)]


def _fits(path: Path, pattern: str) -> bool:
    return fnmatch(path.name, pattern) or fnmatch(path.stem, pattern)


def check_has_tumor(dataset: Dataset) -> None:
    """Whether tumour can be measured on a dataset.

    Raises
    ------
    Ki67Error
        If it is not of kind ``tumor`` and has no ``roi_masks``.
    """
    if dataset.kind != "tumor" and not (dataset.folder / "roi_masks").is_dir():
        raise Ki67Error(
            f"dataset {dataset.name}: kind {dataset.kind} without a folder roi_masks does not say where tumour is; "
            "it needs kind tumor with masks, or roi_masks around the tumour"
        )


def read_tumor_fields(dataset: Dataset, paths: Sequence[Path]) -> Iterator[TumorField]:
    """Images of a dataset with their tumour, one after the other.

    In a dataset of kind ``tumor`` the masks say where there is tumour. In any other the ROI masks do, and what is
    outside of a ROI is other tissue of the field; glass does not count, as it would make that too easy (see
    ``dense_tissue``). Where ``known_masks/<stem>.png`` is not white, nothing counts.

    Parameters
    ----------
    dataset
        As ``read_dataset`` returns it.
    paths
        Of its images; see ``chosen_images``.

    Raises
    ------
    Ki67Error
        If the dataset does not say where tumour is, or an image or a mask is missing or unreadable.
    """
    check_has_tumor(dataset)
    return (read_tumor_field(dataset, path) for path in paths)


def read_tumor_field(dataset: Dataset, path: Path) -> TumorField:
    """One image with its tumour; see ``read_tumor_fields``.

    Raises
    ------
    Ki67Error
        If the image or a mask is missing or unreadable.
    """
    rgb = read_rgb(dataset, path, dataset.mpp)
    rows, columns = rgb.shape[:2]
    factor = dataset.mpp / SCORED_MPP
    shape = max(1, round(rows * factor)), max(1, round(columns * factor))
    known = np.ones(shape, dtype=bool)
    allowed = known
    if dataset.kind == "tumor":
        truth = read_annotation(dataset, path.stem, (rows, columns), dataset.mpp)[0] == 1
    else:
        truth = _roi(dataset, path.stem, (rows, columns))
        found = find_tissue(resampled(rgb, dataset.mpp / TISSUE_MPP), TISSUE_MPP, "ki67")
        allowed = at_shape(found.mask.pixels, shape)
        known = allowed & at_shape(dense_tissue(resampled(rgb, factor), found.glass_rgb), shape)
    annotated = read_known(dataset, path.stem)
    if annotated is not None:
        known = known & at_shape(annotated, shape)
    return TumorField(path.stem, rgb, dataset.mpp, at_shape(truth, shape), known, allowed)


def dense_tissue(rgb: NDArray[np.uint8], glass_rgb: tuple[float, float, float]) -> NDArray[np.bool_]:
    """Where there is tissue and no gap in it: lumina, fat and cracks, which the mask of tissue closes.

    The sum of the three optical densities against glass, smoothed over 4 µm, is above the least that
    ``ki67.tissue`` takes for tissue (0.05).

    Parameters
    ----------
    rgb
        uint8 ``(H, W, 3)`` at ``SCORED_MPP``.
    glass_rgb
        Colour of glass.

    Returns
    -------
    bool ``(H, W)``
    """
    density = optical_density(rgb, glass_rgb).sum(axis=2)
    smooth = cv2.GaussianBlur(density, (0, 0), GLASS_SMOOTHING_UM / SCORED_MPP)
    return np.asarray(smooth > TISSUE_OD_RANGE[0], dtype=bool)


def at_shape(mask: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask with other pixels: where at least half of the area of the new pixel is white."""
    if mask.shape == shape:
        return mask
    shrinks = mask.shape[0] >= shape[0] and mask.shape[1] >= shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
    resized = cv2.resize(mask.astype(np.uint8) * 255, shape[::-1], interpolation=interpolation)
    return np.asarray(resized > 127, dtype=bool)


def _roi(dataset: Dataset, stem: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    roi = read_roi(dataset, stem, shape)
    if roi is None:
        raise Ki67Error(
            f"dataset {dataset.name}: roi_masks/{stem}.png is missing, so nobody knows where the tumour is; "
            "add it or remove its image"
        )
    return roi
