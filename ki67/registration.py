"""Where the H&E section lies on the Ki-67 section, and whether that can be believed.

A search over the full circle and both mirror images gives a few candidates; elastix refines each by mutual
information; the one whose edges and outlines agree best is refined further, first rigidly, then with all that a rigid
transform cannot follow, which is spread evenly over the section. Two more fits, each blind to half of the tissue, say
where the other half should lie, and patterns say where it does: that gives the estimated error and the verdict.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ki67.coarse_search import find_candidates, search_mpp
from ki67.deformation import Deformation, DeformedTransform
from ki67.elastix import Refinement, find_deformation, refine_rigid
from ki67.errors import STAIN_NAMES
from ki67.geometry import Mask, RigidTransform, Transform
from ki67.landmarks import fit_rigid
from ki67.local_shifts import Chessboard, PlaceCheck, measure_local_shifts
from ki67.section import BoolImage, FloatImage, Section, carry_back, edges

Refine = Literal["none", "affine", "bspline"]
Verdict = Literal["accepted", "doubtful", "rejected", "not_applicable"]

FINEST_MPP = 8.0
SELECTION_MPP = 32.0
QUALITY_MPP = 32.0
LONGEST_SIDE_PX = 1000  # of what elastix compares: 8 µm/px up to 8 mm, coarser beyond, which takes as long
CANDIDATES = 6
SELECTION = Refinement(resolutions=2, iterations=100, samples=2000)
FINAL = Refinement(resolutions=3, iterations=200, samples=4000)
DEFORMATION = Refinement(resolutions=3, iterations=(150, 150, 300), samples=(2000, 4000, 15000), reach_um=100.0)
BLIND = Refinement(resolutions=3, iterations=200, samples=5000, reach_um=150.0)
SETTLED_PLACES = 6000
SETTLE_ROUNDS = 25
SANE_AREAS = (0.6, 1.6)  # by which a section may shrink or swell anywhere
FEWEST_TISSUE_MM2 = 0.05
ACCEPTED_SHARE = 0.22  # of agreeing places, at the lower end of the 95 % interval; by chance a share of 0.11 agrees
DOUBTFUL_SHARE = 0.15
FEWEST_ACCEPTED = 5
FEWEST_DOUBTFUL = 3
ACCEPTED_DISCORD_UM = 150.0  # between the two blind fits
ACCEPTED_ERROR_UM = 120.0
LARGEST_SCALE = 1.12  # serial sections were seen to differ by 7 %
LOOK = "look at the registration picture before trusting the tumour mask"
OTHER_SECTION = "check that both slides are sections of the same block"


@dataclass(frozen=True)
class Registration:
    """The outcome of a registration.

    Attributes
    ----------
    transform
        From the H&E to the Ki-67 frame. A rejected registration holds its best attempt, where there is one, for the
        picture alone.
    verdict
        ``"accepted"``; ``"doubtful"``: usable, but to be looked at; ``"rejected"``: not to be used;
        ``"not_applicable"``: there is only one slide.
    reason
        Why, as one sentence that does not name the slide.
    ncc
        Normalised cross-correlation, -1 to 1, of the optical densities at 32 µm/px where both sections have tissue.
    tissue_dice
        Twice the area both tissues share over the sum of their areas.
    estimated_error_um, estimated_error_p90_um
        Median and 90th percentile of the distance between where the transform puts places of the tissue and where
        their patterns were found; none where none was found.
    scale
        By which the H&E section must be enlarged to fit best, 1 if both have shrunk alike.
    discord_um
        Median distance between two fits that have each seen another half of the tissue.
    check
        The places.
    seconds
        Wall-clock time.
    """

    transform: RigidTransform | DeformedTransform | None
    verdict: Verdict
    reason: str
    ncc: float | None = None
    tissue_dice: float | None = None
    estimated_error_um: float | None = None
    estimated_error_p90_um: float | None = None
    scale: float | None = None
    discord_um: float | None = None
    check: PlaceCheck | None = None
    seconds: float = 0.0

    @classmethod
    def not_applicable(cls, reason: str) -> Registration:
        """The outcome for a slide that has only one stain."""
        return cls(None, "not_applicable", reason)

    def to_json(self) -> dict[str, Any]:
        """The outcome as plain JSON values; matrix, angle and mirror are null where there is no transform."""
        found = self.transform
        deformation = found.deformation if isinstance(found, DeformedTransform) else None
        rigid = found.rigid if isinstance(found, DeformedTransform) else found
        placement = (rigid or RigidTransform(np.eye(3), "he", "ki67")).to_json()
        if rigid is None:
            placement |= dict.fromkeys(("matrix", "angle_deg", "mirror"))
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            **placement,
            "deformation": deformation and deformation.to_json(),
            "ncc": self.ncc,
            "tissue_dice": self.tissue_dice,
            "estimated_error_um": self.estimated_error_um,
            "estimated_error_p90_um": self.estimated_error_p90_um,
            "scale": self.scale,
            "discord_um": self.discord_um,
            "places": 0 if self.check is None else len(self.check.agree),
            "agreeing_places": 0 if self.check is None else int(np.count_nonzero(self.check.agree)),
            "checked": [] if self.check is None else self.check.to_json(),
            "seconds": round(self.seconds, 2),
        }


def register(
    he_rgb: NDArray[np.uint8],
    he_tissue: Mask,
    ki67_rgb: NDArray[np.uint8],
    ki67_tissue: Mask,
    *,
    mpp: float,
    mirror: bool = True,
    refine: Refine = "none",
) -> Registration:
    """Find the transform, mirror images included, from the H&E to the Ki-67 frame, and judge it.

    The same input gives the same result on every run and for any number of processors. Nothing is raised for slides
    that cannot be registered: the verdict says so.

    Parameters
    ----------
    he_rgb, ki67_rgb
        uint8 ``(rows, columns, 3)``, thumbnails of the whole slides.
    he_tissue, ki67_tissue
        Tissue in each slide's own frame, at any resolution.
    mpp
        Microns per pixel of both thumbnails.
    mirror
        Whether a section may lie on its back.
    refine
        What follows the rigid transform: nothing, an affine transform, or a B-spline after that.
    """
    started = time.perf_counter()
    for stain, tissue in (("he", he_tissue), ("ki67", ki67_tissue)):
        if tissue.area_mm2 < FEWEST_TISSUE_MM2:
            return _rejected(f"there is no tissue on the {STAIN_NAMES[stain]} slide to register", started)
    he = Section.of_thumbnail(he_rgb, he_tissue, mpp).at(FINEST_MPP)
    ki67 = Section.of_thumbnail(ki67_rgb, ki67_tissue, mpp).at(FINEST_MPP)
    rough = find_rough_transform(he, ki67, mirror=mirror)
    if rough is None:
        return _rejected(f"no place on the Ki-67 slide was found where the H&E section fits; {OTHER_SECTION}", started)
    mpp = max(he.mpp, ki67.mpp, max(he.longest_side_um, ki67.longest_side_um) / LONGEST_SIDE_PX)
    coarse_he, coarse_ki67 = he.at(mpp), ki67.at(mpp)
    rigid = refine_rigid(coarse_he, coarse_ki67, rough, FINAL) or rough
    deformation = sane(find_deformation(coarse_he, coarse_ki67, rigid, DEFORMATION, spline=True), he)
    full = rigid if deformation is None else DeformedTransform(rigid, deformation)
    fits = [] if deformation is None else [full, DeformedTransform(rigid, Deformation(deformation.affine))]
    chosen: RigidTransform | DeformedTransform = settle(coarse_he, coarse_ki67, rigid, fits or [rigid])
    if deformation is not None and refine != "none":
        chosen = DeformedTransform(rigid, deformation if refine == "bspline" else Deformation(deformation.affine))
    scale = 1.0 if deformation is None else float(np.sqrt(abs(np.linalg.det(deformation.affine[:2, :2]))))
    check, discord_um = check_places(he, ki67, rigid, mpp)
    verdict, reason = judge(check, chosen, discord_um, scale)
    errors_um = check.errors_um(chosen)
    he, ki67 = he.at(QUALITY_MPP), ki67.at(QUALITY_MPP)
    both = shared_tissue(he, ki67, chosen)
    return Registration(
        chosen,
        verdict,
        reason,
        ncc=correlation(he.density, carry_back(ki67.density, chosen, he.mpp, he.tissue.shape), both),
        tissue_dice=dice(he, ki67, both),
        estimated_error_um=float(np.median(errors_um)) if len(errors_um) else None,
        estimated_error_p90_um=float(np.percentile(errors_um, 90)) if len(errors_um) else None,
        scale=scale,
        discord_um=discord_um,
        check=check,
        seconds=time.perf_counter() - started,
    )


def settle(he: Section, ki67: Section, rigid: RigidTransform, fits: Sequence[Transform]) -> RigidTransform:
    """The rigid transform that comes nearest to the mean of some that are not.

    Mutual information is satisfied with the part of the section that fits best; this spreads what a rigid transform
    cannot follow over all tissue, most over the dense, where tumour is. Places far from the fit, which no rigid
    transform brings nearer, weigh less (iterative reweighting by Cauchy's function of the distance).
    """
    there = carry_back(ki67.density, rigid, he.mpp, he.tissue.shape)
    shared = np.where(shared_tissue(he, ki67, rigid), np.minimum(he.density, there) ** 2, 0.0)
    rows, columns = np.nonzero(shared)
    chosen = slice(None, None, max(1, len(rows) // SETTLED_PLACES))
    rows, columns = rows[chosen], columns[chosen]
    if len(rows) < 2:
        return rigid
    source, trust = np.column_stack([columns + 0.5, rows + 0.5]) * he.mpp, shared[rows, columns].astype(np.float64)
    target, weights, fitted = np.mean([fit.apply(source) for fit in fits], axis=0), trust, rigid
    for _ in range(SETTLE_ROUNDS):
        fitted = RigidTransform(fit_rigid(source, target, weights=weights, mirror=rigid.mirror), "he", "ki67")
        rest_um = np.linalg.norm(fitted.apply(source) - target, axis=1)
        weights = trust / (1 + (rest_um / max(1.0, float(np.median(rest_um)))) ** 2)
    return fitted


def sane(deformation: Deformation | None, he: Section) -> Deformation | None:
    """The deformation; without its spline if that folds the section or swells it anywhere, none if even that does."""
    for candidate in (deformation, deformation and Deformation(deformation.affine)):
        if candidate is not None:
            rows, columns = he.tissue.shape
            least, most = candidate.jacobian_range((columns * he.mpp, rows * he.mpp))
            if SANE_AREAS[0] <= least and most <= SANE_AREAS[1]:
                return candidate
    return None


def check_places(he: Section, ki67: Section, start: RigidTransform, mpp: float) -> tuple[PlaceCheck, float]:
    """Every square of the tissue, where a fit that has not seen it expects it and where its pattern lies.

    Parameters
    ----------
    start
        Where the fits begin.
    mpp
        Microns per pixel of what they compare.

    Returns
    -------
    The places, and the median distance between the two fits in µm.
    """
    board, parts, fits = Chessboard(), [], []
    coarse_he, coarse_ki67 = he.at(mpp), ki67.at(mpp)
    for colour in (0, 1):
        seen = board.squares(1 - colour, coarse_he.tissue.shape, mpp)
        deformation = sane(find_deformation(coarse_he, coarse_ki67, start, BLIND, spline=False, seen=seen), he)
        fit = start if deformation is None else DeformedTransform(start, deformation)
        shifts = measure_local_shifts(he, ki67, fit, colour, board)
        fits.append(fit)
        parts.append((shifts.places_um, fit.apply(shifts.places_um), fit.apply(shifts.places_um + shifts.shifts_um)))
    check = PlaceCheck(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    apart_um = np.linalg.norm(fits[0].apply(check.places_um) - fits[1].apply(check.places_um), axis=1)
    return check, float(np.median(apart_um)) if len(apart_um) else 0.0


def judge(check: PlaceCheck, transform: Transform, discord_um: float, scale: float) -> tuple[Verdict, str]:
    """Verdict and reason.

    Squares of sections that do not belong together are found anywhere within reach, one in nine of them by chance close
    to where it is expected. The share that agrees counts at the lower end of its interval (Wilson, 95 %), so that few
    squares must agree all the more.
    """
    places, agreeing = len(check.agree), int(np.count_nonzero(check.agree))
    if places == 0:
        return "rejected", f"the two sections have no structure in common; {OTHER_SECTION}"
    from scipy.stats import binomtest  # slow to import, and rows of one section have nothing to register

    share = binomtest(agreeing, places).proportion_ci(method="wilson").low
    counted = f"{agreeing} of {places} places of the tissue were found where they should be"
    if share < DOUBTFUL_SHARE or agreeing < FEWEST_DOUBTFUL:
        return "rejected", f"only {counted}; {OTHER_SECTION}"
    error_um = float(np.median(check.errors_um(transform)))
    if share < ACCEPTED_SHARE or agreeing < FEWEST_ACCEPTED:
        return "doubtful", f"only {counted}, too few to be sure of an error of about {error_um:.0f} µm; {LOOK}"
    if not 1 / LARGEST_SCALE <= scale <= LARGEST_SCALE:
        cause = "check the microns per pixel of both slides"
        return "doubtful", f"the sections fit best if the H&E is enlarged by a factor of {scale:.2f}; {cause}"
    if discord_um > ACCEPTED_DISCORD_UM:
        return "doubtful", f"fits to two halves of the tissue lie {discord_um:.0f} µm apart; {LOOK}"
    if error_um > ACCEPTED_ERROR_UM:
        return "doubtful", f"the estimated error is {error_um:.0f} µm, more than {ACCEPTED_ERROR_UM:.0f} µm; {LOOK}"
    return "accepted", f"{counted}, estimated error {error_um:.0f} µm"


def find_rough_transform(he: Section, ki67: Section, *, mirror: bool = True) -> RigidTransform | None:
    """The candidate whose edges and tissue agree best once elastix has refined it at the resolution of the search.

    Elastix maximises mutual information, which is high for some wrong places too; neither edges nor outlines take part
    in it. None where no candidate has overlap and contrast.
    """
    mpp = max(SELECTION_MPP, search_mpp(he, ki67) / 2)
    coarse_he, coarse_ki67 = he.at(mpp), ki67.at(mpp)
    best_score, best = -np.inf, None
    for candidate in find_candidates(he, ki67, count=CANDIDATES, mirror=mirror):
        refined = refine_rigid(coarse_he, coarse_ki67, candidate.transform, SELECTION)
        for transform in (candidate.transform, refined):
            score = -np.inf if refined is None or transform is None else agreement(coarse_he, coarse_ki67, transform)
            if score > best_score:
                best_score, best = score, transform
    return best


def agreement(he: Section, ki67: Section, transform: Transform) -> float:
    """How well edges and tissue agree: NCC of the edges where both have tissue, times the root of the tissue Dice."""
    both = shared_tissue(he, ki67, transform)
    ki67_edges = carry_back(edges(ki67.density, 1.0), transform, he.mpp, he.tissue.shape)
    return correlation(edges(he.density, 1.0), ki67_edges, both) * np.sqrt(dice(he, ki67, both))


def shared_tissue(he: Section, ki67: Section, transform: Transform) -> BoolImage:
    """Where both sections have tissue, on the grid of the H&E; both at one resolution."""
    return he.tissue & (carry_back(ki67.tissue, transform, he.mpp, he.tissue.shape) > 0.5)


def correlation(one: FloatImage, other: FloatImage, where: BoolImage) -> float:
    """Normalised cross-correlation of two images where ``where`` is true; 0 where one of them is flat."""
    if np.count_nonzero(where) < 2:
        return 0.0
    a, b = (image[where].astype(np.float64) for image in (one, other))
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / length if length > 0 else 0.0


def dice(he: Section, ki67: Section, both: BoolImage) -> float:
    """Dice overlap of the tissue of two sections at one resolution, ``both`` being what they share."""
    return 2.0 * np.count_nonzero(both) / (np.count_nonzero(he.tissue) + np.count_nonzero(ki67.tissue))


def _rejected(reason: str, started: float) -> Registration:
    return Registration(None, "rejected", reason, seconds=time.perf_counter() - started)
