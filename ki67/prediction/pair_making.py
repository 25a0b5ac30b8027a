"""Patch pairs of one slide: where they lie, what both stains show there, and which may be learned from.

Patches lie on a grid in the tumour of the H&E. The Ki-67 nuclei are carried back into the H&E's frame, where they are
counted in the patches; the Ki-67 pixels of a patch are read where the registration puts it.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ki67.errors import Stain
from ki67.geometry import Mask, Points, Transform
from ki67.prediction.he_nuclei import count_nuclei, nucleus_limit
from ki67.prediction.pair_filters import (
    AROUND_UM,
    STRUCTURE_MPP,
    PairMeasures,
    PairSettings,
    Rejection,
    field_px,
    he_structure,
    ki67_structure,
    rejections,
    similarities,
    white_share,
)
from ki67.prediction.patch_pairs import PatchPairs
from ki67.prediction.slide_stain import SlideStain

if TYPE_CHECKING:
    import pandas

    from ki67.slides import Slide

log = logging.getLogger(__name__)

GLASS_MPP = 64.0
GLASS_PERCENTILE = 95
DARKEST_GLASS = 200
LIMIT_PATCHES = 64
"""So many patches of a slide tell from where on hematoxylin is a nucleus."""
MOST_TRIES = 4
"""Patches that are mostly white are replaced by others, of at most so many times those wanted."""


@dataclass(frozen=True)
class Ki67Side:
    """The registered Ki-67 slide.

    Attributes
    ----------
    slide
        Opened.
    nuclei
        With ``x_um``, ``y_um`` in the frame ``ki67``, ``positive``, ``area_um2`` and ``in_tumor``.
    transform
        From ``he`` to ``ki67``.
    """

    slide: Slide
    nuclei: pandas.DataFrame
    transform: Transform


@dataclass(frozen=True)
class MadePairs:
    """The pairs of a slide and what became of each patch.

    Attributes
    ----------
    pairs
        As they go to disk.
    ki67
        The Ki-67 slide at the same places, uint8 as ``pairs.he``; None without a registration that holds.
    reasons
        Why each patch has no label; None where it has one.
    similarity
        Structural similarity of each pair, ``(n,)``; NaN without a Ki-67 patch.
    candidates
        Squares of the grid that are tumour enough.
    """

    pairs: PatchPairs
    ki67: NDArray[np.uint8] | None
    reasons: list[Rejection | None]
    similarity: NDArray[np.float64]
    candidates: int

    def to_json(self) -> dict[str, Any]:
        """What the record of the stage tells."""
        pairs, labelled = self.pairs, self.pairs.labelled
        known = self.similarity[np.isfinite(self.similarity)]
        return {
            "slide": pairs.slide,
            "patient": pairs.patient,
            "marker": pairs.marker,
            "slide_index": pairs.slide_index,
            "candidates": self.candidates,
            "patches": len(pairs),
            "labelled": int(labelled.sum()),
            "rejected": dict(pairs.rejected),
            "positive": int(pairs.positive.sum()),
            "negative": int(pairs.negative.sum()),
            "mean_label": float(pairs.label[labelled].mean()) if labelled.any() else None,
            "median_nuclei_he": float(np.median(pairs.nuclei_he)) if len(pairs) else None,
            "median_similarity": float(np.median(known)) if len(known) else None,
        }


def unlabelled_reason(stains: Mapping[str, Any], verdict: str) -> Rejection | None:
    """Why no patch of a slide can have a label, by the records of the stages before; None if some can.

    Parameters
    ----------
    stains
        By stain, what ``check.json`` says of the file; None where the sheet gives none.
    verdict
        Of ``transform.json``. A doubtful registration is good enough for the tumour mask and not for patches.
    """
    ki67 = stains["ki67"]
    if ki67 is None or not ki67["usable"]:
        return Rejection.NO_KI67
    verdicts = {
        "accepted": None,
        "doubtful": Rejection.REGISTRATION_DOUBTFUL,
        "rejected": Rejection.REGISTRATION_REJECTED,
    }
    return verdicts.get(verdict, Rejection.NOT_REGISTERED)


def needed_stains(tumor: Mask, unlabelled: Rejection | None) -> tuple[Stain, ...]:
    """Which slides are to be read: none without tumour on the H&E, the Ki-67 slide where patches may have labels."""
    if not tumor.pixels.any():
        return ()
    return ("he", "ki67") if unlabelled is None else ("he",)


def make_pairs(
    he: Slide | None,
    tumor: Mask,
    ki67: Ki67Side | None,
    settings: PairSettings,
    *,
    patient: str = "",
    marker: str = "Ki-67",
    slide_id: str,
    slide_index: float | None = None,
    unlabelled: Rejection | None = None,
) -> MadePairs:
    """Patches of a slide with what the registered Ki-67 slide shows at the same places.

    Parameters
    ----------
    he
        The H&E slide; None where it cannot be used, and there are no patches.
    tumor
        Tumour in the frame ``he``.
    ki67
        The Ki-67 side; None where no patch may have a label.
    slide_index
        Index of the whole slide, 0 to 1.
    unlabelled
        Why no patch may have a label, where ``ki67`` is None.

    Returns
    -------
    MadePairs
        At most ``settings.patches_per_slide`` patches from top to bottom, row by row; which ones depends on
        ``settings.seed`` and ``slide_id`` alone.
    """
    corners = tumor_squares(tumor, settings.side_um, settings.tumor_share)
    corners_um, patches, white = _readable_patches(he, corners, settings, slide_id)
    limit = nucleus_limit(patches[:: max(1, len(patches) // LIMIT_PATCHES)], settings.mpp)
    nuclei_he = count_nuclei(patches, limit, settings.mpp)
    if he is None or ki67 is None:
        labels, reasons = _Labels.none(len(patches)), [unlabelled or Rejection.NO_KI67] * len(patches)
        shown, similarity = None, np.full(len(patches), np.nan)
    else:
        shown, similarity = (
            _carried_patches(ki67, corners_um, settings),
            _similarity(he, ki67, corners_um, settings, limit.stain),
        )
        labels, reasons = _labels(shown, corners_um, nuclei_he, similarity, ki67, settings)
    found = Counter([reason.value for reason in reasons if reason] + [Rejection.WHITE_HE.value] * white)
    pairs = PatchPairs(
        slide=slide_id,
        patient=patient,
        marker=marker,
        mpp=settings.mpp,
        he=patches,
        center_um=corners_um + settings.side_um / 2,
        positive=labels.positive,
        negative=labels.negative,
        label=labels.label,
        nuclei_he=nuclei_he,
        slide_index=slide_index,
        rejected={reason.value: found[reason.value] for reason in Rejection if found[reason.value]},
        settings=vars(settings),
    )
    return MadePairs(pairs, shown, reasons, similarity, len(corners))


def tumor_squares(tumor: Mask, side_um: float, share: float) -> Points:
    """Upper left corners ``(n, 2)`` of the squares of a grid that are tumour to this share, row by row, in microns."""
    rows, columns = np.nonzero(tumor.pixels)
    if not len(rows):
        return np.zeros((0, 2))
    # Each mask pixel counts where its centre lies.
    across = np.floor((columns + 0.5) * tumor.mpp / side_um).astype(np.int64)
    down = np.floor((rows + 0.5) * tumor.mpp / side_um).astype(np.int64)
    width = int(across.max()) + 1
    area = np.bincount(down * width + across) * tumor.mpp**2
    squares = np.flatnonzero(area >= share * side_um**2)
    return np.column_stack([squares % width, squares // width]) * np.float64(side_um)


def drawn_order(count: int, seed: int, slide_id: str) -> NDArray[np.int64]:
    """A permutation of ``count`` places that seed and slide decide, and no other slide does."""
    digest = hashlib.sha256(f"{seed}:{slide_id}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32)).permutation(count)


def carried_patch(
    read: Callable[[float, float, int, int, float], NDArray[np.uint8]],
    corner_um: NDArray[np.float64],
    transform: Transform,
    size_px: int,
    mpp: float,
) -> NDArray[np.uint8]:
    """What the Ki-67 slide shows in a square of the H&E's frame, turned and mirrored onto it, uint8 ``(S, S, 3)``.

    Parameters
    ----------
    read
        As ``ki67.slides.Slide.read``.
    corner_um
        Upper left corner in the frame ``he``.
    transform
        From ``he`` to ``ki67``.
    """
    centres = (np.arange(size_px) + 0.5) * mpp
    x, y = np.meshgrid(corner_um[0] + centres, corner_um[1] + centres)
    there = transform.apply(np.column_stack([x.ravel(), y.ravel()]))
    low = np.floor(there.min(axis=0) / mpp) - 1
    width, height = (np.ceil(there.max(axis=0) / mpp) - low + 2).astype(int)
    window = read(float(low[0] * mpp), float(low[1] * mpp), int(width), int(height), mpp)
    across, down = ((there / mpp - low - 0.5).reshape(size_px, size_px, 2).astype(np.float32)).transpose(2, 0, 1)
    carried = cv2.remap(window, np.ascontiguousarray(across), np.ascontiguousarray(down), cv2.INTER_LINEAR)
    return np.asarray(carried, dtype=np.uint8)


def glass_color(slide: Slide) -> NDArray[np.uint8]:
    """Red, green and blue of empty glass, uint8 ``(3,)``, from the brightest of the whole slide."""
    pixels = slide.thumbnail(GLASS_MPP).reshape(-1, 3)
    return np.clip(np.percentile(pixels, GLASS_PERCENTILE, axis=0), DARKEST_GLASS, 255).astype(np.uint8)


@dataclass(frozen=True)
class _Labels:
    """Columns of the pairs, each ``(n,)``."""

    positive: NDArray[np.int32]
    negative: NDArray[np.int32]
    label: NDArray[np.float32]

    @classmethod
    def none(cls, count: int) -> _Labels:
        zeros = np.zeros(count, dtype=np.int32)
        return cls(zeros, zeros.copy(), np.full(count, np.nan, dtype=np.float32))


def _readable_patches(
    he: Slide | None, corners_um: Points, settings: PairSettings, slide_id: str
) -> tuple[Points, NDArray[np.uint8], int]:
    """Corners and pixels of the chosen patches row by row, and how many of those tried are mostly white."""
    size, wanted = settings.size_px, settings.patches_per_slide
    chosen: list[int] = []
    patches: list[NDArray[np.uint8]] = []
    white = 0
    if he is not None and len(corners_um):
        glass = glass_color(he)
        order = drawn_order(len(corners_um), settings.seed, slide_id)[: MOST_TRIES * wanted]
        for place in tqdm(order, desc=f"{slide_id} H&E patches", unit="patch", disable=None):
            if len(chosen) == wanted:
                break
            x_um, y_um = corners_um[place]
            patch = he.read(float(x_um), float(y_um), size, size, settings.mpp)
            if white_share(patch, glass) < settings.white_he:
                chosen.append(int(place))
                patches.append(patch)
            else:
                white += 1
    by_place = np.argsort(chosen)
    pixels = np.stack([patches[index] for index in by_place]) if chosen else np.zeros((0, size, size, 3), np.uint8)
    return corners_um[np.sort(np.array(chosen, dtype=np.int64))], pixels, white


def _labels(
    carried: NDArray[np.uint8],
    corners_um: Points,
    nuclei_he: NDArray[np.float32],
    similarity: NDArray[np.float64],
    ki67: Ki67Side,
    settings: PairSettings,
) -> tuple[_Labels, list[Rejection | None]]:
    """Labels, and why there is none."""
    glass = glass_color(ki67.slide)
    counts = _count_in_squares(ki67, corners_um, settings.side_um)
    measures = PairMeasures(
        white_ki67=np.array([white_share(patch, glass) for patch in carried], dtype=np.float64),
        nuclei_he=nuclei_he,
        nuclei_ki67=counts.nuclei,
        tumor_nuclei=counts.positive + counts.negative,
        similarity=similarity,
    )
    reasons = rejections(measures, settings)
    kept = np.array([reason is None for reason in reasons], dtype=bool)
    label = np.where(kept, counts.share(settings.label), np.nan).astype(np.float32)
    positive, negative = ((nuclei * kept).astype(np.int32) for nuclei in (counts.positive, counts.negative))
    return _Labels(positive, negative, label), reasons


def _similarity(
    he: Slide, ki67: Ki67Side, corners_um: Points, settings: PairSettings, stain: SlideStain
) -> NDArray[np.float64]:
    """Structural similarity of both stains in a field around each patch."""
    side = field_px(settings.side_um)
    pairs = []
    for corner in corners_um - AROUND_UM:
        field = he.read(float(corner[0]), float(corner[1]), side, side, STRUCTURE_MPP)
        there = carried_patch(ki67.slide.read, corner, ki67.transform, side, STRUCTURE_MPP)
        pairs.append((he_structure(field, stain), ki67_structure(there)))
    if not pairs:
        return np.zeros(0)
    one, other = (np.stack(structures) for structures in zip(*pairs, strict=True))
    return similarities(one, other)


def _carried_patches(ki67: Ki67Side, corners_um: Points, settings: PairSettings) -> NDArray[np.uint8]:
    size = settings.size_px
    squares = tqdm(corners_um, desc=f"{ki67.slide.slide_id} Ki-67 patches", unit="patch", disable=None)
    carried = [carried_patch(ki67.slide.read, corner, ki67.transform, size, settings.mpp) for corner in squares]
    return np.stack(carried) if carried else np.zeros((0, size, size, 3), dtype=np.uint8)


@dataclass(frozen=True)
class _Counts:
    """Ki-67 nuclei in squares of the H&E's frame, each ``(n,)``: of all kinds, tumour nuclei, their areas in µm²."""

    nuclei: NDArray[np.int64]
    positive: NDArray[np.int64]
    negative: NDArray[np.int64]
    positive_um2: NDArray[np.float64]
    negative_um2: NDArray[np.float64]

    def share(self, label: str) -> NDArray[np.float64]:
        """Share of the marker by number or area; 0 where there is nothing."""
        parts = (self.positive, self.negative) if label == "count" else (self.positive_um2, self.negative_um2)
        positive, negative = (part.astype(np.float64) for part in parts)
        return np.asarray(positive / np.maximum(positive + negative, 1e-9))


def _count_in_squares(ki67: Ki67Side, corners_um: Points, side_um: float) -> _Counts:
    """The nuclei whose centres, carried back into the H&E's frame, lie in each square of the grid."""
    nuclei, count = ki67.nuclei, len(corners_um)
    there = ki67.transform.inverse().apply(nuclei[["x_um", "y_um"]].to_numpy(dtype=np.float64))
    squares, keys = (_grid_keys(points, side_um) for points in (corners_um + side_um / 2, there))
    place = np.minimum(np.searchsorted(squares, keys), max(count - 1, 0))
    place = np.where(squares[place] == keys, place, count) if count else np.zeros(len(keys), dtype=np.int64)
    tumor, positive = nuclei["in_tumor"].to_numpy(dtype=bool), nuclei["positive"].to_numpy(dtype=bool)
    area = nuclei["area_um2"].to_numpy(dtype=np.float64)

    def added(which: NDArray[np.bool_], weights: NDArray[np.float64] | None = None) -> NDArray[Any]:
        chosen = None if weights is None else weights[which]
        return np.bincount(place[which], weights=chosen, minlength=count + 1)[:count]

    one, other = tumor & positive, tumor & ~positive
    return _Counts(added(np.ones_like(tumor)), added(one), added(other), added(one, area), added(other, area))


def _grid_keys(points_um: Points, side_um: float) -> NDArray[np.int64]:
    """A number for the square of the grid that each point ``(N, 2)`` lies in, which grows row by row."""
    across, down = np.floor(points_um / side_um).astype(np.int64).T
    return down * 2**31 + across
