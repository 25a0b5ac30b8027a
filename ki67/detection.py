"""A way of finding nuclei, ready to use on slides and on single images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ki67.extraction import ExtractionOptions, Nuclei, extract_nuclei
from ki67.familiarity import Ranges, familiarity, unlike_training_finding
from ki67.geometry import Mask
from ki67.nuclei import Extract, Maps, NucleusDetection, Revise, Running, detect_nuclei, stain_amounts
from ki67.nucleus_review import ReviewOptions, review_nuclei
from ki67.predictors import Predictor, predict_image
from ki67.slides import Slide

Method = Literal["unet_resnet34", "unet_resnet50", "color_threshold", "random_forest", "stardist"]

MODELS: dict[Method, str | None] = {
    "unet_resnet34": "nuclei",
    "unet_resnet50": "nuclei_resnet50",
    "color_threshold": None,
    "random_forest": "nuclei_forest",
    "stardist": "stardist",
}
"""The model that each method needs: its key in ``models`` of the configuration, and its folder's name in
``resources/models``."""

SHIPPED = Path(__file__).parents[1] / "resources" / "models"
"""The models that come with the workflow."""


@dataclass(frozen=True)
class Detector:
    """Finds the nuclei of a slide or an image.

    Attributes
    ----------
    method
        Its name.
    predictor
        Gives the five classes of ``ki67.predictors.NUCLEUS_CLASSES`` for windows of a slide, or what ``extract`` takes.
    identity
        Method, name of the model and, where there is one, hash and precision: what a record says made a result.
    options
        How probabilities of the five classes become nuclei.
    extract, maps
        How answers of other classes become nuclei, and probabilities to keep.
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
    extract: Extract | None = None
    maps: Maps | None = None
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
            extract=self.extract,
            revise=self.revise,
            review=self.review,
            running=running,
            probabilities=probabilities,
            maps=self.maps,
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
    answer = predict_image(detector.predictor, rgb)
    if detector.extract is not None:
        nuclei = detector.extract(answer, detector.mpp)
    else:
        nuclei = extract_nuclei(answer, mpp=detector.mpp, options=detector.options)
    if detector.revise is not None:
        nuclei = detector.revise(nuclei, rgb, detector.mpp)
    if detector.review is None:
        return nuclei
    _, dab_od = stain_amounts(nuclei, rgb)
    area_um2 = nuclei.area_px * detector.mpp**2
    seen = review_nuclei(nuclei.probability, nuclei.positive, area_um2, dab_od, detector.review)
    return replace(nuclei, positive=seen.positive).chosen(seen.kept)
