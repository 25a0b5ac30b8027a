"""Nuclei as GeoJSON detections for QuPath, streamed from their GeoParquet table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ki67.storage import classification, object_ids, whole

if TYPE_CHECKING:
    import pyarrow

NUCLEI_AT_ONCE = 5_000
_GZIP_LEVEL = 2
QUPATH_MEASUREMENTS: dict[str, str] = {
    "probability": "Probability",
    "area_um2": "Area um^2",
    "dab_od": "DAB OD",
    "hematoxylin_od": "Hematoxylin OD",
}


def write_nuclei_geojson(
    path: str | Path, table: str | Path, level0_mpp: float, *, slide_id: str, only_in_tumor: bool = True
) -> None:
    """Write nuclei as gzipped GeoJSON detections for QuPath, in pixels of level 0.

    Memory does not grow with their number: ``NUCLEI_AT_ONCE`` are read, turned into text and packed at a time.

    Parameters
    ----------
    table
        GeoParquet of ``ki67.storage.write_nuclei_parquet``, outlines in microns of the Ki-67 frame.
    level0_mpp
        Microns per pixel of level 0.
    slide_id
        Goes with the nucleus id into the detection's id, so that it is the same in every run.
    only_in_tumor
        Leave out nuclei outside the tumour, which are not counted.
    """
    from imagecodecs import gzip_encode

    # libdeflate packs as small as Python's gzip in a third of the time, and writes neither name nor time, so that the
    # same nuclei give the same bytes. The file is a series of gzip members, which reads as one (RFC 1952, 2.2).
    with whole(path) as partial, partial.open("wb") as file:
        before = '{"type":"FeatureCollection","features":[\n'
        for part in _parts(table, only_in_tumor):
            text = ",\n".join(_features(part, level0_mpp, slide_id))
            file.write(gzip_encode((before + text).encode(), level=_GZIP_LEVEL))
            before = ",\n"
        nothing = before != ",\n"
        file.write(gzip_encode(((before if nothing else "") + "\n]}\n").encode(), level=_GZIP_LEVEL))


def _parts(table: str | Path, only_in_tumor: bool) -> Iterator[pyarrow.RecordBatch]:
    """The table from top to bottom in parts that are not empty."""
    from pyarrow.parquet import ParquetFile

    columns = ["nucleus_id", "positive", "in_tumor", *QUPATH_MEASUREMENTS, "geometry"]
    with ParquetFile(table) as file:
        # Group by group: the bytes of a group are kept until the iterator that has read them ends.
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(NUCLEI_AT_ONCE, row_groups=[group], columns=columns, use_threads=False):
                part = batch.filter(batch["in_tumor"]) if only_in_tumor else batch
                if part.num_rows:
                    yield part


def _features(nuclei: pyarrow.RecordBatch, level0_mpp: float, slide_id: str) -> list[str]:
    """One line of JSON a nucleus, joined column by column in arrow: a hundred times faster than row by row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = pa.array(object_ids(f"ki67:{slide_id}:", nuclei["nucleus_id"].to_pylist()))
    classes = pc.if_else(nuclei["positive"], *(classification(name) for name in ("Positive", "Negative")))
    measured = [
        pc.binary_join_element_wise(f'"{label}":', _number_texts(nuclei[name].to_numpy(zero_copy_only=False), 4), "")
        for name, label in QUPATH_MEASUREMENTS.items()
    ]
    measurements = pc.binary_join_element_wise(*measured, ",", null_handling="skip")  # QuPath takes no null
    lines = pc.binary_join_element_wise(
        '{"type":"Feature","id":"',
        ids,
        '","geometry":{"type":"Polygon","coordinates":[[',
        _outline_texts(nuclei["geometry"].to_numpy(zero_copy_only=False), level0_mpp),
        ']]},"properties":{"objectType":"detection","classification":',
        classes,
        ',"measurements":{',
        measurements,
        "}}}",
        "",
    )
    return list(lines.to_pylist())


def _number_texts(values: NDArray[Any], decimals: int) -> Any:
    """Numbers as JSON text in an arrow array, missing where they are not finite."""
    import pyarrow as pa
    import pyarrow.compute as pc

    numbers = np.asarray(values, dtype=np.float64).round(decimals)
    return pc.cast(pa.array(numbers, mask=~np.isfinite(numbers)), pa.string())


def _outline_texts(outlines: NDArray[Any], level0_mpp: float) -> Any:
    """The outer ring of each polygon, given as WKB, as ``[x,y],[x,y],...`` in pixels of level 0 to a tenth."""
    import shapely

    from ki67.ring_texts import ring_texts

    rings = shapely.get_exterior_ring(shapely.from_wkb(outlines))
    points = shapely.get_coordinates(rings) / level0_mpp
    return ring_texts(points, np.cumsum(shapely.get_num_coordinates(rings), dtype=np.int64))
