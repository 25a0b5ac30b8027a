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
WHITE_EXAMPLES = 4
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
    white
        Some of the patches that were left out as mostly white, uint8 ``(k, size, size, 3)``.
    candidates
        Squares of the grid that are tumour enough.
    """

    pairs: PatchPairs
    ki67: NDArray[np.uint8] | None
    reasons: list[Rejection | None]
    similarity: NDArray[np.float64]
    white: NDArray[np.uint8]
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
    squares = tumor_squares(tumor, settings.side_um, settings.tumor_share)
    read = _read_patches(he, squares, settings, slide_id)
    limit = nucleus_limit(read.he[:: max(1, len(read.he) // LIMIT_PATCHES)], settings.mpp)
    nuclei_he = count_nuclei(read.he, limit, settings.mpp)
    if he is None or ki67 is None:
        seen = _Ki67Seen.nothing(len(read.he), unlabelled or Rejection.NO_KI67)
    else:
        seen = _look_at_ki67(he, ki67, read.corners_um, nuclei_he, settings, limit.stain)
    found = Counter([*seen.reasons, *[Rejection.WHITE_HE] * read.white])
    pairs = PatchPairs(
        slide=slide_id,
        patient=patient,
        marker=marker,
        mpp=settings.mpp,
        he=read.he,
        center_um=read.corners_um + settings.side_um / 2,
        positive=seen.positive,
        negative=seen.negative,
        label=seen.label,
        nuclei_he=nuclei_he,
        slide_index=slide_index,
        rejected={reason.value: found[reason] for reason in Rejection if found[reason]},
        settings=vars(settings),
    )
    return MadePairs(pairs, seen.patches, seen.reasons, seen.similarity, read.white_examples, len(squares))


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
class _Patches:
    """What was read of the H&E: corners ``(n, 2)`` and pixels row by row, how many were white, and some of those."""

    corners_um: Points
    he: NDArray[np.uint8]
    white: int
    white_examples: NDArray[np.uint8]


def _read_patches(he: Slide | None, squares_um: Points, settings: PairSettings, slide_id: str) -> _Patches:
    """The chosen patches of the H&E; those that are mostly white are replaced by the next in the drawn order."""
    wanted = settings.patches_per_slide
    chosen: list[int] = []
    patches: list[NDArray[np.uint8]] = []
    white: list[NDArray[np.uint8]] = []
    if he is not None and len(squares_um):
        glass = glass_color(he)
        order = drawn_order(len(squares_um), settings.seed, slide_id)[: MOST_TRIES * wanted]
        for place in tqdm(order, desc=f"{slide_id} H&E patches", unit="patch", disable=None):
            if len(chosen) == wanted:
                break
            x_um, y_um = squares_um[place]
            patch = he.read(float(x_um), float(y_um), settings.size_px, settings.size_px, settings.mpp)
            if white_share(patch, glass) < settings.white_he:
                chosen.append(int(place))
                patches.append(patch)
            else:
                white.append(patch)
    row_by_row = np.argsort(chosen)
    return _Patches(
        squares_um[np.sort(np.array(chosen, dtype=np.int64))],
        _stacked([patches[index] for index in row_by_row], settings.size_px),
        len(white),
        _stacked(white[:WHITE_EXAMPLES], settings.size_px),
    )


def _stacked(patches: list[NDArray[np.uint8]], size_px: int) -> NDArray[np.uint8]:
    return np.stack(patches) if patches else np.zeros((0, size_px, size_px, 3), dtype=np.uint8)


@dataclass(frozen=True)
class _Ki67Seen:
    """What the Ki-67 slide tells of each patch: columns of the pairs ``(n,)``, reasons, pixels, similarity."""

    positive: NDArray[np.int32]
    negative: NDArray[np.int32]
    label: NDArray[np.float32]
    reasons: list[Rejection | None]
    patches: NDArray[np.uint8] | None
    similarity: NDArray[np.float64]

    @classmethod
    def nothing(cls, count: int, reason: Rejection) -> _Ki67Seen:
        zeros, unknown = np.zeros(count, dtype=np.int32), np.full(count, np.nan)
        return cls(zeros, zeros.copy(), unknown.astype(np.float32), [reason] * count, None, unknown)


def _look_at_ki67(
    he: Slide,
    ki67: Ki67Side,
    corners_um: Points,
    nuclei_he: NDArray[np.float32],
    settings: PairSettings,
    stain: SlideStain,
) -> _Ki67Seen:
    """Count, compare and decide, patch by patch."""
    size, glass = settings.size_px, glass_color(ki67.slide)
    places = tqdm(corners_um, desc=f"{ki67.slide.slide_id} Ki-67 patches", unit="patch", disable=None)
    carried = [carried_patch(ki67.slide.read, corner, ki67.transform, size, settings.mpp) for corner in places]
    counts = _count_in_squares(ki67, corners_um, settings.side_um)
    measures = PairMeasures(
        white_ki67=np.array([white_share(patch, glass) for patch in carried], dtype=np.float64),
        nuclei_he=nuclei_he,
        nuclei_ki67=counts.nuclei,
        tumor_nuclei=counts.positive + counts.negative,
        similarity=_similarity(he, ki67, corners_um, settings, stain),
    )
    reasons = rejections(measures, settings)
    kept = np.array([reason is None for reason in reasons], dtype=bool)
    return _Ki67Seen(
        positive=(counts.positive * kept).astype(np.int32),
        negative=(counts.negative * kept).astype(np.int32),
        label=np.where(kept, counts.share(settings.label), np.nan).astype(np.float32),
        reasons=reasons,
        patches=_stacked(carried, size),
        similarity=measures.similarity,
    )


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
