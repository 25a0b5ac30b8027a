"""Nuclei annotated by others, in the form in which they publish or export them, made a dataset folder of ours."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import shapely
import skimage.draw
import yaml
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from ki67.errors import Ki67Error
from ki67.storage import whole, write_image_png, write_json
from ki67.training.datasets import IMAGE_SUFFIXES
from ki67.training.qupath_annotations import SUFFIXES, Annotations, read_qupath
from ki67.training.targets import NEGATIVE, OTHER, POSITIVE

EDGE_PX = 1.0
"""How far outside its image a mark may lie and is moved to the edge; clicks at the edge are rounded outwards."""
_SHIDC_CLASSES = {1: POSITIVE, 2: NEGATIVE, 3: OTHER}
_NO_PATIENTS = "the images carry no patient ids, so each is a group of its own and patients may be parted"
_ORIGINS = {
    "shidc": "SHIDC-B-Ki-67 (Negahbani et al. 2021), as published; images of one patient are a group",
    "bcdata": f"BCData (Huang et al. 2020), as published; {_NO_PATIENTS}",
    "qupath": "exported from QuPath; each image is a group of its own unless groups is edited",
}
_LABEL_NAMES = {
    "shidc": {POSITIVE: "positive", NEGATIVE: "negative", OTHER: "lymphocyte"},
    "bcdata": {POSITIVE: "positive", NEGATIVE: "negative"},
    "qupath": {POSITIVE: "positive", NEGATIVE: "negative", OTHER: "other"},
}


@dataclass(frozen=True)
class Imported:
    """What was written.

    Attributes
    ----------
    kind
        ``nuclei`` where centres are marked, ``instances`` where outlines are.
    images, groups
        Numbers of them.
    nuclei
        ``POSITIVE``, ``NEGATIVE`` and ``OTHER`` to their number.
    """

    kind: str
    images: int
    groups: int
    nuclei: Counter[int]


@dataclass(frozen=True)
class _Field:
    """An image to be imported under a name, and what is marked on it."""

    image: Path
    name: str
    group: str
    annotations: Annotations


def import_annotations(
    form: str, source: Path, out: Path, *, mpp: float, licence: str = "", use: str = "", parts: Sequence[str] = ()
) -> Imported:
    """Write images and their annotated nuclei as a dataset folder, whole or not at all; images are copied unchanged.

    Parameters
    ----------
    form
        ``shidc``: folders of ``<stem>.jpg`` beside ``<stem>.json``, a list of x, y and label_id (1 positive,
        2 negative, 3 lymphocyte). ``bcdata``: ``images/<part>/<n>.png`` and
        ``annotations/<part>/{positive,negative}/<n>.h5``. ``qupath``: images beside GeoJSON exports of the same stem.
    source
        Folder with all of it.
    out
        New folder.
    mpp
        Microns per pixel of the images.
    licence, use
        Written to ``dataset.yaml``, where ``use`` decides whether a network may be trained on it.
    parts
        Names of subfolders, such as ``train``; images in no such folder are left out. By default all are taken.

    Raises
    ------
    Ki67Error
        If ``out`` is taken, an image or annotation is missing or unreadable, a label is unknown, or a nucleus lies
        outside its image.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise Ki67Error(f"{out} exists; name a new folder or remove it first")
    if not source.is_dir():
        raise Ki67Error(f"{source} is no folder; name the one that holds the images and their annotations")
    fields = _FORMS[form](source, mpp, [part.lower() for part in parts])
    kind = _kind_of(fields)
    write = _write_points if kind == "nuclei" else _write_instances
    counts: Counter[int] = Counter()
    with whole(out) as partial:
        (partial / "images").mkdir(parents=True)
        for field in fields:
            pixels = _shape_of(field)
            shutil.copyfile(field.image, partial / "images" / f"{field.name}{field.image.suffix}")
            counts.update(write(partial, field, pixels))
            _write_roi(partial, field, pixels)
        _check_usable(counts, source)
        _write_description(partial, form, kind, fields, mpp, licence, use)
    return Imported(kind, len(fields), len({field.group for field in fields}), counts)


# ---------------------------------------------------------------------------------------------- reading


def _read_shidc(source: Path, _: float, parts: list[str]) -> list[_Field]:
    fields = []
    for path, name in _named(source, _images(source, parts)):
        entries = _read_json(path.with_suffix(".json"))
        points = [_shidc_point(path.stem, number, entry) for number, entry in enumerate(entries, start=1)]
        fields.append(_Field(path, name, path.stem.rpartition("_")[0] or path.stem, Annotations(points)))
    return fields


def _read_json(path: Path) -> list[Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise Ki67Error(f"{path.name} is missing or no JSON; add it beside its image, or remove the image") from error
    if not isinstance(record, list):
        raise Ki67Error(f"{path.name}: holds no list of nuclei; each has x, y and label_id")
    return record


def _shidc_point(stem: str, number: int, entry: Any) -> tuple[float, float, int]:
    try:
        x, y, label = float(entry["x"]), float(entry["y"]), int(entry["label_id"])
    except (KeyError, TypeError, ValueError) as error:
        raise Ki67Error(
            f"{stem}.json: nucleus {number} is {entry!r:.60}; it needs numbers x, y and label_id"
        ) from error
    if label not in _SHIDC_CLASSES:
        raise Ki67Error(
            f"{stem}.json: nucleus {number} has the unknown label_id {label}; 1 is positive, 2 negative, 3 lymphocyte"
        )
    return x, y, _SHIDC_CLASSES[label]


def _read_bcdata(source: Path, _: float, parts: list[str]) -> list[_Field]:
    root = source if (source / "images").is_dir() else source / "BCData"
    fields = []
    for path in _images(root / "images", parts):
        part = path.parent.relative_to(root / "images")
        folder = root / "annotations" / part
        # Positive and negative files hold one array each, of x and y in this order.
        points = [
            (x, y, kind)
            for name, kind in (("positive", POSITIVE), ("negative", NEGATIVE))
            for x, y in _coordinates(folder / name / f"{path.stem}.h5")
        ]
        # Numbers begin anew in each part.
        name = "_".join([*part.parts, path.stem])
        fields.append(_Field(path, name, name, Annotations(points)))
    return fields


def _coordinates(path: Path) -> list[list[float]]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            values = np.asarray(file["coordinates"], dtype=np.float64)
            coordinates: list[list[float]] = values.reshape(-1, 2).tolist()
            return coordinates
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise Ki67Error(
            f"{path.parent.parent.name}/{path.parent.name}/{path.name} is missing or has no (N, 2) array coordinates; "
            "unpack BCData again, or remove the image"
        ) from error


def _read_qupath(source: Path, mpp: float, parts: list[str]) -> list[_Field]:
    return [
        _Field(path, name, name, read_qupath(_export_of(path), mpp))
        for path, name in _named(source, _images(source, parts))
    ]


def _export_of(image: Path) -> Path:
    """The GeoJSON beside an image, named after it with or without its suffix."""
    stems = (image.stem, image.name, re.sub(r"\.ome$", "", image.stem))
    for path in (image.with_name(stem + suffix) for stem in stems for suffix in SUFFIXES):
        if path.is_file():
            return path
    raise Ki67Error(f"{image.name} has no {image.stem}.geojson beside it; export its objects, or remove the image")


_FORMS: dict[str, Callable[[Path, float, list[str]], list[_Field]]] = {
    "shidc": _read_shidc,
    "bcdata": _read_bcdata,
    "qupath": _read_qupath,
}


def _images(folder: Path, parts: list[str]) -> list[Path]:
    """Images at any depth, in the order of their paths, in folders of these names if any are given."""
    found = []
    for path in sorted(folder.rglob("*")):
        folders = [part.lower() for part in path.relative_to(folder).parts[:-1]]
        hidden = path.name.startswith(".") or any(part.startswith((".", "__macosx")) for part in folders)
        wanted = not parts or any(part in parts for part in folders)
        if path.suffix.lower() in IMAGE_SUFFIXES and wanted and not hidden:
            found.append(path)
    if not found:
        where = f" in subfolders named {' or '.join(parts)}" if parts else ""
        raise Ki67Error(f"{folder}: no images{where}; name the folder that holds them")
    return found


def _named(source: Path, images: list[Path]) -> list[tuple[Path, str]]:
    """Images with names that differ: the stem, or where several have it, folders and stem."""
    stems = Counter(path.stem for path in images)
    names = [
        path.stem if stems[path.stem] == 1 else "_".join([*path.parent.relative_to(source).parts, path.stem])
        for path in images
    ]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise Ki67Error(f"{source}: several images are named {twice[0]}; rename all but one, with their annotations")
    return list(zip(images, names, strict=True))


def _kind_of(fields: list[_Field]) -> str:
    pointed = [field.name for field in fields if field.annotations.points]
    outlined = [field.name for field in fields if field.annotations.outlines]
    if pointed and outlined:
        raise Ki67Error(
            f"nuclei are marked by points on {pointed[0]} and by outlines on {outlined[0]}; export only one of them"
        )
    return "instances" if outlined else "nuclei"


# ---------------------------------------------------------------------------------------------- writing


def _shape_of(field: _Field) -> tuple[int, int]:
    image = cv2.imread(str(field.image), cv2.IMREAD_COLOR)
    if image is None:
        raise Ki67Error(f"{field.image.name} is no readable image; replace or remove it")
    return int(image.shape[0]), int(image.shape[1])


def _write_points(folder: Path, field: _Field, pixels: tuple[int, int]) -> list[int]:
    entries = []
    for x, y, kind in field.annotations.points:
        _check_inside(field, x, y, pixels)
        x, y = min(max(x, 0.0), float(pixels[1])), min(max(y, 0.0), float(pixels[0]))
        entries.append({"x": x, "y": y, "label": kind})
    write_json(folder / "annotations" / f"{field.name}.json", entries)
    return [kind for _, _, kind in field.annotations.points]


def _write_instances(folder: Path, field: _Field, pixels: tuple[int, int]) -> list[int]:
    outlines = field.annotations.outlines
    if len(outlines) > np.iinfo(np.uint16).max:
        raise Ki67Error(f"{field.name}: {len(outlines)} nuclei are more than a label image holds; cut it into parts")
    for outline, _ in outlines:
        _check_inside(field, outline.centroid.x, outline.centroid.y, pixels)
    labels = label_image([outline for outline, _ in outlines], pixels)
    classes = {int(number): outlines[number - 1][1] for number in np.unique(labels[labels > 0])}
    with whole(folder / "labels" / f"{field.name}.png") as partial:
        cv2.imwrite(str(partial), labels)
    write_json(folder / "classes" / f"{field.name}.json", classes)
    return list(classes.values())


def _check_inside(field: _Field, x: float, y: float, pixels: tuple[int, int]) -> None:
    height, width = pixels
    if not (-EDGE_PX <= x <= width + EDGE_PX and -EDGE_PX <= y <= height + EDGE_PX):
        raise Ki67Error(
            f"{field.name}: the nucleus at ({x:g}, {y:g}) lies outside the image of {width} x {height} px; "
            "coordinates must be pixels of this very image"
        )


def label_image(outlines: Sequence[BaseGeometry], shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Outlines in pixels as a label image; where they overlap the smaller one is on top.

    Parameters
    ----------
    outlines
        Polygons or multipolygons; holes in them are filled.
    shape
        Rows and columns.

    Returns
    -------
    uint16 ``(H, W)``
        Outline ``i`` has number ``i + 1``. One too small to hold the middle of a pixel has the pixel of its centroid.
    """
    labels = np.zeros(shape, dtype=np.uint16)
    for number in sorted(range(1, len(outlines) + 1), key=lambda number: -outlines[number - 1].area):
        outline = outlines[number - 1]
        inside = [_pixels_in(np.asarray(part.exterior.coords), shape) for part in shapely.get_parts(outline)]
        for rows, columns in inside:
            labels[rows, columns] = number
        if not any(len(rows) for rows, _ in inside):
            row, column = (int(value) for value in (outline.centroid.y, outline.centroid.x))
            labels[min(max(row, 0), shape[0] - 1), min(max(column, 0), shape[1] - 1)] = number
    return labels


def _pixels_in(ring: NDArray[np.float64], shape: tuple[int, int]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the pixels whose middle is in a ring of x and y; the first pixel's is at (0.5, 0.5)."""
    rows, columns = skimage.draw.polygon(ring[:, 1] - 0.5, ring[:, 0] - 0.5, shape)
    return rows, columns


def roi_mask(annotations: Annotations, shape: tuple[int, int]) -> NDArray[np.uint8] | None:
    """255 in the regions and outside of what is ignored, else 0, uint8 ``(H, W)``; None where neither is marked."""
    if not (annotations.regions or annotations.ignored):
        return None
    everywhere = shapely.box(0, 0, shape[1], shape[0])
    known = shapely.union_all(annotations.regions or [everywhere]).intersection(everywhere)
    known = known.difference(shapely.union_all(annotations.ignored))
    mask = np.zeros(shape, dtype=np.uint8)
    polygons = [part for part in shapely.get_parts(known) if part.geom_type == "Polygon" and not part.is_empty]
    # The larger first, so that an island in a hole is drawn after the hole.
    for polygon in sorted(polygons, key=lambda polygon: -shapely.Polygon(polygon.exterior).area):
        mask[_pixels_in(np.asarray(polygon.exterior.coords), shape)] = 255
        for hole in polygon.interiors:
            mask[_pixels_in(np.asarray(hole.coords), shape)] = 0
    return mask


def _write_roi(folder: Path, field: _Field, pixels: tuple[int, int]) -> None:
    mask = roi_mask(field.annotations, pixels)
    if mask is None:
        return
    if not mask.any():
        raise Ki67Error(f"{field.name}: its regions hold no pixel of the image; draw them on the tissue")
    write_image_png(folder / "roi_masks" / f"{field.name}.png", mask)


def _check_usable(counts: Counter[int], source: Path) -> None:
    if not counts[POSITIVE] + counts[NEGATIVE]:
        raise Ki67Error(
            f"{source}: none of its {counts.total()} nuclei is positive or negative; class them Positive and Negative"
        )


def _write_description(
    folder: Path, form: str, kind: str, fields: list[_Field], mpp: float, licence: str, use: str
) -> None:
    record = {
        "kind": kind,
        "stain": "ki67",
        "mpp": mpp,
        "labels": _LABEL_NAMES[form],
        "origin": _ORIGINS[form],
        "licence": licence,
        # Without both nothing is allowed; a licence alone is judged by what it says.
        "use": use or ("" if licence else "not stated"),
        "groups": {field.name: field.group for field in fields},
    }
    with whole(folder / "dataset.yaml") as partial:
        partial.write_text(yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")
