"""What the report shows of a slide: small pictures, and outlines as vectors that the page colours itself.

Pictures are WebP in base64, each at most so many bytes that 200 slides stay under 30 MB. Outlines are paths of SVG in
halves of a picture's pixels, so that the page can show nuclei in other colours or not at all.
"""

from __future__ import annotations

import base64
import io
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ki67.deformation import transform_from_json
from ki67.errors import STAIN_NAMES, Stain
from ki67.figures import (
    FIELD_MPP,
    FIELD_PX,
    FIELD_UM,
    Field,
    ReadRegion,
    RgbImage,
    choose_fields,
    length_words,
    local_panels,
    registration_overlay,
    round_length_um,
)
from ki67.geometry import Mask
from ki67.local_index import local_index_map
from ki67.nucleus_squares import tumor_nuclei

if TYPE_CHECKING:
    import geopandas

UNITS = 2  # of a path in a pixel
QUALITIES = (75, 65, 55, 45, 35, 25)
SMALLER = 0.8
FEWEST_PX = 64
TOLERANCE_PX, MOST_TOLERANCE_PX = 0.7, 4.0  # of an outline over the overview
LONGEST_PATH = 10_000  # letters
OUTLINE_TOLERANCE_UM = 0.3  # of a nucleus in a field; less than a pixel


@dataclass(frozen=True)
class PictureSize:
    """How large a picture may be: pixels of its longer side, and bytes of WebP."""

    longest_px: int
    most_bytes: int


OVERVIEW = PictureSize(720, 20_000)
HEATMAP = PictureSize(480, 9_000)  # each of the two
REGISTRATION = PictureSize(480, 11_000)
FIELD = PictureSize(FIELD_PX, 11_000)
PLOT = PictureSize(720, 25_000)


@dataclass(frozen=True)
class Picture:
    """A picture as a page holds it: address ``data:``, width and height in pixels."""

    src: str
    width: int
    height: int


@dataclass(frozen=True)
class SlideFiles:
    """What the stages left of a slide, as far as the report shows it; None where there is none.

    Attributes
    ----------
    check, transform
        Records of the stages ``check`` and ``register``.
    thumbnails
        RGB ``(H, W, 3)`` of both stains at the scale of the tissue masks.
    tumor
        GeoJSON of the tumour by stain, in pixels of level 0.
    tumor_mask
        Of the tumour, in the Ki-67 frame.
    hot_spots
        GeoJSON of the hot spots on the Ki-67 slide, in pixels of level 0.
    """

    check: Mapping[str, Any]
    transform: Mapping[str, Any]
    thumbnails: Mapping[str, RgbImage]
    tumor: Mapping[str, Mapping[str, Any]]
    tumor_mask: Mask
    hot_spots: Mapping[str, Any] | None = None


def picture(image: RgbImage, size: PictureSize) -> Picture:
    """An image as small WebP: as good as fits into the bytes, and with fewer pixels where the worst quality does not.

    Parameters
    ----------
    image
        RGB ``(H, W, 3)``.
    size
        Never enlarges.
    """
    factor = min(1.0, size.longest_px / max(image.shape[:2]))
    while True:
        shown = _scaled(image, factor)
        data = _best_webp(shown, size.most_bytes)
        if len(data) <= size.most_bytes or max(shown.shape[:2]) <= FEWEST_PX:
            text = base64.b64encode(data).decode("ascii")
            return Picture(f"data:image/webp;base64,{text}", shown.shape[1], shown.shape[0])
        factor *= SMALLER


def _best_webp(image: RgbImage, most_bytes: int) -> bytes:
    """WebP of the best quality that is small enough, else of the worst."""
    encoded = {QUALITIES[-1]: _webp(image, QUALITIES[-1])}

    def fits(quality: int) -> bool:
        encoded[quality] = _webp(image, quality)
        return len(encoded[quality]) <= most_bytes

    if len(encoded[QUALITIES[-1]]) > most_bytes:
        return encoded[QUALITIES[-1]]
    chosen = bisect_left(QUALITIES[:-1], True, key=fits)
    return encoded.get(QUALITIES[chosen]) or _webp(image, QUALITIES[chosen])


def _scaled(image: RgbImage, factor: float) -> RgbImage:
    if factor >= 1:
        return image
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _webp(image: RgbImage, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def ring_path(ring: NDArray[np.float64], *, closed: bool = True) -> str:
    """A line or ring ``(N, 2)`` in pixels as a path of SVG in ``1 / UNITS`` px; empty where nothing is left of it.

    Examples
    --------
    >>> ring_path(np.array([[1, 1], [3, 1], [3, 2], [1, 1]]))
    'M2 2l4 0 0 2z'
    """
    points = np.round(np.asarray(ring) * UNITS).astype(np.int64)
    steps = np.diff(points, axis=0)
    steps = steps[(steps != 0).any(axis=1)]
    if closed and len(steps) and not steps.sum(axis=0).any():
        steps = steps[:-1]  # z draws it
    if len(steps) < (2 if closed else 1):
        return ""
    numbers = " ".join(map(str, steps.ravel().tolist())).replace(" -", "-")
    return f"M{points[0, 0]} {points[0, 1]}l{numbers}" + ("z" if closed else "")


def geojson_polygons(collection: Mapping[str, Any] | None, mpp: float | None) -> list[Any]:
    """The polygons of a GeoJSON in microns; its coordinates are pixels of ``mpp`` microns."""
    import shapely
    from shapely.geometry import shape

    if not collection or not mpp:
        return []
    found = [shape(feature["geometry"]) for feature in collection.get("features", ())]
    parts = [part for one in found for part in shapely.get_parts(one) if part.geom_type == "Polygon"]
    return [shapely.transform(part, lambda points: points * mpp) for part in parts]


def polygons_path(polygons: Sequence[Any], mpp: float) -> str:
    """Polygons in microns as one path over a picture of ``mpp``, simplified by about a pixel, or more if it is long."""
    import shapely

    tolerance = TOLERANCE_PX * mpp
    while True:
        simplified = shapely.simplify(list(polygons), tolerance)
        rings = (ring for one in simplified if not one.is_empty for ring in (one.exterior, *one.interiors))
        path = "".join(ring_path(shapely.get_coordinates(ring) / mpp) for ring in rings)
        if len(path) <= LONGEST_PATH or tolerance > MOST_TOLERANCE_PX * mpp:
            return path
        tolerance *= 1.5


def slide_page(
    files: SlideFiles, nuclei: geopandas.GeoDataFrame, read: ReadRegion | None, *, slide_id: str
) -> dict[str, Any]:
    """What the report shows of a slide, in plain JSON values; of what cannot be shown, why, under ``absent``.

    Parameters
    ----------
    files
        What the stages left.
    nuclei
        Table of nuclei with outlines in microns of the Ki-67 frame.
    read
        Reads ``(x_um, y_um, width_px, height_px, mpp)`` of the Ki-67 slide as RGB; None where it cannot be read.
    slide_id
        Begins the sentences.
    """
    stains = files.check["stains"]
    shown: Stain = "ki67" if stains.get("ki67") else "he"
    counted = nuclei[nuclei["in_tumor"]]
    fields = choose_fields(counted, each=1) if read is not None else []
    tumor = geojson_polygons(files.tumor.get(shown), (stains.get(shown) or {}).get("mpp"))
    absent: dict[str, str] = {}
    page: dict[str, Any] = {"overview": None, "heatmaps": [], "registration": None, "fields": []}
    if not (stains.get(shown) or {}).get("usable"):
        absent["overview"] = f"{slide_id}: there is no slide that can be shown"
    else:
        page["overview"] = _overview(files, shown, tumor, fields)
    if page["overview"] and shown == "ki67" and len(counted):
        page["heatmaps"] = _heatmaps(files, counted, tumor)
    else:
        absent["heatmaps"] = f"{slide_id}: no tumour nuclei were counted, so there is no map of the index"
    page["registration"] = _registration(files)
    if page["registration"] is None:
        absent["registration"] = f"{slide_id}: {files.transform.get('reason') or 'nothing was registered'}"
    if fields and read is not None:
        page["fields"] = [_field(read, counted, tumor, field) for field in fields]
    else:
        why = "the Ki-67 slide cannot be read" if len(counted) else "no tumour nuclei were counted"
        absent["fields"] = f"{slide_id}: {why}, so no fields are shown"
    return page | {"absent": absent}


def _overview(files: SlideFiles, shown: Stain, tumor: list[Any], fields: Sequence[Field]) -> dict[str, Any]:
    stain = files.check["stains"][shown]
    thumbnail = files.thumbnails[shown]
    small = picture(thumbnail, OVERVIEW)
    mpp = stain["tissue_mpp"] * thumbnail.shape[1] / small.width
    hot_spots = geojson_polygons(files.hot_spots, stain["mpp"]) if shown == "ki67" else []
    return {
        "picture": asdict(small),
        "stain": STAIN_NAMES[shown],
        "tumor": polygons_path(tumor, mpp),
        "hot_spots": polygons_path(hot_spots, mpp),
        "fields": [[round(UNITS * at / mpp) for at in (one.x_um, one.y_um, FIELD_UM)] for one in fields],
        "scale_bar": _scale_bar(small.width, mpp),
    }


def _heatmaps(files: SlideFiles, counted: geopandas.GeoDataFrame, tumor: list[Any]) -> list[dict[str, Any]]:
    """Local index and density of the tumour over the slide, with its edge and the hot spots as paths."""
    stain, thumbnail = files.check["stains"]["ki67"], files.thumbnails["ki67"]
    small = _scaled(thumbnail, min(1.0, HEATMAP.longest_px / max(thumbnail.shape[:2])))
    small_mpp = stain["tissue_mpp"] * thumbnail.shape[1] / small.shape[1]
    local = local_index_map(tumor_nuclei(counted), files.tumor_mask)
    hot_spots = geojson_polygons(files.hot_spots, stain["mpp"])
    shown = []
    for panel in local_panels(small, small_mpp, local, files.tumor_mask):
        encoded = picture(panel.pixels, HEATMAP)
        mpp = small_mpp * small.shape[1] / encoded.width
        shown.append(
            {
                "picture": asdict(encoded),
                "words": panel.words,
                "top": f"{panel.top:g} {panel.unit}",
                "tumor": polygons_path(tumor, mpp),
                "hot_spots": polygons_path(hot_spots, mpp),
                "scale_bar": _scale_bar(encoded.width, mpp),
            }
        )
    return shown


def _scale_bar(width_px: int, mpp: float) -> dict[str, Any]:
    length_um = round_length_um(width_px * mpp / 4)
    return {"length": round(UNITS * length_um / mpp), "label": length_words(length_um)}


def _registration(files: SlideFiles) -> dict[str, Any] | None:
    """Both sections on top of each other, where a transform was found."""
    stains = files.check["stains"]
    usable = all((stains.get(stain) or {}).get("usable") for stain in ("he", "ki67"))
    if not usable or not files.transform.get("matrix"):
        return None
    he, ki67 = ((files.thumbnails[stain], float(stains[stain]["tissue_mpp"])) for stain in ("he", "ki67"))
    overlay = registration_overlay(*he, *ki67, transform_from_json(files.transform), longest_px=REGISTRATION.longest_px)
    return {"picture": asdict(picture(overlay, REGISTRATION)), "reason": files.transform.get("reason") or ""}


def _field(read: ReadRegion, nuclei: geopandas.GeoDataFrame, tumor: list[Any], field: Field) -> dict[str, Any]:
    plain = picture(read(field.x_um, field.y_um, FIELD_PX, FIELD_PX, FIELD_MPP), FIELD)
    mpp = FIELD_UM / plain.width
    corner = np.array([field.x_um, field.y_um])
    return {
        "name": field.name,
        "positive": field.positive,
        "total": field.total,
        "x_mm": round(field.x_um / 1000, 2),
        "y_mm": round(field.y_um / 1000, 2),
        "picture": asdict(plain),
        "scale_bar": _scale_bar(plain.width, mpp),
        **_nuclei_paths(nuclei, corner, mpp),
        "tumor": _edge_path(tumor, corner, mpp),
    }


def _nuclei_paths(nuclei: geopandas.GeoDataFrame, corner: NDArray[np.float64], mpp: float) -> dict[str, str]:
    """Outlines of the nuclei of a field whose centre lies in it, positive and negative ones."""
    import shapely

    near = nuclei[
        nuclei["x_um"].between(corner[0], corner[0] + FIELD_UM)
        & nuclei["y_um"].between(corner[1], corner[1] + FIELD_UM)
    ]
    outlines = shapely.simplify(near.geometry.to_numpy(), OUTLINE_TOLERANCE_UM)
    paths = np.array(
        [ring_path((shapely.get_coordinates(one.exterior) - corner) / mpp) for one in outlines], dtype=object
    )
    positive = near["positive"].to_numpy(dtype=bool)
    return {"positive_path": "".join(paths[positive]), "negative_path": "".join(paths[~positive])}


def _edge_path(tumor: list[Any], corner: NDArray[np.float64], mpp: float) -> str:
    """The edge of the tumour inside a field."""
    import shapely

    if not tumor:
        return ""
    square = shapely.box(*corner, *(corner + FIELD_UM))
    edges = shapely.line_merge(shapely.intersection(shapely.boundary(tumor), square))
    lines = (line for edge in edges for line in shapely.get_parts(edge) if line.geom_type == "LineString")
    return "".join(ring_path((shapely.get_coordinates(line) - corner) / mpp, closed=False) for line in lines)
