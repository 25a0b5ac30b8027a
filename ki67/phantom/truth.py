"""What is known about drawn slides: every nucleus, the outlines of the tumour, the index."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

from ki67.phantom.nuclei import KINDS, Nuclei, Section
from ki67.phantom.pair import SlidePlan
from ki67.phantom.textures import Floats

SMALLEST_RING_UM2 = 1000.0
"""Specks of tumour and gaps in it that are smaller are not outlined."""

NUCLEI_SCHEMA = pa.schema(
    [
        ("x_um", pa.float32()),
        ("y_um", pa.float32()),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("positive", pa.bool_()),
        ("in_tumor", pa.bool_()),
        ("area_um2", pa.float32()),
        ("dab", pa.float32()),
    ]
)


def nuclei_table(nuclei: Nuclei, in_tumor: NDArray[np.bool_]) -> pa.Table:
    """Nuclei as rows of the truth table, sorted by y, then x."""
    order = np.lexsort((nuclei.x_um, nuclei.y_um))
    return pa.table(
        {
            "x_um": nuclei.x_um[order].astype(np.float32),
            "y_um": nuclei.y_um[order].astype(np.float32),
            "kind": pa.DictionaryArray.from_arrays(pa.array(nuclei.kind[order]), list(KINDS)),
            "positive": nuclei.positive[order],
            "in_tumor": in_tumor[order],
            "area_um2": nuclei.area_um2[order],
            "dab": nuclei.dab[order],
        },
        schema=NUCLEI_SCHEMA,
    )


def tumor_annotations(plan: SlidePlan) -> tuple[dict[str, Any], float]:
    """Outlines of the tumour as a GeoJSON that QuPath reads (level-0 pixels), and their area in mm²."""
    width_um, height_um = plan.width_px * plan.mpp, plan.height_px * plan.mpp
    # Large slides get coarser outlines, so that memory stays bounded: at most some ten million points are asked.
    step_um = float(max(4.0, np.ceil(np.sqrt(width_um * height_um / 1e7))))
    x, y = np.arange(0, width_um + step_um, step_um), np.arange(0, height_um + step_um, step_um)
    level = _tumor_level(plan.section, x, y)
    found: Any = contour_generator(x, y, level, fill_type=FillType.OuterOffset).filled(0.0, np.inf)
    features = []
    for points, parts in zip(*found, strict=True):
        outer, *holes = [points[first:last] for first, last in pairwise(parts)]
        if _area_um2(outer) >= SMALLEST_RING_UM2:
            large = [outer, *(hole for hole in holes if _area_um2(hole) >= SMALLEST_RING_UM2)]
            features.append(_annotation([ring / plan.mpp for ring in large]))
    area_mm2 = float((level > 0).sum()) * step_um**2 / 1e6
    return {"type": "FeatureCollection", "features": features}, area_mm2


def _tumor_level(section: Section, x_um: NDArray[np.float64], y_um: NDArray[np.float64]) -> Floats:
    """Signed distance to the edge of the tumour ``(len(y), len(x))``; the border of the image is outside."""
    level = np.empty((len(y_um), len(x_um)), dtype=np.float32)
    for top in range(0, len(y_um), 256):
        grid_x, grid_y = np.meshgrid(x_um, y_um[top : top + 256])
        site = section.site(grid_x, grid_y)
        level[top : top + 256] = np.minimum(site.nest_um, site.tissue_um)
    level[[0, -1]] = level[:, [0, -1]] = -1.0
    return level


def _area_um2(ring: NDArray[np.float64]) -> float:
    x, y = ring.T
    return float(abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2)


def _annotation(rings_px: list[NDArray[np.float64]]) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [np.round(ring, 1).tolist() for ring in rings_px]},
        "properties": {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}},
    }
