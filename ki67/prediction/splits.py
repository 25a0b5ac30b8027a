"""Folds of patients: all slides of a patient on one side, and every fold with low and high indices alike."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki67.errors import ConfigError, Ki67Error
from ki67.prediction.patch_pairs import PatchPairs

FEWEST_PATIENTS = 10
"""Fewer are nothing to learn from, and nothing to measure on."""


def patient_folds(
    patients: Sequence[str], indices: NDArray[np.floating[Any]], folds: int, *, seed: int = 0
) -> NDArray[np.int64]:
    """Fold of each slide, 0 to ``folds - 1``.

    Patients are sorted by the mean index of their slides, and each run of ``folds`` of them is dealt out, one to every
    fold. Which one goes where depends on the seed and on the patients themselves, not on their order.

    Parameters
    ----------
    patients
        Of each slide; ids that differ in case or in spaces around them alone are one patient.
    indices
        Of each slide, 0 to 1, ``(slides,)``.
    folds
        2 or more.

    Raises
    ------
    ConfigError
        If there are fewer patients than ``FEWEST_PATIENTS`` or twice the folds.
    """
    keys = np.array([patient_key(patient) for patient in patients])
    known = sorted(set(keys))
    if len(known) < max(FEWEST_PATIENTS, 2 * folds):
        raise ConfigError(
            f"a prediction from H&E needs pairs of at least {max(FEWEST_PATIENTS, 2 * folds)} patients with an index "
            f"for {folds} folds, and there are {len(known)}; add slides with both stains, or set predict.method: null"
        )
    mean = [float(np.mean(indices[keys == key])) for key in known]
    dealt = np.random.default_rng(seed)
    fold_of: dict[str, int] = {}
    ranked = [known[place] for place in np.argsort(mean, kind="stable")]
    for start in range(0, len(ranked), folds):
        run = ranked[start : start + folds]
        fold_of |= dict(zip(run, dealt.permutation(folds).tolist(), strict=False))
    return np.array([fold_of[key] for key in keys], dtype=np.int64)


def patient_key(patient: str) -> str:
    """What tells patients apart: the id without spaces around it, small and capital letters alike.

    >>> patient_key(" p1") == patient_key("P1")
    True
    """
    return patient.strip().casefold()


def check_apart(training: Sequence[str], held_out: Sequence[str]) -> None:
    """That no patient is on both sides.

    Raises
    ------
    Ki67Error
        If one is: a mistake of the code, for which no model may be trained.
    """
    both = {patient_key(patient) for patient in training} & {patient_key(patient) for patient in held_out}
    if both:
        raise Ki67Error(f"patient {min(both)} is on both sides of a split, so the model was not trained; report this")


def check_slides(slides: Sequence[PatchPairs]) -> None:
    """That slides can be split by patient: each is there once, has a patient, and shows what no other patient's does.

    Raises
    ------
    ConfigError
        At the first that cannot, with the slide and the remedy.
    """
    patient_of: dict[str, str] = {}
    for slide in slides:
        if not slide.patient.strip():
            raise ConfigError(
                f"{slide.slide}: its pairs name no patient, and nothing of a patient may be on both sides of a split; "
                "fill the column patient of the sample sheet and make the pairs anew"
            )
        if slide.slide in patient_of:
            raise ConfigError(f"{slide.slide} is there twice among the pairs to learn from; leave one of both out")
        patient_of[slide.slide] = slide.patient
    _check_contents(slides)


def _check_contents(slides: Sequence[PatchPairs]) -> None:
    """A slide under two ids is found by its patches, whatever the sheet says of patients."""
    shown_by: dict[bytes, PatchPairs] = {}
    for slide in slides:
        for digest in _digests(slide.he):
            other = shown_by.setdefault(digest, slide)
            if patient_key(other.patient) != patient_key(slide.patient):
                raise ConfigError(
                    f"{other.slide} of patient {other.patient} and {slide.slide} of patient {slide.patient} show the "
                    "same H&E; give them one patient in the sample sheet, or leave one of both out"
                )


def _digests(he: NDArray[np.uint8]) -> list[bytes]:
    """Of the patches that are not of one colour."""
    return [hashlib.blake2b(patch.tobytes(), digest_size=16).digest() for patch in he if np.ptp(patch) > 0]


def fold_counts(folds: NDArray[np.int64], patients: Sequence[str]) -> Mapping[int, int]:
    """How many patients each fold holds."""
    keys = np.array([patient_key(patient) for patient in patients])
    return {int(fold): len(set(keys[folds == fold])) for fold in np.unique(folds)}
