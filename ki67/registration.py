"""Where the H&E section lies on the Ki-67 section, and whether that can be believed.

A search over the full circle and both mirror images gives a few candidates; elastix refines each by mutual
information; the one whose edges and outlines agree best is refined at full resolution, and spread evenly over the
section by local shifts. Half of these shifts take no part in any fit: they give the estimated error and the verdict.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from ki67.coarse_search import find_candidates, search_mpp
from ki67.elastix import Refinement, refine_rigid
from ki67.errors import STAIN_NAMES
from ki67.geometry import Mask, RigidTransform
from ki67.local_shifts import LocalShifts, measure_local_shifts, settle
from ki67.section import BoolImage, FloatImage, Section, carry_back, edges

Verdict = Literal["accepted", "doubtful", "rejected", "not_applicable"]

FINEST_MPP = 8.0
SELECTION_MPP = 32.0
QUALITY_MPP = 32.0
LONGEST_SIDE_PX = 2500  # of the final refinement: 8 µm/px up to 20 mm, coarser beyond, which local shifts make up for
CANDIDATES = 6
SELECTION = Refinement(resolutions=2, iterations=100, samples=2000)
FINAL = Refinement(resolutions=3, iterations=200, samples=4000)
FEWEST_TISSUE_MM2 = 0.05
AGREEMENT_UM = 120.0  # a place of the tissue agrees with the fit if its pattern lies this close to where it should
ACCEPTED_SHARE = 0.4  # of agreeing places, at the lower end of the 95 % interval; by chance a share of 0.2 agrees
DOUBTFUL_SHARE = 0.25
FEWEST_ACCEPTED = 6  # agreeing places; sections of other tissue were seen to agree in 4 of 4, to about 60 µm
FEWEST_CLOSE = 4  # of small samples, if they agree to within 30 µm, which by chance one place in eighty does
CLOSE_UM = 30.0
FEWEST_DOUBTFUL = 3
ACCEPTED_ERROR_UM = 100.0
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
    estimated_error_um
        Median distance between where distinct patterns of the tissue should and do lie, from places the fit has not
        seen; none where no pattern is distinct.
    places, agreeing_places
        How many such patterns there are, and how many of them lie within 120 µm of where they should.
    seconds
        Wall-clock time.
    """

    transform: RigidTransform | None
    verdict: Verdict
    reason: str
    ncc: float | None = None
    tissue_dice: float | None = None
    estimated_error_um: float | None = None
    places: int = 0
    agreeing_places: int = 0
    seconds: float = 0.0

    @classmethod
    def not_applicable(cls, reason: str) -> Registration:
        """The outcome for a slide that has only one stain."""
        return cls(None, "not_applicable", reason)

    def to_json(self) -> dict[str, Any]:
        """The outcome as plain JSON values; matrix, angle and mirror are null where there is no transform."""
        identity = RigidTransform(np.eye(3), "he", "ki67")
        placement = (self.transform or identity).to_json()
        if self.transform is None:
            placement |= dict.fromkeys(("matrix", "angle_deg", "mirror"))
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            **placement,
            "ncc": self.ncc,
            "tissue_dice": self.tissue_dice,
            "estimated_error_um": self.estimated_error_um,
            "places": self.places,
            "agreeing_places": self.agreeing_places,
            "seconds": round(self.seconds, 2),
        }


def register(
    he_rgb: NDArray[np.uint8], he_tissue: Mask, ki67_rgb: NDArray[np.uint8], ki67_tissue: Mask, *, mpp: float
) -> Registration:
    """Find the rigid transform, mirror images included, from the H&E to the Ki-67 frame, and judge it.

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
    """
    started = time.perf_counter()
    for stain, tissue in (("he", he_tissue), ("ki67", ki67_tissue)):
        if tissue.area_mm2 < FEWEST_TISSUE_MM2:
            return _rejected(f"there is no tissue on the {STAIN_NAMES[stain]} slide to register", started)
    he = Section.of_thumbnail(he_rgb, he_tissue, mpp).at(FINEST_MPP)
    ki67 = Section.of_thumbnail(ki67_rgb, ki67_tissue, mpp).at(FINEST_MPP)
    rough = find_rough_transform(he, ki67)
    if rough is None:
        return _rejected(f"no place on the Ki-67 slide was found where the H&E section fits; {OTHER_SECTION}", started)
    mpp = max(he.mpp, ki67.mpp, max(he.longest_side_um, ki67.longest_side_um) / LONGEST_SIDE_PX)
    transform = refine_rigid(he.at(mpp), ki67.at(mpp), rough, FINAL) or rough
    transform = settle(transform, measure_local_shifts(he, ki67, transform))
    return _judge(he, ki67, transform, measure_local_shifts(he, ki67, transform), started)


def find_rough_transform(he: Section, ki67: Section) -> RigidTransform | None:
    """The candidate whose edges and tissue agree best once elastix has refined it at the resolution of the search.

    Elastix maximises mutual information, which is high for some wrong places too; neither edges nor outlines take part
    in it. None where no candidate has overlap and contrast.
    """
    mpp = max(SELECTION_MPP, search_mpp(he, ki67) / 2)
    coarse_he, coarse_ki67 = he.at(mpp), ki67.at(mpp)
    best_score, best = -np.inf, None
    for candidate in find_candidates(he, ki67, count=CANDIDATES):
        refined = refine_rigid(coarse_he, coarse_ki67, candidate.transform, SELECTION)
        for transform in (candidate.transform, refined):
            score = -np.inf if refined is None or transform is None else agreement(coarse_he, coarse_ki67, transform)
            if score > best_score:
                best_score, best = score, transform
    return best


def agreement(he: Section, ki67: Section, transform: RigidTransform) -> float:
    """How well edges and tissue agree: NCC of the edges where both have tissue, times the root of the tissue Dice."""
    both = shared_tissue(he, ki67, transform)
    ki67_edges = carry_back(edges(ki67.density, 1.0), transform, he.mpp, he.tissue.shape)
    return correlation(edges(he.density, 1.0), ki67_edges, both) * np.sqrt(dice(he, ki67, both))


def shared_tissue(he: Section, ki67: Section, transform: RigidTransform) -> BoolImage:
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


def judge_shifts(shifts: LocalShifts) -> tuple[Verdict, str]:
    """Verdict and reason from the distinct squares that took no part in the fit.

    Squares of sections that do not belong together are found anywhere within reach, one in five of them by chance
    close to where it should be. The share that agrees counts at the lower end of its interval (Wilson, 95 %), so that
    few squares must agree all the more.
    """
    lengths_um = shifts.lengths_um[shifts.held_out & shifts.distinct]
    places, agreeing = len(lengths_um), int(np.count_nonzero(lengths_um < AGREEMENT_UM))
    if places == 0:
        return "rejected", f"the two sections have no distinct structure in common; {OTHER_SECTION}"
    share = binomtest(agreeing, places).proportion_ci(method="wilson").low
    counted = f"{agreeing} of {places} places checked on the tissue lie within {AGREEMENT_UM:.0f} µm of the fit"
    if share < DOUBTFUL_SHARE or agreeing < FEWEST_DOUBTFUL:
        return "rejected", f"only {counted}; {OTHER_SECTION}"
    error_um = float(np.median(lengths_um))
    if error_um > ACCEPTED_ERROR_UM:
        return "doubtful", f"the estimated error is {error_um:.0f} µm, more than {ACCEPTED_ERROR_UM:.0f} µm; {LOOK}"
    fewest = FEWEST_CLOSE if error_um <= CLOSE_UM else FEWEST_ACCEPTED
    if share < ACCEPTED_SHARE or agreeing < fewest:
        return "doubtful", f"{counted}, too few to be sure of an error of about {error_um:.0f} µm; {LOOK}"
    return "accepted", f"{counted}, estimated error {error_um:.0f} µm"


def _judge(he: Section, ki67: Section, transform: RigidTransform, shifts: LocalShifts, started: float) -> Registration:
    he, ki67 = he.at(QUALITY_MPP), ki67.at(QUALITY_MPP)
    both = shared_tissue(he, ki67, transform)
    density = carry_back(ki67.density, transform, he.mpp, he.tissue.shape)
    lengths_um = shifts.lengths_um[shifts.held_out & shifts.distinct]
    verdict, reason = judge_shifts(shifts)
    return Registration(
        transform,
        verdict,
        reason,
        ncc=correlation(he.density, density, both),
        tissue_dice=dice(he, ki67, both),
        estimated_error_um=float(np.median(lengths_um)) if len(lengths_um) else None,
        places=len(lengths_um),
        agreeing_places=int(np.count_nonzero(lengths_um < AGREEMENT_UM)),
        seconds=time.perf_counter() - started,
    )


def _rejected(reason: str, started: float) -> Registration:
    return Registration(None, "rejected", reason, seconds=time.perf_counter() - started)
