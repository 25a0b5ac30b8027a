"""Whether a slide is such as a model was trained on; where it is not, a reason in words instead of a number.

As for nuclei (``ki67.familiarity``), what lies outside of the range of the training is a stain, a scale or a tissue
that the model was never shown, and what it would say of it was never measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki67.prediction.patch_features import patch_features
from ki67.prediction.patch_pairs import PatchPairs
from ki67.prediction.slide_stain import slide_stain

MOST_PATCHES = 32
"""So many patches of a slide, evenly spaced, are looked at."""
FEWEST_PATCHES = 5
MARGIN = 0.3
"""Of the width of a range, by which a slide may lie outside of it: the next one of many is often a little beyond."""
MEASURES = {
    "hematoxylin_od": "hematoxylin, in optical density,",
    "eosin_od": "eosin, in optical density,",
    "hematoxylin_red": "share of red in the hematoxylin",
    "eosin_green": "share of green in the eosin",
    "nuclei_per_mm2": "number of nuclei per mm²",
    "sharpness": "sharpness of nuclei",
}


@dataclass(frozen=True)
class SlideLook:
    """What of a slide is compared with the training.

    Attributes
    ----------
    measures
        ``MEASURES``.
    texture
        Mean of the pixel features over patches, float64 ``(F,)``.
    """

    measures: Mapping[str, float]
    texture: NDArray[np.float64]


@dataclass(frozen=True)
class TrainingRange:
    """The looks of the slides of a training.

    Attributes
    ----------
    mpp, size_px
        Of their patches.
    ranges
        Least and most of each measure.
    mean, deviation
        Of the texture over slides, float64 ``(F,)``.
    farthest
        How far the texture of a slide was from the mean of the others, at most; see ``_distance``.
    """

    mpp: float
    size_px: int
    ranges: Mapping[str, tuple[float, float]]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    farthest: float

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Mean and deviation, for a file."""
        return {"texture_mean": self.mean, "texture_deviation": self.deviation}

    def to_json(self) -> dict[str, Any]:
        """All but the arrays."""
        ranges = {name: list(limits) for name, limits in self.ranges.items()}
        return {"mpp": self.mpp, "size_px": self.size_px, "ranges": ranges, "farthest": self.farthest}

    @classmethod
    def from_parts(cls, record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> TrainingRange:
        """What ``to_json`` and ``arrays`` gave."""
        ranges = {str(name): (float(low), float(high)) for name, (low, high) in record["ranges"].items()}
        looks = arrays["texture_mean"], arrays["texture_deviation"]
        return cls(float(record["mpp"]), int(record["size_px"]), ranges, *looks, float(record["farthest"]))


def slide_look(pairs: PatchPairs) -> SlideLook:
    """Measure a slide with at least one patch."""
    he = pairs.he[:: max(1, len(pairs) // MOST_PATCHES)]
    stain = slide_stain(he)
    features = patch_features(he, pairs.mpp)
    mm2 = (pairs.he.shape[1] * pairs.mpp / 1000) ** 2
    measures = {
        "hematoxylin_od": float(stain.strength[0]),
        "eosin_od": float(stain.strength[1]),
        "hematoxylin_red": float(stain.vectors[0, 0] / stain.vectors[0].sum()),
        "eosin_green": float(stain.vectors[1, 1] / stain.vectors[1].sum()),
        "nuclei_per_mm2": float(pairs.nuclei_he.mean()) / mm2,
        "sharpness": _sharpness(features),
    }
    return SlideLook(measures, features.mean(axis=0, dtype=np.float64))


def _sharpness(features: NDArray[np.float32]) -> float:
    """How steep edges of hematoxylin are at 1 µm, against those at 4 µm."""
    from ki67.prediction.patch_features import FEATURES

    fine, coarse = (features[:, FEATURES.index(f"hematoxylin_edge_{scale}um_mean")].mean() for scale in (1, 4))
    return float(fine / max(float(coarse), 1e-9))


def training_range(slides: Sequence[PatchPairs]) -> TrainingRange:
    """The range of slides that a model learned from, each with at least one patch."""
    looks = [slide_look(slide) for slide in slides]
    ranges = {}
    for name in MEASURES:
        values = [look.measures[name] for look in looks]
        ranges[name] = (min(values), max(values))
    textures = np.stack([look.texture for look in looks])
    mean, deviation = textures.mean(axis=0), _deviation(textures)
    farthest = 0.0
    for place in range(len(textures)):
        others = np.delete(textures, place, axis=0)
        farthest = max(farthest, _distance(textures[place], others.mean(axis=0), _deviation(others)))
    return TrainingRange(slides[0].mpp, slides[0].he.shape[1], ranges, mean, deviation, farthest)


def _deviation(textures: NDArray[np.float64]) -> NDArray[np.float64]:
    deviation = textures.std(axis=0)
    return np.asarray(np.where(deviation > 1e-9, deviation, 1.0))


def _distance(texture: NDArray[np.float64], mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> float:
    """Root mean square over features of the distance in standard deviations."""
    return float(np.sqrt(np.mean(((texture - mean) / deviation) ** 2)))


def unlike_training(pairs: PatchPairs, known: TrainingRange) -> str | None:
    """Why a model can say nothing of a slide, a sentence that begins with its id; None where it can."""
    if len(pairs) < FEWEST_PATCHES:
        return (
            f"{pairs.slide}: {len(pairs)} patches of tumour on the H&E are too few to predict from (at least "
            f"{FEWEST_PATCHES}); look at tumor_he.png"
        )
    if abs(pairs.mpp / known.mpp - 1) > 1e-3 or pairs.he.shape[1] != known.size_px:
        return (
            f"{pairs.slide}: its patches have {pairs.he.shape[1]} px of {pairs.mpp:g} µm, those of the training "
            f"{known.size_px} px of {known.mpp:g} µm; make the patches with the settings of the training"
        )
    look = slide_look(pairs)
    for name, (low, high) in known.ranges.items():
        value, width = look.measures[name], high - low
        if not low - MARGIN * width <= value <= high + MARGIN * width:
            return (
                f"{pairs.slide}: the {MEASURES[name]} is {value:.3g}, far outside of the {low:.3g} to {high:.3g} of "
                "the training slides, so there is no prediction; check the stain and the microns per pixel"
            )
    distance = _distance(look.texture, known.mean, known.deviation)
    if distance > (1 + MARGIN) * known.farthest:
        return (
            f"{pairs.slide}: the texture of its tissue is {distance:.1f} standard deviations from that of the training "
            f"slides, of which none was farther than {known.farthest:.1f}, so there is no prediction; look at the slide"
        )
    return None
