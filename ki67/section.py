"""What two stains of neighbouring sections have in common: where the tissue is, and how dense it is.

Registration compares sections, not colours. A :class:`Section` is the tissue of a slide and its optical density, with
the glass at zero; its edges are alike in both stains even where one is dark and the other pale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.geometry import Mask, RigidTransform, Transform
from ki67.stain import optical_density

FloatImage = NDArray[np.float32]
BoolImage = NDArray[np.bool_]

SURROUNDINGS_UM = 150.0  # what lies further from the tissue, such as pen or dust, is taken for glass
PIXELS_AT_ONCE = 1_000_000
LARGEST_DENSITY = 1.5  # folds and pigment are darker, and would outweigh everything else


@dataclass(frozen=True)
class Section:
    """Optical density and tissue of one slide, on one grid of pixels that starts at the origin of the slide's frame.

    Attributes
    ----------
    density
        float32 ``(rows, columns)``, mean optical density of the three colours, glass at 0.
    tissue
        bool ``(rows, columns)``.
    mpp
        Microns per pixel.
    """

    density: FloatImage
    tissue: BoolImage
    mpp: float

    @classmethod
    def of_thumbnail(cls, rgb: NDArray[np.uint8], tissue: Mask, mpp: float) -> Section:
        """The section a thumbnail shows.

        Parameters
        ----------
        rgb
            uint8 ``(rows, columns, 3)``.
        tissue
            In the frame of the slide, at any resolution.
        mpp
            Microns per pixel of the thumbnail.
        """
        pixels = _on_grid(tissue, rgb.shape[:2], mpp)
        density = _mean_density(rgb)
        glass = density[::4, ::4][~pixels[::4, ::4]]
        if len(glass):
            density -= np.median(glass)
        density[~dilated(pixels, SURROUNDINGS_UM / mpp)] = 0.0
        return cls(np.clip(density, 0.0, LARGEST_DENSITY), pixels, mpp)

    @property
    def centre_um(self) -> NDArray[np.float64]:
        """Middle of the tissue's bounding box, ``(2,)`` x, y."""
        rows, columns = np.flatnonzero(self.tissue.any(axis=1)), np.flatnonzero(self.tissue.any(axis=0))
        return np.array([columns[0] + columns[-1] + 1, rows[0] + rows[-1] + 1]) / 2 * self.mpp

    @property
    def longest_side_um(self) -> float:
        """Longer side of the picture."""
        return max(self.density.shape) * self.mpp

    def at(self, mpp: float) -> Section:
        """The section at coarser pixels; itself where ``mpp`` is not coarser."""
        if mpp <= self.mpp:
            return self
        share = _reduced(self.tissue.astype(np.float32), self.mpp / mpp)
        tissue = share > min(0.5, float(share.max()) / 2)  # tissue in specks does not vanish
        return Section(_reduced(self.density, self.mpp / mpp), tissue, mpp)


def carry_back(
    image: NDArray[np.float32] | BoolImage, transform: Transform, mpp: float, shape: tuple[int, ...]
) -> FloatImage:
    """Resample an image of the transform's target frame on a grid of its source frame; outside the image is 0.

    Parameters
    ----------
    image
        ``(rows, columns)`` at ``mpp``.
    shape
        Rows and columns of the result, also at ``mpp``.
    """
    pixels = image.astype(np.float32, copy=False)
    if isinstance(transform, RigidTransform):
        half = np.array([0.5, 0.5])  # the centre of the first pixel
        first = transform.apply(half[None] * mpp)[0] / mpp - half
        affine = np.column_stack([transform.matrix[:2, :2], first])
        flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
        return _as_float(cv2.warpAffine(pixels, affine, shape[1::-1], flags=flags))
    rows_at_once = max(1, PIXELS_AT_ONCE // max(1, shape[1]))
    bands = [
        _resampled(pixels, transform, mpp, (start, min(shape[0], start + rows_at_once)), shape[1])
        for start in range(0, shape[0], rows_at_once)
    ]
    return np.concatenate(bands)


def _resampled(pixels: FloatImage, transform: Transform, mpp: float, rows: tuple[int, int], width: int) -> FloatImage:
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(*rows) + 0.5)
    there = (transform.apply(np.column_stack([x.ravel(), y.ravel()]) * mpp) / mpp - 0.5).astype(np.float32)
    across, down = (there[:, axis].reshape(x.shape) for axis in (0, 1))
    return _as_float(cv2.remap(pixels, across, down, cv2.INTER_LINEAR))


def edges(density: FloatImage, sigma_px: float) -> FloatImage:
    """Square root of the length of the gradient of a density after a Gaussian.

    The root keeps a few strong outlines from hiding the many weak ones inside the tissue.
    """
    smooth = cv2.GaussianBlur(density, (0, 0), sigma_px)
    length = cv2.magnitude(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    return _as_float(np.sqrt(length))


def dilated(pixels: BoolImage, radius_px: float) -> BoolImage:
    """A mask grown by a radius."""
    if not pixels.any():
        return pixels
    return cv2.distanceTransform((~pixels).astype(np.uint8), cv2.DIST_L2, 5) <= radius_px


def _on_grid(mask: Mask, shape: tuple[int, ...], mpp: float) -> BoolImage:
    """A mask's pixels on the grid of a picture of the same frame."""
    if mask.pixels.shape == shape and np.isclose(mask.mpp, mpp):
        return mask.pixels
    rows = ((np.arange(shape[0]) + 0.5) * mpp / mask.mpp).astype(int)
    columns = ((np.arange(shape[1]) + 0.5) * mpp / mask.mpp).astype(int)
    height, width = mask.pixels.shape
    pixels = mask.pixels[np.minimum(rows, height - 1)[:, None], np.minimum(columns, width - 1)]
    return pixels & (rows < height)[:, None] & (columns < width)


def _mean_density(rgb: NDArray[np.uint8]) -> FloatImage:
    """Mean optical density of the colours, in bands of rows, as three floats a pixel of a whole slide are too many."""
    bands = [rgb[start : start + 512] for start in range(0, rgb.shape[0], 512)]
    return np.concatenate([optical_density(band).mean(axis=-1, dtype=np.float32) for band in bands])


def _reduced(image: FloatImage, scale: float) -> FloatImage:
    """An image at ``scale`` < 1 times its size, both grids starting at the same corner."""
    height, width = (int(np.ceil(side * scale)) for side in image.shape)
    factor = int(0.5 / scale)
    if factor > 1:  # whole blocks first: a wide Gaussian over every pixel of a slide takes long
        image, scale = _block_means(image, factor), scale * factor
    smooth = cv2.GaussianBlur(image, (0, 0), 0.5 / scale, borderType=cv2.BORDER_REPLICATE)
    middle = 0.5 / scale - 0.5
    affine = np.array([[1 / scale, 0.0, middle], [0.0, 1 / scale, middle]])
    flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
    return _as_float(cv2.warpAffine(smooth, affine, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE))


def _block_means(image: FloatImage, side: int) -> FloatImage:
    """Means of blocks of ``side`` pixels squared; the last ones are filled up with the pixels at the border."""
    height, width = (-(-length // side) for length in image.shape)
    lacking = (height * side - image.shape[0], width * side - image.shape[1])
    filled = cv2.copyMakeBorder(image, 0, lacking[0], 0, lacking[1], cv2.BORDER_REPLICATE)
    return _as_float(cv2.resize(filled, (width, height), interpolation=cv2.INTER_AREA))


def _as_float(image: NDArray[Any]) -> FloatImage:
    """What OpenCV made of a float32 image, which its type hints do not know to be one."""
    return image.astype(np.float32, copy=False)
