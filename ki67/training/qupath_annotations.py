"""Nuclei and regions that a person or a cell detection marked in QuPath, read from a GeoJSON export."""

from __future__ import annotations

import gzip
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import shapely
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from ki67.errors import Ki67Error
from ki67.training.targets import NEGATIVE, OTHER, POSITIVE
from ki67.transfer import EXCLUDING

SUFFIXES = (".geojson", ".geojson.gz", ".geojson.zip", ".zip")
LARGEST_NUCLEUS_UM2 = 2000.0
"""Area beyond which an outline is a region and no nucleus: a disc 50 µm wide."""
_REGION = re.compile(r"^(region|roi)\b", re.IGNORECASE)
_NO_TUMOR = re.compile(
    r"\b(stroma\w*|immune|lympho\w*|tils?|other|necro\w*|ignore|normal|benign|fibro\w*|endothel\w*)\b", re.IGNORECASE
)
# QuPath names the strengths of a stain 1+, 2+ and 3+; for Ki-67 any strength is positive.
_POSITIVE = re.compile(r"\bpositive\b|^[123]\+$", re.IGNORECASE)
_NEGATIVE = re.compile(r"\bnegative\b", re.IGNORECASE)


@dataclass(frozen=True)
class Annotations:
    """What is marked on one image, in pixels of it, x to the right and y down from its top left corner.

    Attributes
    ----------
    points
        x, y and class (``POSITIVE``, ``NEGATIVE`` or ``OTHER``) of nuclei of which the centre is marked.
    outlines
        Outline and class of nuclei that are drawn.
    regions
        Where all nuclei are marked; everywhere if there are none.
    ignored
        Where nothing is known: of a class that excludes (``ki67.transfer.EXCLUDING``).
    """

    points: list[tuple[float, float, int]] = field(default_factory=list)
    outlines: list[tuple[BaseGeometry, int]] = field(default_factory=list)
    regions: list[BaseGeometry] = field(default_factory=list)
    ignored: list[BaseGeometry] = field(default_factory=list)


def class_of(names: Iterable[str]) -> int:
    """The class of a nucleus by the parts of its QuPath classification, upper or lower case.

    ``Positive``, ``1+``, ``2+`` and ``3+`` are positive, ``Negative`` is negative, alone or under a class of tumour
    (``Tumor: Positive``). Under a class of other tissue (``Stroma: Positive``, ``Immune cells``) and in all else a
    nucleus is ``OTHER``.

    Examples
    --------
    >>> class_of(["Tumor: Positive"]), class_of(["negative"]), class_of(["Immune cells", "Negative"])
    (1, 2, 3)
    """
    parts = [part.strip() for name in names for part in name.split(":")]
    if any(_NO_TUMOR.search(part) for part in parts):
        return OTHER
    positive = any(_POSITIVE.search(part) for part in parts)
    negative = any(_NEGATIVE.search(part) for part in parts)
    if positive == negative:
        return OTHER
    return POSITIVE if positive else NEGATIVE


def read_qupath(path: Path, mpp: float) -> Annotations:
    """The nuclei and regions of one export.

    Parameters
    ----------
    path
        GeoJSON, plain, gzipped or zipped: a FeatureCollection, a list of features or one feature.
    mpp
        Microns per pixel of the image, to tell nuclei from regions.

    Raises
    ------
    Ki67Error
        If it is not GeoJSON, or holds a shape that is neither nucleus nor region.
    """
    found = Annotations()
    for number, feature in enumerate(_features(path), start=1):
        try:
            _add(found, feature, mpp)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, shapely.GEOSException) as error:
            raise Ki67Error(f"{path.name}: object {number} {_reason(error)}; correct it in QuPath") from error
    return found


class _UnfitError(ValueError):
    """What is wrong with an object, in words."""


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, _UnfitError) else f"is no GeoJSON feature ({error!r:.80})"


def _features(path: Path) -> list[Any]:
    try:
        record = json.loads(_content(path))
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, KeyError) as error:
        raise Ki67Error(f"{path.name}: not readable as GeoJSON ({error!s:.80}); export it from QuPath again") from error
    if isinstance(record, Mapping):
        record = record.get("features", [record])
    if not isinstance(record, list):
        raise Ki67Error(f"{path.name}: holds no list of features; export it from QuPath as GeoJSON")
    return record


def _content(path: Path) -> bytes:
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix != ".zip":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith((".geojson", ".json")) and "__MACOSX" not in name]
        if len(names) != 1:
            raise ValueError(f"{len(names)} GeoJSON files in the archive where there should be one")
        return archive.read(names[0])


def _add(found: Annotations, feature: Mapping[str, Any], mpp: float) -> None:
    properties = feature.get("properties") or {}
    if properties.get("objectType") == "root":
        return
    classes = _class_names(properties.get("classification"))
    # A cell has two outlines, of which the inner one is the nucleus.
    geometry = shape(feature.get("nucleusGeometry") or feature["geometry"])
    if geometry.is_empty:
        raise _UnfitError("has an empty outline")
    if geometry.geom_type in ("Point", "MultiPoint"):
        kind = class_of(classes)
        found.points.extend((float(point.x), float(point.y), kind) for point in shapely.get_parts(geometry))
        return
    outline = _polygonal(geometry)
    names = classes or [str(properties.get("name") or "")]
    if any(_REGION.match(name) for name in names):
        found.regions.append(outline)
    elif any(name.strip().rstrip("*").lower() in EXCLUDING for name in names):
        found.ignored.append(outline)
    else:
        _check_size(outline, ": ".join(classes), mpp)
        found.outlines.append((outline, class_of(classes)))


def _class_names(classification: Any) -> list[str]:
    """Of ``{"name": "Tumor: Positive"}``, ``{"names": ["Tumor", "Positive"]}`` or a plain text; empty without any."""
    if classification is None:
        return []
    if isinstance(classification, str):
        return [classification]
    names = classification.get("names") or [classification.get("name")]
    return [str(name) for name in names if name]


def _polygonal(geometry: BaseGeometry) -> BaseGeometry:
    parts = [part for part in shapely.get_parts(shapely.make_valid(geometry)) if "Polygon" in part.geom_type]
    outline = shapely.union_all(parts)
    if outline.is_empty:
        raise _UnfitError(f"is a {geometry.geom_type} without area, and nuclei are points or outlines")
    return outline


def _check_size(outline: BaseGeometry, name: str, mpp: float) -> None:
    area = outline.area * mpp**2
    if area > LARGEST_NUCLEUS_UM2:
        raise _UnfitError(
            f"of class {name or 'none'} at ({outline.centroid.x:.0f}, {outline.centroid.y:.0f}) has {area:.0f} µm², "
            f"too much for a nucleus at {mpp} µm/px: check the mpp, class it Region or Ignore, or leave it out"
        )
