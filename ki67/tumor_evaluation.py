"""How well a network finds tumour on images where it is known: per pixel, per patch, and as the workflow's mask."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ki67.binary_scores import area_under_roc, best_threshold, level_counts, level_of, threshold_scores
from ki67.bootstrap import percentile_intervals
from ki67.errors import Ki67Error
from ki67.nuclear_evidence import NuclearEvidence
from ki67.predictors import STRIDE_PX, Predictor, predict_image
from ki67.training.datasets import read_dataset, resampled
from ki67.tumor import SMOOTHING_UM, Cascade, first_class, regions
from ki67.tumor_fields import SCORED_MPP, TumorField, at_shape, check_has_tumor, chosen_images, read_tumor_fields

log = logging.getLogger(__name__)

PATCH_UM = 64.0
PIXEL_LEVELS = 256
PATCH_LEVELS = 16 * 255 + 1
"""Levels of the mean probability of a patch: sixteenths of those of a pixel."""
FEWEST_IMAGES = 3
"""Resampling fewer images says nothing."""
BESIDE = ("coarse_model", "nuclei_model")
"""Names that records have for the networks that answer as well."""
MASK_SCORES = ("dice", "sensitivity", "specificity", "accuracy", "balanced_accuracy", "ppv", "npv")


@dataclass(frozen=True)
class MaskSettings:
    """How the workflow makes a mask of probabilities; the defaults are those of ``tumor`` in the configuration.

    Attributes
    ----------
    mpp
        Microns per pixel of the mask.
    smallest_region_mm2, smallest_hole_mm2
        Smaller regions are dropped, smaller holes filled.
    threshold
        Of the smoothed probability; None takes the network's own.
    cascade
        The coarser network that answers as well, if any; see ``answer``.
    evidence
        The nucleus network that answers as well, if any.
    """

    mpp: float = 2.0
    smallest_region_mm2: float = 0.003
    smallest_hole_mm2: float = 0.005
    threshold: float | None = None
    cascade: Cascade | None = None
    evidence: NuclearEvidence | None = None

    @property
    def beside(self) -> dict[str, Predictor]:
        """The networks that answer as well, by the names that records have for them."""
        found = {"coarse_model": self.cascade, "nuclei_model": self.evidence}
        return {name: one.network for name, one in found.items() if one is not None}


@dataclass(frozen=True)
class TumorAnswer:
    """What a network says of an image.

    Attributes
    ----------
    probability
        uint8 ``(h, w)`` at ``SCORED_MPP``, 255 for 1.
    mask
        bool ``(h, w)``, the tumour as the workflow makes it: smoothed, without small regions and holes.
    """

    probability: NDArray[np.uint8]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class TumorCounts:
    """What was counted on one image, each a histogram as ``binary_scores.level_counts`` makes it.

    Attributes
    ----------
    name
        Of the image.
    pixels
        int64 ``(2, PIXEL_LEVELS)``.
    patches
        int64 ``(2, PATCH_LEVELS)``.
    mask
        int64 ``(2, 2)``, pixels of the workflow's mask.
    """

    name: str
    pixels: NDArray[np.int64]
    patches: NDArray[np.int64]
    mask: NDArray[np.int64]


@dataclass(frozen=True)
class TumorEvaluation:
    """All that was counted on the images of a dataset.

    Attributes
    ----------
    dataset
        Its name.
    threshold
        Probability from which the network calls a pixel or patch tumour.
    images
        One of each image.
    identity
        What made the answers.
    learned_from
        Whether a network says that it was trained on a dataset of this name.
    beside
        Of the networks that answered as well: ``coarse_model``, ``nuclei_model``.
    """

    dataset: str
    threshold: float
    images: tuple[TumorCounts, ...]
    identity: Mapping[str, str] = field(default_factory=dict)
    learned_from: bool = False
    beside: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def pixels(self) -> NDArray[np.int64]:
        """Pixels of all images ``(2, PIXEL_LEVELS)``."""
        return np.sum([image.pixels for image in self.images], axis=0)

    @property
    def patches(self) -> NDArray[np.int64]:
        """Patches of all images ``(2, PATCH_LEVELS)``."""
        return np.sum([image.patches for image in self.images], axis=0)

    def to_json(self) -> dict[str, Any]:
        """All scores as plain JSON values, in the form that ``evaluate_tumor`` describes."""
        mask = np.sum([image.mask for image in self.images], axis=0)
        return {
            "dataset": self.dataset,
            "model": dict(self.identity),
            **{name: dict(self.beside[name]) if name in self.beside else None for name in BESIDE},
            "learned_from": self.learned_from,
            "mpp": SCORED_MPP,
            "patch_um": PATCH_UM,
            "threshold": self.threshold,
            "pooled": _scores(self.pixels, self.threshold),
            "patches": _scores(self.patches, self.threshold),
            "mask": _mask_scores(mask),
            "intervals": self._intervals(),
            "images": [
                {
                    "name": image.name,
                    **_scores(image.pixels, self.threshold),
                    "patches": _scores(image.patches, self.threshold),
                    "mask": _mask_scores(image.mask),
                }
                for image in self.images
            ],
        }

    def _intervals(self) -> dict[str, dict[str, list[float]]] | None:
        if len(self.images) < FEWEST_IMAGES:
            return None
        return {
            "pooled": _score_intervals([image.pixels for image in self.images], self.threshold),
            "patches": _score_intervals([image.patches for image in self.images], self.threshold),
            "mask": {
                name: limits
                for name, limits in _score_intervals([image.mask for image in self.images], 0.5).items()
                if name in MASK_SCORES
            },
        }


def evaluate_tumor(
    folder: Path,
    network: Predictor,
    *,
    images: Sequence[str] = (),
    settings: MaskSettings | None = None,
) -> TumorEvaluation:
    """Compare a network's probability of tumour with the truth on the images of a dataset.

    ``to_json`` of the result has ``pooled`` (pixels at 0.5 µm/px), ``patches`` (squares of 64 µm, see
    ``patch_counts``) and ``mask`` (the workflow's mask): sensitivity, specificity, accuracy, balanced accuracy, Dice,
    predictive values, likelihood ratios and Youden index at the network's threshold, area under the ROC curve, and the
    threshold with the greatest Youden index; the same for each of ``images``; and ``intervals``, 95 %, from resampled
    images, None where there are fewer than three.

    Parameters
    ----------
    folder
        Dataset of kind ``tumor``, or any with ``roi_masks`` around the tumour.
    network
        With one class, at any resolution.
    images
        Names or patterns of those to look at; all where there is none.
    settings
        How the mask is made, and which networks answer as well; None is as in the workflow, without any of these.

    Raises
    ------
    Ki67Error
        If the network tells several classes, the dataset does not say where tumour is, or something cannot be read.
    """
    if len(network.spec.classes) != 1:
        raise Ki67Error(
            f"network {network.spec.name}: it tells {len(network.spec.classes)} classes apart, not tumour from the "
            "rest; name the folder of a tumour network"
        )
    dataset = read_dataset(folder)
    check_has_tumor(dataset)
    paths = chosen_images(dataset, images)
    settings = settings or MaskSettings()
    counts = []
    fields = read_tumor_fields(dataset, paths)
    for image in tqdm(fields, desc=f"tumour of {dataset.name}", unit="image", total=len(paths)):
        counts.append(count(image, answer(image, network, settings)))
    networks = [network, *settings.beside.values()]
    evaluation = TumorEvaluation(
        dataset.name,
        network.spec.threshold,
        tuple(counts),
        _identity(network),
        any(dataset.name in _trained_on(one) for one in networks),
        {name: _identity(one) for name, one in settings.beside.items()},
    )
    pixels = evaluation.pixels
    log.info(
        "%s with %s: %d images, %.1f mm² of which %.0f %% are tumour",
        *(dataset.name, network.spec.name, len(counts), pixels.sum() * SCORED_MPP**2 / 1e6),
        100 * pixels[1].sum() / max(1, pixels.sum()),
    )
    return evaluation


def _identity(network: Predictor) -> Mapping[str, str]:
    return getattr(network, "identity", {"name": network.spec.name})


def _trained_on(network: Predictor) -> set[str]:
    """Names of the datasets that a network's card lists."""
    training: dict[str, Any] = getattr(network.spec, "training", {})
    return {str(entry.get("name")) for entry in training.get("datasets", [])}


# ---------------------------------------------------------------------------------------------- one image


def answer(image: TumorField, network: Predictor, settings: MaskSettings) -> TumorAnswer:
    """What a network says of an image, brought to ``SCORED_MPP``: bilinear from a coarser scale, else means.

    With a cascade, the mean of both networks everywhere. On slides the workflow spares the finer one where the coarser
    is certain; ``benchmarks.cascade`` measures what that costs. With evidence of nuclei, as on slides.
    """
    mpp = network.spec.mpp
    threshold = network.spec.threshold if settings.threshold is None else settings.threshold
    probability = predict_windows(network, resampled(image.rgb, image.mpp / mpp))
    if settings.cascade is not None:
        coarse, share = settings.cascade.network, settings.cascade.coarse_share
        other = _at_shape(predict_windows(coarse, resampled(image.rgb, image.mpp / coarse.spec.mpp)), probability.shape)
        probability = cv2.addWeighted(probability, 1 - share, other, share, 0.0).astype(np.uint8)
    if settings.evidence is not None:
        looks = settings.evidence.network
        nuclei = predict_windows(
            looks, resampled(image.rgb, image.mpp / looks.spec.mpp), settings.evidence.certain_nuclei
        )
        allowed = at_shape(image.allowed, (probability.shape[0], probability.shape[1]))
        probability = settings.evidence.weigh(probability, _at_shape(nuclei, probability.shape), allowed, mpp)
    return TumorAnswer(
        _at_shape(probability, image.truth.shape),
        _workflow_mask(probability, mpp, image.allowed, threshold, settings),
    )


def predict_windows(
    network: Predictor,
    rgb: NDArray[np.uint8],
    answer_of: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = first_class,
) -> NDArray[np.uint8]:
    """Probability of an image of any size, in windows no larger than the network takes.

    Parameters
    ----------
    network
        With one class, or several of which ``answer_of`` makes one image.
    rgb
        uint8 ``(H, W, 3)`` at its resolution.
    answer_of
        Makes uint8 ``(h, w)`` of ``(classes, h, w)``.

    Returns
    -------
    uint8 ``(H, W)``
        255 for 1. An image that fits into one window is answered as ``predict_image`` does.
    """
    height, width = rgb.shape[:2]
    rows, columns = (max(STRIDE_PX, side // STRIDE_PX * STRIDE_PX) for side in network.block_px)
    if height <= rows and width <= columns:
        return answer_of(predict_image(network, rgb))
    probability, halo = np.empty((height, width), dtype=np.uint8), network.halo_px
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            first_row, first_column = max(0, top - halo), max(0, left - halo)
            window = rgb[first_row : top + rows + halo, first_column : left + columns + halo]
            levels = answer_of(predict_image(network, window))[top - first_row :, left - first_column :]
            room = probability[top : top + rows, left : left + columns]
            room[:] = levels[: room.shape[0], : room.shape[1]]
    return probability


def _workflow_mask(
    probability: NDArray[np.uint8],
    mpp: float,
    allowed: NDArray[np.bool_],
    threshold: float,
    settings: MaskSettings,
) -> NDArray[np.bool_]:
    """The mask; regions and holes that the image's edge cuts stay whatever their size, as on a slide they go on."""
    rows, columns = (max(1, round(size * mpp / settings.mpp)) for size in probability.shape)
    levels, tissue = _at_shape(probability, (rows, columns)), at_shape(allowed, (rows, columns))
    pixel_mm2 = settings.mpp**2 / 1e6
    every, pixels = (
        regions(
            levels,
            tissue,
            threshold=threshold,
            smoothing_px=SMOOTHING_UM / settings.mpp,
            smallest_region_px=region_mm2 / pixel_mm2,
            smallest_hole_px=hole_mm2 / pixel_mm2,
        )
        for region_mm2, hole_mm2 in ((0.0, 0.0), (settings.smallest_region_mm2, settings.smallest_hole_mm2))
    )
    pixels = (pixels & ~_cut_by_edge(~every, 4)) | _cut_by_edge(every, 8)
    return at_shape(pixels, (allowed.shape[0], allowed.shape[1]))


def _cut_by_edge(pixels: NDArray[np.bool_], connectivity: int) -> NDArray[np.bool_]:
    """The connected parts that touch the edge of the image."""
    count, labels = cv2.connectedComponents(pixels.astype(np.uint8), connectivity=connectivity)
    kept = np.zeros(count, dtype=bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        kept[edge] = True
    kept[0] = False
    return np.asarray(kept[labels], dtype=bool)


def _at_shape(probability: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if probability.shape == shape:
        return probability
    shrinks = probability.shape[0] >= shape[0] and probability.shape[1] >= shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(probability, (shape[1], shape[0]), interpolation=interpolation), dtype=np.uint8)


def count(image: TumorField, said: TumorAnswer) -> TumorCounts:
    """Pixels and patches of an image by truth and level of the probability, and pixels of the mask."""
    known, truth = image.known, image.truth
    return TumorCounts(
        image.name,
        level_counts(said.probability[known], truth[known], PIXEL_LEVELS),
        patch_counts(said.probability, truth, known, round(PATCH_UM / SCORED_MPP)),
        level_counts(said.mask[known].astype(np.int64), truth[known], 2),
    )


def patch_counts(
    probability: NDArray[np.uint8], truth: NDArray[np.bool_], known: NDArray[np.bool_], side_px: int
) -> NDArray[np.int64]:
    """Squares of a grid from the top left corner, by truth and level of their mean probability.

    A patch is tumour where more than half of what is known of it is. Of patches at the lower and right edge, and where
    the truth is known in part, those count of which more than half is known; the rest is left out.

    Parameters
    ----------
    probability, truth, known
        uint8, bool and bool ``(h, w)``.
    side_px
        Of a patch.

    Returns
    -------
    int64 ``(2, PATCH_LEVELS)``
    """
    area, tumor, total = (
        _sum_over_patches(pixels, side_px) for pixels in (known, truth & known, np.where(known, probability, 0))
    )
    counted = 2 * area > side_px**2
    levels = np.rint(16 * total[counted] / area[counted]).astype(np.int64)
    return level_counts(levels, 2 * tumor[counted] > area[counted], PATCH_LEVELS)


def _sum_over_patches(pixels: NDArray[Any], side_px: int) -> NDArray[np.int64]:
    rows, columns = (np.arange(0, size, side_px) for size in pixels.shape)
    return np.asarray(np.add.reduceat(np.add.reduceat(pixels, rows, axis=0, dtype=np.int64), columns, axis=1))


# ---------------------------------------------------------------------------------------------- over images


def _at_threshold(counts: NDArray[Any], threshold: float) -> dict[str, float]:
    return {"auc": area_under_roc(counts), **threshold_scores(counts, level_of(threshold, counts.shape[1]))}


def _scores(counts: NDArray[np.int64], threshold: float) -> dict[str, float]:
    best, youden = best_threshold(counts)
    total = int(counts.sum())
    return {
        "count": total,
        "tumor_share": float(counts[1].sum()) / total if total else float("nan"),
        **_at_threshold(counts, threshold),
        "best_threshold": best,
        "best_youden": youden,
    }


def _mask_scores(counts: NDArray[np.int64]) -> dict[str, float]:
    scores = threshold_scores(counts, 1)
    return {name: scores[name] for name in MASK_SCORES}


def _score_intervals(counts: Sequence[NDArray[np.int64]], threshold: float) -> dict[str, list[float]]:
    stacked = np.stack(counts).astype(np.float64)

    def statistics(drawn: NDArray[np.int64]) -> dict[str, float]:
        weights = np.bincount(drawn, minlength=len(counts)).astype(np.float64)
        return _at_threshold(np.tensordot(weights, stacked, axes=1), threshold)

    # A likelihood ratio may be infinite in many draws, between which nothing can be interpolated.
    with np.errstate(invalid="ignore"):
        return percentile_intervals(len(counts), statistics)
