"""The tumour on a slide, from the probabilities of the tumour network."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.errors import Ki67Error
from ki67.geometry import Mask
from ki67.inference import InferenceStatistics, Stopwatch, predict_bands
from ki67.networks import Predictor
from ki67.slides import Slide
from ki67.tiles import plan_tiles

SMOOTHING_UM = 6.0
"""Standard deviation of the Gaussian over the probability: less than a nucleus makes no outline."""


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
        Of the network's run.
    """

    mask: Mask
    probability: NDArray[np.uint8]
    statistics: InferenceStatistics


def segment_tumor(
    slide: Slide,
    tissue: Mask,
    network: Predictor,
    *,
    mask_mpp: float = 2.0,
    threshold: float | None = None,
    smallest_region_mm2: float = 0.01,
    smallest_hole_mm2: float = 0.005,
    batch_size: int = 16,
    reader_threads: int = 2,
    core_px: int = 448,
    halo_px: int = 32,
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
    mask_mpp
        Microns per pixel of the result, a whole multiple of the network's.
    threshold
        Probability from which a pixel is tumour; the network's own where it is ``None``.
    smallest_region_mm2, smallest_hole_mm2
        Smaller regions are dropped, smaller holes in a region filled.
    batch_size, reader_threads, core_px, halo_px
        See ``ki67.inference.predict_bands`` and ``ki67.tiles``.

    Raises
    ------
    Ki67Error
        If ``mask_mpp`` is no multiple of the network's resolution that divides a tile.
    SlideError
        If the slide cannot be read somewhere.
    """
    factor = _reduction(mask_mpp, network.spec.mpp, core_px)
    plan = plan_tiles(tissue, slide.size_um, mpp=network.spec.mpp, core_px=core_px, halo_px=halo_px)
    shape = (-(-plan.height_px // factor), -(-plan.width_px // factor))
    probability = np.zeros(shape, dtype=np.uint8)
    stopwatch = Stopwatch(plan)
    for band in predict_bands(
        slide,
        plan,
        network,
        batch_size=batch_size,
        reader_threads=reader_threads,
        label=f"{slide.slide_id} tumor",
        stopwatch=stopwatch,
    ):
        with stopwatch.postprocessing():
            reduced = _averaged(band.probabilities[0], factor)
            row, column = band.first_row_px // factor, band.first_column_px // factor
            probability[row : row + reduced.shape[0], column : column + reduced.shape[1]] = reduced
    with stopwatch.postprocessing():
        allowed = at_resolution(tissue, shape, mask_mpp)
        probability[~allowed] = 0
        level = network.spec.threshold if threshold is None else threshold
        pixels = regions(
            probability,
            allowed,
            threshold=level,
            smoothing_px=SMOOTHING_UM / mask_mpp,
            smallest_region_px=smallest_region_mm2 * 1e6 / mask_mpp**2,
            smallest_hole_px=smallest_hole_mm2 * 1e6 / mask_mpp**2,
        )
    return TumorSegmentation(Mask(pixels, mask_mpp, tissue.frame), probability, stopwatch.statistics())


def _reduction(mask_mpp: float, mpp: float, core_px: int) -> int:
    factor = round(mask_mpp / mpp)
    if factor < 1 or abs(factor * mpp - mask_mpp) > 1e-6 or core_px % factor:
        raise Ki67Error(
            f"a tumour mask of {mask_mpp} µm/px cannot be averaged from {mpp} µm/px in tiles of {core_px} px; "
            "set mask_mpp to 1, 2 or 4 times the network's"
        )
    return factor


def _averaged(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Mean over squares; those cut by the slide's lower or right edge are averaged over what is there."""
    rows, columns = (-(-size // factor) for size in image.shape)
    padding = (rows * factor - image.shape[0], columns * factor - image.shape[1])
    whole = np.pad(image, ((0, padding[0]), (0, padding[1])), mode="edge")
    return np.asarray(cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA), dtype=np.uint8)


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
    weight = np.asarray(cv2.GaussianBlur(allowed.astype(np.float32), (0, 0), smoothing_px), dtype=np.float32)
    smooth = np.asarray(cv2.GaussianBlur(probability.astype(np.float32), (0, 0), smoothing_px), dtype=np.float32)
    above = (smooth >= threshold * 255 * np.maximum(weight, 1e-3)) & allowed
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
