"""Which tumour mask is used on the Ki-67 slide, how the H&E's gets there, and the regions a person drew."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ki67.errors import STAIN_NAMES, Finding, Flag, SlideError, Stain
from ki67.geometry import Mask, RigidTransform, Transform, warp_mask
from ki67.regions import fill_polygons

TumorSource = Literal["he", "ki67", "roi"]

EXCLUDING = (
    "exclude",
    "excluded",
    "ignore",
    "in situ",
    "carcinoma in situ",
    "dcis",
    "necrosis",
    "artefact",
    "artifact",
)
"""Classes of polygons, in any case and with or without QuPath's asterisk, inside of which nothing is counted."""


def tumor_source(
    check: Mapping[str, Any], tumor_he: Mapping[str, Any], transform: Mapping[str, Any]
) -> Literal["he", "ki67"] | None:
    """Where the tumour mask of a Ki-67 slide comes from, by the records of the stages before.

    The H&E's mask is carried over if there is one and the registration holds, be it doubtful; the Ki-67 slide is
    segmented itself otherwise; and there is no mask without a Ki-67 slide that can be used.
    """
    ki67 = check["stains"]["ki67"]
    if ki67 is None or not ki67["usable"]:
        return None
    return "he" if tumor_he["segmented"] and transform["verdict"] in {"accepted", "doubtful"} else "ki67"


def registration_findings(slide_id: str, verdict: str, reason: str) -> list[Finding]:
    """The finding of a registration that did not work out, or may not have."""
    if verdict == "rejected":
        text = f"{slide_id}: the registration of the H&E slide was rejected: {reason}"
        return [Finding(Flag.REGISTRATION_REJECTED, text)]
    if verdict == "doubtful":
        return [Finding(Flag.REGISTRATION_DOUBTFUL, f"{slide_id}: the registration is doubtful: {reason}")]
    return []


def own_mask_finding(slide_id: str) -> Finding:
    """That the tumour was found on the Ki-67 slide itself."""
    text = "the tumour mask is from the Ki-67 slide itself; look at the overlay before trusting the index"
    return Finding(Flag.TUMOR_FROM_KI67, f"{slide_id}: {text}", "ki67")


def carry_mask(tumor_he: Mask, transform: Transform, tissue: Mask, size_um: tuple[float, float]) -> Mask:
    """The H&E's tumour mask on the Ki-67 slide, where that has tissue.

    Parameters
    ----------
    tumor_he
        In the H&E frame.
    transform
        From the H&E to the Ki-67 frame.
    tissue
        Tissue of the Ki-67 slide, at any resolution.
    size_um
        Width and height of the Ki-67 slide.

    Returns
    -------
    Mask
        In the Ki-67 frame, at the resolution of ``tumor_he``.
    """
    columns, rows = (max(1, int(np.ceil(size / tumor_he.mpp - 1e-6))) for size in size_um)
    return within(warp_mask(tumor_he, transform, (rows, columns), tumor_he.mpp), tissue)


def within(mask: Mask, other: Mask) -> Mask:
    """The part of a mask that lies in another mask of the same frame, which may have another resolution."""
    same = RigidTransform(np.eye(3), mask.frame, mask.frame)
    there = warp_mask(other, same, mask.pixels.shape, mask.mpp)
    return Mask(mask.pixels & there.pixels, mask.mpp, mask.frame)


def region_mask(
    geojson: str, *, shape: tuple[int, int], mpp: float, level0_mpp: float, slide_id: str, stain: Stain
) -> Mask:
    """The polygons of a GeoJSON text, in pixels of level 0, as a mask, without those that exclude.

    Where all polygons exclude, the mask is all the rest of the slide.

    Parameters
    ----------
    geojson
        Geometry, feature, collection of features or list of them, as QuPath exports annotations. A polygon excludes if
        its class, or its name where it has no class, is one of ``EXCLUDING``.
    shape, mpp
        Of the result.
    level0_mpp
        Microns per pixel of level 0.

    Raises
    ------
    SlideError
        With flag ``unreadable`` if the text is not GeoJSON or holds no polygon.
    """
    try:
        polygons = list(_polygons(json.loads(geojson)))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        polygons = []
    if not polygons:
        raise region_error(Flag.UNREADABLE, slide_id, stain, "holds no polygon; export it from QuPath as GeoJSON")
    scale = level0_mpp / mpp
    included, excluded = (
        fill_polygons([_rings_px(rings, scale) for rings, excludes in polygons if excludes == which], shape)
        for which in (False, True)
    )
    if all(excludes for _, excludes in polygons):
        included[:] = True
    return Mask(included & ~excluded, mpp, stain)


def draws_regions(geojson: str) -> bool:
    """Whether a text that ``region_mask`` can read holds a polygon that does not exclude."""
    return any(not excludes for _, excludes in _polygons(json.loads(geojson)))


def excludes_regions(geojson: str | None) -> bool:
    """Whether a text that ``region_mask`` can read holds a polygon that excludes; None holds none."""
    return geojson is not None and any(excludes for _, excludes in _polygons(json.loads(geojson)))


def read_regions(given: bool, path: Path | str | None, *, slide_id: str, stain: Stain) -> str | None:
    """The text of the file of regions; None where the sample sheet gives none.

    Raises
    ------
    SlideError
        With flag ``missing_file`` if it gives one that does not exist, ``unreadable`` if that is no text.
    """
    if not given:
        return None
    if not path:
        raise region_error(Flag.MISSING_FILE, slide_id, stain, "does not exist; correct the sample sheet")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise region_error(Flag.UNREADABLE, slide_id, stain, "is not a text file; export it as GeoJSON") from error


def region_error(flag: Flag, slide_id: str, stain: Stain, text: str) -> SlideError:
    """The error of a file of regions, which makes the slide a flagged row without tumour."""
    return SlideError(Finding(flag, f"{slide_id}: roi_{stain} of the {STAIN_NAMES[stain]} slide {text}", stain))


def _polygons(item: Any, excludes: bool = False) -> Iterator[tuple[Sequence[Any], bool]]:
    """Rings of every polygon at any depth of a GeoJSON value, and whether it excludes."""
    if isinstance(item, list):
        for one in item:
            yield from _polygons(one, excludes)
        return
    excludes = excludes or _excludes(item.get("properties") or {})
    if item["type"] == "Polygon":
        yield item["coordinates"], excludes
    elif item["type"] == "MultiPolygon":
        yield from ((rings, excludes) for rings in item["coordinates"])
    else:
        yield from _polygons(item.get("features") or item.get("geometries") or item.get("geometry") or [], excludes)


def _excludes(properties: dict[str, Any]) -> bool:
    named = (properties.get("classification") or {}).get("name") or properties.get("name") or ""
    return str(named).strip().rstrip("*").lower() in EXCLUDING


def _rings_px(rings: Sequence[Any], scale: float) -> list[NDArray[np.float64]]:
    """Corners of a polygon's rings in pixels of the mask."""
    return [np.array([point[:2] for point in ring], dtype=np.float64).reshape(-1, 2) * scale for ring in rings]
