"""Real nuclei in another stain: their optical density taken as hematoxylin in some and as DAB in others.

After the colour deconvolution of Ruifrok & Johnston (2001), run backwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from ki67.phantom.look import Look
from ki67.phantom.nuclei import unmasked_hematoxylin
from ki67.phantom.paint import STAMP_REACH, develop, expose
from ki67.phantom.textures import Floats, Noise, fibre_texture, mottle_texture, sample_texture

STAMP_PX = 48


@dataclass(frozen=True)
class RealField:
    """Nuclei of a real picture without its colour.

    Attributes
    ----------
    amount
        float32 ``(height, width)``: stain, 1 in the median pixel of its nuclei, 0 in the background.
    labels
        int32 ``(height, width)``: 0 or the number of the nucleus.
    diameter_px
        Median diameter of its nuclei.
    """

    amount: Floats
    labels: NDArray[np.int32]
    diameter_px: float


def real_field(rgb: NDArray[np.uint8], labels: NDArray[np.integer]) -> RealField | None:
    """Strip a picture uint8 ``(height, width, 3)`` of one nuclear stain of its colour; ``None`` if it has no nuclei."""
    inside = labels > 0
    areas = np.bincount(labels.ravel())[1:]
    if not inside.any() or inside.all():
        return None
    background = np.median(rgb[~inside], axis=0)
    density = -np.log10((rgb.astype(np.float32) + 1) / (background.astype(np.float32) + 1))
    direction = density[inside].mean(axis=0)
    amount = np.maximum(density @ (direction / np.linalg.norm(direction)), 0)
    diameter = float(np.sqrt(np.median(areas[areas > 0]) * 4 / np.pi))
    amount /= np.median(amount[inside])
    # What is left of the uneven background would show as seams where fields meet.
    amount = np.maximum(amount - 0.08, 0) / 0.92
    return RealField(amount.astype(np.float32), labels.astype(np.int32), diameter)


def nucleus_stamps(field: RealField) -> list[Floats]:
    """Every whole nucleus of a field as a picture for ``phantom.paint``: float32 ``(STAMP_PX, STAMP_PX, 2)``."""
    height, width = field.labels.shape
    stamps = []
    for number, box in enumerate(find_objects(field.labels), start=1):
        if box is None or box[0].start == 0 or box[1].start == 0 or box[0].stop == height or box[1].stop == width:
            continue
        stamp = _stamp(field, number)
        if stamp is not None:
            stamps.append(stamp)
    return stamps


def _stamp(field: RealField, number: int) -> Floats | None:
    inside = (field.labels == number).astype(np.uint8)
    moments = cv2.moments(inside, binaryImage=True)
    area = moments["m00"]
    covariance = np.array([[moments["mu20"], moments["mu11"]], [moments["mu11"], moments["mu02"]]]) / max(area, 1)
    values, vectors = np.linalg.eigh(covariance)
    # An ellipse has the area pi * 4 * sqrt(det): nuclei far from that are torn or several in one.
    if area < 130 or values[0] <= 0 or area / (np.pi * 4 * np.sqrt(values.prod())) < 0.9:
        return None
    axes = vectors[:, ::-1] * (2 * np.sqrt(values[::-1])) * (2 * STAMP_REACH / STAMP_PX)
    centre = np.array([moments["m10"], moments["m01"]]) / area
    offset = centre - axes @ np.full(2, (STAMP_PX - 1) / 2)
    matrix = np.column_stack([axes, offset])
    others = cv2.dilate(((field.labels > 0) & (inside == 0)).astype(np.uint8), np.ones((3, 3), np.uint8))
    skirt = np.where(others > 0, 0, cv2.dilate(inside, np.ones((5, 5), np.uint8))) + inside > 0
    cover = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 0.8)
    amount = field.amount * cv2.GaussianBlur(skirt.astype(np.float32), (0, 0), 0.8)
    median = float(np.median(field.amount[inside > 0]))
    if median < 0.3:
        return None
    layers = [
        cv2.warpAffine(layer, matrix, (STAMP_PX, STAMP_PX), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        for layer in (amount / median, cover)
    ]
    return np.stack(layers, axis=-1).astype(np.float32)


@dataclass(frozen=True)
class Restained:
    """Real nuclei in new colours: uint8 ``(N, N, 3)``, int32 labels, and whether nucleus ``i + 1`` is positive."""

    rgb: NDArray[np.uint8]
    labels: NDArray[np.int32]
    positive: NDArray[np.bool_]


def restain(
    fields: list[RealField], look: Look, fraction: float, size_px: int, mpp: float, rng: np.random.Generator
) -> Restained:
    """Lay real fields side by side until the square is full, and stain this fraction of their nuclei brown."""
    amount, labels, group = mosaic(fields, size_px, look.nucleus_um / mpp, rng)
    count = int(labels.max())
    odds = np.log(max(fraction, 1e-6) / max(1 - fraction, 1e-6)) + 0.8 * rng.standard_normal(int(group.max()) + 1)
    positive = rng.random(count) < 1 / (1 + np.exp(-odds[group]))
    if fraction in (0.0, 1.0):
        positive[:] = fraction == 1.0
    dab = nuclear_dab(look, positive, rng)
    spread = np.exp(0.15 * rng.standard_normal(count, dtype=np.float32))
    hematoxylin = 0.55 * look.nucleus_strength * spread * unmasked_hematoxylin(dab)
    # The blurred skirt of a nucleus has the colour of the nucleus, fading into that of the ground.
    wide = cv2.dilate(labels.astype(np.float32), np.ones((5, 5), np.uint8)).astype(np.int32)
    wide = np.where(labels > 0, labels, wide)
    ground_blue = np.float32(rng.uniform(0.2, 0.6) * look.nucleus_strength)
    ground_brown = np.float32(0.3 * look.ground_amounts[2])
    blue = amount * _soft(np.concatenate([[ground_blue], hematoxylin])[wide])
    brown = amount * _soft(np.concatenate([[ground_brown], dab])[wide])
    ground = _tints(look, size_px, mpp, rng)
    ground[..., 0] += blue
    ground[..., 2] += brown
    rgb = expose(develop(ground, look, mpp), look, (int(rng.integers(2**31)), int(rng.integers(2**31))))
    return Restained(rgb, labels, positive)


def nuclear_dab(look: Look, positive: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    """DAB in each nucleus: from faint to saturated if positive; in negative ones a share of what positive ones have.

    A slide with strong DAB has a brown shade on its negative nuclei that would be a weak positive on a pale slide.
    """
    normal, uniform = rng.standard_normal(len(positive)), rng.random(len(positive))
    strong = look.dab_median * np.exp(look.dab_spread * normal)
    lowest = max(0.13, 0.22 * look.dab_median)
    shade = float(rng.uniform(0, 0.12)) * look.dab_median * float(rng.random() < 0.7)
    negative = np.minimum(shade * np.exp(0.4 * normal) + 0.04 * uniform**3, 0.7 * lowest)
    return np.where(positive, np.clip(strong, lowest, 3.5), negative).astype(np.float32)


def _soft(gains: Floats) -> Floats:
    return np.asarray(cv2.GaussianBlur(gains, (0, 0), 1.0), dtype=np.float32)


def mosaic(
    fields: list[RealField], size_px: int, diameter_px: float, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.int32], NDArray[np.intp]]:
    """Pieces of fields beside each other, each turned, mirrored and brought to nuclei of about this diameter.

    Returns
    -------
    amount, labels
        ``(size_px, size_px)``, nuclei numbered from 1.
    group
        For each nucleus the number of its piece.
    """
    amount = np.zeros((size_px, size_px), dtype=np.float32)
    labels = np.zeros((size_px, size_px), dtype=np.int32)
    group: list[NDArray[np.intp]] = []
    top, count, piece = 0, 0, 0
    while top < size_px:
        left, shelf = 0, size_px
        while left < size_px:
            values, numbers = _piece(fields[int(rng.integers(len(fields)))], diameter_px, rng)
            height, width = min(values.shape[0], size_px - top), min(values.shape[1], size_px - left)
            place = np.s_[top : top + height, left : left + width]
            amount[place] = values[:height, :width]
            present, ranks = ranked(numbers[:height, :width])
            first = 1 if present[0] == 0 else 0
            renumbered = ranks + 1 - first
            labels[place] = np.where(renumbered > 0, renumbered + count, 0)
            group.append(np.full(len(present) - first, piece))
            count, piece = count + len(present) - first, piece + 1
            left, shelf = left + width, min(shelf, height)
        top += shelf
    order, ranks = ranked(labels)
    seen = ranks.astype(np.int32) + (0 if order[0] == 0 else 1)
    return amount, seen, np.concatenate(group)[order[order > 0] - 1]


def ranked(numbers: NDArray[np.integer]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The different numbers of an image, none below 0, ascending, and the place of each pixel's among them.

    ``np.unique`` with its inverse, without sorting all pixels.
    """
    present = np.flatnonzero(np.bincount(numbers.ravel()))
    places = np.zeros(int(present[-1]) + 1, dtype=np.intp)
    places[present] = np.arange(len(present))
    return present, places[numbers]


def _piece(field: RealField, diameter_px: float, rng: np.random.Generator) -> tuple[Floats, NDArray[np.int32]]:
    """A field, turned or mirrored at random, at a scale that gives its nuclei about this diameter."""
    scale = diameter_px / field.diameter_px * float(rng.uniform(0.72, 1.15))
    height, width = (max(8, round(length * scale)) for length in field.labels.shape)
    amount = cv2.resize(field.amount, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    labels = cv2.resize(field.labels.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
    # Nuclei cut by the field's border would leave straight edges inside the mosaic.
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    cut = np.isin(labels, border[border > 0])
    labels[cut] = 0
    amount[cv2.dilate(cut.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0] = 0
    turns, mirror = int(rng.integers(4)), rng.random() < 0.5
    amount, labels = np.rot90(amount, turns), np.rot90(labels, turns)
    if mirror:
        amount, labels = amount[:, ::-1], labels[:, ::-1]
    return np.maximum(amount, 0), labels.astype(np.int32)


def _tints(look: Look, size_px: int, mpp: float, rng: np.random.Generator) -> Floats:
    """Background of collagen and cytoplasm, amounts ``(size, size, 3)``."""
    x, y = np.meshgrid(np.arange(size_px) * mpp, np.arange(size_px) * mpp)
    angle, warp = rng.uniform(0, np.pi), Noise.random(rng, 300.0).sample(x, y) * 20
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x + warp
    fibre = sample_texture(fibre_texture(), along / 0.5, across / 0.5)
    mottle = sample_texture(mottle_texture(), across / 0.5, along / 0.5)
    share = np.clip(0.5 + Noise.random(rng, 200.0).sample(x, y), 0, 1)
    present = np.clip(2 + 3 * Noise.random(rng, 150.0).sample(x, y), 0, 1) if rng.random() < 0.5 else 1.0
    stroma = np.maximum(0.85 + 0.32 * look.fibre * fibre + 0.12 * mottle, 0) * (1 - share)
    cytoplasm = np.maximum(0.8 + 0.25 * mottle, 0) * share
    amounts = [
        (look.stroma_amounts[index] * stroma + look.cytoplasm_amounts[index] * cytoplasm + look.ground_amounts[index])
        * present
        for index in range(3)
    ]
    return np.stack(amounts, axis=-1).astype(np.float32)
