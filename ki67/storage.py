"""Every file of a result, written whole or not at all: records, masks, pictures, nuclei, SpatialData, AnnData.

Each ``write_...`` function puts its file under a temporary name in the same folder and renames it when it is whole, so
a killed run leaves the old file or none. The same values give the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.errors import Ki67Error, Stain
from ki67.geometry import Mask
from ki67.pyramid import add_coarser_levels, create_level, ome_attributes, shards_of, shrink
from ki67.regions import outline_mask

if TYPE_CHECKING:
    import geopandas
    import pandas
    import shapely
    import zarr

    from ki67.hot_spots import HotSpot

PARTIAL_PREFIX = ".partial-"
CHUNK_PX = 512
SHARD_PX = 8192
_ZSTD_LEVEL = 5
TUMOR_CHANNELS = {"mask": "00C8FF", "probability": "FFFFFF"}
NUCLEUS_CHANNELS: dict[str, str] = {
    "background": "FFFFFF",
    "positive_nucleus": "D52020",
    "positive_membrane": "FF9090",
    "negative_nucleus": "005CD6",
    "negative_membrane": "90C0FF",
}
"""Classes of ``ki67.predictors.NUCLEUS_CLASSES``, with their colours in viewers."""
STAIN_CHANNELS = {"hematoxylin": "3B5FB5", "dab": "9A5B22"}
"""Nuclei of each stain, as StarDist finds them, with their colours in viewers."""
NUCLEI_IN_GROUP = 50_000
CLASS_COLORS: dict[str, tuple[int, int, int]] = {
    "Positive": (213, 32, 32),
    "Negative": (0, 92, 214),
    "Tumor": (200, 0, 0),  # as QuPath has it
    "Hot spot": (200, 0, 160),
}


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    r"""A temporary path beside ``path`` that takes its place when the block ends well and is removed when it does not.

    Parameters
    ----------
    path
        File or folder to write; its folder is made where it is missing. The temporary name keeps all suffixes, and is
        the same each time, so that what a killed run left behind is cleared by the next.

    Examples
    --------
    >>> with whole("table.csv") as partial:  # doctest: +SKIP
    ...     partial.write_text("slide,index\n")
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(PARTIAL_PREFIX + target.name)
    _remove(partial)
    try:
        yield partial
        _put_in_place(partial, target)
    finally:
        _remove(partial)


def _put_in_place(partial: Path, target: Path) -> None:
    """Rename; a folder cannot be renamed onto a full one, so an old one steps aside first and returns on failure."""
    if not (partial.is_dir() or target.is_dir()):
        partial.replace(target)
        return
    aside = target.with_name(PARTIAL_PREFIX + "old-" + target.name)
    _remove(aside)
    if target.exists():
        target.replace(aside)
    try:
        partial.replace(target)
    except OSError:
        if aside.exists():
            aside.replace(target)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def to_plain(value: Any) -> Any:
    """A value in plain JSON terms: numpy and dataclasses unpacked, NaN and infinity as None, sets sorted.

    Raises
    ------
    Ki67Error
        If a value has no JSON form; paths are among them, as results carry none.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_plain(value.to_json() if hasattr(value, "to_json") else dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(to_plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return to_plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    raise Ki67Error(f"a value of type {type(value).__name__} cannot be written as JSON: {value!r}")


def write_json(path: str | Path, record: Any) -> None:
    """Write a record as indented UTF-8 JSON in the order of its keys; NaN becomes null."""
    text = json.dumps(to_plain(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def read_json(path: str | Path) -> Any:
    """Read what ``write_json`` wrote."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_csv(path: str | Path, table: pandas.DataFrame) -> None:
    """Write a table that spreadsheets open safely: UTF-8, line feeds, six significant digits, missing values empty.

    Text that a spreadsheet would run as a formula is written with an apostrophe in front (see ``guard_text``).
    """
    guarded = table.rename(columns=guard_text)
    for name in guarded.columns:
        if not _is_numeric(guarded[name]):
            guarded[name] = guarded[name].map(guard_text, na_action="ignore")
    with whole(path) as partial:
        guarded.to_csv(partial, index=False, float_format="%.6g", lineterminator="\n", encoding="utf-8")


def _is_numeric(column: pandas.Series[Any]) -> bool:
    from pandas.api.types import is_numeric_dtype

    return bool(is_numeric_dtype(column))


_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]+")
# A semicolon ends a cell as well where spreadsheets write decimals with a comma.
_FORMULA = re.compile(r"""(^|;)([\s"']*)([=+\-@＝＋－＠][^;]*)""")


def guard_text(value: Any) -> Any:
    """Text made harmless for spreadsheets; numbers, also those written as text, and other values as they are.

    Control characters become spaces, so a row stays a line, and what begins with ``=``, ``+``, ``-`` or ``@``, at the
    start or after a semicolon, gets an apostrophe in front (OWASP, CSV injection).

    Examples
    --------
    >>> guard_text("=1+1"), guard_text("-0.5"), guard_text("S1"), guard_text("a;@b")
    ("'=1+1", '-0.5', 'S1', "a;'@b")
    """
    if not isinstance(value, str):
        return value
    return _FORMULA.sub(_guarded, _CONTROLS.sub(" ", value).strip())


def _guarded(found: re.Match[str]) -> str:
    start, space, text = found.groups()
    return found[0] if _is_number(text.strip()) else f"{start}{space}'{text}"


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) is not None


def write_mask_png(path: str | Path, mask: Mask) -> None:
    """Write a mask as 8-bit PNG, 255 where it is true; resolution and frame are kept by the record of the stage."""
    write_image_png(path, mask.pixels.astype(np.uint8) * 255)


def read_mask_png(path: str | Path, mpp: float, frame: Stain) -> Mask:
    """Read a mask that ``write_mask_png`` wrote.

    Parameters
    ----------
    mpp
        Microns per pixel of the mask.
    frame
        Frame of the mask.
    """
    return Mask(_decode(path, cv2.IMREAD_GRAYSCALE) >= 128, mpp, frame)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_image_png(path: str | Path, image: NDArray[np.uint8]) -> None:
    """Write a gray ``(H, W)`` or RGB ``(H, W, 3)`` uint8 image as PNG."""
    _write_encoded(path, ".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 6])


def write_image_jpeg(path: str | Path, image: NDArray[np.uint8], *, quality: int = 85) -> None:
    """Write a gray ``(H, W)`` or RGB ``(H, W, 3)`` uint8 image as JPEG, without any metadata."""
    _write_encoded(path, ".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read a small picture of the results as RGB uint8 ``(H, W, 3)``."""
    return np.ascontiguousarray(_decode(path, cv2.IMREAD_COLOR)[:, :, ::-1])


def _write_encoded(path: str | Path, suffix: str, image: NDArray[np.uint8], options: Sequence[int]) -> None:
    done, data = cv2.imencode(suffix, image if image.ndim == 2 else image[:, :, ::-1], options)
    if not done:
        raise Ki67Error(f"{Path(path).name}: an image of shape {image.shape} and type {image.dtype} cannot be encoded")
    with whole(path) as partial:
        partial.write_bytes(data.tobytes())


def _decode(path: str | Path, mode: int) -> NDArray[np.uint8]:
    # imread cannot open names with umlauts on every system, and says nothing when it fails
    data = Path(path).read_bytes()
    image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), mode) if data else None
    if image is None:
        raise Ki67Error(f"{Path(path).name} is no readable image; delete it and run its stage again")
    return np.asarray(image, dtype=np.uint8)


def write_tumor_zarr(path: str | Path, mask: Mask, probability: NDArray[np.uint8] | None = None) -> None:
    """Write a tumour mask, and the probability it came from, as OME-Zarr 0.5 in few files.

    Axes c, y, x, uint8, up to three levels, each four times coarser; a file for each ``SHARD_PX``² pixels of the finest
    level. Channel ``mask`` is 0 or 255, channel ``probability`` 0 to 255; both in the mask's frame, scale in microns.
    No more than a shard is in memory besides what is given.

    Parameters
    ----------
    probability
        uint8 ``(rows, columns)`` of the mask's shape, or None to leave it out.

    Raises
    ------
    Ki67Error
        If mask and probability differ in shape.
    """
    if probability is not None and probability.shape != mask.pixels.shape:
        raise Ki67Error(f"tumour mask {mask.pixels.shape} and probability {probability.shape} differ in shape")
    import zarr

    channels = dict(list(TUMOR_CHANNELS.items())[: 1 if probability is None else 2])
    how = {"chunk_px": CHUNK_PX, "zstd_level": _ZSTD_LEVEL}
    rows, columns = mask.pixels.shape
    with whole(path) as partial:
        group = zarr.create_group(partial, zarr_format=3)
        finest = create_level(group, 0, (len(channels), rows, columns), shard_px=(SHARD_PX, SHARD_PX), **how)
        for part in shards_of(finest):
            planes = [mask.pixels[part].view(np.uint8) * np.uint8(255)]
            finest[:, part[0], part[1]] = np.stack(planes if probability is None else [*planes, probability[part]])
        levels = add_coarser_levels(group, coarsen=_shrink_tumor, **how)
        group.update_attributes(ome_attributes("tumor", mask.frame, mask.mpp, channels, levels))


def _shrink_tumor(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A coarser image in which the mask, the first channel, is again 0 or 255."""
    coarse = shrink(image)
    coarse[0] = np.where(coarse[0] >= 128, 255, 0)
    return coarse


def write_empty_probabilities(path: str | Path | None, channels: Mapping[str, str] = NUCLEUS_CHANNELS) -> None:
    """Write an image of one pixel, 0 in all classes, where no network looked at a slide; None is no image."""
    import zarr

    if path is None or Path(path).exists():
        return
    with whole(path) as partial:
        attributes = ome_attributes("probability", "ki67", 0.5, channels, 1)
        group = zarr.create_group(partial, zarr_format=3, attributes=attributes)
        create_level(group, 0, (len(channels), 1, 1), chunk_px=1, shard_px=(1, 1), zstd_level=1)


def read_tumor_zarr(path: str | Path, frame: Stain) -> Mask:
    """The mask that ``write_tumor_zarr`` wrote, at the resolution its coordinate transformation gives.

    Raises
    ------
    Ki67Error
        If the store holds a mask of another frame.
    """
    group = _open_zarr(path)
    attributes: dict[str, Any] = group.attrs.asdict()
    stored = attributes["ki67"]["frame"]
    if stored != frame:
        raise Ki67Error(f"{Path(path).name} holds a mask in frame {stored}, not {frame}; run the stage transfer again")
    dataset = attributes["ome"]["multiscales"][0]["datasets"][0]
    mpp = float(dataset["coordinateTransformations"][0]["scale"][-1])
    return Mask(_read_plane(group, dataset["path"], 0) >= 128, mpp, frame)


def read_tumor_probability(path: str | Path) -> NDArray[np.uint8] | None:
    """Probability ``(rows, columns)`` of a store that ``write_tumor_zarr`` wrote, or None where it was left out."""
    group = _open_zarr(path)
    attributes: dict[str, Any] = group.attrs.asdict()
    channels = attributes["ki67"]["channels"]
    return _read_plane(group, "s0", channels.index("probability")) if "probability" in channels else None


def _open_zarr(path: str | Path) -> zarr.Group:
    import zarr

    return zarr.open_group(Path(path), mode="r")


def _read_plane(group: zarr.Group, name: str, channel: int) -> NDArray[np.uint8]:
    array: Any = group[name]
    return np.asarray(array[channel], dtype=np.uint8)


def write_tumor_geojson(path: str | Path, mask: Mask, level0_mpp: float | None, *, slide_id: str) -> None:
    """Write a tumour mask as GeoJSON for QuPath: an annotation of class ``Tumor`` for each region, in level-0 pixels.

    ``ki67.transfer.region_mask`` makes the same mask of the file.

    Parameters
    ----------
    mask
        Tumour, in either frame.
    level0_mpp
        Microns per pixel of level 0; None where the slide could not be used and the mask is empty.
    slide_id
        Goes with frame and number into the annotation's id, so that it is the same in every run.

    Raises
    ------
    Ki67Error
        If there is tumour and no ``level0_mpp``.
    """
    if level0_mpp is None and mask.pixels.any():
        raise Ki67Error(f"{slide_id}: a tumour mask without microns per pixel of its slide; run the stage check again")
    scale = mask.mpp / (level0_mpp or 1.0)
    polygons = outline_mask(mask.pixels)
    ids = object_ids(f"ki67:{slide_id}:tumor_{mask.frame}:", range(len(polygons)))
    lines = (_annotation(polygon, scale, name) for polygon, name in zip(polygons, ids, strict=True))
    write_text(path, '{"type":"FeatureCollection","features":[\n' + ",\n".join(lines) + "\n]}\n")


def _annotation(polygon: shapely.Polygon, scale: float, object_id: str) -> str:
    """A polygon as an annotation, to a hundredth of a pixel."""
    rings = (np.asarray(ring.coords) * scale for ring in (polygon.exterior, *polygon.interiors))
    coordinates = [np.round(ring, 2).tolist() for ring in rings]
    geometry = json.dumps({"type": "Polygon", "coordinates": coordinates}, separators=(",", ":"))
    properties = f'{{"objectType":"annotation","classification":{classification("Tumor")}}}'
    return f'{{"type":"Feature","id":"{object_id}","geometry":{geometry},"properties":{properties}}}'


def write_hot_spots_geojson(
    path: str | Path, hot_spots: Sequence[HotSpot], level0_mpp: float | None, *, slide_id: str
) -> None:
    """Write hot spots as GeoJSON for QuPath: annotations of class ``Hot spot``, the hottest first, in level-0 pixels.

    Parameters
    ----------
    level0_mpp
        Microns per pixel of level 0; None where the slide could not be used and there are none.
    slide_id
        Goes with the rank into the annotation's id, so that it is the same in every run.
    """
    ids = object_ids(f"ki67:{slide_id}:hot_spot:", range(len(hot_spots)))
    features = [
        {
            "type": "Feature",
            "id": name,
            "geometry": {
                "type": "Polygon",
                "coordinates": [
                    np.round(np.array(spot.outline.exterior.coords) / (level0_mpp or 1.0), 2).tolist(),
                ],
            },
            "properties": {
                "objectType": "annotation",
                "name": f"Hot spot {rank}",
                "classification": json.loads(classification("Hot spot")),
                "measurements": {"Ki-67 index": spot.index, "Positive": spot.positive, "Nuclei": spot.total},
            },
        }
        for rank, (spot, name) in enumerate(zip(hot_spots, ids, strict=True), start=1)
    ]
    write_json(path, {"type": "FeatureCollection", "features": features})


def write_nuclei_parquet(path: str | Path, nuclei: geopandas.GeoDataFrame) -> None:
    """Write the table of nuclei as GeoParquet 1.0, outlines in microns of the Ki-67 frame, without an index column.

    A row group holds ``NUCLEI_IN_GROUP`` nuclei, and no more are turned into bytes at a time. As the table is sorted by
    y, readers can skip the groups that lie above or below what they look for.
    """
    import pyarrow as pa
    import shapely
    from pyarrow.parquet import ParquetWriter

    columns = nuclei.drop(columns="geometry")
    outlines = nuclei.geometry.to_numpy()
    schema = pa.Schema.from_pandas(columns, preserve_index=False).append(pa.field("geometry", pa.binary()))
    with whole(path) as partial, ParquetWriter(partial, schema, compression="zstd") as writer:
        for start in range(0, len(columns), NUCLEI_IN_GROUP):
            part = slice(start, start + NUCLEI_IN_GROUP)
            values = pa.Table.from_pandas(columns.iloc[part], preserve_index=False)
            outlined = values.append_column("geometry", pa.array(shapely.to_wkb(outlines[part]), pa.binary()))
            writer.write_table(outlined.cast(schema))
        writer.add_key_value_metadata({"geo": json.dumps(_geo_metadata(outlines))})


def _geo_metadata(outlines: NDArray[Any]) -> dict[str, Any]:
    """What GeoParquet (https://geoparquet.org/releases/v1.0.0) wants to know of polygons in a plane."""
    import shapely

    box = {"bbox": shapely.total_bounds(outlines).tolist()} if len(outlines) else {}
    column = {"encoding": "WKB", "geometry_types": ["Polygon"] if len(outlines) else [], "crs": None} | box
    return {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": column}}


def read_nuclei_parquet(path: str | Path, columns: Sequence[str] | None = None) -> geopandas.GeoDataFrame:
    """Read the table of nuclei, or some of its columns (``geometry`` must be among them)."""
    import geopandas

    return geopandas.read_parquet(path, columns=columns)


def object_ids(prefix: str, numbers: Sequence[int]) -> list[str]:
    """UUIDs of the names ``<prefix><number>`` (RFC 9562, version 5)."""
    named = hashlib.sha1(NAMESPACE_URL.bytes + prefix.encode(), usedforsecurity=False)
    digests = bytearray()
    for number in numbers:
        digest = named.copy()
        digest.update(b"%d" % number)
        digests += digest.digest()[:16]
    octets = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 16).copy()
    octets[:, 6] = octets[:, 6] & 0x0F | 0x50
    octets[:, 8] = octets[:, 8] & 0x3F | 0x80
    text = octets.tobytes().hex()
    return [
        f"{text[at : at + 8]}-{text[at + 8 : at + 12]}-{text[at + 12 : at + 16]}-{text[at + 16 : at + 20]}-"
        f"{text[at + 20 : at + 32]}"
        for at in range(0, len(text), 32)
    ]


def classification(name: str) -> str:
    """Class and colour as QuPath's GeoJSON has them."""
    return json.dumps({"name": name, "color": CLASS_COLORS[name]}, separators=(",", ":"))


def write_slide_zarr(
    path: str | Path, nuclei: geopandas.GeoDataFrame, tumor: Mask, record: Mapping[str, Any], measures: Sequence[str]
) -> None:
    """Write a slide for ``spatialdata.read_zarr``, coordinate system ``ki67`` in microns, in about 20 files.

    Shapes ``nuclei`` (left out where there are none), labels ``tumor`` (1 in the tumour), table ``index`` with the
    slide as its only row, and the whole record in the attributes under ``ki67``.

    Parameters
    ----------
    nuclei
        Table of nuclei in microns of the Ki-67 frame.
    tumor
        Tumour mask in the Ki-67 frame.
    record
        The slide's record, with ``slide`` and the measures.
    measures
        Names of the record's numbers that become columns of the table; None becomes NaN.
    """
    import pandas as pd
    import spatialdata
    from anndata import AnnData
    from spatialdata.models import Labels2DModel, ShapesModel
    from spatialdata.transformations import Identity, Scale

    scale = Scale([tumor.mpp, tumor.mpp], axes=("y", "x"))
    labels = Labels2DModel.parse(tumor.pixels.astype(np.uint8), dims=("y", "x"), transformations={"ki67": scale})
    shapes = {} if nuclei.empty else {"nuclei": ShapesModel.parse(nuclei.copy(), transformations={"ki67": Identity()})}
    values = [np.nan if record[name] is None else float(record[name]) for name in measures]
    table = AnnData(np.array([values]), pd.DataFrame(index=[str(record["slide"])]), pd.DataFrame(index=list(measures)))
    data = spatialdata.SpatialData(
        labels={"tumor": labels}, shapes=shapes, tables={"index": table}, attrs={"ki67": to_plain(record)}
    )
    with whole(path) as partial, _without_format_notices():
        data.write(partial, consolidate_metadata=False)
        _remove_empty_groups(partial / "tables" / "index")
        data.write_consolidated_metadata()


@contextmanager
def _without_format_notices() -> Iterator[None]:
    """Silence what the libraries announce about coming defaults, which says nothing to who scores slides."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        warnings.filterwarnings("ignore", message="Writing zarr v2 data")
        yield


def _remove_empty_groups(table: Path) -> None:
    """Drop the optional groups that AnnData writes although they hold nothing; its format asks for obs and var only."""
    for name in ("layers", "obsm", "obsp", "raw", "uns", "varm", "varp"):
        group = table / name
        if group.is_dir() and [item.name for item in group.iterdir()] == ["zarr.json"]:
            shutil.rmtree(group)


def write_cohort_zarr(path: str | Path, slides: pandas.DataFrame, provenance: Mapping[str, Any]) -> None:
    """Write the cohort as AnnData: a row a slide, all numbers of the table in ``X``, its texts in ``obs``.

    Parameters
    ----------
    slides
        One row a slide, with a column ``slide`` of unique ids. Every other numeric column is a measure, float64, NaN
        where there is none; flags and other texts are empty where there are none.
    provenance
        Goes into ``uns["provenance"]`` as JSON text, so that any nesting survives.
    """
    import pandas as pd
    from anndata import AnnData

    measures = [name for name in slides.columns if name != "slide" and _is_numeric(slides[name])]
    values = slides[measures].astype("float64").to_numpy()
    described = slides.drop(columns=measures).set_index("slide").fillna("").astype(str)
    described.index = described.index.astype(str)
    table = AnnData(values, described, pd.DataFrame(index=measures))
    table.uns["provenance"] = json.dumps(to_plain(provenance), ensure_ascii=False)
    with whole(path) as partial, _without_format_notices():
        table.write_zarr(partial)
