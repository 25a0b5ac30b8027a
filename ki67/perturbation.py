"""Pairs of sections made harder than they are: turned, mirrored, shifted, cut, stained otherwise, with control tissue.

What a registration must withstand, done to the moving image of a pair whose landmarks are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ki67.stain import optical_density

RgbImage = NDArray[np.uint8]
Points = NDArray[np.float64]

LARGEST_CROP = 0.3  # share of the area that is cut off
LARGEST_MARGIN = 0.3  # of the longer side, glass around the image
CONTROL_SHARE = (0.04, 0.12)  # area of the control tissue against that of the image
STRENGTH = (0.6, 1.5)  # of the stain, by which optical density is multiplied
HUE = 0.15  # most by which one colour's density changes against the others
BLUR_UM = (0.0, 8.0)
JPEG_QUALITY = (60, 95)
MIRRORED_SHARE = 0.5
CONTROL_TISSUE_SHARE = 0.5


@dataclass(frozen=True)
class PerturbedImage:
    """An image after what was done to it.

    Attributes
    ----------
    rgb
        uint8 ``(rows, columns, 3)``.
    matrix
        float64 ``(3, 3)``, from pixels of the image before to pixels of this one, corners at whole numbers.
    kept
        bool ``(N,)``: which of the given points were not cut off.
    mirror, control_tissue
        Whether it was mirrored, and given control tissue.
    angle_deg, cropped_share
        By how much it was turned, and which share of its area was cut off.
    """

    rgb: RgbImage
    matrix: NDArray[np.float64]
    kept: NDArray[np.bool_]
    mirror: bool
    control_tissue: bool
    angle_deg: float
    cropped_share: float


def perturb(rgb: RgbImage, points_px: Points, mpp: float, seed: tuple[int, ...]) -> PerturbedImage:
    """Turn, mirror, shift, cut and stain an image anew, as the seed says; every second one gets control tissue.

    Parameters
    ----------
    rgb
        uint8 ``(rows, columns, 3)``.
    points_px
        float64 ``(N, 2)``, x and y in pixels, to be told which of them are left.
    mpp
        Microns per pixel.
    seed
        The same seed does the same.
    """
    rng = np.random.default_rng(seed)
    glass = glass_colour(rgb)
    left, top, right, bottom = _crop(rng, rgb.shape)
    kept = np.all((points_px >= [left, top]) & (points_px < [right, bottom]), axis=1)
    cut = _stained(rng, rgb[top:bottom, left:right], glass, mpp)
    angle_deg, mirror = float(rng.uniform(0, 360)), bool(rng.random() < MIRRORED_SHARE)
    turned, placement = _turned(rng, cut, angle_deg, mirror, glass)
    control_tissue = bool(rng.random() < CONTROL_TISSUE_SHARE)
    if control_tissue:
        turned, offset = _with_control_tissue(rng, turned, cut, glass)
        placement = np.array([[1, 0, offset], [0, 1, 0], [0, 0, 1]]) @ placement
    quality = int(rng.integers(*JPEG_QUALITY))
    coded = BytesIO()
    Image.fromarray(turned).save(coded, "JPEG", quality=quality)
    return PerturbedImage(
        rgb=np.asarray(Image.open(coded).convert("RGB")),
        matrix=placement @ np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]]),
        kept=kept,
        mirror=mirror,
        control_tissue=control_tissue,
        angle_deg=angle_deg,
        cropped_share=1 - (right - left) * (bottom - top) / (rgb.shape[0] * rgb.shape[1]),
    )


def glass_colour(rgb: RgbImage) -> NDArray[np.float64]:
    """Colour of the brightest tenth of the pixels, ``(3,)``."""
    pixels = rgb[::4, ::4].reshape(-1, 3)
    light = pixels.sum(axis=1)
    return np.median(pixels[light >= np.quantile(light, 0.9)], axis=0).astype(np.float64)


def _crop(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is left when up to ``LARGEST_CROP`` is cut off, at two sides at most."""
    share = float(rng.uniform(0, LARGEST_CROP))
    across = (1 - share) ** float(rng.random())
    height, width = shape[:2]
    kept_width, kept_height = round(width * across), round(height * (1 - share) / across)
    left, top = rng.integers(2) * (width - kept_width), rng.integers(2) * (height - kept_height)
    return int(left), int(top), int(left) + kept_width, int(top) + kept_height


def _stained(rng: np.random.Generator, rgb: RgbImage, glass: NDArray[np.float64], mpp: float) -> RgbImage:
    """The image with its stain stronger or weaker and of another hue, and out of focus."""
    strength = np.exp(float(rng.uniform(*np.log(STRENGTH)))) * (1 + rng.uniform(-HUE, HUE, 3))
    stained = glass * (np.maximum(rgb, 1) / glass) ** strength
    blur_px = float(rng.uniform(*BLUR_UM)) / mpp
    blurred = cv2.GaussianBlur(stained, (0, 0), blur_px) if blur_px > 0.3 else stained
    return np.clip(blurred, 0, 255).astype(np.uint8)


def _turned(
    rng: np.random.Generator, rgb: RgbImage, angle_deg: float, mirror: bool, glass: NDArray[np.float64]
) -> tuple[RgbImage, NDArray[np.float64]]:
    """The image turned on a canvas that holds all of it and some glass, and the matrix of its pixels."""
    height, width = rgb.shape[:2]
    cosine, sine = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    linear = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([-1.0 if mirror else 1.0, 1.0])
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) @ linear.T
    before, after = rng.uniform(0.02, LARGEST_MARGIN, (2, 2)) * max(height, width)
    shift = before - corners.min(axis=0)
    size = np.ceil(corners.max(axis=0) + shift + after).astype(int)
    half = np.array([0.5, 0.5])
    affine = np.column_stack([linear, linear @ half + shift - half])
    turned = cv2.warpAffine(rgb, affine, size.tolist(), flags=cv2.INTER_CUBIC, borderValue=glass.tolist())
    return turned.astype(np.uint8), np.vstack([np.column_stack([linear, shift]), [0, 0, 1]])


def _with_control_tissue(
    rng: np.random.Generator, rgb: RgbImage, tissue: RgbImage, glass: NDArray[np.float64]
) -> tuple[RgbImage, int]:
    """The image with a piece of another tissue in glass to its left or right, and how far it moved to the right.

    The piece has the colours of the section in patterns of its own.
    """
    side = int(np.sqrt(rng.uniform(*CONTROL_SHARE) * tissue.shape[0] * tissue.shape[1]))
    strip = np.tile(glass, (rgb.shape[0], round(1.4 * side), 1))
    y, x = np.mgrid[:side, :side] / (side / 2) - 1
    piece = np.hypot(x, y) + 0.15 * _noise(rng, side, side / 6) < 0.9
    density = optical_density(tissue[::3, ::3]).mean(axis=-1).ravel()
    order = np.argsort(density)[len(density) // 3 :]  # without glass
    ranks = (_noise(rng, side, 2.0) + _noise(rng, side, side / 15)).ravel().argsort().argsort() / side**2
    colours = tissue[::3, ::3].reshape(-1, 3)[order[(ranks * len(order)).astype(int)]].reshape(side, side, 3)
    top, left = int(rng.integers(0, max(1, rgb.shape[0] - side))), round(0.2 * side)
    place = strip[top : top + side, left : left + side]
    place[piece[: place.shape[0]]] = colours[: place.shape[0]][piece[: place.shape[0]]]
    strip = strip.astype(np.uint8)
    first = bool(rng.random() < 0.5)
    return np.hstack([strip, rgb] if first else [rgb, strip]), strip.shape[1] * first


def _noise(rng: np.random.Generator, side: int, sigma_px: float) -> NDArray[np.float64]:
    noise = cv2.GaussianBlur(rng.normal(size=(side, side)), (0, 0), sigma_px)
    return np.asarray(noise / noise.std(), dtype=np.float64)
