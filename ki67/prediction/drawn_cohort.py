"""A drawn cohort whose H&E carries the Ki-67 index with a known strength, or carries nothing.

Every patient has a factor, which moves size, variation and density of tumour nuclei and the number of mitoses
(``ki67.phantom.proliferation``). In a cohort that carries the index, the index and its hot spots within a slide follow
the factor; in one that carries nothing, both are drawn apart. All else is scatter: structure and shape of nuclei by
patient, stains, glass and scanner by laboratory and slide, counts by chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from joblib import Parallel, delayed  # type: ignore[import-untyped]
from numpy.typing import NDArray

from ki67.phantom.laboratory import stained_by
from ki67.phantom.layout import Layout
from ki67.phantom.look import Look, random_look
from ki67.phantom.nuclei import TUMOR, Nuclei, Section, logit_for
from ki67.phantom.paint import paint
from ki67.phantom.proliferation import proliferating
from ki67.phantom.textures import Noise
from ki67.prediction.patch_pairs import PatchPairs

CARRIED = 0.87
"""Correlation of the factor with the log odds of the index in a cohort that carries it; the ranks' is a little less."""

LABORATORIES = 4
FEWEST_NUCLEI = 15
"""A patch with fewer nuclei on its Ki-67 section has no label."""

_MEDIAN_INDEX = 0.2
_LOG_ODDS_SPREAD = 1.0
_LOCAL_FACTOR = 0.5
_LOCAL_LOG_ODDS = 0.5
_SURVEY_UM = 4000.0
_STEP_UM = 32.0
_TUMOR_SHARE = 0.65
_LEAST_NEST_SHARE = 0.6


@dataclass(frozen=True)
class DrawnPatient:
    """A drawn patient with one slide.

    Attributes
    ----------
    pairs
        Patches of the slide; labels are counts of nuclei, as noisy as counts are.
    factor
        What moves the morphology on the H&E: mean 0, standard deviation 1 over patients.
    index
        True index of the tumour in the patches, 0 to 1, without the noise of counting.
    laboratory
        Who stained and scanned the slide.
    """

    pairs: PatchPairs
    factor: float
    index: float
    laboratory: int


@dataclass(frozen=True)
class _Plan:
    """What is drawn of a patient before the first patch."""

    number: int
    seed: int
    factor: float
    index: float
    laboratory: int
    carries: bool


def draw_cohort(
    slides: int,
    seed: int,
    carries: bool,
    *,
    patches: int = 48,
    size_px: int = 128,
    mpp: float = 1.0,
    workers: int = 1,
) -> list[DrawnPatient]:
    """Draw a cohort of patients with one slide each; the same arguments give the same cohort, whatever the workers.

    Parameters
    ----------
    carries
        Whether the H&E carries the index (Spearman 0.8 to 0.9 of factor and index) or is independent of it.
    patches, size_px, mpp
        How many patches a slide, how large, at how many µm/px.
    workers
        Processes.
    """
    plans = _plans(slides, seed, carries)
    parallel = Parallel(n_jobs=workers)
    return list(parallel(delayed(_draw_patient)(plan, patches, size_px, mpp) for plan in plans))


def draw_factors(slides: int, seed: int, carries: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factor and index (0 to 1) of every patient, each ``(slides,)``.

    In a cohort that carries the index, what else moves it is made to have no correlation with the factor in this very
    cohort, so that the strength of the link does not depend on the seed.
    """
    rng = np.random.default_rng([seed, 11, int(carries)])
    factor, other = _standardized(rng.standard_normal(slides)), _standardized(rng.standard_normal(slides))
    if carries:
        apart = _standardized(other - factor * np.mean(factor * other))
        other = CARRIED * factor + np.sqrt(1 - CARRIED**2) * apart
    log_odds = np.log(_MEDIAN_INDEX / (1 - _MEDIAN_INDEX)) + _LOG_ODDS_SPREAD * other
    return factor, 1 / (1 + np.exp(-log_odds))


def _standardized(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values with mean 0 and standard deviation 1, as far as there are enough of them."""
    centred = values - values.mean() if len(values) > 2 else values
    return centred / (centred.std() if len(values) > 2 else 1.0)


def _plans(slides: int, seed: int, carries: bool) -> Iterator[_Plan]:
    factors, indices = draw_factors(slides, seed, carries)
    laboratories = np.random.default_rng([seed, 12]).integers(LABORATORIES, size=slides)
    for number, (factor, index, laboratory) in enumerate(zip(factors, indices, laboratories, strict=True)):
        yield _Plan(number, seed, float(factor), float(index), int(laboratory), carries)


def _draw_patient(plan: _Plan, patches: int, size_px: int, mpp: float) -> DrawnPatient:
    rng = np.random.default_rng([plan.seed, 13, plan.number])
    layout, corners_um = _places(rng, patches, size_px * mpp)
    x, y = (corners_um + size_px * mpp / 2).T
    seen = layout.hot.sample(x[None], y[None])[0]
    hot = seen if plan.carries else Noise.random(rng, layout.hot.wavelength_um).sample(x[None], y[None])[0]
    look = _look(rng, plan)
    section = Section(0, layout, look, np.eye(3), int(rng.integers(2**31)))
    he = np.empty((patches, size_px, size_px, 3), dtype=np.uint8)
    tumor_nuclei, all_nuclei = np.zeros(patches, dtype=np.int64), np.zeros(patches, dtype=np.float32)
    for number, corner in enumerate(corners_um):
        local = replace(section, look=proliferating(look, plan.factor + _LOCAL_FACTOR * float(seen[number])))
        painting = paint(local, float(corner[0]), float(corner[1]), size_px, size_px, mpp)
        he[number] = painting.rgb
        inside = _inside(painting.nuclei, corner, size_px * mpp)
        all_nuclei[number], tumor_nuclei[number] = inside.sum(), (inside & (painting.nuclei.kind == TUMOR)).sum()
    positive, negative = _counts(rng, plan.index, tumor_nuclei, hot)
    total = positive + negative
    label = np.where(total > 0, positive / np.maximum(total, 1), np.nan).astype(np.float32)
    pairs = PatchPairs(
        slide=f"P{plan.number + 1:03d}",
        patient=f"P{plan.number + 1:03d}",
        marker="Ki-67",
        mpp=mpp,
        he=he,
        center_um=corners_um + size_px * mpp / 2,
        positive=positive,
        negative=negative,
        label=label,
        nuclei_he=all_nuclei,
        slide_index=plan.index,
        rejected={"few_nuclei": int((total == 0).sum())},
        settings={"drawn": True, "seed": plan.seed, "carries": plan.carries},
    )
    return DrawnPatient(pairs, plan.factor, plan.index, plan.laboratory)


def _places(rng: np.random.Generator, patches: int, size_um: float) -> tuple[Layout, NDArray[np.float64]]:
    """Tissue and the corners ``(patches, 2)`` of squares in it that are mostly tumour, on a grid, in microns."""
    axis = np.arange(0, max(_SURVEY_UM, 2 * size_um * patches**0.5), _STEP_UM)
    x, y = np.meshgrid(axis, axis)
    layout = replace(Layout.random(rng), fat_threshold=9.0).with_tumor_share(_TUMOR_SHARE, x, y)
    solid = (layout.nest_um(x, y, 0) > 0) & (layout.tissue_um(x, y) > 0)
    cells = max(1, round(size_um / _STEP_UM))
    count = len(axis) // cells
    share = solid[: count * cells, : count * cells].reshape(count, cells, count, cells).mean(axis=(1, 3)).ravel()
    # Where too few squares are mostly tumour, those with most of it.
    enough = max(patches, int((share >= _LEAST_NEST_SHARE).sum()))
    good = np.argsort(-share, kind="stable")[:enough]
    chosen = np.sort(rng.choice(good, patches, replace=False))
    return layout, np.column_stack([chosen % count, chosen // count]) * (cells * _STEP_UM)


def _look(rng: np.random.Generator, plan: _Plan) -> Look:
    """The patient's own look in the stains of the laboratory, a little stronger or weaker."""
    own = random_look(rng, "he", stain_strength=1.0)
    return stained_by(own, plan.laboratory, float(np.exp(0.12 * rng.standard_normal())), seed=plan.seed)


def _inside(nuclei: Nuclei, corner_um: NDArray[np.float64], size_um: float) -> NDArray[np.bool_]:
    x, y = nuclei.x_um - corner_um[0], nuclei.y_um - corner_um[1]
    return np.asarray((x >= 0) & (y >= 0) & (x < size_um) & (y < size_um))


def _counts(
    rng: np.random.Generator, index: float, tumor_nuclei: NDArray[np.int64], hot: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Positive and negative nuclei of the neighbouring section in each patch; none where there are too few."""
    log_odds = logit_for(index, np.repeat(hot, tumor_nuclei), _LOCAL_LOG_ODDS) + _LOCAL_LOG_ODDS * hot
    share = 1 / (1 + np.exp(-log_odds.astype(np.float64)))
    total = rng.poisson(tumor_nuclei)
    positive = rng.binomial(total, share)
    enough = total >= FEWEST_NUCLEI
    return (positive * enough).astype(np.int32), ((total - positive) * enough).astype(np.int32)
