"""A trained prediction: the models of all folds in one folder, and what they say of a slide together.

The folder holds a file of arrays a fold (``fold_1.safetensors`` ...), ``training.safetensors`` and ``model.json``, and
what the models said out of fold (``out_of_fold.csv``, ``out_of_fold_patches.parquet``). No file of it can run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from ki67.errors import ConfigError
from ki67.prediction.conformal import cv_plus
from ki67.prediction.cross_validation import CrossValidation
from ki67.prediction.examples import Model, log_odds, share_of
from ki67.prediction.methods import PredictOptions, prepare, restore
from ki67.prediction.patch_pairs import PatchPairs
from ki67.prediction.splits import patient_key
from ki67.prediction.training_range import TrainingRange, unlike_training
from ki67.storage import to_plain, whole, write_csv, write_json

if TYPE_CHECKING:
    import pandas

MODEL_FILE, RANGE_FILE = "model.json", "training.safetensors"
SLIDES_FILE, PATCHES_FILE = "out_of_fold.csv", "out_of_fold_patches.parquet"
FORM = 2
"""Of the files; another is refused."""


@dataclass(frozen=True)
class Prediction:
    """What is said of a slide of which there is an H&E alone.

    Attributes
    ----------
    index, low, high
        Predicted index and its 95 % interval, 0 to 1; None where there is no prediction.
    reason
        Why there is none; empty where there is one.
    patches
        How many patches it is from.
    """

    index: float | None
    low: float | None
    high: float | None
    reason: str
    patches: int


@dataclass(frozen=True)
class Ensemble:
    """The models of all folds.

    Attributes
    ----------
    options
        How they were fitted.
    models
        One a fold.
    fold_of, errors, patients
        Of each training slide: its fold, how far off the model of that fold was in log odds, and the number of its
        patient.
    known
        The range of the training.
    identity
        Method, what marker was learned, how many slides and patients, and the digest of all weights: plain JSON values.
    """

    options: PredictOptions
    models: Sequence[Model]
    fold_of: NDArray[np.int64]
    errors: NDArray[np.float64]
    patients: Sequence[str]
    known: TrainingRange
    identity: Mapping[str, Any]

    def predict(self, pairs: PatchPairs) -> Prediction:
        """The index of a slide from its H&E, with an interval, or the reason why there is none."""
        reason = self._other_marker(pairs) or unlike_training(pairs, self.known)
        if reason is not None:
            return Prediction(None, None, None, reason, len(pairs))
        example = prepare(pairs, self.options)
        said = np.array([model.answer(example).odds for model in self.models])
        if not np.isfinite(said).all():
            text = f"{pairs.slide}: the model found no nuclei to count on the H&E, so there is no prediction"
            return Prediction(None, None, None, text, len(pairs))
        low, high = cv_plus(said, self.fold_of, self.errors, self.patients)
        index = float(share_of(said.mean()))
        limits = float(share_of(low)), float(share_of(high))
        return Prediction(index, min(limits[0], index), max(limits[1], index), "", len(pairs))

    def _other_marker(self, pairs: PatchPairs) -> str | None:
        learned = self.identity["marker"]
        if pairs.marker == learned:
            return None
        return (
            f"{pairs.slide}: the model learned the index of {learned} and not of {pairs.marker}, so there is no "
            "prediction; name another in predict.model"
        )


def save_ensemble(
    folder: Path, validated: CrossValidation, options: PredictOptions, known: TrainingRange, training: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a folder as the module describes it, whole or not at all.

    Parameters
    ----------
    validated
        Models and their answers out of fold.
    known
        The range of the slides that were learned from.
    training
        What else is to be known of the training: plain JSON values, without paths.

    Returns
    -------
    dict
        ``model.json`` as written.
    """
    with whole(folder) as partial:
        partial.mkdir()
        digests = {}
        for number, arrays in enumerate(validated.models, start=1):
            name = f"fold_{number}.safetensors"
            digests[name] = _write_arrays(partial / name, arrays)
        digests[RANGE_FILE] = _write_arrays(partial / RANGE_FILE, known.arrays())
        record = _record(validated, options, known, training, digests)
        write_out_of_fold(partial, validated.slides, validated.patches)
        write_json(partial / MODEL_FILE, record)
    return record


def _record(
    validated: CrossValidation,
    options: PredictOptions,
    known: TrainingRange,
    training: Mapping[str, Any],
    digests: Mapping[str, str],
) -> dict[str, Any]:
    told = validated.slides[validated.slides["predicted"].notna()]
    errors = np.abs(log_odds(told["predicted"].to_numpy()) - log_odds(told["index"].to_numpy()))
    # Numbers instead of ids: a model may be given to others.
    patients = np.unique([patient_key(patient) for patient in told["patient"]], return_inverse=True)[1]
    rows = zip(patients.tolist(), told["fold"].tolist(), errors.tolist(), strict=True)
    return {
        "form": FORM,
        "method": options.method,
        "level": options.level,
        "options": options.to_json(),
        "sha256": dict(digests),
        "range": known.to_json(),
        "slides": [{"patient": patient, "fold": fold, "error_log_odds": error} for patient, fold, error in rows],
        "weights_sha256": _digest_of(options.weights) if options.needs_network else None,
        "training": dict(training),
    }


def _digest_of(path: Path | None) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else None


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> str:
    content = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def write_out_of_fold(folder: Path, slides: pandas.DataFrame, patches: pandas.DataFrame) -> None:
    """Write the tables of a cross-validation into a folder."""
    write_csv(folder / SLIDES_FILE, slides)
    with whole(folder / PATCHES_FILE) as partial:
        patches.to_parquet(partial, index=False)


def read_out_of_fold(folder: Path) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """The tables of slides and of patches that ``write_out_of_fold`` wrote.

    Raises
    ------
    ConfigError
        If they are not there.
    """
    import pandas as pd

    try:
        slides = pd.read_csv(folder / SLIDES_FILE, dtype={"slide": str, "patient": str})
        return slides, pd.read_parquet(folder / PATCHES_FILE)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder.name} holds no {SLIDES_FILE} and {PATCHES_FILE} of a training; name a folder that "
            "predict_train wrote"
        ) from error


def load_ensemble(
    folder: Path, *, weights: Path | None = None, nuclei_model: Path | None = None, device: str = "auto"
) -> Ensemble:
    """The models of a folder that ``save_ensemble`` wrote.

    Parameters
    ----------
    weights
        File of the network that makes features, where the training had one.
    nuclei_model
        Folder of who counts nuclei, for ``cyclegan``; None: the one that ships.
    device
        ``auto``, ``cpu`` or a name that torch knows.

    Raises
    ------
    ConfigError
        If a file is missing, damaged, or of another training or version.
    """
    record = read_record(folder)
    try:
        options = PredictOptions(**record["options"], weights=weights, nuclei_model=nuclei_model, device=device)
        if options.needs_network and _digest_of(weights) != record["weights_sha256"]:
            raise ConfigError(
                f"prediction model {folder.name}: predict.weights is not the file that it learned with; name that one"
            )
        arrays = {name: _read_arrays(folder / name, digest) for name, digest in record["sha256"].items()}
        known = TrainingRange.from_parts(record["range"], arrays.pop(RANGE_FILE))
        models = [restore(one, options) for _, one in sorted(arrays.items(), key=lambda item: _number(item[0]))]
        slides = record["slides"]
        return Ensemble(
            options=options,
            models=models,
            fold_of=np.array([one["fold"] for one in slides], dtype=np.int64),
            errors=np.array([one["error_log_odds"] for one in slides], dtype=np.float64),
            patients=[str(one["patient"]) for one in slides],
            known=known,
            identity=model_identity(record),
        )
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise ConfigError(
            f"prediction model {folder.name}: a file is missing, damaged or of another training ({error!r:.80}); train "
            "it again with predict_train"
        ) from error


def _number(name: str) -> int:
    return int(name.removeprefix("fold_").removesuffix(".safetensors"))


def model_identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a result says of the model of a ``model.json``."""
    digest = hashlib.sha256(json.dumps(to_plain(record["sha256"]), sort_keys=True).encode()).hexdigest()
    slides = record["slides"]
    return {
        "method": record["method"],
        "marker": record["training"]["marker"],
        "sha256": digest,
        "slides": len(slides),
        "patients": len({one["patient"] for one in slides}),
    }


def read_record(folder: Path) -> dict[str, Any]:
    """``model.json`` of a trained prediction.

    Raises
    ------
    ConfigError
        If there is none, or one of another version.
    """
    try:
        record = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"predict.model names {folder.name}, which holds no readable {MODEL_FILE} of a prediction; name a folder "
            "that predict_train wrote"
        ) from error
    if not isinstance(record, dict) or record.get("form") != FORM:
        raise ConfigError(
            f"prediction model {folder.name}: it was written by another version of the workflow; train it again with "
            "predict_train"
        )
    return record


def _read_arrays(path: Path, digest: str) -> dict[str, NDArray[Any]]:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{path.name} is not the file that {MODEL_FILE} describes")
    return safetensors.numpy.load(content)
