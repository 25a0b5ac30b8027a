"""Annotated images on disk, brought to the resolution and the targets of a network.

The folder forms are described in ``docs/architecture.md``: a ``dataset.yaml`` beside ``images/`` and one of ``labels/``
with ``classes/``, ``annotations/`` or ``masks/``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from ki67.errors import Ki67Error
from ki67.predictors import WHOLE_NUCLEUS_CLASSES
from ki67.training.targets import (
    IGNORED,
    NEGATIVE,
    OTHER,
    POSITIVE,
    discs,
    five_class_target,
    tumor_target,
    without_membranes,
)

if TYPE_CHECKING:
    from ki67.networks import NetworkSpec

NUCLEUS_RADIUS_UM = 3.5
"""Of the discs that stand for nuclei of which only the centre is known; breast tumour nuclei are 7 to 12 µm wide."""
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
_CLASS_OF_NAME = {"positive": POSITIVE, "negative": NEGATIVE}
_KINDS_OF_NETWORK = {"nuclei": ("instances", "nuclei"), "tumor": ("tumor",)}


@dataclass(frozen=True)
class Dataset:
    """What ``dataset.yaml`` says of a folder of annotated images.

    Attributes
    ----------
    folder
        Where it is.
    kind
        ``nuclei``, ``tumor`` or ``instances``.
    mpp
        Microns per pixel of its images.
    licence, use, origin
        As written there; empty where nothing is written.
    groups
        Name of an image (without suffix) to the patient or slide it is from. Images of one group are never parted
        between training and validation.
    label_names
        Number of a label to its name.
    """

    folder: Path
    kind: str
    mpp: float
    licence: str = ""
    use: str = ""
    origin: str = ""
    groups: dict[str, str] = field(default_factory=dict)
    label_names: dict[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def training_allowed(self) -> bool:
        """Whether its ``use`` speaks of training, or, where it says nothing, its licence is CC0."""
        if not self.use:
            return self.licence.strip().upper().startswith("CC0")
        refused = re.search(r"\b(no|not|never|without)\b[^,;.]*\btraining\b", self.use, re.IGNORECASE)
        return not refused and re.search(r"\btraining\b", self.use, re.IGNORECASE) is not None


@dataclass(frozen=True)
class AnnotatedImage:
    """An image at the network's resolution with the answer for every pixel.

    Attributes
    ----------
    dataset, name
        Where it is from.
    group
        Images of one group stay together when training and validation are parted.
    rgb
        uint8 ``(H, W, 3)``.
    target
        uint8 ``(H, W)``: class of each pixel, or ``IGNORED``.
    nuclei
        float64 ``(N, 3)``: x, y in pixels, and ``POSITIVE``, ``NEGATIVE`` or ``OTHER``; empty for tumour.
    """

    dataset: str
    name: str
    group: str
    rgb: NDArray[np.uint8]
    target: NDArray[np.uint8]
    nuclei: NDArray[np.float64]


class Grouped(Protocol):
    """An image of a dataset that belongs to a group; see ``AnnotatedImage``."""

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        ...

    @property
    def group(self) -> str:
        """Images of one group stay together."""
        ...


SomeImage = TypeVar("SomeImage", bound=Grouped)
_Annotation = tuple[NDArray[np.uint8], NDArray[np.float64]]


def read_dataset(folder: Path) -> Dataset:
    """What ``dataset.yaml`` says.

    Raises
    ------
    Ki67Error
        If the file is missing, is not YAML, or names no kind or no positive mpp.
    """
    folder = Path(folder)
    try:
        record = yaml.safe_load((folder / "dataset.yaml").read_text(encoding="utf-8"))
        return Dataset(
            folder=folder,
            kind=str(record["kind"]),
            mpp=_positive(record["mpp"]),
            licence=str(record.get("licence") or ""),
            use=str(record.get("use") or ""),
            origin=str(record.get("origin") or ""),
            groups={str(name): str(group) for name, group in (record.get("groups") or {}).items()},
            label_names={int(number): str(name) for number, name in (record.get("labels") or {}).items()},
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Ki67Error(
            f"dataset {folder.name}: dataset.yaml is missing or incomplete ({error!r:.80}); it needs kind and mpp"
        ) from error


def _positive(value: Any) -> float:
    number = float(value)
    if not number > 0:
        raise ValueError(f"mpp {value}")
    return number


def read_images(dataset: Dataset, spec: NetworkSpec) -> list[AnnotatedImage]:
    """All images of a dataset at the network's resolution, with its targets.

    Parameters
    ----------
    dataset
        As ``read_dataset`` returns it.
    spec
        Of the network to be trained: its classes say which targets are made, its mpp at which resolution.

    Raises
    ------
    Ki67Error
        If the dataset cannot serve this network, or an image or annotation is missing or unreadable.
    """
    task = "tumor" if len(spec.classes) == 1 else "nuclei"
    if dataset.kind not in _KINDS_OF_NETWORK[task]:
        raise Ki67Error(
            f"dataset {dataset.name}: kind {dataset.kind} cannot train network {spec.name}; "
            f"it needs {' or '.join(_KINDS_OF_NETWORK[task])}"
        )
    if dataset.kind == "instances" and not (dataset.folder / "classes").is_dir():
        raise Ki67Error(
            f"dataset {dataset.name}: its instances have no classes (no folder classes), so the network {spec.name} of "
            "positive and negative nuclei cannot be trained on it directly; draw fields with its nuclei re-stained"
        )
    return [_read_image(dataset, path, spec) for path in image_paths(dataset)]


def image_paths(dataset: Dataset) -> list[Path]:
    """The images of a dataset, in the order of their names.

    Raises
    ------
    Ki67Error
        If there are none.
    """
    paths = sorted(path for path in (dataset.folder / "images").glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise Ki67Error(f"dataset {dataset.name}: no images in its folder images; add some or leave the dataset out")
    return paths


def read_rgb(dataset: Dataset, path: Path, mpp: float) -> NDArray[np.uint8]:
    """One image uint8 ``(H, W, 3)`` at so many microns per pixel.

    Raises
    ------
    Ki67Error
        If it cannot be read.
    """
    bgr = _read_pixels(dataset, path, cv2.IMREAD_COLOR)
    return resampled(np.ascontiguousarray(bgr[..., ::-1]), dataset.mpp / mpp)


def read_roi(dataset: Dataset, stem: str, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Where the nuclei of an image are annotated, as ``roi_masks/<stem>.png`` says.

    Parameters
    ----------
    stem
        Name of the image without suffix.
    shape
        Rows and columns of the image as it is used; the mask is brought to it.

    Returns
    -------
    bool ``(H, W)`` or None
        None where there is no such file: then everywhere.

    Raises
    ------
    Ki67Error
        If the file is there and cannot be read.
    """
    mask = _read_mask(dataset, "roi_masks", stem)
    return None if mask is None else np.asarray(_fitted(mask, shape) >= 128, dtype=bool)


def read_known(dataset: Dataset, stem: str) -> NDArray[np.bool_] | None:
    """Where the tumour of an image is annotated, bool ``(H, W)`` as ``known_masks/<stem>.png`` says.

    None where there is no such file: then everywhere.

    Raises
    ------
    Ki67Error
        If the file is there and cannot be read.
    """
    mask = _read_mask(dataset, "known_masks", stem)
    return None if mask is None else np.asarray(mask >= 128, dtype=bool)


def _read_mask(dataset: Dataset, part: str, stem: str) -> NDArray[np.uint8] | None:
    path = dataset.folder / part / f"{stem}.png"
    return _read_pixels(dataset, path, cv2.IMREAD_GRAYSCALE) if path.exists() else None


def _read_image(dataset: Dataset, path: Path, spec: NetworkSpec) -> AnnotatedImage:
    rgb = read_rgb(dataset, path, spec.mpp)
    target, nuclei = read_annotation(dataset, path.stem, rgb.shape[:2], spec.mpp)
    if spec.classes == WHOLE_NUCLEUS_CLASSES:
        target = without_membranes(target)
    group = dataset.groups.get(path.stem, path.stem)
    return AnnotatedImage(dataset.name, path.stem, f"{dataset.name}/{group}", rgb, target, nuclei)


def read_annotation(dataset: Dataset, stem: str, shape: tuple[int, int], mpp: float) -> _Annotation:
    """Target and nuclei of an image, as in ``AnnotatedImage``.

    Parameters
    ----------
    stem
        Name of the image without its suffix.
    shape
        Its rows and columns at ``mpp``.

    Raises
    ------
    Ki67Error
        If the annotation is missing or does not have the form of the dataset's kind.
    """
    try:
        return _READERS[dataset.kind](dataset, stem, shape, mpp)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Ki67Error(
            f"dataset {dataset.name}: the annotation of image {stem} does not have the form of kind {dataset.kind} "
            f"({error!r:.80}); correct or remove it"
        ) from error


def _read_pixels(dataset: Dataset, path: Path, flags: int) -> NDArray[Any]:
    pixels = cv2.imread(str(path), flags) if path.exists() else None
    if pixels is None:
        raise Ki67Error(
            f"dataset {dataset.name}: {path.parent.name}/{path.name} is unreadable; add it or remove its image"
        )
    return pixels


def resampled(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """An image ``(H, W, 3)`` so many times as large: averaged when it shrinks, cubic when it grows."""
    height, width = image.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    if size == (width, height):
        return image
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), dtype=np.uint8)


def _fitted(image: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """A label or mask image at the shape of its photograph, without mixing values."""
    if image.shape == shape:
        return image
    return cv2.resize(image, shape[::-1], interpolation=cv2.INTER_NEAREST)


def read_labels(
    dataset: Dataset, stem: str, shape: tuple[int, int], *, classified: bool = True
) -> tuple[NDArray[np.uint16], dict[int, int]]:
    """Instances of an image of a dataset of kind ``instances``.

    Parameters
    ----------
    classified
        Whether there are classes to be read.

    Returns
    -------
    labels
        uint16 ``(H, W)`` of the shape asked for: 0 or the number of the nucleus.
    classes
        Number of a nucleus to its class.

    Raises
    ------
    Ki67Error
        If a file is missing or unreadable.
    """
    labels = _read_pixels(dataset, dataset.folder / "labels" / f"{stem}.png", cv2.IMREAD_UNCHANGED)
    record = _read_json(dataset, dataset.folder / "classes" / f"{stem}.json") if classified else {}
    return _fitted(labels.astype(np.uint16), shape), {int(number): int(kind) for number, kind in record.items()}


def _read_instances(dataset: Dataset, stem: str, shape: tuple[int, int], mpp: float) -> _Annotation:
    labels, classes = read_labels(dataset, stem, shape)
    target = five_class_target(labels, classes, membrane_px=membrane_px(mpp))
    return _within_roi(target, read_roi(dataset, stem, shape)), _centers(labels, classes)


def _centers(labels: NDArray[np.uint16], classes: dict[int, int]) -> NDArray[np.float64]:
    flat = labels.ravel()
    rows, columns = np.indices(labels.shape)
    area = np.bincount(flat)
    numbers = np.flatnonzero(area)
    numbers = numbers[numbers > 0]
    x = np.bincount(flat, columns.ravel() + 0.5)[numbers] / area[numbers]
    y = np.bincount(flat, rows.ravel() + 0.5)[numbers] / area[numbers]
    kinds = [classes.get(int(number), OTHER) for number in numbers]
    return np.column_stack([x, y, np.array(kinds, dtype=np.float64)])


def _read_centroids(dataset: Dataset, stem: str, shape: tuple[int, int], mpp: float) -> _Annotation:
    record = _read_json(dataset, dataset.folder / "annotations" / f"{stem}.json")
    nuclei = np.array(
        [(entry["x"], entry["y"], _class_of(entry, dataset.label_names)) for entry in record], dtype=np.float64
    ).reshape(-1, 3)
    nuclei[:, :2] *= dataset.mpp / mpp
    labels = discs(nuclei[:, :2], shape, NUCLEUS_RADIUS_UM / mpp)
    classes = {index + 1: int(kind) for index, kind in enumerate(nuclei[:, 2])}
    target = five_class_target(labels, classes, membrane_px=membrane_px(mpp))
    return _within_roi(target, read_roi(dataset, stem, shape)), nuclei


def _within_roi(target: NDArray[np.uint8], roi: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    return target if roi is None else np.where(roi, target, np.uint8(IGNORED))


def _class_of(entry: dict[str, Any], names: dict[int, str]) -> int:
    label = entry["label"] if "label" in entry else entry["label_id"]
    if isinstance(label, str):
        return _CLASS_OF_NAME.get(label, OTHER)
    if names:
        return _CLASS_OF_NAME.get(names.get(int(label), ""), OTHER)
    return int(label) if int(label) in (POSITIVE, NEGATIVE) else OTHER


def _read_tumor(dataset: Dataset, stem: str, shape: tuple[int, int], mpp: float) -> _Annotation:
    mask = _read_pixels(dataset, dataset.folder / "masks" / f"{stem}.png", cv2.IMREAD_GRAYSCALE)
    target, known = tumor_target(_fitted(mask, shape)), read_known(dataset, stem)
    if known is not None:
        target = np.where(_fitted(known.astype(np.uint8), shape) > 0, target, np.uint8(IGNORED))
    return target, np.zeros((0, 3))


def _read_json(dataset: Dataset, path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Ki67Error(
            f"dataset {dataset.name}: {path.parent.name}/{path.name} is missing or no JSON; add it or remove its image"
        ) from error


def membrane_px(mpp: float) -> int:
    """One micron in pixels, at least one."""
    return max(1, round(1.0 / mpp))


_READERS = {"instances": _read_instances, "nuclei": _read_centroids, "tumor": _read_tumor}


def split(images: list[SomeImage], share: float, seed: int) -> tuple[list[SomeImage], list[SomeImage]]:
    """Part images into training and validation, whole groups at a time, each dataset for itself.

    The groups of a dataset that go to validation are neighbours in the order of their names, as neighbours are often of
    the same slide; where among the names they begin is drawn. A dataset of fewer than four groups is all training.

    Parameters
    ----------
    share
        Of the groups, for validation.
    """
    random = np.random.default_rng(seed)
    held: set[str] = set()
    for dataset in sorted({image.dataset for image in images}):
        groups = sorted({image.group for image in images if image.dataset == dataset})
        count = max(1, round(share * len(groups))) if share > 0 and len(groups) >= 4 else 0
        start = int(random.integers(len(groups)))
        held |= {groups[(start + offset) % len(groups)] for offset in range(count)}
    return [image for image in images if image.group not in held], [image for image in images if image.group in held]
