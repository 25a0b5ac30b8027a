"""Nuclei from the probabilities of the five-class network: where each is, its outline, and whether it is positive.

On a slide this happens while the network is still running: bands of answers come from top to bottom, and rows at the
lower edge of each are carried over to the next, so that a nucleus on the seam is seen whole and counted once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import geopandas
import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage, sparse
from skimage.segmentation import watershed

from ki67.geometry import Mask
from ki67.inference import Band, InferenceStatistics, Stopwatch, predict_bands
from ki67.networks import Predictor
from ki67.nucleus_table import COLUMNS, empty_nuclei, nucleus_table
from ki67.slides import Slide
from ki67.stain import separate_hed
from ki67.tiles import plan_tiles

OUTLINE_VERTICES = 20
"""Of every outline: a vertex for about every 1.5 µm."""

_HALF = 128
# Farthest that a nucleus or anything that decides on it reaches from its middle.
_REACH_UM = 24.0
# Coordinates of outlines are multiples of this: 0.016 µm is far below a pixel, and halves the size of the table.
_OUTLINE_STEP_UM = 1 / 64


@dataclass(frozen=True)
class ExtractionOptions:
    """How probabilities become single nuclei.

    Attributes
    ----------
    seed_probability
        Smoothed probability of nuclear interior from which a pixel is part of one.
    smoothing_um
        Standard deviation of the Gaussian over the probability of nuclear interior.
    smallest_um2, largest_um2
        Limits of the area of a nucleus with its membrane.
    peak_distance_um
        Least distance of the middles of two nuclei whose interiors run together.
    neck
        Two parts of one interior are two nuclei where the neck between them is narrower than this share of the
        narrower part.
    membrane_um
        Farthest that the membrane reaches out from the interior.
    """

    seed_probability: float = 0.45
    smoothing_um: float = 0.35
    smallest_um2: float = 12.0
    largest_um2: float = 500.0
    peak_distance_um: float = 2.5
    neck: float = 0.8
    membrane_um: float = 1.5


@dataclass(frozen=True)
class Nuclei:
    """Nuclei in an image; arrays of length ``N``, number ``i + 1`` of ``labels`` is entry ``i``.

    Attributes
    ----------
    labels
        int32 ``(H, W)``, 0 outside nuclei.
    x_px, y_px
        float64, centre of mass, from the image's top-left corner.
    area_px
        int64.
    positive
        bool.
    probability
        float32, mean probability 0-1 of the nucleus's own class over its pixels.
    """

    labels: NDArray[np.int32]
    x_px: NDArray[np.float64]
    y_px: NDArray[np.float64]
    area_px: NDArray[np.int64]
    positive: NDArray[np.bool_]
    probability: NDArray[np.float32]

    def chosen(self, which: NDArray[np.bool_]) -> Nuclei:
        """Only some of the nuclei, ``(N,)``, numbered anew."""
        numbers = np.concatenate([[0], np.where(which, np.cumsum(which), 0)]).astype(np.int32)
        return Nuclei(
            numbers[self.labels],
            self.x_px[which],
            self.y_px[which],
            self.area_px[which],
            self.positive[which],
            self.probability[which],
        )


def extract_nuclei(probabilities: NDArray[np.uint8], *, mpp: float, options: ExtractionOptions | None = None) -> Nuclei:
    """Single nuclei from the probabilities of the five classes.

    Interiors are where the network sees nucleus, positive or negative; those that run together are parted at narrow
    necks by a watershed of their distance transform; each then grows into the membrane around it.

    Parameters
    ----------
    probabilities
        uint8 ``(5, H, W)``, 255 for 1, in the order of ``ki67.networks.NUCLEUS_CLASSES``.
    mpp
        Microns per pixel.
    options
        See there.
    """
    options = options or ExtractionOptions()
    _, positive, positive_membrane, negative, negative_membrane = probabilities
    interior = cv2.add(positive, negative)
    foreground = cv2.add(interior, cv2.add(positive_membrane, negative_membrane))
    sigma = options.smoothing_um / mpp
    seeds = _parted(
        np.asarray(cv2.GaussianBlur(interior, (0, 0), sigma)) >= 255 * options.seed_probability, mpp, options
    )
    labels = _grown(seeds, foreground >= _HALF, options.membrane_um / mpp)
    return _measured(labels, probabilities, mpp, options)


def _parted(interior: NDArray[np.bool_], mpp: float, options: ExtractionOptions) -> NDArray[np.int32]:
    """Interiors numbered from 1, those with narrow necks cut there."""
    pixels = interior.astype(np.uint8)
    count, found = cv2.connectedComponents(pixels, connectivity=4)
    components = np.asarray(found, dtype=np.int32)
    depth = np.asarray(cv2.GaussianBlur(cv2.distanceTransform(pixels, cv2.DIST_L2, 5), (0, 0), 1.0), dtype=np.float32)
    reach = max(1, round(options.peak_distance_um / mpp))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    peaks = ((depth >= cv2.dilate(depth, disc)) & interior).astype(np.uint8)
    _, markers = cv2.connectedComponents(peaks, connectivity=8)
    # A peak lies within one component; its first pixel says in which.
    places = np.flatnonzero(peaks)
    _, first = np.unique(markers.ravel()[places], return_index=True)
    several = np.bincount(components.ravel()[places[first]], minlength=count) > 1
    crowded = several[components]
    if not crowded.any():
        return components
    rows, columns = _bounds(crowded)
    inside = crowded[rows, columns]
    parts = watershed(-depth[rows, columns], np.where(inside, markers[rows, columns], 0), mask=inside)
    parts = _without_wide_necks(parts, depth[rows, columns], options.neck)
    components[rows, columns][inside] = parts[inside] + count
    return components


def _bounds(pixels: NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _without_wide_necks(parts: NDArray[np.int32], depth: NDArray[np.float32], neck: float) -> NDArray[np.int32]:
    """Parts joined again wherever the neck between two is at least that share of the narrower one's depth."""
    count = int(parts.max()) + 1
    deepest = np.zeros(count, dtype=np.float32)
    np.maximum.at(deepest, parts.ravel(), depth.ravel())
    pairs, saddles = [], []
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        touching = (parts[first] != parts[second]) & (parts[first] > 0) & (parts[second] > 0)
        one, other = parts[first][touching], parts[second][touching]
        pairs.append(np.minimum(one, other).astype(np.int64) * count + np.maximum(one, other))
        saddles.append(np.minimum(depth[first][touching], depth[second][touching]))
    keys, which = np.unique(np.concatenate(pairs), return_inverse=True)
    if len(keys) == 0:
        return parts
    saddle = np.zeros(len(keys), dtype=np.float32)
    np.maximum.at(saddle, which, np.concatenate(saddles))
    one, other = np.divmod(keys, count)
    wide = saddle >= neck * np.minimum(deepest[one], deepest[other])
    graph = sparse.coo_array((np.ones(wide.sum()), (one[wide], other[wide])), shape=(count, count))
    # Part 0 is the background and touches nothing, so it stays a group of its own, the first.
    groups = sparse.csgraph.connected_components(graph, directed=False)[1]
    return groups[parts].astype(np.int32)


def _grown(seeds: NDArray[np.int32], foreground: NDArray[np.bool_], reach_px: float) -> NDArray[np.int32]:
    """Seeds grown over the foreground, every pixel within reach going to the nearest."""
    empty = (seeds == 0).astype(np.uint8)
    if empty.all():
        return np.zeros_like(seeds)
    distance, nearest = cv2.distanceTransformWithLabels(empty, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    number_of = np.zeros(int(nearest.max()) + 1, dtype=np.int32)
    number_of[nearest[empty == 0]] = seeds[empty == 0]
    return np.where((empty == 0) | (foreground & (distance <= reach_px)), number_of[nearest], 0)


def _measured(
    labels: NDArray[np.int32], probabilities: NDArray[np.uint8], mpp: float, options: ExtractionOptions
) -> Nuclei:
    """Nuclei within the limits of area, numbered anew."""
    area = np.bincount(labels.ravel())
    area_um2 = area * mpp**2
    kept = (area_um2 >= options.smallest_um2) & (area_um2 <= options.largest_um2)
    kept[0] = False
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    labels = numbers[labels]
    area, count = area[kept], int(kept.sum())
    rows, columns = np.nonzero(labels)
    owner = labels[rows, columns] - 1

    def total(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(owner, values, minlength=count).astype(np.float64, copy=False)

    # Sums of 8-bit values in float64 are exact, so they do not depend on the order of the pixels.
    positive = total(probabilities[1, rows, columns].astype(np.int32) + probabilities[2, rows, columns])
    negative = total(probabilities[3, rows, columns].astype(np.int32) + probabilities[4, rows, columns])
    return Nuclei(
        labels=labels,
        x_px=total(columns) / area + 0.5,
        y_px=total(rows) / area + 0.5,
        area_px=area,
        positive=positive > negative,
        probability=(np.maximum(positive, negative) / (255 * area)).astype(np.float32),
    )


# ---------------------------------------------------------------------------------------------- outlines


def outline_nuclei(nuclei: Nuclei) -> NDArray[np.float64]:
    """Outlines ``(N, OUTLINE_VERTICES, 2)`` of nuclei, x and y in pixels from the image's top-left corner."""
    result = np.empty((len(nuclei.x_px), OUTLINE_VERTICES, 2))
    for index, place in enumerate(ndimage.find_objects(nuclei.labels)):
        pixels = (nuclei.labels[place] == index + 1).view(np.uint8)
        parts, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        border = max(parts, key=len)[:, 0]
        chosen = border[np.arange(OUTLINE_VERTICES) * len(border) // OUTLINE_VERTICES]
        result[index] = chosen + np.array([place[1].start + 0.5, place[0].start + 0.5])
    # Border pixels are known by their middles: the outline lies half a pixel further out.
    outwards = result - np.column_stack([nuclei.x_px, nuclei.y_px])[:, None]
    length = np.linalg.norm(outwards, axis=2, keepdims=True)
    return result + 0.5 * outwards / np.maximum(length, 0.5)


def polygons(outlines_um: NDArray[np.float64]) -> NDArray[np.object_]:
    """Shapely polygons of outlines ``(N, V, 2)``; one that crosses itself gets its vertices in order of direction."""
    rounded = np.rint(outlines_um / _OUTLINE_STEP_UM) * _OUTLINE_STEP_UM
    result = shapely.polygons(rounded)
    for index in np.flatnonzero(~shapely.is_valid(result)):
        x, y = (rounded[index] - rounded[index].mean(axis=0)).T
        ordered = shapely.Polygon(rounded[index][np.argsort(np.arctan2(y, x), kind="stable")])
        result[index] = ordered if ordered.is_valid else shapely.MultiPoint(rounded[index]).buffer(0.25).convex_hull
    return result


# ---------------------------------------------------------------------------------------------- on a slide


@dataclass(frozen=True)
class NucleusDetection:
    """The nuclei of a slide.

    Attributes
    ----------
    table
        See ``ki67.nucleus_table``; coordinates in microns of the slide's frame, sorted by y and x.
    statistics
        Of the network's run.
    """

    table: geopandas.GeoDataFrame
    statistics: InferenceStatistics


def detect_nuclei(
    slide: Slide,
    tumor: Mask,
    network: Predictor,
    *,
    batch_size: int = 16,
    reader_threads: int = 2,
    core_px: int = 448,
    halo_px: int = 32,
    options: ExtractionOptions | None = None,
) -> NucleusDetection:
    """All nuclei in the tiles of a slide that touch the tumour.

    Parameters
    ----------
    slide
        Ki-67.
    tumor
        In the slide's frame. Nuclei outside of it but in its tiles are kept, with ``in_tumor`` false.
    network
        Of the five classes of ``ki67.networks.NUCLEUS_CLASSES``.
    batch_size, reader_threads, core_px, halo_px
        See ``ki67.inference.predict_bands`` and ``ki67.tiles``; no nucleus depends on the first two.
    options
        How probabilities become nuclei.

    Raises
    ------
    SlideError
        If the slide cannot be read somewhere.
    """
    mpp = network.spec.mpp
    plan = plan_tiles(tumor, slide.size_um, mpp=mpp, core_px=core_px, halo_px=halo_px, margin_um=_REACH_UM / 2)
    stopwatch = Stopwatch(plan)
    label = f"{slide.slide_id} nuclei"
    bands = predict_bands(
        slide,
        plan,
        network,
        batch_size=batch_size,
        reader_threads=reader_threads,
        label=label,
        stopwatch=stopwatch,
    )
    found = list(nuclei_of_bands(bands, mpp=mpp, options=options or ExtractionOptions(), stopwatch=stopwatch))
    with stopwatch.postprocessing():
        table = _table(found, tumor)
    return NucleusDetection(table, stopwatch.statistics())


@dataclass(frozen=True)
class FoundNuclei:
    """Nuclei of one strip of a slide, in microns of its frame: columns of the table, and outlines."""

    columns: dict[str, NDArray[Any]]
    outlines: NDArray[np.object_]


def nuclei_of_bands(
    bands: Iterable[Band], *, mpp: float, options: ExtractionOptions, stopwatch: Stopwatch
) -> Iterator[FoundNuclei]:
    """The nuclei of bands that come from top to bottom, each nucleus once.

    A nucleus is taken from the first strip in which it lies far enough from the lower edge to be seen whole. The rows
    above that edge are carried over to the next strip with a note of the pixels that are already taken; a nucleus there
    that consists of these for the most part was counted before.
    """
    margin = round(_REACH_UM / mpp)
    carried: _Strip | None = None
    for band in bands:
        with stopwatch.postprocessing():
            if carried is not None and carried.end_row_px != band.first_row_px:
                yield _take(carried, carried.end_row_px, margin, mpp, options)
                carried = None
            strip = _Strip.of(band) if carried is None else carried.followed_by(band)
            yield _take(strip, strip.end_row_px - margin, margin, mpp, options)
            carried = strip.last_rows(2 * margin)
    if carried is not None:
        with stopwatch.postprocessing():
            yield _take(carried, carried.end_row_px, margin, mpp, options)


@dataclass(frozen=True)
class _Strip:
    """Rows of a slide in which nuclei are looked for.

    ``taken`` marks pixels of nuclei that were counted in an earlier strip; ``top_is_edge`` says that nothing was looked
    at above.
    """

    first_row_px: int
    first_column_px: int
    probabilities: NDArray[np.uint8]
    rgb: NDArray[np.uint8]
    taken: NDArray[np.bool_]
    top_is_edge: bool

    @property
    def end_row_px(self) -> int:
        return self.first_row_px + len(self.taken)

    @classmethod
    def of(cls, band: Band) -> _Strip:
        taken = np.zeros(band.rgb.shape[:2], dtype=bool)
        return cls(band.first_row_px, band.first_column_px, band.probabilities, band.rgb, taken, True)

    def followed_by(self, band: Band) -> _Strip:
        return _Strip(
            self.first_row_px,
            self.first_column_px,
            np.concatenate([self.probabilities, band.probabilities], axis=1),
            np.concatenate([self.rgb, band.rgb]),
            np.concatenate([self.taken, np.zeros(band.rgb.shape[:2], dtype=bool)]),
            self.top_is_edge,
        )

    def last_rows(self, count: int) -> _Strip:
        skipped = max(0, len(self.taken) - count)
        return _Strip(
            self.first_row_px + skipped,
            self.first_column_px,
            self.probabilities[:, skipped:].copy(),
            self.rgb[skipped:].copy(),
            self.taken[skipped:].copy(),
            self.top_is_edge and skipped == 0,
        )


def _take(strip: _Strip, end_row_px: int, margin: int, mpp: float, options: ExtractionOptions) -> FoundNuclei:
    """The strip's nuclei whose middle lies above a row and that were not taken before; notes that they are taken."""
    nuclei = extract_nuclei(strip.probabilities, mpp=mpp, options=options)
    taken_px = np.bincount(nuclei.labels[strip.taken], minlength=len(nuclei.x_px) + 1)[1:]
    mine = (nuclei.y_px < end_row_px - strip.first_row_px) & (taken_px < 0.5 * nuclei.area_px)
    if not strip.top_is_edge:
        # What the strip's upper edge cuts was seen whole before.
        mine &= nuclei.y_px >= margin / 2
    nuclei = nuclei.chosen(mine)
    strip.taken[nuclei.labels > 0] = True
    corner_um = np.array([strip.first_column_px, strip.first_row_px]) * mpp
    hematoxylin, dab = _stain_amounts(nuclei, strip.rgb)
    columns = {
        "x_um": _shifted(nuclei.x_px, nuclei.area_px, strip.first_column_px) * mpp,
        "y_um": _shifted(nuclei.y_px, nuclei.area_px, strip.first_row_px) * mpp,
        "positive": nuclei.positive,
        "probability": nuclei.probability,
        "area_um2": nuclei.area_px * mpp**2,
        "dab_od": dab,
        "hematoxylin_od": hematoxylin,
    }
    return FoundNuclei(columns, polygons(outline_nuclei(nuclei) * mpp + corner_um))


def _shifted(middle_px: NDArray[np.float64], area_px: NDArray[np.int64], shift_px: int) -> NDArray[np.float64]:
    """Middles shifted by whole pixels, to the last digit as if the strip had begun at the slide's corner."""
    total = np.rint((middle_px - 0.5) * area_px) + shift_px * area_px
    return total / area_px + 0.5


def _stain_amounts(nuclei: Nuclei, rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean optical density of hematoxylin and of DAB over each nucleus."""
    inside = nuclei.labels > 0
    owner = nuclei.labels[inside] - 1
    amounts = separate_hed(rgb[inside])
    hematoxylin, dab = (
        np.bincount(owner, amounts[:, stain], minlength=len(nuclei.area_px)) / nuclei.area_px for stain in (0, 2)
    )
    return hematoxylin, dab


def _table(found: list[FoundNuclei], tumor: Mask) -> geopandas.GeoDataFrame:
    if not sum(len(part.outlines) for part in found):
        return empty_nuclei()
    names = [name for name in COLUMNS if name not in {"nucleus_id", "in_tumor"}]
    columns = {name: np.concatenate([part.columns[name] for part in found]) for name in names}
    columns["in_tumor"] = tumor.contains(np.column_stack([columns["x_um"], columns["y_um"]]))
    return nucleus_table(columns, np.concatenate([part.outlines for part in found]))
