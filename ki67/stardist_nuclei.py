"""Nuclei by StarDist: hematoxylin and DAB parted by the slide's own colours, and both shown to one network.

Published pipelines for Ki-67 do so: nuclei of the hematoxylin channel are all nuclei, those of the DAB channel the
positive ones. What is shown of a stain is its amount, between what is usual on glass and on the darkest of the slide's
nuclei, so that the network sees pale and strong slides alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.class_calibration import CalibrationOptions
from ki67.detection import SHIPPED, Detector, Method
from ki67.extraction import Nuclei
from ki67.geometry import Mask
from ki67.nuclei import NucleusDetection, Running
from ki67.nucleus_review import REVIEW_FILE, ReviewOptions, read_review
from ki67.predictors import FixedSpec, NamedDevice, Precision
from ki67.slides import Slide
from ki67.stain import HED_VECTORS, StainPair, optical_density, slide_stains
from ki67.star_polygons import CHANNELS, StarOptions, packed, probabilities_of, star_nuclei
from ki67.stardist_model import StarNetwork, StarSpec
from ki67.tiles import plan_tiles

METHOD: Method = "stardist"
NOTHING_LEFT_OUT = ReviewOptions(
    probability_weight=0.0, size_weight=0.0, offset=1.0, calibration=CalibrationOptions(doubted=0.5)
)
"""StarDist's own threshold has said what a nucleus is; the classes follow from the slide's DAB."""

SAMPLES, SAMPLE_PX = 48, 256
"""Squares of a slide from which its stains are told, and their side."""
_SAMPLE_STEP = 3  # of their pixels every third row and column

# Amounts that are shown as 0 and as 1: percentiles, and limits of what is shown as 1. DAB above its limit is as good as
# black, of which the amount says nothing; below the other, a slide has none, and its noise would fill the picture.
_DARK_PERCENTILE, _GLASS_PERCENTILE = 99.8, 1.0
_LIMITS = {"hematoxylin": (0.3, 1.2), "dab": (0.5, 1.5)}
_MOST_SHOWN = 2.0
# Where light of any colour is taken away more than this, DAB may be under what looks like hematoxylin.
_MOST_TELLING_OD = 1.0
# DAB below this, as it is shown and smoothed, is the shade that negative nuclei have: no nucleus is looked for there.
_LEAST_BROWN, _BROWN_SMOOTHING_PX = 0.2, 1.5
# For networks that take colours: hematoxylin as dark as in H&E.
_DARKEST_IN_COLOUR = 1.2


@dataclass(frozen=True)
class StainChannels:
    """How the two stains of a slide are shown to a network.

    Attributes
    ----------
    stains
        Their colours.
    glass, dark
        Amounts of hematoxylin and of DAB that are shown as 0 and as 1.
    """

    stains: StainPair
    glass: tuple[float, float]
    dark: tuple[float, float]

    def shown(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Both channels float32 ``(2, ..., H, W)`` of pixels uint8 ``(..., H, W, 3)``: 0 is glass, 1 is dark."""
        low, high = np.array([self.glass, self.dark], dtype=np.float32)
        scaled = (self.stains.amounts(rgb) - low) / (high - low)
        return np.moveaxis(np.clip(scaled, 0, _MOST_SHOWN), -1, 0)

    def to_json(self) -> dict[str, Any]:
        """What a record tells of them."""
        told = {"hematoxylin": self.stains.hematoxylin, "dab": self.stains.dab}
        return {name: [round(value, 3) for value in vector] for name, vector in told.items()} | {
            "glass_od": [round(value, 3) for value in self.glass],
            "dark_od": [round(value, 3) for value in self.dark],
        }


def stain_channels(rgb: NDArray[np.uint8]) -> StainChannels:
    """How a slide is shown, from a sample of its pixels.

    What is dark in hematoxylin is told where there is more of it than of DAB and the pixel is not nearly black: below
    strong DAB no other stain can be measured.

    Parameters
    ----------
    rgb
        uint8 ``(..., 3)``, pixels of the slide's tumour.
    """
    stains = slide_stains(rgb)
    density = optical_density(rgb.reshape(-1, 3))
    amounts = np.maximum(density @ stains.amounts_of_density, 0)
    blue = (amounts[:, 0] >= amounts[:, 1]) & (density.max(axis=1) <= _MOST_TELLING_OD)
    values = {"hematoxylin": amounts[blue, 0], "dab": amounts[:, 1]}
    glass, dark = zip(*(_range_of(values[name], *_LIMITS[name]) for name in CHANNELS), strict=True)
    return StainChannels(stains, glass, dark)


def _range_of(amounts: NDArray[np.float32], least: float, most: float) -> tuple[float, float]:
    if not len(amounts):
        return 0.0, least
    low, high = (float(value) for value in np.percentile(amounts, [_GLASS_PERCENTILE, _DARK_PERCENTILE]))
    low = min(low, least / 2)
    return low, low + float(np.clip(high - low, least, most))


def sample_slide(slide: Slide, tumor: Mask, mpp: float) -> NDArray[np.uint8]:
    """Pixels uint8 ``(N, 3)`` from squares that lie evenly over a slide's tumour.

    Raises
    ------
    SlideError
        If the slide cannot be read there.
    """
    cells = plan_tiles(tumor, slide.size_um, mpp=mpp, cell_px=SAMPLE_PX, halo_px=0).cells
    if not len(cells):
        return np.zeros((0, 3), dtype=np.uint8)
    chosen = cells[np.unique(np.linspace(0, len(cells) - 1, SAMPLES).round().astype(int))]
    corners_um = chosen * SAMPLE_PX * mpp
    squares = [slide.read(x_um, y_um, SAMPLE_PX, SAMPLE_PX, mpp) for y_um, x_um in corners_um.tolist()]
    return np.concatenate([square[::_SAMPLE_STEP, ::_SAMPLE_STEP].reshape(-1, 3) for square in squares])


def in_colour(channel: NDArray[np.float32]) -> NDArray[np.float32]:
    """A channel ``(..., H, W)`` as hematoxylin in colours ``(..., H, W, 3)``, white 1, for networks that learned H&E.

    Examples
    --------
    >>> in_colour(np.zeros((1, 1), dtype=np.float32))
    array([[[1., 1., 1.]]], dtype=float32)
    """
    vector = HED_VECTORS[0].astype(np.float32)
    light = 10 ** (-_DARKEST_IN_COLOUR * channel[..., None] * vector)
    darkest = 10 ** (-_DARKEST_IN_COLOUR * vector.max())
    return np.asarray((light - darkest) / (1 - darkest), dtype=np.float32)


@dataclass(frozen=True)
class StarPredictor:
    """StarDist on both stains of a slide as a ``ki67.predictors.Predictor``; see ``ki67.star_polygons`` for its answer.

    Attributes
    ----------
    network
        Answers for single channels.
    channels
        How the slide is shown to it.
    """

    network: StarNetwork
    channels: StainChannels
    block_px: tuple[int, int] = (768, 1024)

    @property
    def spec(self) -> FixedSpec:
        """Its name and resolution."""
        return FixedSpec(self.network.spec.name, CHANNELS, self.network.spec.mpp)

    @property
    def device(self) -> NamedDevice:
        """Where it runs."""
        return self.network.device

    @property
    def halo_px(self) -> int:
        """How far beyond a window, on every side, it should be shown what lies around."""
        return self.network.spec.halo_px

    def predict_levels(self, batch: NDArray[np.uint8], halo_px: int = 0) -> NDArray[np.uint8]:
        """The answer ``(N, C, H - 2 * halo, W - 2 * halo)`` to RGB tiles ``(N, H, W, 3)``."""
        return np.stack([self._answer(rgb, halo_px) for rgb in batch])

    def _answer(self, rgb: NDArray[np.uint8], halo_px: int) -> NDArray[np.uint8]:
        spec = self.network.spec
        inner = slice(halo_px // spec.grid_px, -halo_px // spec.grid_px or None)
        # One channel after the other on a processor: two at once take twice the memory and no less time.
        shown = self.channels.shown(rgb)
        images = [self._image(channel)[None] for channel in shown]
        together = [np.concatenate(images)] if self.device.type != "cpu" else images
        answers = [self.network(image) for image in together]
        probability, distances = (np.concatenate(parts)[:, inner, inner] for parts in zip(*answers, strict=True))
        brown = cv2.GaussianBlur(shown[CHANNELS.index("dab")], (0, 0), _BROWN_SMOOTHING_PX) >= _LEAST_BROWN
        probability[CHANNELS.index("dab")] *= brown[:: spec.grid_px, :: spec.grid_px][inner, inner]
        return packed(probability, distances, spec.grid_px)

    def _image(self, channel: NDArray[np.float32]) -> NDArray[np.float32]:
        return in_colour(channel) if self.network.spec.inputs == 3 else np.ascontiguousarray(channel)[..., None]


@dataclass(frozen=True)
class StarDetector:
    """Finds the nuclei of a slide or an image by StarDist, as a ``ki67.detection.Detector`` does by other methods.

    Attributes
    ----------
    network
        See there.
    identity
        Method, name of the model, hash and precision.
    options
        How polygons become nuclei.
    review
        How all nuclei of a slide are looked at together; None leaves the classes to the DAB channel's nuclei.
    """

    network: StarNetwork
    identity: Mapping[str, str]
    options: StarOptions = field(default_factory=StarOptions)
    review: ReviewOptions | None = NOTHING_LEFT_OUT

    @property
    def mpp(self) -> float:
        """Microns per pixel of what it is shown."""
        return self.network.spec.mpp

    def __call__(self, rgb: NDArray[np.uint8]) -> Nuclei:
        """The nuclei of an image uint8 ``(H, W, 3)`` at ``mpp``, which is taken for a whole slide."""
        return self.shown(stain_channels(rgb))(rgb)

    def of_slide(
        self, slide: Slide, tumor: Mask, *, running: Running | None = None, probabilities: Path | str | None = None
    ) -> NucleusDetection:
        """The nuclei of a slide; see ``ki67.nuclei.detect_nuclei``."""
        channels = stain_channels(sample_slide(slide, tumor, self.mpp))
        found = self.shown(channels).of_slide(slide, tumor, running=running, probabilities=probabilities)
        return replace(found, stains=channels.to_json())

    def shown(self, channels: StainChannels) -> Detector:
        """The detector of a slide that is shown in this way."""
        return Detector(
            METHOD,
            StarPredictor(self.network, channels),
            self.identity,
            extract=partial(_nuclei, self.network.spec, self.options),
            maps=partial(_maps, self.network.spec),
            review=self.review,
        )


def _nuclei(spec: StarSpec, options: StarOptions, answer: NDArray[np.uint8], mpp: float) -> Nuclei:
    return star_nuclei(answer, mpp, rays=spec.rays, grid_px=spec.grid_px, options=options)


def _maps(spec: StarSpec, answer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return probabilities_of(answer, spec.rays, spec.grid_px)


def load_star_detector(
    folder: Path | None = None, *, device: str = "auto", precision: Precision = "auto"
) -> StarDetector:
    """The detector with the StarDist model of a folder, or with the one that ships.

    Raises
    ------
    Ki67Error
        If the model cannot be read, or TensorFlow cannot run; see ``ki67.stardist_model``.
    """
    folder = SHIPPED / METHOD if folder is None else Path(folder)
    network = StarNetwork(folder, device=device, precision=precision)
    spec = network.spec
    review = read_review(folder) if (folder / REVIEW_FILE).exists() else NOTHING_LEFT_OUT
    identity = {"method": METHOD, "name": spec.name, "sha256": spec.sha256, "precision": network.precision}
    return StarDetector(network, identity, StarOptions(spec.probability, spec.overlap), review)
