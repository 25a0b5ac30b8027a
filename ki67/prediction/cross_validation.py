"""Models fitted to all folds but one, and what each says of the slides it has not seen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ki67.errors import ConfigError
from ki67.prediction.conformal import left_out_limits
from ki67.prediction.examples import Answer, Example, log_odds, share_of
from ki67.prediction.methods import PredictOptions, fit, prepare, restore
from ki67.prediction.patch_pairs import PatchPairs
from ki67.prediction.splits import FEWEST_PATIENTS, check_apart, check_slides, patient_folds, patient_key

if TYPE_CHECKING:
    import pandas

log = logging.getLogger(__name__)

SLIDE_COLUMNS = ("slide", "patient", "fold", "index", "predicted", "predicted_low", "predicted_high")
PATCH_COLUMNS = ("slide", "x_um", "y_um", "nuclei_he", "counted", "label", "predicted")


@dataclass(frozen=True)
class CrossValidation:
    """What came out of a cross-validation.

    Attributes
    ----------
    models
        Arrays of the model of each fold (``Model.arrays``), which has not seen the slides of that fold.
    slides
        A row a slide with an index, columns ``SLIDE_COLUMNS``: the measured index, and what was said of it unseen. The
        interval is from the errors on slides of other patients.
    patches
        A row for each patch of these, columns ``PATCH_COLUMNS``: ``label`` and ``predicted`` are NaN where there is
        none, ``predicted`` of all patches for methods that look at slides alone.
    """

    models: list[dict[str, NDArray[Any]]]
    slides: pandas.DataFrame
    patches: pandas.DataFrame


def learnable(slides: Sequence[PatchPairs]) -> list[PatchPairs]:
    """Those of the slides that a model can learn from: with an index and with patches, sorted by id.

    The order of the slides then changes nothing.
    """
    kept = sorted((one for one in slides if one.slide_index is not None and len(one)), key=lambda one: one.slide)
    for reason, count in (
        ("no index", sum(one.slide_index is None for one in slides)),
        ("no patch", sum(one.slide_index is not None and not len(one) for one in slides)),
    ):
        if count:
            log.info("prediction: %d slides with %s are left out", count, reason)
    return kept


def cross_validate(
    slides: Sequence[PatchPairs],
    options: PredictOptions,
    *,
    folds: int = 5,
    seed: int = 0,
    workers: int = 1,
    ki67: dict[str, NDArray[np.uint8]] | None = None,
) -> CrossValidation:
    """Fit a model to the slides outside of each fold, and let it answer for those in it.

    Parameters
    ----------
    slides
        Of which all with an index and a patch are learned from (``learnable``).
    folds
        How many; nothing of a patient is on both sides of any.
    seed
        Of the folds and the models.
    workers
        Processes, one fold each at a time; nothing depends on how many.
    ki67
        Patches of Ki-67 slides by slide, for ``cyclegan``.

    Raises
    ------
    ConfigError
        If slides cannot be split by patient or are too few.
    """
    kept = learnable(slides)
    check_slides(kept)
    _check_alike(kept)
    _check_labels(kept, options)
    indices = np.array([one.slide_index for one in kept], dtype=np.float64)
    fold_of = patient_folds([one.patient for one in kept], indices, folds, seed=seed)
    examples = [prepare(one, options, (ki67 or {}).get(one.slide)) for one in kept]
    return cross_validate_examples(kept, examples, fold_of, options, seed=seed, workers=workers)


def cross_validate_examples(
    slides: Sequence[PatchPairs],
    examples: Sequence[Example],
    fold_of: NDArray[np.int64],
    options: PredictOptions,
    *,
    seed: int = 0,
    workers: int = 1,
) -> CrossValidation:
    """``cross_validate`` of slides that are prepared and split already.

    Parameters
    ----------
    slides, examples
        The same slides, in the same order, each with an index.
    fold_of
        Fold of each slide, from 0, int64 ``(slides,)``.
    """
    from joblib import Parallel, delayed  # type: ignore[import-untyped]
    from tqdm import tqdm

    numbers = range(int(fold_of.max()) + 1)
    jobs = (delayed(_fold)(examples, fold_of, number, options, seed) for number in numbers)
    # On a GPU one after the other, as each process would wait for a GPU of its own.
    at_once = 1 if options.on_gpu else min(workers, len(numbers))
    running = Parallel(n_jobs=at_once, return_as="generator")(jobs)
    fitted = list(tqdm(running, total=len(numbers), desc=f"folds of {options.method}", unit="fold"))
    answers: list[Answer] = [Answer(float("nan"))] * len(examples)
    for _, said in fitted:
        for place, answer in said.items():
            answers[place] = answer
    return CrossValidation(
        models=[arrays for arrays, _ in fitted],
        slides=_slide_rows(slides, fold_of, answers),
        patches=_patch_rows(slides, answers),
    )


def _fold(
    examples: Sequence[Example], fold_of: NDArray[np.int64], number: int, options: PredictOptions, seed: int
) -> tuple[dict[str, NDArray[Any]], dict[int, Answer]]:
    """Arrays of the model of a fold, and by place its answers for the slides of the fold."""
    training = [one for one, fold in zip(examples, fold_of, strict=True) if fold != number]
    held_out = np.flatnonzero(fold_of == number)
    check_apart([one.patient for one in training], [examples[place].patient for place in held_out])
    arrays = fit(training, options, seed=seed * 1000 + number).arrays()
    model = restore(arrays, options)  # what answers is what will be kept
    return arrays, {int(place): model.answer(examples[place]) for place in held_out}


def _check_alike(slides: Sequence[PatchPairs]) -> None:
    for slide in slides[1:]:
        first = slides[0]
        if slide.he.shape[1:] != first.he.shape[1:] or slide.mpp != first.mpp:
            raise ConfigError(
                f"{slide.slide}: its patches have {slide.he.shape[1]} px of {slide.mpp:g} µm, those of {first.slide} "
                f"{first.he.shape[1]} px of {first.mpp:g} µm; make all pairs anew with the same settings"
            )


def _check_labels(slides: Sequence[PatchPairs], options: PredictOptions) -> None:
    if options.level == "slide" or options.method == "cyclegan":
        return
    labelled = len({patient_key(one.patient) for one in slides if one.labelled.any()})
    if labelled < min(FEWEST_PATIENTS, len(slides)):
        raise ConfigError(
            f"predict.method {options.method} learns from labelled patches, which only {labelled} patients have; look "
            "at what results/<slide>/pairs.json says of rejected patches, or choose mean_pooling or attention"
        )


def _slide_rows(
    slides: Sequence[PatchPairs], fold_of: NDArray[np.int64], answers: Sequence[Answer]
) -> pandas.DataFrame:
    import pandas as pd

    index = np.array([one.slide_index for one in slides], dtype=np.float64)
    odds = np.array([answer.odds for answer in answers])
    patients = [one.patient for one in slides]
    low, high = left_out_limits(odds, log_odds(index), patients)
    table = {
        "slide": [one.slide for one in slides],
        "patient": patients,
        "fold": fold_of,
        "index": index,
        "predicted": share_of(odds),
        "predicted_low": share_of(low),
        "predicted_high": share_of(high),
    }
    return pd.DataFrame(table, columns=list(SLIDE_COLUMNS))


def _patch_rows(slides: Sequence[PatchPairs], answers: Sequence[Answer]) -> pandas.DataFrame:
    import pandas as pd

    parts = []
    for one, answer in zip(slides, answers, strict=True):
        told = np.full(len(one), np.nan) if answer.patches is None else answer.patches
        parts.append(
            {
                "slide": np.full(len(one), one.slide, dtype=object),
                "x_um": one.center_um[:, 0],
                "y_um": one.center_um[:, 1],
                "nuclei_he": one.nuclei_he.astype(np.float64),
                "counted": (one.positive + one.negative).astype(np.int64),
                "label": one.label.astype(np.float64),
                "predicted": told,
            }
        )
    return pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in PATCH_COLUMNS})
