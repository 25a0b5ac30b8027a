"""Where tissue, tumour nests, lymphocytes, fibres and vessels lie: smooth functions of the plane, never stored images.

Both sections of a pair ask the same layout, each through its own transform, so that nothing painted is ever resampled
and memory does not grow with the area. Positions are microns of the layout's own plane, whose origin is the middle of
the tissue. Names that end in ``_um`` are signed distances: positive inside, negative outside, right to about a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ki67.phantom.textures import CELL_MPP, Floats, Noise, cell_texture, sample_texture

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Site:
    """What the layout says about a set of points; every array has the shape of the points.

    Attributes
    ----------
    tissue_um, nest_um, lumen_um
        Signed distances to the edge of the tissue (holes and tears are outside), of tumour nests, and of empty spaces
        (glands in nests, vessels in stroma).
    fat
        0 in dense tissue, 1 in fat.
    lymphocytes
        Share of places taken by lymphocytes, 0 to 1.
    hot
        Ki-67 hot spots: mean 0, standard deviation 1.
    crowding
        Local density of tumour cells: mean 0, standard deviation 1.
    fibre_x_um, fibre_y_um
        Coordinates in which collagen fibres are straight and run along x.
    """

    tissue_um: Floats
    nest_um: Floats
    lumen_um: Floats
    fat: Floats
    lymphocytes: Floats
    hot: Floats
    crowding: Floats
    fibre_x_um: Points
    fibre_y_um: Points


@dataclass(frozen=True)
class Layout:
    """One drawn piece of tissue.

    Attributes
    ----------
    radius_um
        Mean radius of the tissue, infinite for tissue without edge.
    aspect
        Elongation of the tissue.
    nest_waves
        Noises and their weights whose sum, above ``nest_threshold``, is tumour.
    nest_threshold
        Infinite for tissue without tumour.
    lumen_threshold, fat_threshold, lymphocyte_threshold, tear_threshold
        In standard deviations: how rare these are.
    """

    radius_um: float
    aspect: float
    outline: tuple[Noise, Noise, Noise]
    nest_waves: tuple[tuple[Noise, float], ...]
    nest_threshold: float
    section_waves: tuple[Noise, Noise]
    lumen: Noise
    lumen_threshold: float
    fat: Noise
    fat_threshold: float
    lymphocyte: tuple[Noise, Noise]
    lymphocyte_threshold: float
    tear: Noise
    tear_threshold: float
    hot: Noise
    crowding: Noise
    fibre_warp: tuple[Noise, Noise]
    fibre_angle: float
    fibre_amplitude_um: float

    @classmethod
    def random(cls, rng: np.random.Generator, *, radius_um: float = np.inf) -> Layout:
        """A layout of any kind: islands or trabeculae, wide or narrow, with or without glands, fat and tears."""
        nest_um = float(np.exp(rng.uniform(np.log(220), np.log(750))))
        breadth = radius_um if np.isfinite(radius_um) else 2000.0
        fibre_um = float(rng.uniform(350, 900))
        return cls(
            radius_um=radius_um,
            aspect=float(rng.uniform(1.0, 1.5)),
            outline=(
                Noise.random(rng, 1.7 * breadth),
                Noise.random(rng, 1.7 * breadth),
                Noise.random(rng, float(rng.uniform(150, 400))),
            ),
            nest_waves=(
                (Noise.random(rng, nest_um), 1.0),
                (Noise.random(rng, nest_um * float(rng.uniform(1.6, 3.5))), float(rng.uniform(0.3, 1.0))),
                (Noise.random(rng, nest_um * 0.37), float(rng.uniform(0.05, 0.3))),
                (Noise.random(rng, 45.0), float(rng.uniform(0.01, 0.06))),
            ),
            nest_threshold=np.inf,
            section_waves=(Noise.random(rng, 160.0), Noise.random(rng, 160.0)),
            lumen=Noise.random(rng, float(rng.uniform(90, 220))),
            lumen_threshold=float(rng.uniform(1.7, 3.5)),
            fat=Noise.random(rng, 1100.0),
            fat_threshold=float(rng.uniform(1.6, 3.2)),
            lymphocyte=(Noise.random(rng, float(rng.uniform(300, 700))), Noise.random(rng, 80.0)),
            lymphocyte_threshold=float(rng.uniform(0.6, 2.2)),
            tear=Noise.random(rng, float(rng.uniform(300, 900))),
            tear_threshold=float(rng.uniform(2.6, 4.0)),
            hot=Noise.random(rng, float(np.clip(breadth / 2, 250, 1500))),
            crowding=Noise.random(rng, 250.0),
            fibre_warp=(Noise.random(rng, fibre_um), Noise.random(rng, fibre_um)),
            fibre_angle=float(rng.uniform(0, np.pi)),
            fibre_amplitude_um=fibre_um * float(rng.uniform(0.03, 0.13)),
        )

    def with_tumor_share(self, share: float, x_um: Points, y_um: Points) -> Layout:
        """The same layout whose nests cover this share of the tissue at the given points ``(M, N)``."""
        if share <= 0:
            return replace(self, nest_threshold=np.inf)
        height = self._nest_height(x_um, y_um)[self.tissue_um(x_um, y_um) > 0]
        if share >= 1 or height.size == 0:
            return replace(self, nest_threshold=-np.inf)
        return replace(self, nest_threshold=float(np.quantile(height, 1 - share)))

    def with_area(self, area_mm2: float) -> Layout:
        """The same layout at the size that gives the tissue this area."""
        layout = self
        for _ in range(4):
            x, y = layout.survey()
            step_um = float(x[0, 1] - x[0, 0])
            found_mm2 = float((layout.tissue_um(x, y) > 0).sum()) * step_um**2 / 1e6
            layout = layout._scaled(float(np.sqrt(area_mm2 / found_mm2)))
        return layout

    def _scaled(self, factor: float) -> Layout:
        first, second, edge = self.outline
        bends = [
            replace(
                noise,
                wavelength_um=noise.wavelength_um * factor,
                offset_um=(noise.offset_um[0] * factor, noise.offset_um[1] * factor),
            )
            for noise in (first, second)
        ]
        return replace(self, radius_um=self.radius_um * factor, outline=(bends[0], bends[1], edge))

    def survey(self, points: int = 512) -> tuple[Points, Points]:
        """Evenly spaced points ``(points, points)`` over everything that may be tissue."""
        axis = (np.arange(points) + 0.5) * (4.4 * self.radius_um / points) - 2.2 * self.radius_um
        x, y = np.meshgrid(axis, axis)
        return x, y

    def tissue_um(self, x_um: Points, y_um: Points) -> Floats:
        """Signed distance to the outline of the tissue and to its tears."""
        tears = (self.tear_threshold - np.abs(self.tear.sample(x_um, y_um))) * (self.tear.wavelength_um / 6.3)
        if not np.isfinite(self.radius_um):
            return tears.astype(np.float32)
        bend = 0.22 * self.radius_um
        x = (x_um + bend * self.outline[0].sample(x_um, y_um)) / self.aspect**0.5
        y = (y_um + bend * self.outline[1].sample(x_um, y_um)) * self.aspect**0.5
        edge = self.radius_um - np.hypot(x, y) + 25 * self.outline[2].sample(x_um, y_um)
        return np.minimum(edge, tears).astype(np.float32)

    def nest_um(self, x_um: Points, y_um: Points, section: int) -> Floats:
        """Signed distance to the edge of the tumour nests in section 0 or 1, which differ by a few microns."""
        if not np.isfinite(self.nest_threshold):
            return np.full(np.shape(x_um), -np.sign(self.nest_threshold) * 1e3, dtype=np.float32)
        slope = np.sqrt(sum((weight / noise.wavelength_um) ** 2 for noise, weight in self.nest_waves)) * 6.3
        height = (self._nest_height(x_um, y_um) - self.nest_threshold) / slope
        return (height + 4.0 * self.section_waves[section].sample(x_um, y_um)).astype(np.float32)

    def _nest_height(self, x_um: Points, y_um: Points) -> Floats:
        waves = [weight * noise.sample(x_um, y_um) for noise, weight in self.nest_waves]
        return np.sum(waves, axis=0, dtype=np.float32)

    def site(self, x_um: Points, y_um: Points, section: int) -> Site:
        """Everything about the points ``(M, N)`` in section 0 or 1."""
        tissue, nest = self.tissue_um(x_um, y_um), self.nest_um(x_um, y_um, section)
        stroma = np.clip(-nest / 20, 0, 1)
        lumen = (self.lumen.sample(x_um, y_um) - self.lumen_threshold) * (self.lumen.wavelength_um / 6.3)
        lumen = np.minimum(lumen, np.abs(nest) - 25)
        fat = np.clip((self.fat.sample(x_um, y_um) - self.fat_threshold) * 6, 0, 1) * np.clip(-nest / 40, 0, 1)
        crowd = self.lymphocyte[0].sample(x_um, y_um) + 0.5 * self.lymphocyte[1].sample(x_um, y_um)
        fibre_x, fibre_y = self._fibres(x_um, y_um)
        return Site(
            tissue_um=tissue,
            nest_um=nest,
            lumen_um=lumen.astype(np.float32),
            fat=fat.astype(np.float32),
            lymphocytes=(np.clip(2.5 * (crowd - self.lymphocyte_threshold), 0, 1) * stroma * (1 - fat)).astype(
                np.float32
            ),
            hot=self.hot.sample(x_um, y_um),
            crowding=self.crowding.sample(x_um, y_um),
            fibre_x_um=fibre_x,
            fibre_y_um=fibre_y,
        )

    def _fibres(self, x_um: Points, y_um: Points) -> tuple[Points, Points]:
        cosine, sine = np.cos(self.fibre_angle), np.sin(self.fibre_angle)
        x = x_um + self.fibre_amplitude_um * self.fibre_warp[0].sample(x_um, y_um)
        y = y_um + self.fibre_amplitude_um * self.fibre_warp[1].sample(x_um, y_um)
        return cosine * x + sine * y, cosine * y - sine * x

    def fibre_direction(self, x_um: Points, y_um: Points) -> Points:
        """Angle of the collagen fibres at the points ``(M, N)``, radians from x towards y."""
        step = 4.0
        _, here = self._fibres(x_um, y_um)
        across_x = self._fibres(x_um + step, y_um)[1] - here
        across_y = self._fibres(x_um, y_um + step)[1] - here
        return np.arctan2(-across_x, across_y)


def fat_wall_um(x_um: NDArray[np.floating], y_um: NDArray[np.floating]) -> Floats:
    """Distance to the nearest wall between fat cells at the points ``(M, N)``, in µm."""
    return sample_texture(cell_texture(), x_um / CELL_MPP, y_um / CELL_MPP)
