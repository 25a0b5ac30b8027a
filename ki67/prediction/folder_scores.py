"""Scores and pictures of a folder with the models of all folds, from what they said out of fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki67.index import CUTOFFS
from ki67.prediction.ensemble import model_identity, read_out_of_fold, read_record
from ki67.prediction.evaluation import evaluate_prediction, score_lines
from ki67.prediction.evaluation_figures import correlation_picture, patch_picture, slide_picture
from ki67.score_table import markdown_table, score_cell


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
    title = f"{record['model']['marker']} index predicted from H&E alone by {record['method']}"
    return {
        "slides": slide_picture(slides, record, title),
        "patches": patch_picture(patches, record, title),
        "correlations": correlation_picture(record, title),
    }


def prediction_table(record: Mapping[str, Any]) -> str:
    """All scores of a record of ``evaluate_folder`` as a table of Markdown, with its notes below."""
    rows = [
        {
            "level": level,
            "score": name.replace("_", " "),
            "value": score_cell(score["value"], [score["low"], score["high"]], 3),
        }
        for level, name, score in score_lines(record)
    ]
    return "\n".join([markdown_table(rows), *(f"{note}\n" for note in record["notes"])])
