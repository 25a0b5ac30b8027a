"""The ways of finding positive and negative nuclei, behind one interface: what ``nuclei.method`` may be.

Every method gives probabilities of the five classes for windows of a slide, from which nuclei are made in the same way
(``ki67.extraction``), and may take a second look at each of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ki67.color_threshold import ColorThreshold, FixedSpec
from ki67.errors import Ki67Error
from ki67.extraction import ExtractionOptions, Nuclei, extract_nuclei, with_membranes
from ki67.familiarity import Ranges, familiarity, unlike_training_finding
from ki67.geometry import Mask
from ki67.networks import (
    NUCLEUS_CLASSES,
    WHOLE_NUCLEUS_CLASSES,
    Network,
    NetworkSpec,
    Precision,
    Predictor,
    load_network,
    predict_image,
)
from ki67.nuclei import NucleusDetection, Revise, Running, detect_nuclei, stain_amounts
from ki67.nucleus_review import ReviewOptions, read_review, review_nuclei
from ki67.random_forest import load_forest
from ki67.slides import Slide

Method = Literal["unet_resnet34", "unet_resnet50", "color_threshold", "random_forest"]

MODELS: dict[Method, str | None] = {
    "unet_resnet34": "nuclei",
    "unet_resnet50": "nuclei_resnet50",
    "color_threshold": None,
    "random_forest": "nuclei_forest",
}
"""The model that each method needs: its key in ``models`` of the configuration, and its folder's name in
``resources/models``."""

FAMILIAR_FILE = "familiar.json"
_SHIPPED = Path(__file__).parents[1] / "resources" / "models"
_CLASSES = {"unet_resnet34": NUCLEUS_CLASSES, "unet_resnet50": WHOLE_NUCLEUS_CLASSES}


@dataclass(frozen=True)
class Detector:
    """Finds the nuclei of a slide or an image.

    Attributes
    ----------
    method
        Its name.
    predictor
        Gives the five classes of ``ki67.networks.NUCLEUS_CLASSES`` for windows of a slide.
    identity
        Method, name of the model and, where there is one, hash and precision: what a record says made a result.
    options
        How probabilities become nuclei.
    revise
        A second look at all nuclei of an image.
    review
        How all nuclei of a slide are looked at together.
    familiar
        Ranges of what it was trained on; see ``ki67.familiarity``.
    """

    method: Method
    predictor: Predictor
    identity: Mapping[str, str]
    options: ExtractionOptions = field(default_factory=ExtractionOptions)
    revise: Revise | None = None
    review: ReviewOptions | None = None
    familiar: Ranges | None = None

    @property
    def mpp(self) -> float:
        """Microns per pixel of what it is shown."""
        return self.predictor.spec.mpp

    def __call__(self, rgb: NDArray[np.uint8]) -> Nuclei:
        """The nuclei of an image; see ``detect``."""
        return detect(self, rgb)

    def of_slide(
        self, slide: Slide, tumor: Mask, *, running: Running | None = None, probabilities: Path | str | None = None
    ) -> NucleusDetection:
        """The nuclei of a slide, and whether they are such as the detector knows; see ``ki67.nuclei.detect_nuclei``."""
        found = detect_nuclei(
            slide,
            tumor,
            self.predictor,
            options=self.options,
            revise=self.revise,
            review=self.review,
            running=running,
            probabilities=probabilities,
        )
        if self.familiar is None:
            return found
        nuclei = found.table[found.table["in_tumor"]]
        finding = unlike_training_finding(slide.slide_id, familiarity(nuclei, self.familiar))
        return replace(found, findings=() if finding is None else (finding,))


def detect(detector: Detector, rgb: NDArray[np.uint8]) -> Nuclei:
    """The nuclei of one image, which is taken for a whole slide.

    Parameters
    ----------
    rgb
        uint8 ``(H, W, 3)`` at ``detector.mpp``.
    """
    nuclei = extract_nuclei(predict_image(detector.predictor, rgb), mpp=detector.mpp, options=detector.options)
    if detector.revise is not None:
        nuclei = detector.revise(nuclei, rgb, detector.mpp)
    if detector.review is None:
        return nuclei
    _, dab_od = stain_amounts(nuclei, rgb)
    area_um2 = nuclei.area_px * detector.mpp**2
    seen = review_nuclei(nuclei.probability, nuclei.positive, area_um2, dab_od, detector.review)
    return replace(nuclei, positive=seen.positive).chosen(seen.kept)


def load_detector(
    method: str, folder: Path | None = None, *, device: str = "auto", precision: Precision = "auto"
) -> Detector:
    """The detector of a method, with the model of a folder.

    Parameters
    ----------
    method
        One of ``MODELS``.
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
    if method not in get_args(Method):
        raise Ki67Error(f"nuclei.method is {method!r}; write {' or '.join(MODELS)}")
    return cast(Method, method)


def _fitting(method: Method, folder: Path | None) -> Path:
    """The folder of the method's model, of which its ``model.json`` says that it fits."""
    key = MODELS[method] or method
    folder = _SHIPPED / key if folder is None else Path(folder)
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
