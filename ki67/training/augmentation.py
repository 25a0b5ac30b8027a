"""Random changes of training tiles: how they lie, how they were stained, and how they were scanned.

Geometry, blur and JPEG are OpenCV's: a tile takes 4 ms, where the same steps take 30 ms in torchvision, as much as the
network itself on two processors with AMX. Stains are changed in optical density, for which no library has a transform.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb_from_hed

from ki67.training.targets import IGNORED

Tile = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Pixels and the answer for each of them."""
_STAINS = np.asarray(rgb_from_hed, dtype=np.float64)
_STAINS_UNIT = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
_LEAST_KNOWN = 0.25
_MOST_PLACES = 10
_OPTICAL_DENSITY = -np.log((np.arange(256) + 1) / 256).astype(np.float32)


@dataclass(frozen=True)
class Augmentation:
    """How far training tiles are changed; each value is the largest change, drawn evenly up to it.

    Attributes
    ----------
    rotation_deg
        Besides the quarter turns and flips, which are always drawn.
    scale
        0.3: between 1 / 1.3 and 1.3 times as large.
    stain_gain
        Share by which the amount of each stain grows or shrinks (as a factor between ``1 / (1 + x)`` and ``1 + x``).
    stain_offset
        Optical density added to or taken from each stain everywhere.
    stain_tilt
        Change of each component of the stains' unit colour vectors: their hue.
    white_balance
        Optical density added to or taken from each colour channel.
    blur_px
        Standard deviation; applied to a third of the tiles.
    noise
        Standard deviation in grey levels; applied to a third of the tiles.
    jpeg_quality
        Lowest quality; applied to a third of the tiles.
    local_gain
        Share by which the amounts of hematoxylin and eosin grow or shrink from place to place in a tile, and in class 1
        against the others: how dark something is then tells nothing of what it is.
    """

    rotation_deg: float = 15.0
    scale: float = 0.3
    stain_gain: float = 0.4
    stain_offset: float = 0.04
    stain_tilt: float = 0.06
    white_balance: float = 0.05
    blur_px: float = 1.2
    noise: float = 6.0
    jpeg_quality: int = 40
    local_gain: float = 0.0

    def apply(
        self,
        rgb: NDArray[np.uint8],
        target: NDArray[np.uint8],
        tile_px: int,
        random: np.random.Generator,
        *,
        center_px: tuple[float, float] | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """A tile from a random or given place, changed at random.

        A random place is preferably one where much of the answer is known.

        Parameters
        ----------
        rgb, target
            uint8 ``(H, W, 3)`` and ``(H, W)``.
        tile_px
            Side of the tile.
        center_px
            Column and row of its centre, that of the first pixel being 0; None draws one that keeps the tile inside the
            image. Where a tile reaches out of the image, this is mirrored.

        Returns
        -------
        tuple
            uint8 ``(tile_px, tile_px, 3)`` and ``(tile_px, tile_px)``.
        """
        for _ in range(1 if center_px else _MOST_PLACES):
            tile, answer = self._placed(rgb, target, tile_px, random, center_px)
            if np.mean(answer != IGNORED) >= _LEAST_KNOWN:
                break
        if self.local_gain > 0:
            tile = self._unevenly_stained(tile, answer, random)
        return self._scanned(self._stained(tile, random), random), answer

    def _placed(
        self,
        rgb: NDArray[np.uint8],
        target: NDArray[np.uint8],
        tile_px: int,
        random: np.random.Generator,
        center_px: tuple[float, float] | None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        angle = np.deg2rad(90 * random.integers(4) + random.uniform(-self.rotation_deg, self.rotation_deg))
        # Source pixels for each pixel of the tile.
        step = np.exp(random.uniform(-1, 1) * np.log1p(self.scale))
        flip = random.choice([-1.0, 1.0])
        cosine, sine = np.cos(angle), np.sin(angle)
        linear = step * np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([flip, 1.0])
        reach = tile_px / 2 * np.abs(linear).sum(axis=1)
        drawn = [_place(length, margin, random) for length, margin in zip(rgb.shape[1::-1], reach, strict=True)]
        center = np.array(drawn if center_px is None else center_px)
        matrix = np.column_stack([linear, center - linear @ np.full(2, (tile_px - 1) / 2)])
        return _warped(rgb, matrix, tile_px, cv2.INTER_LINEAR), _warped(target, matrix, tile_px, cv2.INTER_NEAREST)

    def _stained(self, tile: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
        gain = np.exp(random.uniform(-1, 1, 3) * np.log1p(self.stain_gain))
        offset = random.uniform(-1, 1, 3) * self.stain_offset
        tilted = _STAINS_UNIT + random.uniform(-1, 1, (3, 3)) * self.stain_tilt
        balance = random.uniform(-1, 1, 3) * self.white_balance
        # Amounts of the stains, changed, and back to colours: one matrix and one summand.
        matrix = (np.linalg.inv(_STAINS_UNIT) @ np.diag(gain) @ tilted).T
        summand = offset @ tilted + balance
        density = cv2.transform(_OPTICAL_DENSITY[tile], np.column_stack([matrix, summand]).astype(np.float32))
        return np.clip(256 * cv2.exp(-density) - 1, 0, 255).astype(np.uint8)

    def _unevenly_stained(
        self, tile: NDArray[np.uint8], answer: NDArray[np.uint8], random: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Stains whose strength changes smoothly, so that the change has no edge that could be learned."""
        inside = (answer == 1).astype(np.float32)
        amounts = cv2.transform(_OPTICAL_DENSITY[tile], np.linalg.inv(_STAINS_UNIT).T.astype(np.float32))
        for stain in (0, 1):
            edge = cv2.GaussianBlur(inside, (0, 0), random.uniform(3, 12))
            cells = int(random.integers(2, 7))
            waves = random.uniform(-0.5, 0.5, (cells, cells)).astype(np.float32)
            places = cv2.resize(waves, tile.shape[1::-1], interpolation=cv2.INTER_CUBIC)
            logarithm = np.float32(random.uniform(-1, 1)) * edge + places
            amounts[..., stain] *= cv2.exp(np.float32(np.log1p(self.local_gain)) * logarithm)
        density = cv2.transform(amounts, _STAINS_UNIT.T.astype(np.float32))
        return np.clip(256 * cv2.exp(-density) - 1, 0, 255).astype(np.uint8)

    def _scanned(self, tile: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
        blurred, noisy, compressed = random.random(3) < 1 / 3
        if blurred and self.blur_px > 0:
            tile = np.asarray(cv2.GaussianBlur(tile, (0, 0), random.uniform(0.3, 1) * self.blur_px), dtype=np.uint8)
        if noisy and self.noise > 0:
            noise = random.standard_normal(tile.shape, dtype=np.float32) * (random.uniform(0, 1) * self.noise)
            tile = np.clip(tile + noise, 0, 255).astype(np.uint8)
        if compressed and self.jpeg_quality < 100:
            quality = int(random.integers(self.jpeg_quality, 96))
            encoded = cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            tile = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), dtype=np.uint8)
        return tile


def mix(one: Tile, other: Tile, random: np.random.Generator) -> Tile:
    """A tile whose one part is of one tile and the rest of another, parted by a wavy line, each with its own answer.

    Each source has its own stain and its own kinds of tissue; side by side in a tile, the stain of a source tells
    nothing of the answer any more. After CutMix (Yun et al. 2019), with regions as tissue has them instead of squares.

    Parameters
    ----------
    one, other
        uint8 ``(N, N, 3)`` and ``(N, N)``.
    """
    size = one[1].shape[0]
    cells = int(random.integers(3, 8))
    waves = cv2.resize(
        random.standard_normal((cells, cells)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
    )
    chosen = waves > np.quantile(waves, random.uniform(0.2, 0.8))
    # The seam is as soft as a scanner's optics make any edge.
    weight = cv2.GaussianBlur(chosen.astype(np.float32), (0, 0), 1.0)[..., None]
    rgb = np.rint(weight * one[0] + (1 - weight) * other[0]).astype(np.uint8)
    return rgb, np.where(chosen, one[1], other[1])


TUMOR_AUGMENTATION = Augmentation(scale=0.5, stain_gain=0.6, stain_tilt=0.1, white_balance=0.08, local_gain=0.4)
"""For networks of tumour, which learn from few slides and would take their stain for the answer."""
USUAL_AUGMENTATION = Augmentation()
NO_AUGMENTATION = Augmentation(0, 0, 0, 0, 0, 0, 0, 0, 100)


def _warped(
    image: NDArray[np.uint8], matrix: NDArray[np.float64], tile_px: int, interpolation: int
) -> NDArray[np.uint8]:
    """The tile whose pixels lie at ``matrix`` times their position; images smaller than it are mirrored."""
    flags = interpolation | cv2.WARP_INVERSE_MAP
    tile = cv2.warpAffine(image, matrix, (tile_px, tile_px), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(tile, dtype=np.uint8)


def _place(length: int, margin: float, random: np.random.Generator) -> float:
    """Where the tile's centre lies on one axis: anywhere that keeps the tile inside, or else the middle."""
    return random.uniform(margin, length - margin) - 0.5 if length > 2 * margin else (length - 1) / 2
