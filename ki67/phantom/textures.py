"""Tileable noise, made once per process, from which every drawn field and slide takes its irregularity."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.float32]

SMOOTH_SIZE = 512
SMOOTH_WAVES = 16
GRAIN_SIZE = 512
GRAIN_MPP = 0.25
FIBRE_SIZE = 1024
FIBRE_MPP = 0.5
CELL_SIZE = 512
CELL_MPP = 2.0
NOISE_SIZE = 512


def _frequencies(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cycles per tile along x and y, each ``(size, size)``."""
    cycles = np.fft.fftfreq(size) * size
    return np.meshgrid(cycles, cycles)


def _filtered_noise(spectrum: NDArray[np.float64], seed: int) -> Floats:
    """White noise with the given amplitude spectrum ``(size, size)``: periodic, mean 0, standard deviation 1."""
    white = np.random.default_rng(seed).standard_normal(spectrum.shape)
    noise = np.fft.ifft2(np.fft.fft2(white) * spectrum).real
    noise -= noise.mean()
    return np.ascontiguousarray(noise / noise.std(), dtype=np.float32)


@lru_cache(maxsize=16)
def smooth_texture(index: int) -> Floats:
    """Isotropic noise of about ``SMOOTH_WAVES`` waves a tile, ``(SMOOTH_SIZE, SMOOTH_SIZE)``."""
    x, y = _frequencies(SMOOTH_SIZE)
    cycles = np.hypot(x, y)
    return _filtered_noise(np.exp(-(((cycles - SMOOTH_WAVES) / 6.0) ** 2) / 2) * (cycles > 0), 100 + index)


@lru_cache(maxsize=1)
def grain_texture() -> Floats:
    """Chromatin: clumps of 0.8 to 3 µm, ``(GRAIN_SIZE, GRAIN_SIZE)`` at ``GRAIN_MPP``."""
    x, y = _frequencies(GRAIN_SIZE)
    per_um = np.hypot(x, y) / (GRAIN_SIZE * GRAIN_MPP)
    return _filtered_noise(np.exp(-(((per_um - 0.45) / 0.22) ** 2) / 2), 200)


@lru_cache(maxsize=1)
def fibre_texture() -> Floats:
    """Collagen: streaks along x, some 60 µm long and 2 to 12 µm wide, ``(FIBRE_SIZE, FIBRE_SIZE)`` at ``FIBRE_MPP``."""
    x, y = _frequencies(FIBRE_SIZE)
    length_um = FIBRE_SIZE * FIBRE_MPP
    along, across = np.abs(x) / length_um, np.abs(y) / length_um
    streaks = np.exp(-((along / 0.022) ** 2) / 2) * np.exp(-((across / 0.16) ** 2) / 2) * (across + 0.02) ** -0.6
    streaks[0, 0] = 0
    return _filtered_noise(streaks, 300)


@lru_cache(maxsize=1)
def mottle_texture() -> Floats:
    """Cytoplasm and background: cloudy noise from 1 to 20 µm, ``(FIBRE_SIZE, FIBRE_SIZE)`` at ``FIBRE_MPP``."""
    x, y = _frequencies(FIBRE_SIZE)
    per_um = np.hypot(x, y) / (FIBRE_SIZE * FIBRE_MPP)
    return _filtered_noise(np.where(per_um > 0, (per_um + 0.04) ** -1.1, 0) * np.exp(-((per_um / 0.6) ** 2)), 400)


@lru_cache(maxsize=1)
def cell_texture() -> Floats:
    """Distance in µm to the wall between fat cells some 60 µm wide, ``(CELL_SIZE, CELL_SIZE)`` at ``CELL_MPP``."""
    rng = np.random.default_rng(500)
    length_um = CELL_SIZE * CELL_MPP
    count = 17
    lattice = np.stack(np.meshgrid(np.arange(count), np.arange(count)), -1).reshape(-1, 2)
    centres = ((lattice + rng.uniform(0.1, 0.9, lattice.shape)) * length_um / count) % length_um
    axis = np.arange(CELL_SIZE) * CELL_MPP
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    distances, _ = cKDTree(centres, boxsize=length_um).query(points, k=2)
    return ((distances[:, 1] - distances[:, 0]) / 2).reshape(CELL_SIZE, CELL_SIZE).astype(np.float32)


@lru_cache(maxsize=1)
def camera_noise() -> Floats:
    """White noise ``(NOISE_SIZE, NOISE_SIZE, 3)``."""
    return np.random.default_rng(600).standard_normal((NOISE_SIZE, NOISE_SIZE, 3), dtype=np.float32)


def sample_texture(texture: Floats, columns: NDArray[np.floating], rows: NDArray[np.floating]) -> Floats:
    """The texture, repeated without end, at positions in its pixels, bilinear; ``columns`` and ``rows`` ``(M, N)``."""
    size = texture.shape[0]
    return np.asarray(
        cv2.remap(
            texture,
            (columns - size * np.floor(columns / size)).astype(np.float32, copy=False),
            (rows - size * np.floor(rows / size)).astype(np.float32, copy=False),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_WRAP,
        ),
        dtype=np.float32,
    )


@dataclass(frozen=True)
class Noise:
    """A smooth random function of the plane: mean 0, standard deviation 1, known in every point without being stored.

    Attributes
    ----------
    texture
        Which of the smooth textures is used.
    wavelength_um
        Distance from crest to crest.
    angle, offset_um
        Where the texture lies on the plane.
    """

    texture: int
    wavelength_um: float
    angle: float
    offset_um: tuple[float, float]

    @classmethod
    def random(cls, rng: np.random.Generator, wavelength_um: float) -> Noise:
        """A noise of this wavelength, different for every call."""
        x, y = rng.uniform(0, 1e5, 2)
        return cls(int(rng.integers(8)), wavelength_um, float(rng.uniform(0, 2 * np.pi)), (float(x), float(y)))

    def sample(self, x_um: NDArray[np.float64], y_um: NDArray[np.float64]) -> Floats:
        """Values at points given as two arrays ``(M, N)``."""
        scale = SMOOTH_SIZE / SMOOTH_WAVES / self.wavelength_um
        cosine, sine = np.cos(self.angle) * scale, np.sin(self.angle) * scale
        x, y = x_um + self.offset_um[0], y_um + self.offset_um[1]
        return sample_texture(smooth_texture(self.texture), cosine * x - sine * y, sine * x + cosine * y)
