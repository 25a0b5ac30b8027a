"""Planning a pair of consecutive sections: what is asked for, and the two sections and canvases that come of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ki67.errors import Ki67Error, Stain
from ki67.geometry import RigidTransform
from ki67.phantom.artifacts import PENS, Artifacts, Disc, Line
from ki67.phantom.laboratory import stained_by
from ki67.phantom.layout import Layout
from ki67.phantom.look import Look, random_look
from ki67.phantom.nuclei import Section, logit_for
from ki67.phantom.proliferation import proliferating
from ki67.phantom.pyramid import TILE_PX
from ki67.phantom.textures import Noise

BLOCK_WIDTH_PX = 2048
BLOCK_HEIGHT_PX = 1024
MARGIN_UM = 400.0
CONTROL_UM = 2200.0
STAINS: tuple[Stain, ...] = ("he", "ki67")


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
    proliferation
        How much the morphology is that of a proliferating tumour, -4 to 4 standard deviations from the average
        (``ki67.phantom.proliferation``); where it is ``None``, morphology is drawn without regard to it.
    laboratory
        Number of the laboratory that stains and scans the H&E; each slide has one of its own where it is ``None``.
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
    proliferation: float | None = None
    laboratory: int | None = None
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
            ("proliferation", self.proliferation or 0.0, -4, 4),
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


@dataclass(frozen=True)
class _Placement:
    """Where the tissue lies on a canvas: layout-to-frame matrix ``(3, 3)`` and the canvas in pixels."""

    matrix: NDArray[np.float64]
    width_px: int
    height_px: int

    @property
    def to_layout(self) -> NDArray[np.float64]:
        return np.asarray(np.linalg.inv(self.matrix), dtype=np.float64)


def plan_pair(options: PhantomOptions) -> PairPlan:
    """Decide everything about a pair of slides before the first pixel is painted."""
    rng = np.random.default_rng([options.seed, 7])
    layout = Layout.random(rng, radius_um=1000 * float(np.sqrt(options.area_mm2 / np.pi))).with_area(options.area_mm2)
    x, y = layout.survey()
    layout = layout.with_tumor_share(options.tumor_share, x, y)
    tissue = layout.tissue_um(x, y) > 0
    points = np.column_stack([x[tissue], y[tissue]])
    sections = _sections(rng, options, layout, points)
    strip_px = BLOCK_WIDTH_PX * max(1, round(CONTROL_UM / (BLOCK_WIDTH_PX * options.mpp))) * options.control_tissue
    placements = _placements(rng, options, points, strip_px)
    slides = {
        stain: SlidePlan(
            section=replace(sections[stain], to_layout=placement.to_layout),
            control=None,
            control_px=0,
            width_px=placement.width_px,
            height_px=placement.height_px,
            mpp=options.mpp,
        )
        for stain, placement in placements.items()
    }
    if options.control_tissue:
        slides["ki67"] = _with_control(rng, options, slides["ki67"], strip_px)
    transform = RigidTransform(placements["ki67"].matrix @ placements["he"].to_layout, "he", "ki67")
    return PairPlan(slides, transform, float(tissue.sum()) * float(x[0, 1] - x[0, 0]) ** 2 / 1e6)


def _sections(
    rng: np.random.Generator, options: PhantomOptions, layout: Layout, points_um: NDArray[np.float64]
) -> dict[Stain, Section]:
    """Both sections, not yet placed on their slides; ``points_um`` ``(N, 2)`` lie evenly in the tissue."""
    looks, artifacts = _looks(rng, options), _artifacts(rng, options, layout, points_um)
    x, y = points_um[:, 0, None], points_um[:, 1, None]
    # cv2 takes images of at most 32767 rows.
    every = 1 + len(x) // 32_000
    tumor = layout.nest_um(x[::every], y[::every], 1) > 0
    heterogeneity = float(rng.uniform(0.3, 1.0))
    logit = logit_for(options.ki67_fraction, layout.hot.sample(x[::every], y[::every])[tumor], heterogeneity)
    other_positive = (float(rng.uniform(0.005, 0.03)), float(rng.uniform(0.03, 0.12)))
    return {
        stain: Section(
            index=index,
            layout=layout,
            look=looks[stain],
            to_layout=np.eye(3),
            seed=options.seed,
            tumor_logit=logit,
            other_positive=other_positive,
            heterogeneity=heterogeneity,
            artifacts=artifacts[stain],
        )
        for index, stain in enumerate(STAINS)
    }


def _placements(
    rng: np.random.Generator, options: PhantomOptions, points_um: NDArray[np.float64], strip_px: int
) -> dict[Stain, _Placement]:
    """The H&E section upright in the middle of its slide, the Ki-67 section as the options say."""
    drawn_angle, drawn_shift = float(rng.uniform(0, 360)), rng.uniform(-300, 300, 2)
    turn = RigidTransform.from_parameters(
        angle_deg=drawn_angle if options.rotation_deg is None else options.rotation_deg,
        shift_um=(0.0, 0.0),
        mirror=options.flip,
        source="he",
        target="ki67",
    )
    shift = drawn_shift if options.shift_um is None else np.array(options.shift_um)
    return {
        "he": _placed(points_um, np.eye(3), np.zeros(2), options.mpp, 0),
        "ki67": _placed(turn.apply(points_um), turn.matrix, shift, options.mpp, strip_px),
    }


def _placed(
    turned_um: NDArray[np.float64],
    turn: NDArray[np.float64],
    shift_um: NDArray[np.float64],
    mpp: float,
    strip_px: int,
) -> _Placement:
    """The canvas that holds the turned tissue with a margin, to the right of a strip that stays free."""
    low, high = turned_um.min(axis=0), turned_um.max(axis=0)
    size_um = high - low + 2 * MARGIN_UM + 2 * np.abs(shift_um)
    width, height = (int(np.ceil(length / (TILE_PX * mpp))) * TILE_PX for length in size_um)
    matrix = turn.copy()
    matrix[:2, 2] = size_um / 2 - (low + high) / 2 + shift_um + np.array([strip_px * mpp, 0])
    return _Placement(matrix, width + strip_px, height)


def _looks(rng: np.random.Generator, options: PhantomOptions) -> dict[Stain, Look]:
    """Both stains of the same tumour: its nuclei have the same size and structure in both."""
    strength = float(rng.uniform(0.8, 1.25)) if options.stain_strength is None else options.stain_strength
    he, ki67 = (random_look(rng, stain, stain_strength=strength) for stain in ("he", "ki67"))
    if options.laboratory is not None:
        he = stained_by(he, options.laboratory, strength)
    if options.proliferation is not None:
        he = proliferating(he, options.proliferation)
    shared = {
        name: getattr(he, name)
        for name in ("nucleus_um", "size_spread", "elongation", "irregularity", "density", "stroma_density", "cell_um")
    }
    return {"he": he, "ki67": replace(ki67, **shared)}


def _with_control(rng: np.random.Generator, options: PhantomOptions, plan: SlidePlan, strip_px: int) -> SlidePlan:
    """The same slide with control tissue in its strip: lymphocytes, many of them positive, and no tumour."""
    area_mm2 = float(np.clip(options.area_mm2 / 10, 0.3, 1.5))
    layout = Layout.random(rng, radius_um=1000 * float(np.sqrt(area_mm2 / np.pi))).with_area(area_mm2)
    layout = replace(layout, lymphocyte_threshold=-1.2, fat_threshold=9.0)
    x, y = layout.survey()
    tissue = layout.tissue_um(x, y) > 0
    middle = np.array([x[tissue].min() + x[tissue].max(), y[tissue].min() + y[tissue].max()]) / 2
    to_layout = np.eye(3)
    to_layout[:2, 2] = middle - np.array([strip_px, plan.height_px]) * plan.mpp / 2
    control = Section(1, layout, plan.section.look, to_layout, options.seed + 1, other_positive=(0.03, 0.35))
    return replace(plan, control=control, control_px=strip_px)


def _artifacts(
    rng: np.random.Generator, options: PhantomOptions, layout: Layout, points_um: NDArray[np.float64]
) -> dict[Stain, Artifacts]:
    """Artifacts of both sections; ``points_um`` ``(N, 2)`` lie in tissue."""
    radius, (x, y) = layout.radius_um, points_um.mean(axis=0)
    result: dict[Stain, Artifacts] = {}
    for stain in STAINS:
        first, second = (points_um[index].tolist() for index in rng.integers(len(points_um), size=2))
        fold_angle, cut_angle = rng.uniform(0, 2 * np.pi, 2).tolist()
        side = np.array([np.cos(cut_angle), np.sin(cut_angle)])
        cut = side * np.quantile(points_um @ side, 0.82)
        ink = tuple(PENS)[int(rng.integers(len(PENS)))]
        only_ki67 = stain == "ki67"
        result[stain] = Artifacts(
            fold_line=Line(first[0], first[1], fold_angle) if options.fold else None,
            defocus_disc=Disc(second[0], second[1], max(200.0, 0.22 * radius)) if options.blur and only_ki67 else None,
            pen_circle=Disc(float(x), float(y), 1.02 * radius) if options.pen_mark else None,
            pen_width_um=float(np.clip(0.25 * radius, 120, 700)),
            pen_density=PENS[ink],
            missing_side=Line(float(cut[0]), float(cut[1]), cut_angle) if options.missing_part and only_ki67 else None,
            waves=Noise.random(rng, float(np.clip(0.5 * radius, 250, 900))),
        )
    return result
