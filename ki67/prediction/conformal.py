"""Intervals of predictions from how far off models were on slides they had not seen.

An interval from the spread of an ensemble says how far its members differ, and they may agree on something wrong. The
errors out of fold say how far off a model of this kind is on a slide of this kind. Both go into CV+ (Barber et al.
2021), which holds the true value of a new slide of the same kind in at least 90 of 100 cases, in practice in about 95.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ki67.prediction.splits import patient_key

MISSED = 0.05
"""Share of slides that an interval misses, about."""
PATIENTS_FOR_LIMITS = round(1 / MISSED)
"""From so many patients on training slides have limits, each from the others; new slides from one patient fewer on."""

Floats = NDArray[np.float64]


def cv_plus(said: Floats, fold_of: NDArray[np.int64], errors: Floats, patients: Sequence[str]) -> tuple[float, float]:
    """Interval of a new slide, in the scale of the predictions; a limit may be infinite where patients are too few.

    Parameters
    ----------
    said
        What the model of each fold says of the slide, ``(folds,)``.
    fold_of
        Fold of each training slide, ``(slides,)``.
    errors
        How far off the model of its fold was on each of them, 0 or more, ``(slides,)``.
    patients
        Of each of them; all patients count the same.

    References
    ----------
    Barber RF, Candès EJ, Ramdas A, Tibshirani RJ (2021) Predictive inference with the jackknife+, Annals of Statistics
    49:486-507, doi:10.1214/20-AOS1965
    """
    share = _patient_shares(patients)
    of_slide = said[fold_of]
    return -_upper(errors - of_slide, share), _upper(of_slide + errors, share)


def left_out_limits(said: Floats, known: Floats, patients: Sequence[str]) -> tuple[Floats, Floats]:
    """Intervals of the training slides themselves, each from the errors on the slides of all other patients.

    Parameters
    ----------
    said, known
        Prediction out of fold and truth, in one scale, ``(slides,)``; NaN where there is none.
    patients
        Of the slides.
    """
    keys = np.array([patient_key(patient) for patient in patients])
    errors = np.abs(said - known)
    half = np.empty(len(said))
    for place, key in enumerate(keys):
        others = (keys != key) & np.isfinite(errors)
        half[place] = _upper(errors[others], _patient_shares(keys[others].tolist()))
    return said - half, said + half


def _patient_shares(patients: Sequence[str]) -> Floats:
    """Weight of each slide, 1 for all slides of a patient together, ``(slides,)``."""
    keys = [patient_key(patient) for patient in patients]
    return np.array([1 / keys.count(key) for key in keys])


def _upper(values: Floats, weight: Floats) -> float:
    """The smallest value with at least 95 % of the weight, one more patient above all counted, at or below it."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weight[order])
    enough = np.flatnonzero(reached >= (1 - MISSED) * (weight.sum() + 1) - 1e-9)
    return float(values[order[enough[0]]]) if len(enough) else float("inf")
