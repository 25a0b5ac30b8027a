"""The table of nuclei: its columns, and how it is made from arrays."""

from __future__ import annotations

import geopandas
import numpy as np
import pandas
from numpy.typing import NDArray

COLUMNS: dict[str, str] = {
    "nucleus_id": "int64",
    "x_um": "float64",
    "y_um": "float64",
    "positive": "bool",
    "probability": "float32",
    "area_um2": "float32",
    "dab_od": "float32",
    "hematoxylin_od": "float32",
    "uncertainty": "float32",
    "in_tumor": "bool",
}
"""Name and type of every column besides ``geometry``, in order."""


def empty_nuclei() -> geopandas.GeoDataFrame:
    """The table of a slide without nuclei: all columns, no rows."""
    columns = {name: np.zeros(0, dtype=kind) for name, kind in COLUMNS.items()}
    return geopandas.GeoDataFrame(columns, geometry=geopandas.GeoSeries([]))


def nucleus_table(columns: dict[str, NDArray[np.generic]], outlines: NDArray[np.object_]) -> geopandas.GeoDataFrame:
    """The table of nuclei, sorted by y and then x, numbered from 1 in this order.

    Parameters
    ----------
    columns
        Arrays ``(N,)`` for all of ``COLUMNS`` but ``nucleus_id``, in microns of the slide's frame.
    outlines
        Shapely polygons ``(N,)``, likewise.
    """
    order = np.lexsort((columns["x_um"], columns["y_um"]))
    numbered = columns | {"nucleus_id": np.empty(len(order), dtype=np.int64)}
    table = pandas.DataFrame({name: numbered[name][order].astype(kind) for name, kind in COLUMNS.items()})
    table["nucleus_id"] = np.arange(1, len(order) + 1)
    return geopandas.GeoDataFrame(table, geometry=outlines[order])
