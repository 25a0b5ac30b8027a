"""The index from place to place, and how dense the tumour's nuclei lie: two maps on one grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ki67.errors import Stain
from ki67.geometry import Mask
from ki67.nucleus_squares import TumorNuclei, squares_of

if TYPE_CHECKING:
    import dask.array as da

CELL_UM = 50.0
WINDOW_CELLS = 5
FEWEST_NUCLEI = 20
_CHUNK_CELLS = 256


@dataclass(frozen=True)
class LocalIndexMap:
    """Maps that begin at the origin of their frame.

    Attributes
    ----------
    index
        float32 ``(rows, columns)``, fraction of positive nuclei in the window around each cell; NaN where that holds
        fewer than ``FEWEST_NUCLEI``, or the cell holds no tumour.
    nuclei_per_mm2
        float32 ``(rows, columns)``, tumour nuclei per mm² of tumour in the window; NaN where the cell holds no tumour.
    mpp
        Microns per cell.
    frame
        Of the slide.
    """

    index: NDArray[np.float32]
    nuclei_per_mm2: NDArray[np.float32]
    mpp: float
    frame: Stain


def local_index_map(nuclei: TumorNuclei, tumor: Mask) -> LocalIndexMap:
    """Index and density of the tumour nuclei in windows of 5 x 5 cells of about 50 µm.

    Only whole numbers are added up, so the order of nuclei does not matter. Dask goes through the mask and the maps in
    blocks of 256 x 256 cells, one after the other, so that beside the mask and the table no more than a block is in
    memory.

    Parameters
    ----------
    nuclei
        Of the tumour.
    tumor
        Tumour mask. Cells are as many whole pixels of it wide as come next to 50 µm.
    """
    import dask.array as da  # slow to import, and the tables of the cohort need no map

    factor = max(1, round(CELL_UM / tumor.mpp))
    side_um = factor * tumor.mpp
    known = tuple(-(-size // factor) for size in tumor.pixels.shape)
    shape = tuple(max(size, WINDOW_CELLS) for size in known)  # dask wants no block smaller than what windows reach
    area = _tumor_pixels(tumor.pixels, factor, shape)
    squares = np.minimum(squares_of(nuclei.points_um, side_um), np.array(known) - 1)
    flat = squares[:, 0] * shape[1] + squares[:, 1]
    counted = [np.bincount(which, minlength=shape[0] * shape[1]) for which in (flat, flat[nuclei.positive])]
    images = [da.from_array(image.reshape(shape), chunks=_CHUNK_CELLS) for image in counted]
    mm2 = (tumor.mpp / 1000) ** 2
    total, positive, pixels = (
        image.map_overlap(_window_sums, depth=WINDOW_CELLS // 2, boundary=0, dtype=np.int64)
        for image in (*images, area)
    )
    stacked = da.map_blocks(
        _ratios, positive, total, pixels, area, mm2=mm2, dtype=np.float32, new_axis=0, chunks=((2,), *total.chunks)
    )
    index, density = stacked.compute(scheduler="synchronous")[:, : known[0], : known[1]]
    return LocalIndexMap(index, density, side_um, tumor.frame)


def _tumor_pixels(pixels: NDArray[np.bool_], factor: int, shape: tuple[int, ...]) -> da.Array:
    """Mask pixels of tumour in each of so many cells of ``factor`` x ``factor``, some beyond the lower right edge."""
    import dask.array as da

    least = WINDOW_CELLS * factor
    if min(pixels.shape) < least:  # dask pads in blocks no larger than what there is: thousands for a single pixel
        pixels = np.pad(pixels, [(0, max(0, least - size)) for size in pixels.shape])
    blocks = da.from_array(pixels, chunks=_CHUNK_CELLS * factor)
    lacking = [(0, cells * factor - size) for cells, size in zip(shape, pixels.shape, strict=True)]
    padded = da.pad(blocks, lacking).rechunk(_CHUNK_CELLS * factor)
    return da.coarsen(np.sum, padded, {0: factor, 1: factor}).astype(np.int64)


def _window_sums(image: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of the window around each cell."""
    half = WINDOW_CELLS // 2
    sums = np.pad(np.pad(image, half), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    width = WINDOW_CELLS
    return np.asarray(sums[width:, width:] - sums[:-width, width:] - sums[width:, :-width] + sums[:-width, :-width])


def _ratios(
    positive: NDArray[np.int64],
    total: NDArray[np.int64],
    pixels: NDArray[np.int64],
    own: NDArray[np.int64],
    *,
    mm2: float,
) -> NDArray[np.float32]:
    """Index and density ``(2, rows, columns)`` from sums of windows; ``own`` is the tumour of the cell itself."""
    nothing = np.full(total.shape, np.nan)
    index = np.divide(positive, total, out=nothing.copy(), where=(total >= FEWEST_NUCLEI) & (own > 0))
    density = np.divide(total, pixels * mm2, out=nothing, where=own > 0)
    return np.stack([index, density]).astype(np.float32)
