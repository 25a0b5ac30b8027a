"""The tumour on a slide, from the probabilities of the tumour network, or of a coarse and a fine one in cascade."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.errors import Ki67Error
from ki67.geometry import Mask
from ki67.inference import Block, InferenceRun, InferenceStatistics, Running, peak_memory_mb
from ki67.nuclear_evidence import NuclearEvidence, smoothed_strips
from ki67.predictors import Predictor
from ki67.slides import Slide
from ki67.tiles import CELL_PX, TilePlan, cells_of, plan_tiles

SMOOTHING_UM = 6.0
"""Standard deviation of the Gaussian over the probability: less than a nucleus makes no outline."""


@dataclass(frozen=True)
class Cascade:
    """A network at a coarser scale that looks first; the finer one looks where this one is not certain.

    Attributes
    ----------
    network
        With one class, at a coarser scale.
    certain_below, certain_above
        Its probabilities between these two are not certain.
    uncertain_share
        The finer network looks at a tile where more than this share of its tissue is not certain.
    coarse_share
        Weight of the coarser network in the mean of both, where both look. It sees more of what is around, the finer
        one more of each nucleus; together they are right more often than either (``benchmarks.cascade``).
    """

    network: Predictor
    certain_below: float = 0.2
    certain_above: float = 0.98
    uncertain_share: float = 0.2
    coarse_share: float = 0.5


def first_class(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The answer ``(H, W)`` of a network with one class."""
    return levels[0]


@dataclass(frozen=True)
class TumorSegmentation:
    """The tumour of a slide.

    Attributes
    ----------
    mask
        In the slide's frame.
    probability
        uint8, shape of the mask's pixels, 255 for 1; 0 outside tissue.
    statistics
        Of the network's run, or of both networks' together.
    fine_share
        Share of the tissue's tiles that the finer network looked at; 1 without a cascade.
    """

    mask: Mask
    probability: NDArray[np.uint8]
    statistics: InferenceStatistics
    fine_share: float = 1.0


def segment_tumor(
    slide: Slide,
    tissue: Mask,
    network: Predictor,
    *,
    cascade: Cascade | None = None,
    evidence: NuclearEvidence | None = None,
    mask_mpp: float = 2.0,
    threshold: float | None = None,
    smallest_region_mm2: float = 0.003,
    smallest_hole_mm2: float = 0.005,
    cell_px: int = CELL_PX,
    running: Running | None = None,
) -> TumorSegmentation:
    """Segment the tumour in the tissue of a slide.

    Parameters
    ----------
    slide
        Of the network's stain.
    tissue
        In the slide's frame, at any resolution.
    network
        With one class.
    cascade
        What looks first; ``None`` lets the network look at all tissue.
    evidence
        A nucleus network that looks at all tissue as well; None where there is none.
    mask_mpp
        Microns per pixel of the result, a whole multiple of the network's.
    threshold
        Probability from which a pixel is tumour; the network's own where it is ``None``.
    smallest_region_mm2, smallest_hole_mm2
        Smaller regions are dropped, smaller holes in a region filled.
    cell_px
        Side of a tile; see ``ki67.tiles``.
    running
        See there.

    Raises
    ------
    Ki67Error
        If ``mask_mpp`` is no multiple of the network's resolution that divides a tile.
    SlideError
        If the slide cannot be read somewhere.
    """
    started = time.perf_counter()
    height, width = (max(1, int(np.ceil(size / mask_mpp - 1e-6))) for size in reversed(slide.size_um))
    probability = np.zeros((height, width), dtype=np.uint8)
    allowed = at_resolution(tissue, (height, width), mask_mpp)
    fine_share, before = 1.0, None
    plan = _plan(slide, tissue, network, cell_px)
    if cascade is not None:
        coarse_plan = _plan(slide, tissue, cascade.network, cell_px)
        label = f"tumor at {coarse_plan.mpp:g} µm/px"
        before = _look(slide, coarse_plan, cascade.network, probability, mask_mpp, running, label)
        tiles = len(plan.cells)
        plan = uncertain_tiles(plan, probability, allowed, mask_mpp, cascade)
        fine_share = len(plan.cells) / max(1, tiles)
    kept = cascade.coarse_share if cascade is not None else 0.0
    statistics = _look(slide, plan, network, probability, mask_mpp, running, "tumor", kept)
    processor_s = time.process_time()
    if evidence is not None:
        nuclei = np.zeros_like(probability)
        plan, label = _plan(slide, tissue, evidence.network, cell_px), "nuclei of all tissue"
        more = _look(slide, plan, evidence.network, nuclei, mask_mpp, running, label, answer_of=evidence.certain_nuclei)
        probability = evidence.weigh(probability, nuclei, allowed, mask_mpp)
        statistics = statistics + more
    probability[~allowed] = 0
    pixels = regions(
        probability,
        allowed,
        threshold=network.spec.threshold if threshold is None else threshold,
        smoothing_px=SMOOTHING_UM / mask_mpp,
        smallest_region_px=smallest_region_mm2 * 1e6 / mask_mpp**2,
        smallest_hole_px=smallest_hole_mm2 * 1e6 / mask_mpp**2,
    )
    statistics = before + statistics if before else statistics
    statistics = replace(
        statistics,
        postprocess_s=statistics.postprocess_s + time.process_time() - processor_s,
        wall_s=time.perf_counter() - started,
        peak_rss_mb=peak_memory_mb(),
    )
    return TumorSegmentation(Mask(pixels, mask_mpp, tissue.frame), probability, statistics, fine_share)


def _plan(slide: Slide, tissue: Mask, network: Predictor, cell_px: int) -> TilePlan:
    block_cells = cells_of(network.block_px, cell_px)
    return plan_tiles(
        tissue,
        slide.size_um,
        mpp=network.spec.mpp,
        cell_px=cell_px,
        halo_px=network.halo_px,
        block_cells=block_cells,
    )


def _look(
    slide: Slide,
    plan: TilePlan,
    network: Predictor,
    probability: NDArray[np.uint8],
    mask_mpp: float,
    running: Running | None,
    label: str,
    kept: float = 0.0,
    answer_of: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = first_class,
) -> InferenceStatistics:
    """Run a network, and put what it says in place into the probability at the resolution of the mask.

    ``kept`` is the weight of what is there already; ``answer_of`` makes one image of all classes.
    """
    _check_scales(mask_mpp, plan.mpp, plan.cell_px)
    with InferenceRun(slide, plan, network, label=f"{slide.slide_id} {label}", running=running) as run:
        for block in run.blocks():
            with run.postprocessing():
                _put(block, probability, plan.mpp, mask_mpp, kept, answer_of)
        return run.statistics()


def uncertain_tiles(
    plan: TilePlan, probability: NDArray[np.uint8], tissue: NDArray[np.bool_], mask_mpp: float, cascade: Cascade
) -> TilePlan:
    """The plan's tiles in which the coarse network is not certain.

    Parameters
    ----------
    plan
        Of the fine network.
    probability, tissue
        uint8 and bool ``(H, W)`` at ``mask_mpp`` of the whole slide, from the coarse network.
    """
    below, above = round(255 * cascade.certain_below), round(255 * cascade.certain_above)
    uncertain = tissue & (probability > below) & (probability < above)
    side = round(plan.cell_px * plan.mpp / mask_mpp)
    share = _sum_over_squares(uncertain, side) / np.maximum(1, _sum_over_squares(tissue, side))
    chosen = share[tuple(plan.cells.T)] > cascade.uncertain_share
    return replace(plan, cells=plan.cells[chosen])


def _sum_over_squares(pixels: NDArray[np.bool_], side: int) -> NDArray[np.int64]:
    starts = (np.arange(0, size, side) for size in pixels.shape)
    rows = np.add.reduceat(pixels, next(starts), axis=0, dtype=np.int64)
    return np.asarray(np.add.reduceat(rows, next(starts), axis=1))


def _check_scales(mask_mpp: float, mpp: float, cell_px: int) -> None:
    factor = max(mask_mpp / mpp, mpp / mask_mpp)
    if abs(factor - round(factor)) > 1e-6 or (mask_mpp > mpp and cell_px % round(factor)):
        raise Ki67Error(
            f"a tumour mask of {mask_mpp} µm/px cannot be made from {mpp} µm/px in tiles of {cell_px} px; "
            "set mask_mpp to 1, 2 or 4"
        )


def _put(
    block: Block,
    probability: NDArray[np.uint8],
    mpp: float,
    mask_mpp: float,
    kept: float,
    answer_of: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
) -> None:
    """Put a block, averaged over area or repeated, where it belongs; only what its windows answered for."""
    for row_px, column_px, levels in block.answered():
        resized = _resized(answer_of(levels), mpp, mask_mpp)
        top, left = round(row_px * mpp / mask_mpp), round(column_px * mpp / mask_mpp)
        room = probability[top : top + resized.shape[0], left : left + resized.shape[1]]
        said = resized[: room.shape[0], : room.shape[1]]
        room[:] = np.rint(np.float32(kept) * room + np.float32(1 - kept) * said)


def _resized(image: NDArray[np.uint8], mpp: float, mask_mpp: float) -> NDArray[np.uint8]:
    """Mean over squares of pixels, or every pixel as a square of pixels."""
    rows, columns = (max(1, round(size * mpp / mask_mpp)) for size in image.shape)
    interpolation = cv2.INTER_AREA if mask_mpp > mpp else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, (columns, rows), interpolation=interpolation), dtype=np.uint8)


def at_resolution(mask: Mask, shape: tuple[int, int], mpp: float) -> NDArray[np.bool_]:
    """Pixels ``shape`` of a mask at another resolution by nearest neighbour, false outside of it."""
    rows, columns = (np.floor((np.arange(length) + 0.5) * mpp / mask.mpp).astype(np.int64) for length in shape)
    height, width = mask.pixels.shape
    result = np.zeros(shape, dtype=bool)
    inside = np.ix_(rows < height, columns < width)
    result[inside] = mask.pixels[np.ix_(rows[rows < height], columns[columns < width])]
    return result


def regions(
    probability: NDArray[np.uint8],
    allowed: NDArray[np.bool_],
    *,
    threshold: float,
    smoothing_px: float,
    smallest_region_px: float,
    smallest_hole_px: float,
) -> NDArray[np.bool_]:
    """Where a probability, smoothed, reaches a threshold: without specks and pin holes, inside what is allowed.

    Parameters
    ----------
    probability
        uint8 ``(H, W)``, 255 for 1.
    allowed
        bool ``(H, W)``. Smoothing does not mix in what lies outside, so tumour reaches up to the edge of the tissue.
    """
    above = np.empty(probability.shape, dtype=bool)
    for rows, smooth in smoothed_strips(probability, allowed, smoothing_px):
        above[rows] = (smooth >= threshold * 255) & allowed[rows]
    kept = _without_small(above, smallest_region_px, 8)
    return (kept | _holes(kept, smallest_hole_px)) & allowed


def _holes(pixels: NDArray[np.bool_], smallest: float) -> NDArray[np.bool_]:
    """The parts of the background that are smaller."""
    return ~pixels & ~_without_small(~pixels, smallest, 4)


def _without_small(pixels: NDArray[np.bool_], smallest: float, connectivity: int) -> NDArray[np.bool_]:
    """The connected parts that have at least so many pixels."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(pixels.astype(np.uint8), connectivity=connectivity)
    kept = statistics[:, cv2.CC_STAT_AREA] >= smallest
    kept[0] = False
    return np.asarray(kept[labels], dtype=bool)
