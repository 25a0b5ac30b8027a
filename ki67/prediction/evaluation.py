"""How good predictions from H&E are, out of fold: of slides and of patches, between slides and within them.

Correlations are of slides of one fold with each other (``within_folds``), put together over folds. The models of two
folds are two models, and a slide whose index is high leaves lower ones to learn from, so that its model's mean lies
lower: over all slides together, a model that learned nothing and says the mean of its training correlates *negatively*
with the truth, in 40 slides by about 0.3 with folds at random and by 0.03 with folds that are dealt out by the index.
Within a fold all slides have the same model, which knows none of them, and one that learned nothing has a correlation
of 0 on average, whatever the method and the folds. The pooled correlation is given beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ki67.agreement import confusion_matrix
from ki67.bootstrap import percentile_intervals
from ki67.categories import CUTOFFS, category_names, category_of
from ki67.errors import ConfigError
from ki67.intervals import wilson_interval
from ki67.prediction.conformal import PATIENTS_FOR_LIMITS
from ki67.prediction.splits import patient_key

if TYPE_CHECKING:
    import pandas

FEWEST_PATCHES = 5
"""A slide with fewer labelled patches says nothing about what is within slides."""
FEWEST_SLIDES = 3
"""A fold with fewer says nothing about ranks."""

Floats = NDArray[np.float64]
Statistics = Callable[[NDArray[np.int64]], dict[str, float]]


def within_folds(said: Floats, known: Floats, fold_of: NDArray[np.int64], *, ranks: bool) -> float:
    """Mean correlation within folds, each weighted by its slides less one; NaN where no fold says anything.

    Parameters
    ----------
    said, known
        Prediction and truth, ``(slides,)``, without NaN.
    fold_of
        Fold of each.
    ranks
        Spearman's instead of Pearson's. A fold in which all predictions are the same has a correlation of 0.
    """
    total, weight = 0.0, 0.0
    for fold in np.unique(fold_of):
        own = fold_of == fold
        if own.sum() < FEWEST_SLIDES or not np.ptp(known[own]):
            continue
        total += (own.sum() - 1) * _correlation(said[own], known[own], ranks=ranks)
        weight += own.sum() - 1
    return total / weight if weight else float("nan")


def _correlation(one: Floats, other: Floats, *, ranks: bool = False) -> float:
    """Of two rows of numbers; 0 where all of one are the same."""
    if ranks:
        one, other = _ranks(one), _ranks(other)
    one, other = one - one.mean(), other - other.mean()
    size = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / size if size > 1e-12 else 0.0


def _ranks(values: Floats) -> Floats:
    """Rank of each value from 1, equal ones with the mean of theirs; as scipy's ``rankdata``, in a tenth of the time.

    >>> _ranks(np.array([0.3, 0.1, 0.3])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places])


def evaluate_slides(slides: pandas.DataFrame, cutoffs: Sequence[float] = CUTOFFS) -> dict[str, Any]:
    """Scores of slides out of fold, each with a 95 % interval from patients drawn anew.

    Parameters
    ----------
    slides
        Columns ``ki67.prediction.cross_validation.SLIDE_COLUMNS``.
    cutoffs
        Fractions between the categories, ascending.

    Returns
    -------
    dict
        ``slides``, ``patients``, ``without_prediction``, ``scores`` (name to ``value``, ``low`` and ``high``) and
        ``confusion``.
    """
    told = slides[slides["predicted"].notna()]
    said, known = told["predicted"].to_numpy(np.float64), told["index"].to_numpy(np.float64)
    fold_of = told["fold"].to_numpy(np.int64)
    category = [_categories(side, cutoffs) for side in (known, said)]
    usual = _means_of_other_folds(slides).loc[told.index].to_numpy(np.float64)

    def statistics(drawn: NDArray[np.int64]) -> dict[str, float]:
        one, other = said[drawn], known[drawn]
        table = np.zeros((len(cutoffs) + 1,) * 2, dtype=np.int64)
        np.add.at(table, tuple(side[drawn] for side in category), 1)
        return {
            "spearman": within_folds(one, other, fold_of[drawn], ranks=True),
            "pearson": within_folds(one, other, fold_of[drawn], ranks=False),
            "spearman_pooled": _correlation(one, other, ranks=True),
            "mae": float(np.mean(np.abs(one - other))),
            "rmse": float(np.sqrt(np.mean((one - other) ** 2))),
            "bias": float(np.mean(one - other)),
            "mae_of_mean": float(np.mean(np.abs(usual[drawn] - other))),
            "kappa_linear": _kappa(table),
            "same_category": float(np.trace(table) / max(table.sum(), 1)),
        }

    patients = [patient_key(patient) for patient in told["patient"]]
    held = (told["predicted_low"] <= told["index"]) & (told["index"] <= told["predicted_high"])
    scores = scored(statistics, patients) if len(told) >= FEWEST_SLIDES else {}
    scores["interval_coverage"] = _share(int(held.sum()), len(told))
    return {
        "slides": len(told),
        "patients": len(set(patients)),
        "without_prediction": int(slides["predicted"].isna().sum()),
        "interval_width": float((told["predicted_high"] - told["predicted_low"]).mean()),
        "scores": scores,
        "confusion": confusion_matrix(known, said, cutoffs).tolist(),
    }


def _categories(indices: Floats, cutoffs: Sequence[float]) -> NDArray[np.int64]:
    """Place of the category of each index, from low to high."""
    names = category_names(cutoffs)
    return np.array([names.index(str(category_of(float(index), cutoffs))) for index in indices], dtype=np.int64)


def _kappa(table: NDArray[np.int64]) -> float:
    """Cohen's kappa with linear weights, without the interval that ``ki67.agreement`` computes with it."""
    count, total = len(table), table.sum()
    if not total:
        return float("nan")
    steps = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    by_chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / total
    expected = float((steps * by_chance).sum())
    return 1 - float((steps * table).sum()) / expected if expected > 0 else float("nan")


def _means_of_other_folds(slides: pandas.DataFrame) -> pandas.Series[float]:
    """What would be said of each slide by one who knows only the mean index of the slides outside of its fold."""
    total, count = slides["index"].sum(), len(slides)
    of_fold = slides.groupby("fold")["index"]
    return (total - of_fold.transform("sum")) / (count - of_fold.transform("size"))


def _share(count: int, n: int) -> dict[str, float]:
    low, high = wilson_interval(count, n) if n else (float("nan"),) * 2
    return {"value": count / n if n else float("nan"), "low": low, "high": high}


def scored(statistics: Statistics, patients: Sequence[str]) -> dict[str, dict[str, float]]:
    """Statistics of all slides with intervals from patients drawn anew, all slides of a patient together.

    Parameters
    ----------
    statistics
        Of slides by their places, some more than once.
    patients
        Of each slide.
    """
    keys = np.array(patients)
    places = [np.flatnonzero(keys == key) for key in sorted(set(patients))]
    limits = percentile_intervals(
        len(places), lambda drawn: statistics(np.concatenate([places[number] for number in drawn]))
    )
    nothing = [float("nan"), float("nan")]
    found = statistics(np.arange(len(keys)))
    # Slides drawn twice may fill a fold that is too small; what has no value has no interval.
    told = {name: limits.get(name, nothing) if np.isfinite(value) else nothing for name, value in found.items()}
    return {name: {"value": value, "low": told[name][0], "high": told[name][1]} for name, value in found.items()}


def evaluate_patches(patches: pandas.DataFrame, slides: pandas.DataFrame) -> dict[str, Any] | None:
    """Scores of labelled patches out of fold, what is between slides apart from what is within them.

    A model may rank slides and say nothing of places within them, or the other way round; correlations over all patches
    mix both.

    Parameters
    ----------
    patches
        Columns ``ki67.prediction.cross_validation.PATCH_COLUMNS``.
    slides
        Of ``evaluate_slides``, for folds and patients.

    Returns
    -------
    dict or None
        ``patches``, ``slides`` and ``scores``; None for a method that says nothing of patches.
    """
    told = patches[patches["predicted"].notna() & patches["label"].notna()]
    parts = {slide: part for slide, part in told.groupby("slide", sort=True) if len(part) >= FEWEST_PATCHES}
    if len(parts) < FEWEST_SLIDES:
        return None
    row_of = slides.set_index("slide")
    said, known = ([part[name].to_numpy(np.float64) for part in parts.values()] for name in ("predicted", "label"))
    fold_of = np.array([row_of.at[slide, "fold"] for slide in parts], dtype=np.int64)
    patients = [patient_key(str(row_of.at[slide, "patient"])) for slide in parts]
    mean_said, mean_known = (np.array([part.mean() for part in side]) for side in (said, known))
    inside = {
        kind: np.array(
            [_correlation(one, other, ranks=kind == "ranks") for one, other in zip(said, known, strict=True)]
        )
        for kind in ("ranks", "values")
    }
    varied = np.array([bool(np.ptp(part)) for part in known])

    def statistics(drawn: NDArray[np.int64]) -> dict[str, float]:
        one, other = (np.concatenate([side[place] for place in drawn]) for side in (said, known))
        folds = np.repeat(fold_of[drawn], [len(said[place]) for place in drawn])
        counted = drawn[varied[drawn]]
        return {
            "spearman": within_folds(one, other, folds, ranks=True),
            "pearson": within_folds(one, other, folds, ranks=False),
            "mae": float(np.mean(np.abs(one - other))),
            "spearman_between_slides": within_folds(mean_said[drawn], mean_known[drawn], fold_of[drawn], ranks=True),
            "spearman_within_slides": float(inside["ranks"][counted].mean()) if len(counted) else float("nan"),
            "pearson_within_slides": float(inside["values"][counted].mean()) if len(counted) else float("nan"),
        }

    return {"patches": len(told), "slides": len(parts), "scores": scored(statistics, patients)}


def evaluate_prediction(
    slides: pandas.DataFrame, patches: pandas.DataFrame, cutoffs: Sequence[float] = CUTOFFS
) -> dict[str, Any]:
    """All scores of a cross-validation.

    Returns
    -------
    dict
        ``slide`` (``evaluate_slides``), ``patch`` (``evaluate_patches``, perhaps None), ``cutoffs`` and ``notes``, what
        to know of scores that the slides are too few for, a sentence each.

    Raises
    ------
    ConfigError
        If no slide has a prediction.
    """
    if not slides["predicted"].notna().any():
        raise ConfigError("the models said nothing of any slide, so there is nothing to evaluate; look at the pairs")
    of_slides = evaluate_slides(slides, cutoffs)
    return {
        "slide": of_slides,
        "patch": evaluate_patches(patches, slides),
        "cutoffs": list(cutoffs),
        "notes": _notes(of_slides),
    }


def _notes(of_slides: Mapping[str, Any]) -> list[str]:
    """What to know of scores that the slides are too few for."""
    notes = []
    if not np.isfinite(of_slides["scores"].get("spearman", {"value": float("nan")})["value"]):
        notes.append(
            f"A correlation of slides needs a fold with at least {FEWEST_SLIDES} of them whose index differs; add "
            "pairs or lower predict.folds."
        )
    if of_slides["patients"] < PATIENTS_FOR_LIMITS:
        notes.append(
            f"With {of_slides['patients']} patients the 95 % intervals of these slides take in everything; they have "
            f"limits from {PATIENTS_FOR_LIMITS} patients on."
        )
    return notes


def score_lines(record: Mapping[str, Any]) -> list[tuple[str, str, dict[str, float]]]:
    """Level, name and score of everything in a record of ``evaluate_prediction``, for a table."""
    levels = [(level, record[level]) for level in ("slide", "patch") if record.get(level)]
    return [(level, name, score) for level, found in levels for name, score in found["scores"].items()]
