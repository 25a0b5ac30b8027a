"""Planning a pair of consecutive sections: what is asked for, and the two sections and canvases that come of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ki67.errors import Ki67Error, Stain
from ki67.geometry import RigidTransform
from ki67.phantom.artifacts import PENS, Artifacts, Disc, Line
from ki67.phantom.layout import Layout
from ki67.phantom.look import Look, random_look
from ki67.phantom.nuclei import Section, logit_for
from ki67.phantom.pyramid import TILE_PX
from ki67.phantom.textures import Noise

BLOCK_WIDTH_PX = 2048
BLOCK_HEIGHT_PX = 1024
MARGIN_UM = 400.0


@dataclass(frozen=True)
class PhantomOptions:
    """What a pair of drawn slides is to be like.

    Attributes
    ----------
    area_mm2
        Area of the tissue, 1 to 1000.
    tumor_share, ki67_fraction
        Share of the tissue that is tumour, and of tumour nuclei that are positive.
    rotation_deg, shift_um
        Of the Ki-67 section against the H&E section, as ``RigidTransform`` counts angles; the shift is how far the
        tissue lies from the middle of the Ki-67 slide. Drawn from the seed where they are ``None``.
    flip
        The Ki-67 section is a mirror image.
    control_tissue
        A strip of another tissue beside the Ki-67 section, rich in positive lymphocytes.
    pen_mark, fold, blur, missing_part
        Ink on both slides; a fold in both sections; a defocused patch and a missing part in the Ki-67 section.
    stain_strength
        Multiplies all stains, 1 as usual; drawn from the seed where it is ``None``.
    stains
        Which slides are written.
    """

    area_mm2: float
    tumor_share: float = 0.4
    ki67_fraction: float = 0.2
    rotation_deg: float | None = None
    shift_um: tuple[float, float] | None = None
    flip: bool = False
    control_tissue: bool = False
    pen_mark: bool = False
    fold: bool = False
    blur: bool = False
    missing_part: bool = False
    stain_strength: float | None = None
    mpp: float = 0.5
    stains: tuple[Stain, ...] = ("he", "ki67")
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("area_mm2", self.area_mm2, 1, 1000),
            ("tumor_share", self.tumor_share, 0, 0.95),
            ("ki67_fraction", self.ki67_fraction, 0, 1),
            ("mpp", self.mpp, 0.1, 2),
            ("stain_strength", self.stain_strength or 1.0, 0.2, 3),
        ):
            if not low <= value <= high:
                raise Ki67Error(f"phantom: {name} is {value:g}; give a number from {low:g} to {high:g}")
        if not self.stains or not set(self.stains) <= {"he", "ki67"}:
            raise Ki67Error(f"phantom: stains are {','.join(self.stains) or 'none'}; give he, ki67 or he,ki67")


@dataclass(frozen=True)
class SlidePlan:
    """One slide to be painted.

    Attributes
    ----------
    control, control_px
        Control tissue that takes the first ``control_px`` columns of the canvas.
    width_px, height_px
        Canvas, multiples of ``TILE_PX``.
    """

    section: Section
    control: Section | None
    control_px: int
    width_px: int
    height_px: int
    mpp: float


@dataclass(frozen=True)
class PairPlan:
    """Both slides and the true transform from the H&E to the Ki-67 frame."""

    slides: dict[Stain, SlidePlan]
    transform: RigidTransform
    tissue_mm2: float


def plan_pair(options: PhantomOptions) -> PairPlan:
    """Decide everything about a pair of slides before the first pixel is painted."""
    rng = np.random.default_rng([options.seed, 7])
    layout = Layout.random(rng, radius_um=1000 * float(np.sqrt(options.area_mm2 / np.pi))).with_area(options.area_mm2)
    x, y = layout.survey()
    layout = layout.with_tumor_share(options.tumor_share, x, y)
    tissue = layout.tissue_um(x, y) > 0
    tumor = tissue & (layout.nest_um(x, y, 1) > 0)
    looks = _looks(rng, options)
    heterogeneity = float(rng.uniform(0.3, 1.0))
    logit = logit_for(options.ki67_fraction, layout.hot.sample(x, y)[tumor], heterogeneity)
    artifacts = _artifacts(rng, options, layout, x[tissue], y[tissue])
    angle = float(rng.uniform(0, 360)) if options.rotation_deg is None else options.rotation_deg
    drawn_shift = rng.uniform(-300, 300, 2)
    shift = drawn_shift if options.shift_um is None else np.array(options.shift_um)
    other_positive = (float(rng.uniform(0.005, 0.03)), float(rng.uniform(0.03, 0.12)))
    control = _control(rng, looks["ki67"], options) if options.control_tissue else None
    edge = np.column_stack([x[tissue], y[tissue]])
    to_he, he_size = _placed(edge, 0.0, False, np.zeros(2), 0.0)
    strip_um = 0.0 if control is None else BLOCK_WIDTH_PX * options.mpp * _control_blocks(options)
    to_ki67, ki67_size = _placed(edge, angle, options.flip, shift, strip_um)
    slides: dict[Stain, SlidePlan] = {}
    placements: dict[Stain, tuple[NDArray[np.float64], NDArray[np.float64]]] = {
        "he": (to_he, he_size),
        "ki67": (to_ki67, ki67_size),
    }
    for index, stain in enumerate(placements):
        matrix, size_um = placements[stain]
        section = Section(
            index=index,
            layout=layout,
            look=looks[stain],
            to_layout=np.linalg.inv(matrix),
            seed=options.seed,
            tumor_logit=logit,
            other_positive=other_positive,
            heterogeneity=heterogeneity,
            artifacts=artifacts[stain],
        )
        width, height = (int(-(-length // (TILE_PX * options.mpp))) * TILE_PX for length in size_um)
        placed = None if control is None or stain == "he" else _placed_control(control, strip_um, height * options.mpp)
        slides[stain] = SlidePlan(
            section, placed, 0 if placed is None else round(strip_um / options.mpp), width, height, options.mpp
        )
    transform = RigidTransform(to_ki67 @ np.linalg.inv(to_he), "he", "ki67")
    return PairPlan(slides, transform, float(tissue.sum()) * float(x[0, 1] - x[0, 0]) ** 2 / 1e6)


def _looks(rng: np.random.Generator, options: PhantomOptions) -> dict[Stain, Look]:
    """Both stains of the same tumour: its nuclei have the same size and structure in both."""
    strength = float(rng.uniform(0.8, 1.25)) if options.stain_strength is None else options.stain_strength
    he, ki67 = (random_look(rng, stain, stain_strength=strength) for stain in ("he", "ki67"))
    shared = {
        name: getattr(he, name)
        for name in ("nucleus_um", "size_spread", "elongation", "irregularity", "density", "stroma_density", "cell_um")
    }
    return {"he": he, "ki67": replace(ki67, **shared)}


def _placed(
    points_um: NDArray[np.float64], angle_deg: float, mirror: bool, shift_um: NDArray[np.float64], strip_um: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Layout-to-frame matrix ``(3, 3)`` and size of the canvas (x, y) that holds the turned tissue with a margin."""
    turn = RigidTransform.from_parameters(
        angle_deg=angle_deg, shift_um=(0.0, 0.0), mirror=mirror, source="he", target="ki67"
    )
    turned = turn.apply(points_um)
    low, high = turned.min(axis=0), turned.max(axis=0)
    size = high - low + 2 * MARGIN_UM + 2 * np.abs(shift_um)
    matrix = turn.matrix.copy()
    matrix[:2, 2] = size / 2 - (low + high) / 2 + shift_um + np.array([strip_um, 0])
    return matrix, size + np.array([strip_um, 0])


def _control_blocks(options: PhantomOptions) -> int:
    """Blocks that the strip of control tissue is wide."""
    return max(1, round(2200 / (BLOCK_WIDTH_PX * options.mpp)))


def _control(rng: np.random.Generator, look: Look, options: PhantomOptions) -> Section:
    """Control tissue: full of lymphocytes, many of them positive, without tumour."""
    area_mm2 = float(np.clip(options.area_mm2 / 10, 0.3, 1.5))
    layout = Layout.random(rng, radius_um=1000 * float(np.sqrt(area_mm2 / np.pi))).with_area(area_mm2)
    layout = replace(layout, lymphocyte_threshold=-1.2, fat_threshold=9.0)
    return Section(1, layout, look, np.eye(3), options.seed + 1, other_positive=(0.03, 0.35))


def _placed_control(control: Section, strip_um: float, height_um: float) -> Section:
    x, y = control.layout.survey()
    tissue = control.layout.tissue_um(x, y) > 0
    middle = (np.array([x[tissue].min() + x[tissue].max(), y[tissue].min() + y[tissue].max()])) / 2
    matrix = np.eye(3)
    matrix[:2, 2] = np.array([strip_um, height_um]) / 2 - middle
    return replace(control, to_layout=np.linalg.inv(matrix))


def _artifacts(
    rng: np.random.Generator, options: PhantomOptions, layout: Layout, x_um: NDArray[np.float64], y_um: NDArray[np.float64]
) -> dict[Stain, Artifacts]:
    """Artifacts of both sections; ``x_um`` and ``y_um`` ``(N,)`` lie in tissue."""
    radius = layout.radius_um
    result: dict[Stain, Artifacts] = {}
    for stain in ("he", "ki67"):
        inside = rng.integers(len(x_um), size=3)
        angles = rng.uniform(0, 2 * np.pi, 2)
        places = [(float(x_um[index]), float(y_um[index])) for index in inside]
        middle = np.column_stack([x_um, y_um]).mean(axis=0)
        along = np.column_stack([x_um, y_um]) @ np.array([np.cos(angles[1]), np.sin(angles[1])])
        cut = float(np.quantile(along, 0.82))
        ink = tuple(PENS)[int(rng.integers(len(PENS)))]
        only_ki67 = stain == "ki67"
        result[stain] = Artifacts(
            fold_line=Line(*places[0], float(angles[0])) if options.fold else None,
            defocus_disc=Disc(*places[1], max(200.0, 0.22 * radius)) if options.blur and only_ki67 else None,
            pen_circle=Disc(float(middle[0]), float(middle[1]), 1.02 * radius) if options.pen_mark else None,
            pen_width_um=float(np.clip(0.25 * radius, 120, 700)),
            pen_density=PENS[ink],
            missing_side=Line(cut * np.cos(angles[1]), cut * np.sin(angles[1]), float(angles[1]))
            if options.missing_part and only_ki67
            else None,
            waves=Noise.random(rng, float(np.clip(0.5 * radius, 250, 900))),
        )
    return result
