"""From pairs on disk to a folder with the models of all folds, and from that folder to scores and pictures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki67.index import CUTOFFS
from ki67.prediction.cross_validation import CrossValidation, cross_validate, learnable
from ki67.prediction.ensemble import model_identity, read_out_of_fold, read_record, save_ensemble
from ki67.prediction.evaluation import evaluate_prediction, score_lines
from ki67.prediction.evaluation_figures import correlation_picture, patch_picture, slide_picture
from ki67.prediction.methods import PredictOptions
from ki67.prediction.patch_pairs import read_ki67_patches, read_patch_pairs
from ki67.prediction.training_range import training_range
from ki67.score_table import markdown_table, score_cell

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
        "markers": sorted({one.marker for one in slides}),
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


def evaluate_folder(folder: Path, cutoffs: Sequence[float] = CUTOFFS) -> dict[str, Any]:
    """Scores of a trained prediction, from what its models said out of fold; nothing is trained.

    Returns
    -------
    dict
        That of ``evaluate_prediction`` with ``model``, ``method`` and ``level``, and in ``out_of_fold`` what was said
        of each slide.

    Raises
    ------
    ConfigError
        If the folder holds no trained prediction.
    """
    described = read_record(folder)
    slides, patches = read_out_of_fold(folder)
    about = {"method": described["method"], "level": described["level"], "model": model_identity(described)}
    columns = ["slide", "fold", "index", "predicted", "predicted_low", "predicted_high"]
    return about | evaluate_prediction(slides, patches, cutoffs) | {"out_of_fold": slides[columns].to_dict("records")}


def evaluation_pictures(folder: Path, record: Mapping[str, Any]) -> dict[str, NDArray[np.uint8]]:
    """Pictures by name, of a record of ``evaluate_folder``: ``slides``, ``patches`` and ``correlations``."""
    slides, patches = read_out_of_fold(folder)
    title = f"Ki-67 index predicted from H&E alone by {record['method']}"
    return {
        "slides": slide_picture(slides, record, title),
        "patches": patch_picture(patches, record, title),
        "correlations": correlation_picture(record, title),
    }


def prediction_table(record: Mapping[str, Any]) -> str:
    """All scores of a record of ``evaluate_folder`` as a table of Markdown."""
    rows = [
        {
            "level": level,
            "score": name.replace("_", " "),
            "value": score_cell(score["value"], [score["low"], score["high"]], 3),
        }
        for level, name, score in score_lines(record)
    ]
    return markdown_table(rows)
