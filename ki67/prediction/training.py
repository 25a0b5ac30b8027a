"""From pairs on disk to a folder with the models of all folds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ki67.prediction.cross_validation import CrossValidation, cross_validate, learnable
from ki67.prediction.ensemble import save_ensemble
from ki67.prediction.methods import PredictOptions
from ki67.prediction.patch_pairs import read_ki67_patches, read_patch_pairs
from ki67.prediction.training_range import training_range

log = logging.getLogger(__name__)


def train_prediction(
    pairs: Sequence[Path], folder: Path, options: PredictOptions, *, folds: int = 5, seed: int = 0, workers: int = 1
) -> CrossValidation:
    """Learn the index from the pairs of slides and write the models of all folds into a folder.

    Parameters
    ----------
    pairs
        Folders that ``write_patch_pairs`` wrote; slides without an index or a patch are left out.
    folder
        As ``ki67.prediction.ensemble`` describes it.
    folds, seed, workers
        See ``cross_validate``.

    Raises
    ------
    ConfigError
        If slides cannot be split by patient, are too few, or do not serve the method.
    """
    slides = learnable([read_patch_pairs(path) for path in pairs])
    shown = _ki67_patches(pairs, options)
    validated = cross_validate(slides, options, folds=folds, seed=seed, workers=workers, ki67=shown)
    known = training_range(slides)
    training = {
        "marker": slides[0].marker,
        "folds": folds,
        "seed": seed,
        "labelled_patches": int(sum(one.labelled.sum() for one in slides)),
        "patches": int(sum(len(one) for one in slides)),
    }
    save_ensemble(folder, validated, options, known, training)
    return validated


def _ki67_patches(pairs: Sequence[Path], options: PredictOptions) -> dict[str, NDArray[np.uint8]]:
    """Patches of the Ki-67 slides by slide, where the method learns from them and they were kept."""
    if options.method != "cyclegan":
        return {}
    found = ((read_patch_pairs(path).slide, read_ki67_patches(path)) for path in pairs)
    return {slide: patches for slide, patches in found if patches is not None}
