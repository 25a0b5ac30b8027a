"""Real H&E tissue in the stain of a Ki-67 slide: its hematoxylin kept, its eosin made a pale tint, some nuclei brown.

Stains are parted with the vectors that Macenko et al. (2009) find in each image. Nuclei are those that a network for
hematoxylin and DAB, the teacher, finds once the eosin is gone; what it is not sure of is left out of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.nuclei import extract_nuclei
from ki67.phantom.look import HEMATOXYLIN_KI67, Look
from ki67.phantom.nuclei import unmasked_hematoxylin
from ki67.phantom.paint import develop, expose
from ki67.phantom.textures import Floats, Noise
from ki67.predictors import Predictor, predict_image
from ki67.stain import STAINED_OD
from ki67.stain_vectors import macenko_vectors
from ki67.training.restained import nuclear_dab
from ki67.training.targets import NEGATIVE, OTHER, POSITIVE

_SURE = 0.5
"""Least mean probability of a nucleus to learn from."""
_UNSURE_LEVEL = 160
"""Probability of being in a nucleus, of 255, from which a pixel outside of all nuclei is left out."""
_TEACHER_STRENGTHS = (0.5, 0.9)
LYMPHOCYTE_UM = 7.5
"""Diameter below which a nucleus is rarely positive."""


@dataclass(frozen=True)
class Tissue:
    """H&E tissue without its colour.

    Attributes
    ----------
    hematoxylin, eosin
        float32 ``(H, W)``: 1 in the median nucleus, and in strongly stained stroma.
    labels
        int32 ``(H, W)``: 0 or the number of the nucleus.
    sure
        bool ``(N + 1,)``: whether nucleus ``i`` is one to learn from; the first entry means nothing.
    doubtful
        bool ``(H, W)``: outside of all nuclei, but perhaps wrongly so.
    mpp
        Microns per pixel.
    tumor
        bool ``(H, W)``: where a person drew tumour; None where nobody was asked.
    """

    hematoxylin: Floats
    eosin: Floats
    labels: NDArray[np.int32]
    sure: NDArray[np.bool_]
    doubtful: NDArray[np.bool_]
    mpp: float
    tumor: NDArray[np.bool_] | None = None


def stain_amounts(rgb: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Amounts of hematoxylin and eosin ``(H, W)`` of an H&E image ``(H, W, 3)``, of which 1 is the 97th percentile."""
    density = -np.log10((rgb.astype(np.float32) + 1) / 256)
    density = np.maximum(density - np.percentile(density.reshape(-1, 3), 1, axis=0), 0).astype(np.float32)
    stained = density[density.sum(axis=2) > STAINED_OD]
    amounts = np.maximum(density @ np.linalg.pinv(macenko_vectors(stained)), 0)
    amounts /= np.percentile(amounts.reshape(-1, 2), 97, axis=0)
    return amounts[..., 0].astype(np.float32), amounts[..., 1].astype(np.float32)


def counterstained(hematoxylin: Floats, vector: tuple[float, float, float], strength: float) -> NDArray[np.uint8]:
    """A picture ``(H, W, 3)`` of these amounts of hematoxylin alone."""
    direction = np.array(vector) / np.linalg.norm(vector)
    return np.clip(255 * 10.0 ** (-strength * hematoxylin[..., None] * direction), 0, 255).astype(np.uint8)


def read_tissue(rgb: NDArray[np.uint8], mpp: float, teacher: Predictor) -> Tissue | None:
    """Part an H&E image at the teacher's resolution into stains and nuclei; ``None`` if it shows no nuclei.

    The teacher sees it in two strengths of two blues, upright and turned, and its mean answer counts.
    """
    hematoxylin, eosin = stain_amounts(rgb)
    answers = np.zeros((5, *rgb.shape[:2]), dtype=np.float32)
    views = [(vector, strength) for vector in HEMATOXYLIN_KI67[:2] for strength in _TEACHER_STRENGTHS]
    for turns, (vector, strength) in enumerate(views):
        picture = np.ascontiguousarray(np.rot90(counterstained(hematoxylin, vector, strength), turns))
        answers += np.rot90(predict_image(teacher, picture), -turns, axes=(1, 2)).astype(np.float32) / len(views)
    levels = np.rint(answers).astype(np.uint8)
    nuclei = extract_nuclei(levels, mpp=mpp)
    if len(nuclei.area_px) == 0:
        return None
    doubtful = ((255 - levels[0]) > _UNSURE_LEVEL) & (nuclei.labels == 0)
    doubtful &= cv2.distanceTransform((nuclei.labels == 0).astype(np.uint8), cv2.DIST_L2, 3) > 1.5
    scale = float(np.median(hematoxylin[nuclei.labels > 0]))
    sure = np.concatenate([[False], nuclei.probability >= _SURE])
    return Tissue((hematoxylin / scale).astype(np.float32), eosin, nuclei.labels, sure, doubtful, mpp)


@dataclass(frozen=True)
class StainedTissue:
    """A square of tissue in a Ki-67 stain: uint8 ``(N, N, 3)``, int32 labels, class of each label from 1.

    Doubtful pixels are labels of the class ``OTHER``. ``tumor`` is bool ``(N, N)``, nowhere where nobody drew any.
    """

    rgb: NDArray[np.uint8]
    labels: NDArray[np.int32]
    classes: NDArray[np.int64]
    tumor: NDArray[np.bool_]


def stain_tissue(
    tissue: Tissue, look: Look, fraction: float, size_px: int, mpp: float, rng: np.random.Generator
) -> StainedTissue:
    """A random square of the tissue, turned and mirrored, with about this fraction of its nuclei positive."""
    square = _square(tissue, size_px, mpp, rng)
    hematoxylin, eosin, labels, numbers = square.hematoxylin, square.eosin, square.labels, square.numbers
    positive = _positive(labels, len(numbers), fraction, mpp, rng)
    dab = nuclear_dab(look, positive, rng)
    depth = np.minimum(cv2.distanceTransform((labels > 0).astype(np.uint8), cv2.DIST_L2, 3) * mpp / 2.5, 1)
    wide = np.where(labels > 0, labels, cv2.dilate(labels.astype(np.float32), np.ones((3, 3), np.uint8)))
    wide = wide.astype(np.int32)
    inside = cv2.GaussianBlur((labels > 0).astype(np.float32), (0, 0), 0.7)

    strength = 0.55 * look.nucleus_strength
    spread = np.exp(0.15 * rng.standard_normal(len(numbers) + 1)).astype(np.float32)
    spread[1:] *= unmasked_hematoxylin(dab)
    # Pale, open nuclei with a dark rim, as many tumours have.
    vesicular = look.vesicular * (0.5 + 0.5 * rng.random()) * depth * (labels > 0)
    blue = strength * hematoxylin * _soft(np.concatenate([[1.0], spread[1:]]).astype(np.float32)[wide])
    blue *= 1 - vesicular
    outside = float(rng.uniform(0.25, 1.0))
    blue *= outside + (1 - outside) * inside
    texture = _dab_texture(hematoxylin, float(rng.uniform(0.1, 0.9)))
    brown = inside * texture * _soft(np.concatenate([[0.0], dab]).astype(np.float32)[wide])

    x, y = np.meshgrid(np.arange(size_px) * mpp, np.arange(size_px) * mpp)
    unevenness = np.clip(1 + 0.5 * Noise.random(rng, 120.0).sample(x, y), 0, 2).astype(np.float32)
    tint = (0.3 + 0.7 * eosin) * (1 - 0.7 * inside)
    share = float(rng.random())
    cytoplasm = np.array(look.stroma_amounts) * share + np.array(look.cytoplasm_amounts) * (1 - share)
    ground = np.array(look.ground_amounts)
    tissue_here = np.clip(2 * (eosin + 0.5 * hematoxylin), 0, 1)
    amounts = np.zeros((size_px, size_px, 3), dtype=np.float32)
    amounts[..., 0] = blue + 1.2 * cytoplasm[0] * tint + ground[0] * tissue_here
    amounts[..., 2] = brown + cytoplasm[2] * tint * unevenness + ground[2] * tissue_here
    if rng.random() < 0.35:
        amounts[..., 2] += _bleeding(brown, mpp, rng)
    light = develop(amounts, look, mpp)
    # Stray light: no scanner sees black.
    glare = float(rng.uniform(0, 0.06))
    light = light * np.float32(1 - glare) + np.float32(255 * glare)
    rgb = expose(light, look, (int(rng.integers(2**31)), int(rng.integers(2**31))))
    kinds = np.where(tissue.sure[numbers], np.where(positive, POSITIVE, NEGATIVE), OTHER)
    answered = np.where(square.doubtful & (labels == 0), len(numbers) + 1, labels).astype(np.int32)
    return StainedTissue(rgb, answered, np.append(kinds, OTHER), square.tumor)


def _dab_texture(hematoxylin: Floats, contrast: float) -> Floats:
    """Structure of a positive nucleus: that of its chromatin, more or less of it."""
    return np.clip(1 + contrast * (np.clip(hematoxylin, 0.2, 2) - 1), 0.3, 2).astype(np.float32)


def _bleeding(brown: Floats, mpp: float, rng: np.random.Generator) -> Floats:
    """DAB that has spread from positive nuclei into what is around them."""
    reach = float(rng.uniform(1.0, 4.0)) / mpp
    return (float(rng.uniform(0.02, 0.12)) * cv2.GaussianBlur(brown, (0, 0), reach)).astype(np.float32)


def _soft(gains: Floats) -> Floats:
    return np.asarray(cv2.GaussianBlur(gains, (0, 0), 0.7), dtype=np.float32)


def _positive(
    labels: NDArray[np.int32], count: int, fraction: float, mpp: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which nuclei are positive: more in some places than in others, few of the small round ones."""
    if fraction in (0.0, 1.0):
        return np.full(count, fraction == 1.0)
    size_um = labels.shape[0] * mpp
    hot = Noise.random(rng, float(rng.uniform(30, 150)))
    flat = labels.ravel()
    area = np.maximum(np.bincount(flat, minlength=count + 1)[1:], 1)
    rows, columns = np.indices(labels.shape).reshape(2, -1)
    x = np.bincount(flat, columns, minlength=count + 1)[1:] / area * mpp
    y = np.bincount(flat, rows, minlength=count + 1)[1:] / area * mpp
    odds = np.log(fraction / (1 - fraction)) + float(rng.uniform(0, 1.5)) * hot.sample(x % size_um, y % size_um).ravel()
    small = np.sqrt(area * 4 / np.pi) * mpp < LYMPHOCYTE_UM
    odds = odds - 2.0 * small * float(rng.random() < 0.6)
    return rng.random(count) < 1 / (1 + np.exp(-odds))


@dataclass(frozen=True)
class _Square:
    """A square of a tissue, all ``(N, N)``: labels numbered anew from 1, and the old number of each."""

    hematoxylin: Floats
    eosin: Floats
    labels: NDArray[np.int32]
    numbers: NDArray[np.intp]
    doubtful: NDArray[np.bool_]
    tumor: NDArray[np.bool_]


def _square(tissue: Tissue, size_px: int, mpp: float, rng: np.random.Generator) -> _Square:
    step = mpp / tissue.mpp
    angle = rng.uniform(0, 2 * np.pi)
    flip = rng.choice([-1.0, 1.0])
    linear = step * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([flip, 1.0])
    height, width = tissue.labels.shape
    center = np.array([_place(width, step * size_px, rng), _place(height, step * size_px, rng)])
    matrix = np.column_stack([linear, center - linear @ np.full(2, (size_px - 1) / 2)])
    size, smooth = (size_px, size_px), cv2.INTER_CUBIC if step < 1 else cv2.INTER_LINEAR
    hematoxylin = _warped(tissue.hematoxylin, matrix, size, smooth)
    eosin = _warped(tissue.eosin, matrix, size, smooth)
    # OpenCV warps no integers of 32 bits.
    labels = _warped(tissue.labels.astype(np.float32), matrix, size, cv2.INTER_NEAREST).astype(np.int32)
    doubtful = _warped(tissue.doubtful.astype(np.float32), matrix, size, cv2.INTER_NEAREST) > 0
    tumor = np.zeros((size_px, size_px), dtype=bool)
    if tissue.tumor is not None:
        tumor = _warped(tissue.tumor.astype(np.float32), matrix, size, cv2.INTER_NEAREST) > 0
    numbers, renumbered = np.unique(labels, return_inverse=True)
    shift = 0 if numbers[0] == 0 else 1
    labels = (renumbered.reshape(size) + shift).astype(np.int32)
    return _Square(hematoxylin, eosin, labels, np.asarray(numbers[numbers > 0], dtype=np.intp), doubtful, tumor)


def _warped(layer: Floats, matrix: NDArray[np.float64], size: tuple[int, int], way: int) -> Floats:
    flags = way | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(layer, matrix, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    # A cubic curve runs below 0 at edges.
    return np.maximum(np.asarray(warped, dtype=np.float32), 0)


def _place(length: int, reach: float, rng: np.random.Generator) -> float:
    margin = min(reach / 2, length / 2)
    return float(rng.uniform(margin, length - margin)) if length > 2 * margin else length / 2
