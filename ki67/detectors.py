"""The ways of finding positive and negative nuclei that need PyTorch or nothing: what ``nuclei.method`` may be.

Every method gives probabilities of the five classes for windows of a slide, from which nuclei are made in the same way
(``ki67.extraction``), and may take a second look at each of them. StarDist, of TensorFlow, is in
``ki67.stardist_nuclei``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from ki67.color_threshold import ColorThreshold
from ki67.detection import MODELS, SHIPPED, Detector, Method
from ki67.errors import Ki67Error
from ki67.extraction import with_membranes
from ki67.familiarity import Ranges
from ki67.networks import Network, NetworkSpec, Precision, load_network
from ki67.nucleus_review import read_review
from ki67.predictors import NUCLEUS_CLASSES, WHOLE_NUCLEUS_CLASSES, FixedSpec
from ki67.random_forest import load_forest

FAMILIAR_FILE = "familiar.json"
_CLASSES = {"unet_resnet34": NUCLEUS_CLASSES, "unet_resnet50": WHOLE_NUCLEUS_CLASSES}


def load_detector(
    method: str, folder: Path | None = None, *, device: str = "auto", precision: Precision = "auto"
) -> Detector:
    """The detector of a method, with the model of a folder.

    Parameters
    ----------
    method
        One of ``ki67.detection.MODELS`` but ``stardist``, which ``ki67.stardist_nuclei`` loads.
    folder
        Of the model; the one that ships where none is given. ``color_threshold`` has none.
    device, precision
        Of a network; see ``ki67.networks.load_network``. Other methods run on a processor.

    Raises
    ------
    Ki67Error
        If there is no such method, or the folder does not hold a model for it.
    """
    known = _known(method)
    if known == "color_threshold":
        return Detector(known, ColorThreshold(), {"method": known, "name": known})
    folder = _fitting(known, folder)
    return _forest_detector(folder) if known == "random_forest" else _network_detector(known, folder, device, precision)


def _known(method: str) -> Method:
    if method not in MODELS:
        raise Ki67Error(f"nuclei.method is {method!r}; write {' or '.join(MODELS)}")
    if method == "stardist":
        raise Ki67Error(
            "nuclei.method stardist needs TensorFlow, which cannot run beside PyTorch in one process; run it on its "
            "own, with python -m ki67 evaluate nuclei or the workflow"
        )
    return cast(Method, method)


def _fitting(method: Method, folder: Path | None) -> Path:
    """The folder of the method's model, of which its ``model.json`` says that it fits."""
    key = MODELS[method] or method
    folder = SHIPPED / key if folder is None else Path(folder)
    try:
        record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        found, classes = str(record["architecture"]), tuple(record["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Ki67Error(
            f"nuclei.method {method} needs a model, but {folder.name} holds no readable model.json; set models.{key} "
            f"to one, or train it with: snakemake train_{key}"
        ) from error
    if found != method or classes != _CLASSES.get(method, classes):
        raise Ki67Error(
            f"nuclei.method is {method}, but the model {folder.name} is a {found} of {len(classes)} classes; set "
            f"nuclei.method to what the model is, or models.{key} to a fitting one"
        )
    return folder


def _network_detector(method: Method, folder: Path, device: str, precision: Precision) -> Detector:
    network = load_network(folder, device=device, precision=precision)
    predictor = network if network.spec.classes == NUCLEUS_CLASSES else WithMembranes(network)
    identity = {"method": method, **network.identity}
    return Detector(method, predictor, identity, review=read_review(folder), familiar=read_ranges_of_training(folder))


def read_ranges_of_training(folder: Path) -> Ranges | None:
    """What ``familiar.json`` in the folder of a network says; None where there is none.

    Raises
    ------
    Ki67Error
        If the file is damaged.
    """
    path = folder / FAMILIAR_FILE
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): (float(low), float(high)) for name, (low, high) in record.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Ki67Error(f"network {folder.name}: {FAMILIAR_FILE} is damaged; delete it or calibrate again") from error


def _forest_detector(folder: Path) -> Detector:
    forest = load_forest(folder)
    predictor = ColorThreshold(forest.candidates, FixedSpec(forest.name, mpp=forest.mpp))
    identity = {"method": "random_forest", "name": forest.name, "sha256": forest.sha256}
    return Detector("random_forest", predictor, identity, revise=forest.revise)


class WithMembranes:
    """A network of the three classes background, positive and negative, as one of five that sees no membranes."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.spec: NetworkSpec = replace(network.spec, classes=NUCLEUS_CLASSES)
        self.device: torch.device = network.device
        self.block_px: tuple[int, int] = network.block_px
        self.halo_px: int = network.halo_px

    def predict_levels(self, batch: NDArray[np.uint8], halo_px: int) -> NDArray[np.uint8]:
        """Probabilities uint8 ``(N, 5, H - 2 * halo, W - 2 * halo)``, 255 for 1, of RGB tiles ``(N, H, W, 3)``."""
        return with_membranes(self._network.predict_levels(batch, halo_px))
