"""Where tissue lies on a slide, and whether the slide can be used: the science of the check stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.artifacts import doubled_parts, find_blurred_parts, find_control_tissue, find_folds
from ki67.errors import STAIN_NAMES, Finding, Flag, SlideError, Stain
from ki67.geometry import Mask
from ki67.guarded import GuardedError, run_guarded
from ki67.slides import Slide, open_slide, slide_error
from ki67.stain import StainIdentity, identify_stain, optical_density

SMOOTH_TEXTURE = 1.5  # grey levels; glass at 8 µm/px has 0 to 1, the palest stroma 2 to 4
TISSUE_TEXTURE = 3.0
GLASS_BRIGHTNESS = 200
LEAST_GLASS_SHARE = 0.005
TISSUE_OD_RANGE = (0.05, 0.12)  # sum of three densities above glass; the threshold found by Otsu is kept in it
TEXTURED_OD = 0.025
GREY_CHROMA = 0.015
BLACK_BRIGHTNESS = 45
CLOSING_UM = 32.0
SMALLEST_TISSUE_MM2 = 0.005
SMALLEST_TISSUE_SHARE = 0.02
LARGEST_HOLE_MM2 = 0.02
PEN_WIDTH_UM = 160.0
PEN_EDGE_UM = 40.0
PEN_TEXTURE = 4.0
DENSE_INK = 1.2
LEAST_PEN_MM2 = 0.05

PROBE_UM = 128.0
PROBE_MPP = 0.5
PROBES = 64
LEAST_PROBE_TISSUE = 0.5
IDENTITY_PIXELS = 400_000
BLUR_LIMIT = 0.18  # real fields have 0.25 to 2.8; blurred by a gaussian of 3 µm, 0.10 to 0.17
BLURRED_SHARE_LIMIT = 0.5

# Limits of a check. A slide of 1 GB takes seconds; one without a pyramid is decoded whole. Tissue all over a glass of
# 75 x 25 mm needs 2 GB, and its file is not small; a small one that asks for so much is no slide.
CPU_S, CPU_S_PER_GB = 60, 600
MEMORY_BYTES, MEMORY_PER_BYTE, MOST_FURTHER_BYTES = 7 * 2**28, 8, 2**31

RgbImage = NDArray[np.uint8]


@dataclass(frozen=True)
class TissueFinding:
    """What lies on the glass.

    Attributes
    ----------
    mask
        Tissue, without pen marks and folds.
    pen_fraction, fold_fraction
        Shares of the slide's area under pen, and in folds of the tissue.
    glass_rgb
        Colour of clear glass, white where the image shows none.
    """

    mask: Mask
    pen_fraction: float
    fold_fraction: float
    glass_rgb: tuple[float, float, float]


@dataclass(frozen=True)
class Focus:
    """Sharpness of sampled tissue tiles.

    Attributes
    ----------
    tiles
        Number of tiles sampled.
    sharpness
        Median of ``focus_score``; NaN without tiles.
    blurred_share
        Share of tiles below ``BLUR_LIMIT``.
    """

    tiles: int
    sharpness: float
    blurred_share: float

    @classmethod
    def of(cls, scores: list[float]) -> Self:
        """Summary of the scores of all sampled tiles."""
        if not scores:
            return cls(0, float("nan"), 0.0)
        return cls(len(scores), float(np.median(scores)), float(np.mean(np.array(scores) < BLUR_LIMIT)))


@dataclass(frozen=True)
class StainCheck:
    """All that the check stage says of one stained slide; ``tissue`` and ``thumbnail`` are not part of its JSON.

    ``tissue`` is empty where the slide is not usable, so that every later stage has nothing to do there.
    """

    usable: bool
    reader: str | None
    mpp: float | None
    mpp_source: str | None
    width_px: int | None
    height_px: int | None
    tissue_mm2: float
    tissue_mpp: float
    identity: StainIdentity
    focus: Focus
    findings: tuple[Finding, ...]
    tissue: Mask
    thumbnail: RgbImage

    @classmethod
    def failed(cls, finding: Finding, stain: Stain, tissue_mpp: float = 8.0) -> Self:
        """The check of a slide that cannot be read: no tissue, a white pixel as thumbnail."""
        return cls(
            usable=False,
            reader=None,
            mpp=None,
            mpp_source=None,
            width_px=None,
            height_px=None,
            tissue_mm2=0.0,
            tissue_mpp=tissue_mpp,
            identity=StainIdentity("unknown", 0.0, "blank"),
            focus=Focus.of([]),
            findings=(finding,),
            tissue=Mask.empty(stain, tissue_mpp),
            thumbnail=np.full((1, 1, 3), 255, dtype=np.uint8),
        )

    def to_json(self) -> dict[str, Any]:
        """The check as plain JSON values; the findings are listed for the whole slide, beside both stains."""
        names = ("usable", "reader", "mpp", "mpp_source", "width_px", "height_px", "tissue_mm2", "tissue_mpp")
        return {name: getattr(self, name) for name in names} | {
            "identity": {
                "stain": self.identity.stain,
                "confidence": round(self.identity.confidence, 4),
                "reason": self.identity.reason,
            },
            "focus": {
                "tiles": self.focus.tiles,
                "sharpness": round(self.focus.sharpness, 4) if self.focus.tiles else None,
                "blurred_share": round(self.focus.blurred_share, 4),
            },
        }


def find_tissue(thumbnail: RgbImage, mpp: float, frame: Stain) -> TissueFinding:
    """Tissue on a thumbnail: what is darker or more textured than glass, and no pen, fold, shadow, border or speck.

    Glass is the bright part without texture; where an image has none, as a field inside tissue, white stands for it.

    Parameters
    ----------
    thumbnail
        uint8 ``(rows, columns, 3)`` of the whole slide.
    mpp
        Microns per thumbnail pixel; limits of texture are measured at 8.
    frame
        The slide's frame.
    """
    brightness = thumbnail.mean(axis=2, dtype=np.float32)
    texture = _local_deviation(brightness)
    glass = _glass_colour(thumbnail, brightness, texture)
    density, chroma = _density_and_chroma(thumbnail, glass)
    texture = _blur(texture)
    shadow = (chroma < GREY_CHROMA) & (texture < SMOOTH_TEXTURE)
    textured = (texture > TISSUE_TEXTURE) & (density > TEXTURED_OD)
    pixels = (((density > _density_limit(density)) & ~shadow) | textured) & ~_black_border(thumbnail)
    pen = _pen(thumbnail, texture, mpp)
    pixels = _tidy(pixels & ~pen, mpp) & ~pen
    folds = doubled_parts(find_folds(density, pixels, mpp), optical_density(thumbnail, glass), pixels, mpp)
    return TissueFinding(Mask(pixels & ~folds, mpp, frame), float(pen.mean()), float(folds.mean()), glass)


def focus_score(tile: RgbImage, mpp: float) -> float:
    """Detail of 0.5-1 µm relative to detail of 2-4 µm, which blur takes away and faint staining does not.

    The two differences of gaussians are a two-band form of the energy of the Laplacian (Pertuz et al., Analysis of
    focus measure operators, 2013); their ratio does not depend on contrast.

    Parameters
    ----------
    tile
        uint8 ``(rows, columns, 3)``, at least 32 µm wide.
    mpp
        Microns per pixel, 0.5 or a little less.

    Returns
    -------
    Ratio of standard deviations: below ``BLUR_LIMIT`` (0.18) the tile is blurred by some 2 to 3 µm (gaussian sigma).
    """
    brightness = tile.mean(axis=2, dtype=np.float32)
    fine, finer, coarse, coarser = (cv2.GaussianBlur(brightness, (0, 0), sigma / mpp) for sigma in (0.5, 1.0, 2.0, 4.0))
    inside = slice(8, -8), slice(8, -8)
    return float(np.std((fine - finer)[inside]) / max(0.3, np.std((coarse - coarser)[inside])))


def check_slide(slide: Slide, *, tissue_mpp: float = 8.0) -> StainCheck:
    """Look a slide over: tissue, stain, focus, artifacts, and whether tiles spread over its tissue can be decoded.

    Pen, folds and parts that are out of focus are left out of the tissue.

    Parameters
    ----------
    slide
        An open slide.
    tissue_mpp
        Microns per pixel of the tissue mask and the thumbnail.

    Returns
    -------
    The check; its ``usable`` is false where a finding forbids any use. A slide that turns out damaged while it is read
    is returned as unusable, not raised.
    """
    try:
        thumbnail = slide.thumbnail(tissue_mpp)
        tissue = find_tissue(thumbnail, tissue_mpp, slide.stain)
        tiles = _probe_tiles(slide, tissue.mask)
        blurred = find_blurred_parts(slide, tissue.mask)
    except SlideError as error:
        return StainCheck.failed(error.finding, slide.stain, tissue_mpp)
    identity = _identify(tiles, thumbnail)
    focus = Focus.of([focus_score(tile, PROBE_MPP) for tile in tiles])
    findings = _findings(slide, tissue, identity, focus, thumbnail, Mask(blurred, tissue_mpp, slide.stain).area_mm2)
    usable = not any(finding.flag in {Flag.NO_TISSUE, Flag.WRONG_STAIN} for finding in findings)
    kept = Mask(tissue.mask.pixels & ~blurred, tissue_mpp, slide.stain)
    return StainCheck(
        usable=usable,
        reader=slide.reader,
        mpp=slide.mpp,
        mpp_source=slide.mpp_source,
        width_px=slide.width_px,
        height_px=slide.height_px,
        tissue_mm2=0.0 if identity.excluded else kept.area_mm2,
        tissue_mpp=tissue_mpp,
        identity=identity,
        focus=focus,
        findings=findings,
        tissue=kept if usable else Mask.empty(slide.stain, tissue_mpp),
        thumbnail=thumbnail,
    )


def check_slide_file(
    path: Path | str, *, slide_id: str, stain: Stain, mpp: float | None, tissue_mpp: float
) -> StainCheck:
    """Check a file in a process of its own, which a damaged or hostile file may crash, or make run or grow without end.

    Such a file is unusable like any other that cannot be read; so is one that cannot be opened.

    Parameters
    ----------
    path, slide_id, stain, mpp
        As ``ki67.slides.open_slide`` takes them.
    tissue_mpp
        Microns per pixel of the tissue mask and the thumbnail.
    """

    def check() -> StainCheck:
        try:
            with open_slide(path, slide_id=slide_id, stain=stain, mpp=mpp) as slide:
                return check_slide(slide, tissue_mpp=tissue_mpp)
        except SlideError as error:
            return StainCheck.failed(error.finding, stain, tissue_mpp)

    size = Path(path).stat().st_size if Path(path).is_file() else 0
    further_bytes = min(MEMORY_PER_BYTE * size, MOST_FURTHER_BYTES)
    limits = {"cpu_s": CPU_S + CPU_S_PER_GB * size // 10**9, "memory_bytes": MEMORY_BYTES + further_bytes}
    try:
        return run_guarded(check, **limits)
    except GuardedError as error:
        text = f"{error} when it is read; copy it again from its source or convert it to a pyramidal TIFF"
        return StainCheck.failed(slide_error(Flag.UNREADABLE, slide_id, stain, text).finding, stain, tissue_mpp)


def without_control_tissue(ki67: StainCheck, he: StainCheck | None, *, slide_id: str) -> StainCheck:
    """The check of a Ki-67 slide without control tissue, which is seen by having no counterpart on the H&E.

    Without an H&E that can be used, what looks like control tissue is flagged and stays in the tissue.

    Parameters
    ----------
    ki67, he
        Checks of both slides; ``he`` is None where the sample sheet gives none.
    slide_id
        Begins the sentence of the finding.
    """
    compared = he is not None and he.usable
    control = find_control_tissue(ki67.tissue, he.tissue if he is not None and compared else None)
    if not control.pixels.any():
        return ki67
    if compared:
        text = f"{control.area_mm2:.2f} mm² apart from the section has no counterpart on the H&E and is left out"
        remedy = "if it is no control tissue, score the Ki-67 slide in a row without the H&E"
        kept = Mask(ki67.tissue.pixels & ~control.pixels, control.mpp, control.frame)
        ki67 = replace(ki67, tissue=kept, tissue_mm2=kept.area_mm2)
    else:
        text = f"{control.area_mm2:.2f} mm² apart from the section may be control tissue and is not left out"
        remedy = "draw polygons of the class Exclude around it and name their file in roi_ki67 if it is"
    finding = Finding(Flag.CONTROL_TISSUE_SEEN, f"{slide_id}: {text}; {remedy}", "ki67")
    return replace(ki67, findings=(*ki67.findings, finding))


def _local_deviation(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standard deviation over 3 x 3 pixels, of what is left without slopes such as the shadow of an edge."""
    image = image - cv2.blur(image, (7, 7))
    return np.sqrt(np.maximum(_blur(image * image) - _blur(image) ** 2, 0), dtype=np.float32)


def _blur(image: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(cv2.blur(image, (3, 3)), dtype=np.float32)


def _glass_colour(
    thumbnail: RgbImage, brightness: NDArray[np.float32], texture: NDArray[np.float32]
) -> tuple[float, float, float]:
    """Colour of the brighter half of the pixels that are bright and smooth."""
    glass = (texture < SMOOTH_TEXTURE) & (brightness > GLASS_BRIGHTNESS)
    if glass.mean() < LEAST_GLASS_SHARE:
        return (255.0, 255.0, 255.0)
    glass &= brightness >= np.median(brightness[glass])
    red, green, blue = (float(value) for value in np.median(thumbnail[glass], axis=0))
    return red, green, blue


def _density_and_chroma(
    thumbnail: RgbImage, glass: tuple[float, float, float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sum of the three densities, and largest less smallest, both smoothed over a pixel."""
    density = cv2.GaussianBlur(optical_density(thumbnail, glass), (0, 0), 0.7)
    return density.sum(axis=2), density.max(axis=2) - density.min(axis=2)


def _density_limit(density: NDArray[np.float32]) -> float:
    """Otsu's threshold, kept in a range: a blank slide has no tissue to split off, a field in tissue has no glass."""
    scaled = np.clip(density * 200, 0, 255).astype(np.uint8)
    limit, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return float(np.clip(limit / 200, *TISSUE_OD_RANGE))


def _black_border(thumbnail: RgbImage) -> NDArray[np.bool_]:
    """Black areas along most of a side of the image: frames, unscanned parts, dark field."""
    black = thumbnail.max(axis=2) < BLACK_BRIGHTNESS
    height, width = black.shape
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(black.astype(np.uint8), connectivity=4)
    left, top, columns, rows, _ = statistics.T
    at_side = ((left == 0) | (left + columns == width)) & (rows > height / 2)
    at_end = ((top == 0) | (top + rows == height)) & (columns > width / 2)
    kept = at_side | at_end
    kept[0] = False
    return np.asarray(kept[labels], dtype=bool)


def _pen(thumbnail: RgbImage, texture: NDArray[np.float32], mpp: float) -> NDArray[np.bool_]:
    """Strokes of marker: a green, blue, red or black no stain has, broader in places than any stained structure."""
    density = optical_density(thumbnail)
    total = density.sum(axis=2)
    red, green, blue = np.moveaxis(density / np.maximum(total, 1e-3)[..., None], -1, 0)
    is_green = (total > 0.4) & (np.minimum(red, blue) - green > 0.05)
    is_blue = (red > 0.48) & (blue < 0.20)
    is_red = (red < 0.14) & (np.abs(green - blue) < 0.12)
    is_black = (thumbnail.max(axis=2) < 90) & (thumbnail.max(axis=2) - thumbnail.min(axis=2) < 25)
    # Ink over tissue is as textured as the tissue, but denser than any stain in the mean of 8 µm.
    dense_enough = total > np.where(texture < PEN_TEXTURE, 0.5, DENSE_INK)
    ink = (is_green | ((is_blue | is_red | is_black) & dense_enough)) & ~_black_border(thumbnail)
    return _broad_strokes(ink, mpp)


def _broad_strokes(ink: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    """The connected strokes that are broad somewhere, and their soft edges."""
    strokes = cv2.morphologyEx(ink.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    broad = cv2.morphologyEx(strokes, cv2.MORPH_OPEN, _disc(PEN_WIDTH_UM, mpp))
    if broad.sum() * mpp**2 / 1e6 < LEAST_PEN_MM2:
        return np.zeros(ink.shape, dtype=bool)
    count, labels = cv2.connectedComponents(strokes, connectivity=8)
    kept = np.zeros(count, dtype=bool)
    kept[np.unique(labels[broad > 0])] = True
    kept[0] = False
    return np.asarray(cv2.dilate(kept[labels].astype(np.uint8), _disc(PEN_EDGE_UM, mpp)) > 0)


def _disc(width_um: float, mpp: float) -> NDArray[np.uint8]:
    size = max(3, 2 * round(width_um / mpp / 2) + 1)
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)), dtype=np.uint8)


def _tidy(pixels: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    """Close gaps, fill small holes, drop specks and lines."""
    opened = cv2.morphologyEx(pixels.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    closed = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, _disc(CLOSING_UM, mpp), borderType=cv2.BORDER_REPLICATE)
    pixel_mm2 = mpp**2 / 1e6
    smallest = min(SMALLEST_TISSUE_MM2 / pixel_mm2, SMALLEST_TISSUE_SHARE * pixels.size)
    filled = ~_parts_from(closed == 0, LARGEST_HOLE_MM2 / pixel_mm2)
    return _parts_from(filled, smallest)


def _parts_from(pixels: NDArray[np.bool_], smallest_px: float) -> NDArray[np.bool_]:
    """The connected parts that have at least so many pixels."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(pixels.astype(np.uint8), connectivity=4)
    kept = statistics[:, cv2.CC_STAT_AREA] >= smallest_px
    kept[0] = False
    return kept[labels]


def _probe_tiles(slide: Slide, tissue: Mask) -> list[RgbImage]:
    """Tiles of 128 µm spread over the tissue, decoded from level 0, so that a damaged file shows, and reduced."""
    side_px = max(1, round(min(PROBE_UM, *slide.size_um) / slide.mpp))
    reduced_px = max(1, round(side_px * slide.mpp / PROBE_MPP))
    furthest_x_um, furthest_y_um = (max(0.0, size - PROBE_UM) for size in slide.size_um)
    tiles = []
    for x_um, y_um in _probe_corners(tissue):
        tile = slide.read(min(x_um, furthest_x_um), min(y_um, furthest_y_um), side_px, side_px, slide.mpp)
        tiles.append(cv2.resize(tile, (reduced_px, reduced_px), interpolation=cv2.INTER_AREA))
    return [np.asarray(tile, dtype=np.uint8) for tile in tiles]


def _probe_corners(tissue: Mask) -> list[tuple[float, float]]:
    """Top-left corners of squares with most tissue, evenly spread in reading order, in µm."""
    size = max(1, round(PROBE_UM / tissue.mpp))
    rows, columns = (-(-extent // size) for extent in tissue.pixels.shape)
    padded = np.zeros((rows * size, columns * size), dtype=np.float32)
    padded[: tissue.pixels.shape[0], : tissue.pixels.shape[1]] = tissue.pixels
    share = padded.reshape(rows, size, columns, size).mean(axis=(1, 3))
    chosen = np.argwhere(share >= min(LEAST_PROBE_TISSUE, share.max()) if share.any() else np.zeros_like(share))
    if len(chosen) > PROBES:
        chosen = chosen[np.linspace(0, len(chosen) - 1, PROBES).round().astype(int)]
    return [(float(column * size * tissue.mpp), float(row * size * tissue.mpp)) for row, column in chosen]


def _identify(tiles: list[RgbImage], thumbnail: RgbImage) -> StainIdentity:
    if not tiles:
        return identify_stain(thumbnail)
    step = max(1, round(np.sqrt(sum(tile[..., 0].size for tile in tiles) / IDENTITY_PIXELS)))
    return identify_stain(np.concatenate([tile[::step, ::step].reshape(-1, 3) for tile in tiles]))


def _findings(
    slide: Slide,
    tissue: TissueFinding,
    identity: StainIdentity,
    focus: Focus,
    thumbnail: RgbImage,
    blurred_mm2: float,
) -> tuple[Finding, ...]:
    slide_name = f"{STAIN_NAMES[slide.stain]} slide"
    pen_mm2, fold_mm2 = (
        share * tissue.mask.pixels.size * tissue.mask.mpp**2 / 1e6
        for share in (tissue.pen_fraction, tissue.fold_fraction)
    )
    messages = {
        **_stain_message(slide, slide_name, identity, tissue, thumbnail),
        Flag.OUT_OF_FOCUS: f"{focus.blurred_share:.0%} of the tissue sampled on the {slide_name} is out of focus; "
        "scan it again, or look at its pictures before using the index"
        if focus.blurred_share > BLURRED_SHARE_LIMIT
        else "",
        Flag.PEN_MARK: f"pen covers {pen_mm2:.2f} mm² of the {slide_name} and is left out of the tissue; "
        "check that no tumour lies under it"
        if pen_mm2
        else "",
        Flag.FOLD: f"folds cover {fold_mm2:.2f} mm² of the {slide_name} and are left out of the tissue; "
        "check on its tissue mask that they are folds"
        if fold_mm2
        else "",
        Flag.BLURRED_PART: f"{blurred_mm2:.2f} mm² of the {slide_name} are out of focus and left out of the tissue; "
        "scan it again if much of the tumour lies there"
        if blurred_mm2
        else "",
    }
    return tuple(Finding(flag, f"{slide.slide_id}: {text}", slide.stain) for flag, text in messages.items() if text)


def _stain_message(
    slide: Slide, slide_name: str, identity: StainIdentity, tissue: TissueFinding, thumbnail: RgbImage
) -> dict[Flag, str]:
    column = f"column {slide.stain} of {slide.slide_id} in the sample sheet"
    if identity.excluded:
        what = f"{identity.reason} (median brightness {np.median(thumbnail):.0f} of 255)"
        text = f"the {slide_name} is {what}, so it is no brightfield scan of that stain"
        return {Flag.WRONG_STAIN: f"{text}; correct {column}"}
    if not tissue.mask.pixels.any():
        return {Flag.NO_TISSUE: f"no tissue was found on the {slide_name}; look at its thumbnail and check {column}"}
    if identity.stain == "unknown":
        text = f"it is unclear whether the {slide_name} is H&E or Ki-67 (confidence {identity.confidence:.2f})"
        return {Flag.STAIN_UNCERTAIN: f"{text}; look at its thumbnail and check {column}"}
    if identity.stain != slide.stain:
        other = STAIN_NAMES[identity.stain]
        text = f"the {slide_name} looks like {other} (confidence {identity.confidence:.2f})"
        return {Flag.WRONG_STAIN: f"{text}; check whether the columns he and ki67 of {slide.slide_id} are swapped"}
    return {}
