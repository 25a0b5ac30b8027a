"""Pictures that show a person what was counted: overview and fields of a slide, registration, and the cohort.

Every function returns an RGB uint8 image; ``ki67.storage`` writes it. Positive is red and negative blue, a pair that
people who cannot tell red from green still tell apart. Pictures carry ids and never file paths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ki67.errors import Flag
from ki67.geometry import Mask, RigidTransform, Transform

if TYPE_CHECKING:
    import geopandas
    import pandas
    from matplotlib.figure import Figure

    from ki67.local_index import LocalIndexMap
    from ki67.local_shifts import PlaceCheck
    from ki67.slides import Slide

RgbImage = NDArray[np.uint8]
ReadRegion = Callable[[float, float, int, int, float], RgbImage]

POSITIVE = (222, 24, 24)
NEGATIVE = (0, 84, 220)
OUTLINE = (0, 0, 0)
INK = (25, 25, 25)
REFERENCE = (196, 80, 0)
HOT_SPOT = (200, 0, 160)
WHITE = (255, 255, 255)

PANEL_PX = 760
MARGIN_PX = 16
TITLE_PX = 21
TEXT_PX = 15
FINEST_OVERVIEW_MPP = 0.25

COLOR_MAP = "viridis"  # perceptually uniform, also for people who cannot tell red from green
HEATMAP_OPACITY = 0.6
LARGEST_MAGNIFICATION = 3.0
LEGEND_PX = 380
LEGEND_HEIGHT_PX = 24
COLOR_BAR_PX = 160
NUCLEI_LEGEND = (("positive", POSITIVE), ("negative", NEGATIVE))

FIELD_MPP = 0.5
FIELD_PX = 400
FIELD_UM = FIELD_MPP * FIELD_PX
FIELDS_A_ROW = 2
SUBPIXEL_BITS = 4
DOT_RADIUS_PX = (1.1, 2.4)
PAIR_GAP_PX = 4
ARROW_FACTOR = 5
CROSS_PX = 9

OVERVIEW_PX = 1000
MOST_NAMED = 60
MOST_LISTED = 25
MARKER = "Ki-67"
INFORMATION = frozenset({Flag.NO_HE, Flag.IN_SITU_COUNTED, Flag.FEWER_THAN_1000_NUCLEI})

FLAG_WORDS: dict[Flag, str] = {
    Flag.MISSING_FILE: "file is missing",
    Flag.UNREADABLE: "file cannot be read",
    Flag.NO_MPP: "no microns per pixel",
    Flag.IMPLAUSIBLE_MPP: "implausible microns per pixel",
    Flag.NO_TISSUE: "no tissue found",
    Flag.WRONG_STAIN: "wrong stain",
    Flag.STAIN_UNCERTAIN: "stain uncertain",
    Flag.OUT_OF_FOCUS: "out of focus",
    Flag.PEN_MARK: "pen mark",
    Flag.FOLD: "fold in the tissue",
    Flag.BLURRED_PART: "a part is out of focus",
    Flag.CONTROL_TISSUE_SEEN: "control tissue",
    Flag.NO_HE: "no H&E slide",
    Flag.NO_KI67: "no Ki-67 slide",
    Flag.REGISTRATION_REJECTED: "registration rejected",
    Flag.REGISTRATION_DOUBTFUL: "registration doubtful",
    Flag.TUMOR_FROM_KI67: "tumour found on the Ki-67 slide itself",
    Flag.NO_TUMOR: "no tumour found",
    Flag.IN_SITU_COUNTED: "in situ carcinoma, if any, is counted",
    Flag.UNLIKE_TRAINING: "nuclei unlike those of the training",
    Flag.NO_NUCLEI: "no nuclei found",
    Flag.FEWER_THAN_500_NUCLEI: "fewer than 500 nuclei",
    Flag.FEWER_THAN_1000_NUCLEI: "fewer than 1000 nuclei",
    Flag.HOT_SPOT_DRIVEN: "the index rests on hot spots",
    Flag.TUMOR_AREA_DIFFERS: "tumour of the H&E is not all on the Ki-67 slide",
    Flag.WEAK_DAB: "positive nuclei are pale",
    Flag.SECOND_OPINION_DIFFERS: "a second opinion differs",
}


def overview_mpp(width_um: float, height_um: float) -> float:
    """Microns per pixel at which a slide of this size fills a panel of its overview."""
    return max(FINEST_OVERVIEW_MPP, max(width_um, height_um) / PANEL_PX)


def headline(record: Mapping[str, Any]) -> str:
    """The result of a slide in one line.

    >>> headline({"slide": "S1", "index": None})
    'S1: no Ki-67 index'
    """
    marker = record.get("marker", MARKER)
    if record["index"] is None or math.isnan(record["index"]):
        return f"{record['slide']}: no {marker} index"
    return (
        f"{record['slide']}: {marker} index {100 * record['index']:.1f} % "
        f"(95 % interval {100 * record['index_low']:.1f} to {100 * record['index_high']:.1f} %)"
    )


def _details(record: Mapping[str, Any]) -> list[str]:
    """Counts of a slide, and its findings as sentences."""
    counted = f"{record['positive']:,} positive of {record['total']:,} tumour nuclei in {record['tumor_mm2']:.2f} mm²"
    point = record.get("point_category")
    itself = f" (the index itself: {point})" if point not in (None, record["category"]) else ""
    scored = [f"{counted}, category {record['category']}{itself}"] if record["total"] else []
    on_he = record.get("tumor_he_mm2")
    found = [f"{on_he:.2f} mm² of tumour on the H&E"] if on_he and not scored else []
    return scored + found + [finding["message"] for finding in record["findings"]]


def index_pictures(
    slide: Slide | None,
    tumor: Mask,
    nuclei: geopandas.GeoDataFrame,
    local: LocalIndexMap,
    record: Mapping[str, Any],
) -> dict[str, RgbImage]:
    """What a person is shown of a scored slide: ``overlay``, ``fields``, and the map ``local_index``.

    Parameters
    ----------
    slide
        The slide, or None where it cannot be read, which leaves text alone.
    tumor, nuclei, local, record
        See ``slide_overlay``, ``field_pictures`` and ``local_index_picture``.
    """
    if slide is None:
        thumbnail, mpp, read, nuclei = None, 1.0, None, nuclei.iloc[:0]
    else:
        mpp = overview_mpp(*slide.size_um)
        thumbnail, read = slide.thumbnail(mpp), slide.read
    return {
        "overlay": slide_overlay(thumbnail, mpp, tumor, nuclei, record),
        "fields": field_pictures(read, nuclei, tumor, record),
        "local_index": local_index_picture(thumbnail, mpp, local, tumor, record),
    }


def slide_overlay(
    thumbnail: RgbImage | None, mpp: float, tumor: Mask, nuclei: pandas.DataFrame, record: Mapping[str, Any]
) -> RgbImage:
    """Overview of a slide: the stain with the outline of the tumour, and where positive and negative nuclei lie.

    Parameters
    ----------
    thumbnail
        RGB ``(H, W, 3)`` of the whole Ki-67 slide, or None where it cannot be read.
    mpp
        Microns per pixel of the thumbnail.
    tumor
        Tumour mask in the Ki-67 frame.
    nuclei
        Table of nuclei with ``x_um``, ``y_um``, ``positive`` and ``in_tumor``; tumour nuclei are drawn.
    record
        Record of the slide, see ``ki67.index.slide_record``.
    """
    if thumbnail is None:
        return _page(headline(record), _details(record), [])
    stain, panel_mpp = _fit_panel(thumbnail, mpp)
    outlined = _draw_outline(stain, tumor, panel_mpp, width_px=1)
    counted = nuclei[nuclei["in_tumor"]]
    dots = _draw_dots(_fade(stain), counted, panel_mpp)
    dots = _draw_outline(dots, tumor, panel_mpp, width_px=1)
    panels = [_draw_scale_bar(panel, panel_mpp) for panel in (outlined, dots)]
    arrange = _beside if stain.shape[0] >= 0.6 * stain.shape[1] else _above
    return _page(headline(record), _details(record), [arrange(panels), _legend(panels[0].shape[1])])


def tumor_picture(
    thumbnail: RgbImage,
    tissue: Mask,
    tumor: Mask,
    *,
    probability: NDArray[np.uint8] | None,
    title: str,
    lines: Sequence[str] = (),
) -> RgbImage:
    """A slide with the outline of its tumour, and beside it the probability of tumour as a heatmap.

    Parameters
    ----------
    thumbnail
        RGB ``(H, W, 3)`` of the whole slide, at the scale of the tissue.
    tissue, tumor
        Masks in the slide's frame. Where there is no tissue, only the text is left.
    probability
        uint8 of the tumour mask's shape, 255 for certain tumour; None where no network ran, which leaves the outline
        alone.
    title, lines
        What is written above the picture.
    """
    if not tissue.pixels.any():
        return _page(title, lines, [])
    mpp = tissue.mpp
    factor = min(PANEL_PX / max(thumbnail.shape[:2]), LARGEST_MAGNIFICATION)
    stain, panel_mpp = _resized(thumbnail, factor), mpp / factor
    panels, legend = [stain], [_legend(max(stain.shape[1], LEGEND_PX), edge_only=True)]
    if probability is not None:
        panels.append(_heatmap(stain, probability, tumor.mpp, tissue, panel_mpp))
        legend.append(_color_bar(max(stain.shape[1], LEGEND_PX), "probability of tumour", "0", "1"))
    drawn = [_draw_scale_bar(_draw_outline(panel, tumor, panel_mpp, width_px=1), panel_mpp) for panel in panels]
    blocks = [_above([panel, line]) for panel, line in zip(drawn, legend, strict=True)]
    return _page(title, lines, [(_beside if stain.shape[0] >= 0.6 * stain.shape[1] else _above)(blocks)])


def _heatmap(
    stain: RgbImage, probability: NDArray[np.uint8], probability_mpp: float, tissue: Mask, mpp: float
) -> RgbImage:
    """The stain in gray, coloured by probability where it is tissue; ``mpp`` is of the stain."""
    shape, ground = stain.shape[:2], _fade(stain)
    inside = _at_scale(tissue.pixels.astype(np.uint8) * 255, tissue.mpp / mpp, shape) >= 128
    colored = _blend(ground, _at_scale(probability, probability_mpp / mpp, shape))
    return np.where(inside[..., None], colored, ground)


def _at_scale(image: NDArray[np.uint8], factor: float, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An image ``(H, W)`` enlarged, then cut at its lower and right edge or filled up with what is there."""
    size = [max(1, round(pixels * factor)) for pixels in image.shape]
    kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(image, size[::-1], interpolation=kind)
    lacking = [(0, max(0, wanted - have)) for wanted, have in zip(shape, scaled.shape, strict=False)]
    return np.pad(scaled, lacking, mode="edge")[: shape[0], : shape[1]].astype(np.uint8)


def _blend(ground: RgbImage, levels: NDArray[np.uint8]) -> RgbImage:
    """Colours of levels ``(H, W)`` from 0 to 255 over a gray ground."""
    colors = (255 * matplotlib.colormaps[COLOR_MAP](np.arange(256))[:, :3])[levels]
    return np.round(ground * (1 - HEATMAP_OPACITY) + colors * HEATMAP_OPACITY).astype(np.uint8)


def _color_bar(width_px: int, words: str, low: str, high: str) -> RgbImage:
    """A bar of the heatmap's colours, as they look over pale tissue, with its ends and what it stands for."""
    canvas = Image.new("RGB", (width_px, LEGEND_HEIGHT_PX), WHITE)
    draw, font = ImageDraw.Draw(canvas), _font(TEXT_PX)
    x = 0
    for text in (words, low):
        draw.text((x, 3), text, font=font, fill=INK)
        x += round(draw.textlength(text, font=font)) + (16 if x == 0 else 6)
    length = min(COLOR_BAR_PX, width_px - x - 12 - round(draw.textlength(high, font=font)))
    levels = np.tile(np.linspace(0, 255, length).round().astype(np.uint8), (14, 1))
    canvas.paste(Image.fromarray(_blend(_pale(levels.shape), levels)), (x, 5))
    draw.text((x + length + 6, 3), high, font=font, fill=INK)
    return np.array(canvas)


def local_index_picture(
    thumbnail: RgbImage | None, mpp: float, local: LocalIndexMap, tumor: Mask, record: Mapping[str, Any]
) -> RgbImage:
    """Index and density of the tumour from place to place, with the outlines of the hot spots.

    Parameters
    ----------
    thumbnail
        RGB ``(H, W, 3)`` of the whole Ki-67 slide, or None where it cannot be read.
    mpp
        Microns per pixel of the thumbnail.
    local
        Maps in the Ki-67 frame; without a number in them, only the text is left.
    tumor
        Tumour mask in the Ki-67 frame.
    record
        Record of the slide.
    """
    lines = [*_details(record), *_protocol_lines(record)]
    if thumbnail is None or not np.isfinite(local.nuclei_per_mm2).any():
        return _page(headline(record), lines, [])
    stain, panel_mpp = _fit_panel(thumbnail, mpp)
    width = max(stain.shape[1], LEGEND_PX)
    blocks = []
    for one in local_panels(stain, panel_mpp, local, tumor):
        panel = _draw_outline(one.pixels, tumor, panel_mpp, width_px=1)
        panel = _draw_scale_bar(_draw_hot_spots(panel, record.get("hot_spots", ()), panel_mpp), panel_mpp)
        blocks.append(_above([panel, _color_bar(width, one.words, "0", f"{one.top:g} {one.unit}")]))
    arrange = _beside if stain.shape[0] >= 0.6 * stain.shape[1] else _above
    return _page(headline(record), lines, [arrange(blocks)])


@dataclass(frozen=True)
class LocalPanel:
    """A map of the tumour over the slide in gray, without a word in it.

    Attributes
    ----------
    words, unit
        What the colours stand for.
    top
        Value of the last colour; the first is 0.
    pixels
        RGB ``(H, W, 3)``.
    """

    words: str
    unit: str
    top: float
    pixels: RgbImage


def local_panels(stain: RgbImage, mpp: float, local: LocalIndexMap, tumor: Mask) -> list[LocalPanel]:
    """The local index and the density of tumour nuclei in colours, over the stain ``(H, W, 3)`` of the whole slide."""
    shown = (
        ("local index", "%", 100 * local.index, 10.0),
        ("tumour nuclei", "per mm²", local.nuclei_per_mm2, 500.0),
    )
    tops = [_top_of_scale(values, step) for _, _, values, step in shown]
    return [
        LocalPanel(words, unit, top, _map_panel(stain, values / top, local.mpp, tumor, mpp))
        for (words, unit, values, _), top in zip(shown, tops, strict=True)
    ]


def heatmap_colors(count: int) -> list[str]:
    """Colours of a heatmap over pale tissue from its lowest to its highest value, as ``#rrggbb``."""
    levels = np.linspace(0, 255, count).round().astype(np.uint8)[None]
    return [matplotlib.colors.to_hex(color / 255) for color in _blend(_pale(levels.shape), levels)[0]]


def _pale(shape: tuple[int, ...]) -> RgbImage:
    return np.full((*shape, 3), 235, dtype=np.uint8)


def _protocol_lines(record: Mapping[str, Any]) -> list[str]:
    """The index by other protocols, those that there are."""
    names = {
        "index_hot_spot": "hot spot",
        "index_global_unweighted": "global, unweighted",
        "index_global_weighted": "global, weighted",
        "index_area": "by area of nuclei",
    }
    found = [f"{words} {100 * record[name]:.1f} %" for name, words in names.items() if _is_number(record.get(name))]
    return [f"Other measures: {'; '.join(found)}"] if found else []


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _top_of_scale(values: NDArray[np.floating], step: float) -> float:
    """End of a scale from 0 that takes in all but the highest hundredth, in whole steps."""
    known = values[np.isfinite(values)]
    return step * max(1.0, math.ceil(float(np.percentile(known, 99)) / step)) if len(known) else step


def _map_panel(stain: RgbImage, values: NDArray[np.floating], values_mpp: float, tumor: Mask, mpp: float) -> RgbImage:
    """The stain in gray, coloured inside the tumour by values from 0 to 1 where there are any."""
    ground = _fade(stain)
    shown = _sampled(values, values_mpp, stain.shape, mpp)
    inside = np.isfinite(shown) & _sampled(tumor.pixels, tumor.mpp, stain.shape, mpp)
    levels = np.round(255 * np.clip(np.nan_to_num(shown), 0, 1)).astype(np.uint8)
    return np.where(inside[..., None], _blend(ground, levels), ground).astype(np.uint8)


def _sampled(values: NDArray[Any], values_mpp: float, shape: tuple[int, ...], mpp: float) -> NDArray[Any]:
    """The value ``(rows, columns)`` under the middle of each pixel of a picture that begins at the same origin."""
    rows, columns = (
        np.minimum(((np.arange(size) + 0.5) * mpp / values_mpp).astype(np.int64), last - 1)
        for size, last in zip(shape[:2], values.shape, strict=True)
    )
    return values[rows[:, None], columns]


def _draw_hot_spots(image: RgbImage, hot_spots: Iterable[Mapping[str, float]], mpp: float) -> RgbImage:
    """Squares with their rank beside them, on a white rim that keeps them apart from any colour."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    for rank, spot in enumerate(hot_spots, start=1):
        left, top, side = (spot[name] / mpp for name in ("x_um", "y_um", "side_um"))
        corners = (round(left), round(top), round(left + side), round(top + side))
        draw.rectangle((corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1), outline=WHITE, width=4)
        draw.rectangle(corners, outline=HOT_SPOT, width=2)
        at = (corners[2] + 4, corners[1] - 2)
        draw.text(at, str(rank), font=_font(TEXT_PX), fill=HOT_SPOT, stroke_width=2, stroke_fill=WHITE)
    return np.array(canvas)


def field_pictures(
    read: ReadRegion | None, nuclei: geopandas.GeoDataFrame, tumor: Mask, record: Mapping[str, Any]
) -> RgbImage:
    """Fields of 200 µm with the highest, median and lowest local index, each as it is and with outlined nuclei.

    Parameters
    ----------
    read
        Reads ``(x_um, y_um, width_px, height_px, mpp)`` of the Ki-67 slide as RGB; None where it cannot be read, which
        leaves the text.
    nuclei
        Table of nuclei with outlines in microns of the Ki-67 frame; tumour nuclei are drawn.
    tumor
        Tumour mask in the Ki-67 frame.
    record
        Record of the slide.
    """
    counted = nuclei[nuclei["in_tumor"]]
    fields = choose_fields(counted)
    if read is None or not fields:
        return _page(headline(record), _details(record), [])
    pictures = [_field_picture(read, counted, tumor, field) for field in fields]
    rows = [_beside(pictures[start : start + FIELDS_A_ROW]) for start in range(0, len(pictures), FIELDS_A_ROW)]
    return _page(headline(record), _details(record), [*rows, _legend(2 * FIELD_PX)])


@dataclass(frozen=True)
class Field:
    """A square of FIELD_UM on the slide.

    Attributes
    ----------
    name
        Why it is shown: highest, median or lowest local index.
    x_um, y_um
        Upper left corner.
    positive, total
        Tumour nuclei whose centre lies in it.
    """

    name: str
    x_um: float
    y_um: float
    positive: int
    total: int


def choose_fields(nuclei: pandas.DataFrame, *, each: int = FIELDS_A_ROW) -> list[Field]:
    """The fields of highest, median and lowest local index, ``each`` of them, among those well filled.

    Parameters
    ----------
    nuclei
        Tumour nuclei with ``x_um``, ``y_um`` and ``positive``.
    """
    if len(nuclei) == 0:
        return []
    corners = np.floor(nuclei[["x_um", "y_um"]].to_numpy() / FIELD_UM).astype(np.int64)
    cells, member = np.unique(corners, axis=0, return_inverse=True)
    total = np.bincount(member.ravel())
    positive = np.bincount(member.ravel(), weights=nuclei["positive"].to_numpy(dtype=float)).astype(np.int64)
    filled = np.flatnonzero(total >= np.median(total) / 2)
    order = filled[np.lexsort((filled, -positive[filled] / total[filled]))]
    return [
        Field(name, cells[cell, 0] * FIELD_UM, cells[cell, 1] * FIELD_UM, int(positive[cell]), int(total[cell]))
        for name, cell in _extremes(order, each)
    ]


def _extremes(order: NDArray[np.int64], each: int) -> Iterable[tuple[str, int]]:
    """The first, middle and last ``each`` of the fields in order, none twice."""
    if len(order) < 3 * each:
        each = max(1, len(order) // 3)
    middle = (len(order) - each) // 2
    chosen = {"highest": order[:each], "median": order[middle : middle + each], "lowest": order[len(order) - each :]}
    seen: set[int] = set()
    for name, cells in chosen.items():
        for cell in cells:
            if int(cell) not in seen:
                seen.add(int(cell))
                yield name, int(cell)


def _field_picture(read: ReadRegion, nuclei: geopandas.GeoDataFrame, tumor: Mask, field: Field) -> RgbImage:
    plain = read(field.x_um, field.y_um, FIELD_PX, FIELD_PX, FIELD_MPP)
    drawn = _draw_nuclei(_draw_tumor_edge(plain, tumor, field), nuclei, field)
    share = 100 * field.positive / field.total
    text = f"{field.name} local index: {field.positive} of {field.total} positive ({share:.0f} %), "
    place = f"at x {field.x_um / 1000:.1f} mm, y {field.y_um / 1000:.1f} mm"
    pair = _beside([_draw_scale_bar(plain, FIELD_MPP), drawn], gap_px=PAIR_GAP_PX)
    return _above([_text_block(pair.shape[1], [(text + place, TEXT_PX)]), pair], gap_px=PAIR_GAP_PX)


def _draw_nuclei(image: RgbImage, nuclei: geopandas.GeoDataFrame, field: Field) -> RgbImage:
    import shapely

    corner = np.array([field.x_um, field.y_um])
    near = nuclei[
        nuclei["x_um"].between(corner[0] - 20, corner[0] + FIELD_UM + 20)
        & nuclei["y_um"].between(corner[1] - 20, corner[1] + FIELD_UM + 20)
    ]
    drawn = image.copy()
    for outline, positive in zip(near.geometry, near["positive"], strict=True):
        points = (shapely.get_coordinates(outline.exterior) - corner) / FIELD_MPP - 0.5
        fixed = np.round(points * 2**SUBPIXEL_BITS).astype(np.int32)[:, None]
        cv2.polylines(drawn, [fixed], True, POSITIVE if positive else NEGATIVE, 1, cv2.LINE_AA, SUBPIXEL_BITS)
    return drawn


def _draw_tumor_edge(image: RgbImage, tumor: Mask, field: Field) -> RgbImage:
    centres = (np.arange(FIELD_PX) + 0.5) * FIELD_MPP
    x, y = np.meshgrid(field.x_um + centres, field.y_um + centres)
    inside = tumor.contains(np.column_stack([x.ravel(), y.ravel()])).reshape(x.shape)
    return _stroke(image, inside, width_px=2)


def registration_picture(
    he: RgbImage | None,
    ki67: RgbImage | None,
    transform: Transform | None,
    mpp: float,
    *,
    check: PlaceCheck | None = None,
    title: str = "H&E and Ki-67",
    lines: Sequence[str] = (),
) -> RgbImage:
    """Both sections on top of each other and in a checkerboard, as they were scanned and as they were registered.

    In the first row the H&E is magenta, Ki-67 green and what they share gray. Arrows lead from where the transform puts
    a place of the H&E to where its pattern was found; a cross is a place whose pattern was not found nearby.

    Parameters
    ----------
    he, ki67
        RGB thumbnails at ``mpp``; None where there is none.
    transform
        From ``he`` to ``ki67``; without one the sections are shown as they are.
    check
        Places of which the local shift is known.
    title, lines
        What is written above the picture.
    """
    if he is None or ki67 is None:
        shown = [_fit_panel(image, mpp) for image in (he, ki67) if image is not None]
        return _page(title, lines, [_draw_scale_bar(panel, panel_mpp) for panel, panel_mpp in shown])
    ki67, panel_mpp = _fit_panel(ki67, mpp)
    he = _resized(he, mpp / panel_mpp)
    square_um = round_length_um(max(ki67.shape) * panel_mpp / 5)
    there = RigidTransform(np.eye(3), "he", "ki67")
    columns = [_registration_panels("as they were scanned", he, ki67, there, panel_mpp, square_um)]
    if transform is not None:
        columns.append(_registration_panels("registered", he, ki67, transform, panel_mpp, square_um, check))
    words = [f"Squares of the checkerboard are {length_words(square_um)} wide."]
    if transform is not None and check is not None and len(check.places_um):
        words.append(f"Arrows are {ARROW_FACTOR} times as long as the local shifts; a cross: not found nearby.")
    return _page(title, [*lines, *words], [_beside(columns)])


def registration_overlay(
    he: RgbImage, he_mpp: float, ki67: RgbImage, ki67_mpp: float, transform: Transform, *, longest_px: int
) -> RgbImage:
    """Both sections on top of each other, as they were registered: H&E magenta, Ki-67 green, what they share gray.

    Parameters
    ----------
    he, ki67
        RGB thumbnails at their microns per pixel.
    transform
        From ``he`` to ``ki67``.
    longest_px
        Pixels of the longer side of the result.
    """
    factor = longest_px / max(ki67.shape[:2])
    mpp = ki67_mpp / factor
    fitted = _resized(ki67, factor)
    return _two_colours(_carry(_resized(he, he_mpp / mpp), transform, mpp, fitted.shape), fitted)


def _registration_panels(
    words: str,
    he: RgbImage,
    ki67: RgbImage,
    transform: Transform,
    mpp: float,
    square_um: float,
    check: PlaceCheck | None = None,
) -> RgbImage:
    """Overlay above checkerboard, with a line of text."""
    moved = _carry(he, transform, mpp, ki67.shape)
    overlay, board = _two_colours(moved, ki67), _checkerboard(moved, ki67, square_um / mpp)
    if check is not None:
        overlay = _draw_arrows(overlay, transform, check, mpp)
    text = f"H&E (magenta) and Ki-67 (green), {words}"
    return _above(
        [
            _text_block(overlay.shape[1], [(text, TEXT_PX)]),
            _draw_scale_bar(overlay, mpp),
            _draw_scale_bar(board, mpp),
        ],
        gap_px=PAIR_GAP_PX,
    )


def _two_colours(he: RgbImage, ki67: RgbImage) -> RgbImage:
    """One picture of both: what is dark on the H&E alone is magenta, on Ki-67 alone green."""
    he_gray, ki67_gray = (_stretched(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)) for image in (he, ki67))
    return np.stack([ki67_gray, he_gray, ki67_gray], axis=-1)


def _stretched(gray: NDArray[Any]) -> NDArray[np.uint8]:
    """Gray values from the darkest hundredth to the glass, so that a pale stain counts as much as a dark one."""
    low, high = np.percentile(gray[::4, ::4], [1, 95])
    return np.clip((gray.astype(np.float32) - low) * (255 / max(1.0, high - low)), 0, 255).astype(np.uint8)


def _draw_arrows(image: RgbImage, transform: Transform, check: PlaceCheck, mpp: float) -> RgbImage:
    drawn = image.copy()
    start = transform.apply(check.places_um)
    end = start + ARROW_FACTOR * (check.found_um - start)
    for (x, y), tip, agrees in zip(start / mpp, end / mpp, check.agree, strict=True):
        place, point = (round(float(x)), round(float(y))), (round(float(tip[0])), round(float(tip[1])))
        for color, width in ((WHITE, 5), (INK, 2)):  # a white rim keeps it apart from dense tissue
            if agrees:
                cv2.arrowedLine(drawn, place, point, color, width, cv2.LINE_AA, tipLength=0.3)
            else:
                cv2.drawMarker(drawn, place, color, cv2.MARKER_TILTED_CROSS, CROSS_PX, width - 1, cv2.LINE_AA)
    return drawn


def _carry(image: RgbImage, transform: Transform, mpp: float, shape: tuple[int, ...]) -> RgbImage:
    """Warp an image into the transform's target; pixel centres lie at half pixels."""
    x, y = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    back = transform.inverse().apply(np.column_stack([x.ravel(), y.ravel()]) * mpp) / mpp - 0.5
    across, down = (back[:, axis].reshape(x.shape).astype(np.float32) for axis in (0, 1))
    warped = cv2.remap(image, across, down, cv2.INTER_LINEAR, borderValue=WHITE)
    return np.asarray(warped, dtype=np.uint8)


def _checkerboard(one: RgbImage, other: RgbImage, square_px: float) -> RgbImage:
    rows, columns = (np.floor(np.arange(size) / square_px).astype(int) for size in one.shape[:2])
    return np.where(((rows[:, None] + columns) % 2 == 0)[..., None], one, other).astype(np.uint8)


def cohort_overview(
    slides: pandas.DataFrame, cutoffs: Sequence[float] = (0.10, 0.20), *, marker: str = MARKER
) -> RgbImage:
    """Index of every slide with its interval, the readers' indices, and a list of slides to look at.

    Parameters
    ----------
    slides
        Table of ``ki67.cohort.slide_table``.
    cutoffs
        Fractions between the categories.
    marker
        What positive nuclei are stained for.
    """
    scored = slides[slides["index"].notna()]
    title = f"{len(scored)} of {len(slides)} slides have a {marker} index"
    plot = [_plot_indices(scored, cutoffs, marker)] if len(scored) else []
    lists = [
        _list_slides("Without an index", slides[slides["index"].isna()]),
        _list_slides("With an index, to be looked at", scored[_needs_a_look(scored)]),
    ]
    return _page(title, [], [*plot, *(_text_block(OVERVIEW_PX, lines) for lines in lists if lines)])


def _needs_a_look(slides: pandas.DataFrame) -> NDArray[np.bool_]:
    """Whether a slide has flags beyond those that only inform."""
    return np.array([bool(set(flags.split(";")) - {"", *INFORMATION}) for flags in slides["flags"]], dtype=bool)


def _list_slides(heading: str, slides: pandas.DataFrame) -> list[tuple[str, int]]:
    if slides.empty:
        return []
    shown = slides.iloc[:MOST_LISTED]
    lines = [f"{slide}: {_in_words(flags)}" for slide, flags in zip(shown["slide"], shown["flags"], strict=True)]
    more = [f"and {len(slides) - len(shown)} more, see cohort.csv"] if len(slides) > len(shown) else []
    return [(f"{heading} ({len(slides)})", TITLE_PX - 3), *((line, TEXT_PX) for line in [*lines, *more])]


def _in_words(flags: str) -> str:
    """Flags of a table's cell as words."""
    return ", ".join(FLAG_WORDS[Flag(flag)] for flag in flags.split(";") if flag) or "no reason recorded"


def _plot_indices(scored: pandas.DataFrame, cutoffs: Sequence[float], marker: str) -> RgbImage:
    """A row a slide, highest index on top; the ids are left out where they would not be legible."""
    from matplotlib.figure import Figure

    named = len(scored) <= MOST_NAMED
    height_px = 110 + (20 * len(scored) if named else 20 * MOST_NAMED)
    figure = Figure(figsize=(OVERVIEW_PX / 100, height_px / 100), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    _draw_indices(axes, scored, cutoffs, named=named)
    axes.set_xlabel(f"{marker} index (%)")
    return figure_pixels(figure)


def figure_pixels(figure: Figure) -> RgbImage:
    """A figure of matplotlib as an image ``(H, W, 3)``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[:, :, :3].copy()


def _draw_indices(axes: Any, scored: pandas.DataFrame, cutoffs: Sequence[float], *, named: bool) -> None:
    table = scored.sort_values(["index", "slide"], ascending=[False, True])
    place = np.arange(len(table))
    low, index, high = (100 * table[name].to_numpy() for name in ("index_low", "index", "index_high"))
    color, reference_color = (np.array(rgb) / 255 for rgb in (NEGATIVE, REFERENCE))
    dots = {"color": color, "markersize": 5 if named else 2.5, "linestyle": "none", "marker": "o", "clip_on": False}
    for cutoff in cutoffs:
        axes.axvline(100 * cutoff, color="0.6", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.hlines(place, low, high, color=color, linewidth=2 if named else 0.8, alpha=0.55, clip_on=False)
    flagged = _needs_a_look(table)
    axes.plot(index[~flagged], place[~flagged], label="index with 95 % interval", **dots)
    axes.plot(index[flagged], place[flagged], label="the same, to be looked at", markerfacecolor="white", **dots)
    readers = [name for name in table.columns if name.startswith("reference_index")]
    references = 100 * table[readers].mean(axis=1).to_numpy()
    if np.isfinite(references).any():
        label = "reader" if table[readers].notna().any().sum() == 1 else "mean of the readers"
        axes.plot(references, place, "D", color=reference_color, markersize=5, fillstyle="none", label=label)
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.set_xlim(0, max(30, np.nanmax([*high, *references]) * 1.05))
    axes.set_yticks(place if named else [], table["slide"] if named else [])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=True, framealpha=0.9, fontsize=9)


# Drawing on a panel


def _fit_panel(image: RgbImage, mpp: float, panel_px: int = PANEL_PX) -> tuple[RgbImage, float]:
    """The image at the size of a panel, and its microns per pixel then."""
    factor = panel_px / max(image.shape[:2])
    return _resized(image, factor), mpp / factor


def _resized(image: RgbImage, factor: float) -> RgbImage:
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=kind), dtype=np.uint8)


def _fade(image: RgbImage) -> RgbImage:
    """The image in light gray, as a ground for colours."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.repeat((255 - 0.35 * (255 - gray))[..., None], 3, axis=2).astype(np.uint8)


def _draw_outline(image: RgbImage, tumor: Mask, mpp: float, *, width_px: int = 2) -> RgbImage:
    height, width = image.shape[:2]
    size = [max(1, round(pixels * tumor.mpp / mpp)) for pixels in tumor.pixels.shape]
    scaled = cv2.resize(tumor.pixels.astype(np.uint8) * 255, size[::-1], interpolation=cv2.INTER_AREA) >= 96
    return _stroke(image, _to_shape(scaled, (height, width)), width_px=width_px)


def _to_shape(inside: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Cut or fill up at the lower and right edge; a gap that only rounding left takes the values beside it."""
    lacking = [max(0, wanted - have) for wanted, have in zip(shape, inside.shape, strict=True)]
    mode = "edge" if max(lacking) <= 2 else "constant"
    return np.pad(inside, [(0, amount) for amount in lacking], mode=mode)[: shape[0], : shape[1]]  # type: ignore[call-overload]


def _stroke(image: RgbImage, inside: NDArray[np.bool_], *, width_px: int) -> RgbImage:
    """Draw the edge of a region in black on a white halo, so that it shows on any stain; not along the picture's."""
    beyond = width_px + 4
    padded = np.pad(inside.astype(np.uint8), beyond, mode="edge")
    contours, _ = cv2.findContours(padded, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE, offset=(-beyond, -beyond))
    drawn = image.copy()
    for color, thickness in ((WHITE, width_px + 2), (OUTLINE, width_px)):
        cv2.drawContours(drawn, contours, -1, color, thickness, cv2.LINE_AA)
    return drawn


def _draw_dots(image: RgbImage, nuclei: pandas.DataFrame, mpp: float) -> RgbImage:
    """A dot for each nucleus; where dots overlap, their colours mix in proportion, so none hides another."""
    shape = image.shape[:2]
    radius_px = float(np.clip(math.sqrt(shape[0] * shape[1] / (len(nuclei) + 1)) / 10, *DOT_RADIUS_PX))
    positive = nuclei["positive"].to_numpy(dtype=bool)
    points = nuclei[["x_um", "y_um"]].to_numpy() / mpp
    reds, blues = (_dot_density(points[chosen], shape, radius_px) for chosen in (positive, ~positive))
    amount = reds + blues
    share = np.divide(reds, amount, out=np.zeros_like(reds), where=amount > 0)[..., None]
    color = share * np.array(POSITIVE) + (1 - share) * np.array(NEGATIVE)
    opacity = (1 - np.exp(-1.8 * amount))[..., None]
    return np.round(image * (1 - opacity) + color * opacity).astype(np.uint8)


def _dot_density(points: NDArray[np.float64], shape: tuple[int, ...], radius_px: float) -> NDArray[np.float32]:
    """Sum of bumps of height one at each point."""
    columns, rows = np.floor(points).astype(np.int64).T
    inside = (rows >= 0) & (columns >= 0) & (rows < shape[0]) & (columns < shape[1])
    counts = np.bincount(rows[inside] * shape[1] + columns[inside], minlength=shape[0] * shape[1])
    density = counts.reshape(shape).astype(np.float32) * np.float32(2 * np.pi * radius_px**2)
    return np.asarray(cv2.GaussianBlur(density, (0, 0), radius_px), dtype=np.float32)


def round_length_um(at_most_um: float) -> float:
    """The largest length of 1, 2 or 5 times a power of ten that is no longer than this.

    >>> round_length_um(50), round_length_um(4999)
    (50.0, 2000.0)
    """
    power = 10.0 ** math.floor(math.log10(at_most_um))
    return max(step * power for step in (1.0, 2.0, 5.0) if step * power <= at_most_um)


def length_words(length_um: float) -> str:
    """A length for people, in mm from 1 mm on."""
    return f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"


def _draw_scale_bar(image: RgbImage, mpp: float) -> RgbImage:
    length_um = round_length_um(image.shape[1] * mpp / 4)
    label = length_words(length_um)
    length_px = round(length_um / mpp)
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    text_px = round(draw.textlength(label, font=_font(TEXT_PX)))
    left, bottom = 8, image.shape[0] - 8
    draw.rectangle((left, bottom - 32, left + max(length_px, text_px) + 12, bottom), fill=WHITE)
    draw.rectangle((left + 6, bottom - 9, left + 6 + length_px, bottom - 5), fill=INK)
    draw.text((left + 6, bottom - 30), label, font=_font(TEXT_PX), fill=INK)
    return np.array(canvas)


# Pages


def _page(title: str, lines: Sequence[str], blocks: Sequence[RgbImage]) -> RgbImage:
    """Title and lines of text above blocks of pictures, on white."""
    width = max((block.shape[1] for block in blocks), default=PANEL_PX)
    text = _text_block(width, [(title, TITLE_PX), *((line, TEXT_PX) for line in lines)])
    page = _above([text, *blocks])
    return np.pad(page, [(MARGIN_PX, MARGIN_PX), (MARGIN_PX, MARGIN_PX), (0, 0)], constant_values=255)


def _beside(panels: Sequence[RgbImage], *, gap_px: int = MARGIN_PX) -> RgbImage:
    height = max(panel.shape[0] for panel in panels)
    return np.concatenate([_fill_up(panel, height, panel.shape[1] + gap_px) for panel in panels], axis=1)[:, :-gap_px]


def _above(panels: Sequence[RgbImage], *, gap_px: int = MARGIN_PX // 2) -> RgbImage:
    width = max(panel.shape[1] for panel in panels)
    return np.concatenate([_fill_up(panel, panel.shape[0] + gap_px, width) for panel in panels], axis=0)[:-gap_px]


def _fill_up(image: RgbImage, height: int, width: int) -> RgbImage:
    """The image with white at its lower and right edge."""
    missing = [(0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)]
    return np.pad(image, missing, constant_values=255)


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size_px)


def _text_block(width_px: int, lines: Sequence[tuple[str, int]]) -> RgbImage:
    """Lines of text with their sizes, broken at spaces where they are wider than the block."""
    broken = [(part, size) for text, size in lines for part in _break_line(text, size, width_px)]
    heights = [round(1.45 * size) for _, size in broken]
    canvas = Image.new("RGB", (width_px, sum(heights)), WHITE)
    draw = ImageDraw.Draw(canvas)
    for (text, size), height, bottom in zip(broken, heights, np.cumsum(heights), strict=True):
        draw.text((0, int(bottom) - height), text, font=_font(size), fill=INK)
    return np.array(canvas)


def _break_line(text: str, size_px: int, width_px: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _font(size_px).getlength(longer) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _legend(width_px: int, *, edge_only: bool = False) -> RgbImage:
    canvas = Image.new("RGB", (width_px, LEGEND_HEIGHT_PX), WHITE)
    draw = ImageDraw.Draw(canvas)
    x = 0.0
    for label, color in (*(() if edge_only else NUCLEI_LEGEND), ("edge of the tumour", OUTLINE)):
        if color == OUTLINE:
            draw.line((x, 12, x + 18, 12), fill=color, width=2)
        else:
            draw.ellipse((x + 4, 6, x + 16, 18), fill=color)
        draw.text((x + 24, 3), label, font=_font(TEXT_PX), fill=INK)
        x += 24 + draw.textlength(label, font=_font(TEXT_PX)) + 24
    return np.array(canvas)
