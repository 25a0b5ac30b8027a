"""From a section's nuclei and layout to pixels: amounts of stain first, then colours by the law of Beer and Lambert."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from ki67.phantom.artifacts import DEFOCUS_UM
from ki67.phantom.layout import Site, fat_wall_um
from ki67.phantom.look import Look
from ki67.phantom.nuclei import Nuclei, Section, Window, place_nuclei
from ki67.phantom.textures import (
    FIBRE_MPP,
    GRAIN_MPP,
    NOISE_SIZE,
    Floats,
    camera_noise,
    fibre_texture,
    grain_texture,
    mottle_texture,
    sample_texture,
)

GRID_UM = 4.0
"""The layout is asked every so many microns and interpolated in between."""

STAMP_REACH = 1.5
"""Pictures of nuclei reach so many semi-axes from the centre."""

_HALO_PX = 16


@dataclass(frozen=True)
class Painting:
    """A painted window.

    Attributes
    ----------
    rgb
        uint8 ``(height, width, 3)``.
    labels
        int32 ``(height, width)``: 0, or 1 + index of the nucleus in ``nuclei`` that is seen there.
    nuclei
        All nuclei of the window and a little around it.
    tumor_um
        float32 ``(height, width)``: signed distance to the edge of the tumour, positive inside it.
    """

    rgb: NDArray[np.uint8]
    labels: NDArray[np.int32]
    nuclei: Nuclei
    tumor_um: Floats


@dataclass(frozen=True)
class _Canvas:
    """A window with its pixels and a halo around them that blurring needs."""

    window: Window
    width_px: int
    height_px: int
    mpp: float

    def _first_steps(self) -> tuple[int, int]:
        """Column and row of the first grid point: the grid lies at the same places for every window."""
        return int(np.floor(self.window.x_um / GRID_UM)), int(np.floor(self.window.y_um / GRID_UM))

    def grid(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Section coordinates of the grid points on which the layout is asked."""
        steps = (range(first, first + round(length // GRID_UM) + 3) for first, length in self._spans())
        x, y = np.meshgrid(*(np.array(axis) * GRID_UM for axis in steps))
        return x, y

    def _spans(self) -> tuple[tuple[int, float], tuple[int, float]]:
        column, row = self._first_steps()
        return (column, self.window.width_um), (row, self.window.height_um)

    def upsample(self, coarse: NDArray[np.floating]) -> Floats:
        """Values on the grid at every pixel, bilinear."""
        scale = self.mpp / GRID_UM
        column, row = self._first_steps()
        left, top = self.window.x_um / GRID_UM - column, self.window.y_um / GRID_UM - row
        matrix = np.array([[scale, 0, left + scale / 2], [0, scale, top + scale / 2]])
        size, flags = (self.width_px, self.height_px), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return np.asarray(
            cv2.warpAffine(coarse.astype(np.float32), matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        )


@dataclass(frozen=True)
class _NuclearPlanes:
    """What nuclei leave on a canvas, each ``(height, width)``: amounts, cell bodies 0 to 1, and labels."""

    hematoxylin: Floats
    dab: Floats
    cells: Floats
    labels: NDArray[np.int32]

    @classmethod
    def empty(cls, canvas: _Canvas) -> _NuclearPlanes:
        shape = (canvas.height_px, canvas.width_px)
        planes = [np.zeros(shape, dtype=np.float32) for _ in range(3)]
        return cls(planes[0], planes[1], planes[2], np.zeros(shape, dtype=np.int32))


def paint(
    section: Section,
    x_um: float,
    y_um: float,
    width_px: int,
    height_px: int,
    mpp: float,
    *,
    stamps: Floats | None = None,
) -> Painting:
    """Paint a window of a section; windows that touch fit together without a seam.

    Parameters
    ----------
    x_um, y_um
        Top-left corner in the section's frame; a whole number of pixels where windows must fit together.
    stamps
        Pictures of nuclei to paint with instead of drawn structure, float32 ``(K, S, S, 2)``: amount of stain (about 1)
        and cover (0 to 1) over -``STAMP_REACH`` to ``STAMP_REACH`` semi-axes, long axis along x.
    """
    halo = _HALO_PX * mpp
    window = Window(x_um - halo, y_um - halo, (width_px + 2 * _HALO_PX) * mpp, (height_px + 2 * _HALO_PX) * mpp)
    canvas = _Canvas(window, width_px + 2 * _HALO_PX, height_px + 2 * _HALO_PX, mpp)
    site = section.site(*canvas.grid())
    nuclei = place_nuclei(section, window)
    planes = _nuclear_planes(canvas, nuclei) if stamps is None else _stamped_planes(canvas, nuclei, stamps)
    amounts = _with_ground(section, canvas, site, planes)
    light = develop(amounts, section.look, mpp)
    _spoil(section, canvas, amounts, light)
    rgb = expose(light, section.look, (round(y_um / mpp) - _HALO_PX, round(x_um / mpp) - _HALO_PX))
    tumor = canvas.upsample(np.minimum(site.nest_um, site.tissue_um))
    inner = np.s_[_HALO_PX:-_HALO_PX, _HALO_PX:-_HALO_PX]
    return Painting(
        np.ascontiguousarray(rgb[inner]),
        np.ascontiguousarray(planes.labels[inner]),
        nuclei,
        np.ascontiguousarray(tumor[inner]),
    )


def _spoil(section: Section, canvas: _Canvas, amounts: Floats, light: Floats) -> None:
    """Lay fold, defocused patch and pen mark over the light, in place."""
    artifacts, look = section.artifacts, section.look
    grid = section.layout_points(*canvas.grid())
    fold = artifacts.fold(*grid)
    if fold.max() > 0:
        light *= _light(amounts * canvas.upsample(fold)[..., None], look, np.zeros(3))
    defocus = artifacts.defocus(*grid)
    if defocus.max() > 0:
        weight = canvas.upsample(defocus)[..., None]
        light += weight * (cv2.GaussianBlur(light, (0, 0), DEFOCUS_UM / canvas.mpp) - light)
    pen = artifacts.pen(*grid)
    if pen.max() > 0:
        light *= np.exp(-canvas.upsample(pen)[..., None] * np.array(artifacts.pen_density, dtype=np.float32))


def _nuclear_planes(canvas: _Canvas, nuclei: Nuclei) -> _NuclearPlanes:
    """Nuclei with drawn structure."""
    planes = _NuclearPlanes.empty(canvas)
    _paint_nuclei(
        *_pixel_places(canvas, nuclei),
        nuclei.semi_major_um,
        nuclei.semi_minor_um,
        nuclei.angle,
        nuclei.harmonics,
        nuclei.hematoxylin,
        nuclei.dab,
        nuclei.vesicular,
        nuclei.chromatin,
        nuclei.rim,
        nuclei.edge_um,
        nuclei.cytoplasm_um,
        nuclei.nucleoli,
        nuclei.texture,
        grain_texture(),
        planes.hematoxylin,
        planes.dab,
        planes.cells,
        planes.labels,
        canvas.mpp,
    )
    return planes


def _stamped_planes(canvas: _Canvas, nuclei: Nuclei, stamps: Floats) -> _NuclearPlanes:
    """Nuclei that look like the given pictures, in cells as drawn ones have."""
    planes = replace(_NuclearPlanes.empty(canvas), cells=_nuclear_planes(canvas, nuclei).cells)
    _stamp_nuclei(
        *_pixel_places(canvas, nuclei),
        nuclei.semi_major_um / np.float32(canvas.mpp),
        nuclei.semi_minor_um / np.float32(canvas.mpp),
        nuclei.angle,
        nuclei.hematoxylin,
        nuclei.dab,
        (nuclei.texture[:, 0].astype(np.float64) * 997 % len(stamps)).astype(np.int64),
        stamps,
        planes.hematoxylin,
        planes.dab,
        planes.labels,
    )
    return planes


def _pixel_places(canvas: _Canvas, nuclei: Nuclei) -> tuple[Floats, Floats]:
    """Columns and rows of the nuclei's centres on the canvas."""
    columns, rows = nuclei.x_um - canvas.window.x_um, nuclei.y_um - canvas.window.y_um
    return (columns / canvas.mpp).astype(np.float32), (rows / canvas.mpp).astype(np.float32)


def _with_ground(section: Section, canvas: _Canvas, site: Site, nuclear: _NuclearPlanes) -> Floats:
    """Amounts of stain ``(height, width, 3)`` in collagen, cytoplasm and the given nuclei together."""
    look = section.look
    nest = canvas.upsample(site.nest_um)
    along, across = canvas.upsample(site.fibre_x_um), canvas.upsample(site.fibre_y_um)
    along /= FIBRE_MPP
    across /= FIBRE_MPP
    fibre = sample_texture(fibre_texture(), along, across)
    mottle = sample_texture(mottle_texture(), across, along)
    edge = canvas.upsample(np.minimum(site.tissue_um, -site.lumen_um))
    solid = _solid(section, canvas, site) if site.fat.max() > 0 else np.ones((1, 1), dtype=np.float32)
    parts = np.array([look.stroma_amounts, look.cytoplasm_amounts, look.ground_amounts], dtype=np.float32)
    amounts = np.empty((*nest.shape, 3), dtype=np.float32)
    planes = (nuclear.hematoxylin, nuclear.dab, nuclear.cells)
    _mix(nest, edge, fibre, mottle, solid, *planes, parts, look.fibre, look.cleft, amounts)
    return amounts


def _solid(section: Section, canvas: _Canvas, site: Site) -> Floats:
    """0 inside fat cells, 1 in their walls and everywhere else, ``(height, width)``."""
    x, y = (canvas.upsample(values) for values in section.layout_points(*canvas.grid()))
    wall = np.clip(fat_wall_um(x, y) - np.float32(1.3), 0, 1)
    return np.asarray(1 - canvas.upsample(site.fat) * wall, dtype=np.float32)


@njit(cache=True, nogil=True, fastmath=True)  # type: ignore[untyped-decorator]
def _ramp(value, low, high):  # type: ignore[no-untyped-def]
    """0 below ``low``, 1 above ``high``, straight in between."""
    return min(max((value - low) * (1 / (high - low)), np.float32(0)), np.float32(1))


@njit(cache=True, nogil=True, fastmath=True)  # type: ignore[untyped-decorator]
def _mix(  # type: ignore[no-untyped-def]
    nest, edge, fibre, mottle, solid, hematoxylin, dab, cells, parts, contrast, cleft, amounts
):
    """Fill ``amounts`` pixel by pixel: collagen in streaks with gaps, mottled cytoplasm, nuclei on top."""
    height, width = nest.shape
    melted = solid.size > 1
    for row in range(height):
        for column in range(width):
            streak, cloud = fibre[row, column], mottle[row, column]
            inside = _ramp(nest[row, column], np.float32(-1.5), np.float32(1.5))
            stroma = max(0.85 + 0.32 * contrast * streak + 0.12 * cloud, 0.0)
            stroma *= (1 - cleft * (1 - _ramp(streak + 0.5 * cloud, np.float32(-2.0), np.float32(-0.9)))) * (1 - inside)
            cytoplasm = (0.45 + 0.75 * cells[row, column] + 0.13 * cloud) * inside
            present = _ramp(edge[row, column] + 0.6 * cloud, np.float32(-0.7), np.float32(0.7))
            if melted:
                present *= solid[row, column]
            for stain in range(3):
                amount = parts[0, stain] * stroma + parts[1, stain] * cytoplasm + parts[2, stain]
                amounts[row, column, stain] = present * amount
            amounts[row, column, 0] += hematoxylin[row, column]
            amounts[row, column, 2] += dab[row, column]


@njit(cache=True, nogil=True, fastmath=True)  # type: ignore[untyped-decorator]
def _paint_nuclei(  # type: ignore[no-untyped-def]
    x_px, y_px, semi_major_um, semi_minor_um, angle, harmonics, nuclear_hematoxylin, nuclear_dab, vesicular, chromatin,
    rim, edge_um, cytoplasm_um, nucleoli, texture, grain, hematoxylin, dab, cells, labels, mpp,
):  # fmt: skip
    """Add every nucleus to the maps of hematoxylin, DAB, cell bodies and labels, in place; later ones lie on top."""
    height, width = hematoxylin.shape
    grain_size = grain.shape[0]
    grain_scale = mpp / GRAIN_MPP
    for index in range(len(x_px)):
        major, minor = semi_major_um[index] / mpp, semi_minor_um[index] / mpp
        soft = max(edge_um[index] / mpp, 0.8)
        body = cytoplasm_um[index] / mpp
        reach = major * 1.2 + max(soft, body)
        cosine, sine = np.cos(angle[index]), np.sin(angle[index])
        mean_radius = np.sqrt(major * minor)
        half_minor = 0.5 * (minor + mean_radius)
        waves = harmonics[index]
        for row in range(max(0, int(y_px[index] - reach)), min(height, int(y_px[index] + reach) + 2)):
            for column in range(max(0, int(x_px[index] - reach)), min(width, int(x_px[index] + reach) + 2)):
                dx, dy = column + 0.5 - x_px[index], row + 0.5 - y_px[index]
                u = (cosine * dx + sine * dy) / major
                v = (cosine * dy - sine * dx) / minor
                rho = np.sqrt(u * u + v * v) + 1e-6
                c1, s1 = u / rho, v / rho
                c2, s2 = c1 * c1 - s1 * s1, 2 * c1 * s1
                c3, s3 = c2 * c1 - s2 * s1, s2 * c1 + c2 * s1
                c4, s4 = c2 * c2 - s2 * s2, 2 * c2 * s2
                c5, s5 = c4 * c1 - s4 * s1, s4 * c1 + c4 * s1
                radius = 1 + waves[0] * c2 + waves[1] * s2 + waves[2] * c3 + waves[3] * s3
                radius += waves[4] * c4 + waves[5] * s4 + waves[6] * c5 + waves[7] * s5
                rho /= radius
                # Distance to the outline along the ray; for flat nuclei the short axis counts more near their sides.
                depth = (1 - rho) * half_minor
                if body > 0 and depth > -body:
                    cell = 1 + min(depth, 0.0) / body
                    cell = cell * (2 - cell)
                    if cell > cells[row, column]:
                        cells[row, column] = cell
                cover = depth / soft + 0.5
                if cover <= 0:
                    continue
                cover = min(cover, 1.0)
                clump = grain[
                    int(dy * grain_scale + texture[index, 1] + grain_size) % grain_size,
                    int(dx * grain_scale + texture[index, 0] + grain_size) % grain_size,
                ]
                shell = (rho - 0.86) * 7
                value = 1 + rim[index] / (1 + shell * shell) - vesicular[index] * max(0.0, 1 - rho * rho)
                structure = chromatin[index] * clump
                spots = np.float32(0)
                for which in range(nucleoli.shape[1]):
                    if nucleoli[index, which, 3] > 0:
                        spot_u = (u - nucleoli[index, which, 0]) * major * mpp / nucleoli[index, which, 2]
                        spot_v = (v - nucleoli[index, which, 1]) * minor * mpp / nucleoli[index, which, 2]
                        spots += nucleoli[index, which, 3] * max(0.0, 1 - spot_u * spot_u - spot_v * spot_v)
                blue = nuclear_hematoxylin[index] * cover * max(0.15, value + structure + spots)
                brown = nuclear_dab[index] * cover * max(0.2, 0.7 + 0.3 * value + 0.9 * structure + 0.6 * spots)
                old = hematoxylin[row, column]
                hematoxylin[row, column] = max(old, blue) + 0.35 * min(old, blue)
                old = dab[row, column]
                dab[row, column] = max(old, brown) + 0.35 * min(old, brown)
                if cover > 0.5:
                    labels[row, column] = index + 1


@njit(cache=True, nogil=True, fastmath=True)  # type: ignore[untyped-decorator]
def _stamp_nuclei(  # type: ignore[no-untyped-def]
    x_px, y_px, major_px, minor_px, angle, nuclear_hematoxylin, nuclear_dab, which, stamps, hematoxylin, dab, labels
):
    """Add a picture of a nucleus at every place to the maps of hematoxylin, DAB and labels, in place."""
    height, width = hematoxylin.shape
    size = stamps.shape[1]
    for index in range(len(x_px)):
        cosine, sine = np.cos(angle[index]), np.sin(angle[index])
        reach = STAMP_REACH * major_px[index]
        stamp = stamps[which[index]]
        for row in range(max(0, int(y_px[index] - reach)), min(height, int(y_px[index] + reach) + 2)):
            for column in range(max(0, int(x_px[index] - reach)), min(width, int(x_px[index] + reach) + 2)):
                dx, dy = column + 0.5 - x_px[index], row + 0.5 - y_px[index]
                u = (cosine * dx + sine * dy) / major_px[index]
                v = (cosine * dy - sine * dx) / minor_px[index]
                across, down = (u / STAMP_REACH + 1) * size / 2 - 0.5, (v / STAMP_REACH + 1) * size / 2 - 0.5
                if across < 0 or down < 0 or across >= size - 1 or down >= size - 1:
                    continue
                left, top = int(across), int(down)
                right, bottom = across - left, down - top
                value = (
                    stamp[top, left] * ((1 - right) * (1 - bottom))
                    + stamp[top, left + 1] * (right * (1 - bottom))
                    + stamp[top + 1, left] * ((1 - right) * bottom)
                    + stamp[top + 1, left + 1] * (right * bottom)
                )
                blue, brown = nuclear_hematoxylin[index] * value[0], nuclear_dab[index] * value[0]
                old = hematoxylin[row, column]
                hematoxylin[row, column] = max(old, blue) + 0.35 * min(old, blue)
                old = dab[row, column]
                dab[row, column] = max(old, brown) + 0.35 * min(old, brown)
                if value[1] > 0.5:
                    labels[row, column] = index + 1


def develop(amounts: Floats, look: Look, mpp: float) -> Floats:
    """Light that passes through these amounts of stain ``(height, width, 3)``, in focus as the look has it."""
    focused = cv2.GaussianBlur(amounts, (0, 0), max(look.blur_um / mpp, 0.3))
    return _light(np.asarray(focused, dtype=np.float32), look, np.log(look.white))


def _light(amounts: Floats, look: Look, log_white: NDArray[np.float64]) -> Floats:
    """Red, green and blue light that passes: the law of Beer and Lambert."""
    vectors = np.array([look.hematoxylin_vector, look.eosin_vector, look.dab_vector])
    matrix = np.column_stack([-np.log(10) * vectors.T, log_white]).astype(np.float32)
    light = cv2.transform(amounts, matrix)
    return np.asarray(cv2.exp(light, light), dtype=np.float32)


def expose(light: Floats, look: Look, place: tuple[int, int]) -> NDArray[np.uint8]:
    """What the scanner makes of light ``(height, width, 3)``: sharpening and noise that belongs to the place.

    Parameters
    ----------
    place
        Row and column of the first pixel on the slide: neighbouring windows have one noise.
    """
    if look.sharpening > 0:
        soft = cv2.GaussianBlur(light, (0, 0), 1.0)
        light = np.asarray(cv2.addWeighted(light, 1 + look.sharpening, soft, -look.sharpening, 0), dtype=np.float32)
    first_row, first_column = (start % NOISE_SIZE for start in place)
    noise = np.float32(look.noise) * np.roll(camera_noise(), (-first_row, -first_column), axis=(0, 1))
    result = np.empty(light.shape, dtype=np.uint8)
    for top in range(0, light.shape[0], NOISE_SIZE):
        for left in range(0, light.shape[1], NOISE_SIZE):
            tile = np.s_[top : top + NOISE_SIZE, left : left + NOISE_SIZE]
            height, width = result[tile].shape[:2]
            noisy = light[tile] + noise[:height, :width]
            result[tile] = cv2.convertScaleAbs(np.maximum(noisy, 0, out=noisy))
    return result
