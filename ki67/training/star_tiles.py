"""What StarDist learns from: single channels of annotated nuclei as tiles of random looks, and the answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from ki67.errors import Ki67Error
from ki67.phantom.textures import Floats, Noise, fibre_texture, mottle_texture, sample_texture
from ki67.stardist_nuclei import stain_channels
from ki67.training.datasets import Dataset, image_paths, read_labels, read_rgb
from ki67.training.restained import RealField, mosaic, ranked, real_field
from ki67.training.targets import NEGATIVE, POSITIVE

UNKNOWN = -1
"""Label of pixels about which nothing is known: they take no part in the loss."""
USUAL_DIAMETER_UM = 9.0
DIAMETERS_UM = (6.5, 12.5)
"""Median diameters that nuclei of pictures without a dependable scale are brought to."""
_USUAL_AMOUNT = 0.5  # of the median pixel of nuclei, beside the darkest, for which 1 stands
_MOST_SHOWN = 2.0


@dataclass(frozen=True)
class StarImage:
    """One channel of an annotated image.

    Attributes
    ----------
    dataset, name, group
        Where it is from; images of one group stay together when training and validation are parted.
    channel
        ``"hematoxylin"`` or ``"dab"``, as ``ki67.stardist_nuclei`` shows it, or ``"nuclei"`` of a picture of one stain.
    amount
        float32 ``(H, W)``, 0 is glass.
    labels
        int32 ``(H, W)``: 0, the number of a nucleus, or ``UNKNOWN``.
    diameter_px
        Median of its nuclei, where its scale is to be told from them; None where it is at the network's resolution.
    """

    dataset: str
    name: str
    group: str
    channel: str
    amount: Floats
    labels: NDArray[np.int32]
    diameter_px: float | None = None


def read_star_images(dataset: Dataset, mpp: float) -> list[StarImage]:
    """The channels of all images of a dataset that show a nucleus.

    Of a dataset with classes, each image is parted into hematoxylin and DAB: in the one negative nuclei are known, in
    the other positive ones, and of the rest nothing is known, as DAB hides hematoxylin and negative nuclei may have a
    brown shade. A dataset without classes is of one nuclear stain, whatever its colour, at any scale.

    Raises
    ------
    Ki67Error
        If it is of another kind than ``instances``, no image shows a nucleus, or one cannot be read.
    """
    if dataset.kind != "instances":
        raise Ki67Error(
            f"dataset {dataset.name}: kind {dataset.kind} cannot train StarDist, which learns from outlines; it needs "
            "instances"
        )
    classified = (dataset.folder / "classes").is_dir()
    images = [
        image
        for path in image_paths(dataset)
        for image in (_stained if classified else _single)(
            dataset, path.stem, read_rgb(dataset, path, _mpp(dataset, mpp))
        )
    ]
    if not images:
        raise Ki67Error(f"dataset {dataset.name}: its labels hold no nuclei; add some or leave the dataset out")
    return images


def _mpp(dataset: Dataset, mpp: float) -> float:
    """Resolution at which images are read: the network's, or their own where nuclei tell their scale."""
    return mpp if (dataset.folder / "classes").is_dir() else dataset.mpp


def _group(dataset: Dataset, stem: str) -> str:
    return f"{dataset.name}/{dataset.groups.get(stem, stem)}"


def _single(dataset: Dataset, stem: str, rgb: NDArray[np.uint8]) -> list[StarImage]:
    labels = read_instances(dataset, stem, rgb.shape[:2])
    field = real_field(rgb, labels)
    if field is None:
        return []
    amount = np.asarray(field.amount * np.float32(_USUAL_AMOUNT), dtype=np.float32)
    group = _group(dataset, stem)
    return [StarImage(dataset.name, stem, group, "nuclei", amount, field.labels, field.diameter_px)]


def read_instances(dataset: Dataset, stem: str, shape: tuple[int, int]) -> NDArray[np.int32]:
    """Labels int32 ``(H, W)`` of an image without classes; see ``ki67.training.datasets.read_labels``."""
    return read_labels(dataset, stem, shape, classified=False)[0].astype(np.int32)


def _stained(dataset: Dataset, stem: str, rgb: NDArray[np.uint8]) -> list[StarImage]:
    labels, classes = read_labels(dataset, stem, rgb.shape[:2])
    kind_of = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.int64)
    for number, kind in classes.items():
        if 0 < number < len(kind_of):
            kind_of[number] = kind
    kinds, shown = kind_of[labels], stain_channels(rgb).shown(rgb)
    parts = zip(("hematoxylin", "dab"), (NEGATIVE, POSITIVE), shown, strict=True)
    return [
        StarImage(dataset.name, stem, _group(dataset, stem), name, np.ascontiguousarray(amount), answer)
        for name, kind, amount in parts
        if (answer := _known_labels(labels, kinds == kind)).max() > 0
    ]


def _known_labels(labels: NDArray[np.uint16], wanted: NDArray[np.bool_]) -> NDArray[np.int32]:
    return np.where(wanted, labels.astype(np.int32), np.where(labels > 0, UNKNOWN, 0)).astype(np.int32)


# ---------------------------------------------------------------------------------------------- tiles


_MOSAIC_SHARE = 1.45  # side of a mosaic beside that of a tile that is turned in it


def mosaic_image(images: Sequence[StarImage], tile_px: int, mpp: float, random: np.random.Generator) -> StarImage:
    """Pieces of pictures of one stain beside each other, with nuclei of about one size, large enough for a tile."""
    fields = [RealField(image.amount, image.labels, image.diameter_px or 1.0) for image in images]
    low, high = np.log(DIAMETERS_UM)
    diameter_px = float(np.exp(random.uniform(low, high))) / mpp
    amount, labels, _ = mosaic(fields, round(_MOSAIC_SHARE * tile_px), diameter_px, random)
    first = images[0]
    return StarImage(first.dataset, "mosaic", first.group, first.channel, amount, labels)


def star_tile(
    image: StarImage, tile_px: int, mpp: float, random: np.random.Generator
) -> tuple[Floats, NDArray[np.int32]]:
    """A tile from a random place, changed at random: scale, lie, stain, background, focus and noise.

    Parameters
    ----------
    image
        At the network's resolution, or a ``mosaic_image``.

    Returns
    -------
    amount
        float32 ``(tile_px, tile_px)``.
    labels
        int32 of the same shape, numbered from 1 without gaps, or ``UNKNOWN``.
    """
    matrix = _random_place(image, tile_px, float(np.exp(random.uniform(-0.22, 0.22))), random)
    amount, labels = warped(image, matrix, (tile_px, tile_px))
    inside = np.asarray(cv2.GaussianBlur((labels > 0).astype(np.float32), (0, 0), 1.0), dtype=np.float32)
    amount = _random_stain(amount, inside, mpp, random)
    return _random_scan(amount, random), labels


def usual_view(image: StarImage, mpp: float) -> StarImage:
    """The whole image as it is, at the network's resolution; where nuclei tell the scale they are of usual size."""
    if image.diameter_px is None:
        return image
    step = image.diameter_px / (USUAL_DIAMETER_UM / mpp)
    size = tuple(max(32, round(length / step)) for length in image.amount.shape)
    matrix = np.array([[step, 0, (step - 1) / 2], [0, step, (step - 1) / 2]])
    amount, labels = warped(image, matrix, (size[0], size[1]))
    return StarImage(image.dataset, image.name, image.group, image.channel, amount, labels)


def warped(image: StarImage, matrix: NDArray[np.float64], shape: tuple[int, int]) -> tuple[Floats, NDArray[np.int32]]:
    """Amount and labels of the pixels that lie at ``matrix`` times their position; the image is mirrored around it."""
    step = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    amount = image.amount if step <= 1.2 else cv2.GaussianBlur(image.amount, (0, 0), 0.4 * step)
    tile = _warped(np.asarray(amount, dtype=np.float32), matrix, shape, cv2.INTER_LINEAR)
    # OpenCV warps no integers of 32 bits.
    numbers = _warped(image.labels.astype(np.float32), matrix, shape, cv2.INTER_NEAREST)
    return tile, _renumbered(np.rint(numbers).astype(np.int32))


def _warped(layer: Floats, matrix: NDArray[np.float64], shape: tuple[int, int], way: int) -> Floats:
    flags = way | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(layer, matrix, shape[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(warped, dtype=np.float32)


def _renumbered(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Numbers from 1 without gaps; what is unknown or background stays so."""
    present, places = ranked(np.maximum(labels, 0))
    first = 0 if present[0] == 0 else 1
    return np.where(labels > 0, places + first, labels).astype(np.int32)


def _random_place(image: StarImage, tile_px: int, step: float, random: np.random.Generator) -> NDArray[np.float64]:
    angle = np.deg2rad(90 * random.integers(4) + random.uniform(-20, 20))
    cosine, sine = np.cos(angle), np.sin(angle)
    flip = np.diag([random.choice([-1.0, 1.0]), 1.0])
    linear = step * np.array([[cosine, -sine], [sine, cosine]]) @ flip
    reach = tile_px / 2 * step
    height, width = image.amount.shape
    center = [
        random.uniform(reach, length - reach) if length > 2 * reach else random.uniform(0.3, 0.7) * length
        for length in (width, height)
    ]
    return np.column_stack([linear, np.array(center) - linear @ np.full(2, (tile_px - 1) / 2)])


def _random_stain(amount: Floats, inside: Floats, mpp: float, random: np.random.Generator) -> Floats:
    """Strength, contrast and unevenness of the stain, and a background of fibres and clouds, fainter below nuclei."""
    x, y = np.meshgrid(*(np.arange(length) * mpp for length in amount.shape[::-1]))
    gain = np.exp(random.uniform(np.log(0.4), np.log(1.8)))
    contrast = np.exp(random.uniform(-0.35, 0.35))
    stained = (
        np.maximum(amount, 0) ** contrast * gain * np.clip(1 + 0.2 * Noise.random(random, 80.0).sample(x, y), 0.3, 2)
    )
    strength = random.uniform(0, 0.35) * (random.random() < 0.7)
    angle, (right, down) = random.uniform(0, np.pi), random.uniform(0, 1000, 2)
    along, across = np.cos(angle) * x + np.sin(angle) * y + right, np.cos(angle) * y - np.sin(angle) * x + down
    fibres = sample_texture(fibre_texture(), along / 0.5, across / 0.5)
    clouds = sample_texture(mottle_texture(), across / 0.5, along / 0.5)
    share = random.random()
    ground = np.maximum(0.5 + 0.4 * (share * fibres + (1 - share) * clouds), 0) * (1 - 0.6 * inside)
    return np.asarray(stained + strength * ground, dtype=np.float32)


def _random_scan(amount: Floats, random: np.random.Generator) -> Floats:
    """Focus, and the noise of camera and compression."""
    blurred, noisy = random.random(2) < (0.4, 0.6)
    if blurred:
        amount = np.asarray(cv2.GaussianBlur(amount, (0, 0), random.uniform(0.4, 1.6)), dtype=np.float32)
    if noisy:
        grain = cv2.GaussianBlur(
            random.standard_normal(amount.shape, dtype=np.float32), (0, 0), random.uniform(0.3, 0.9)
        )
        amount = amount + np.float32(random.uniform(0, 0.08)) * grain
    return np.clip(amount, 0, _MOST_SHOWN).astype(np.float32)


# ---------------------------------------------------------------------------------------------- answers


def star_targets(labels: NDArray[np.int32], rays: int, grid_px: int) -> tuple[Floats, Floats]:
    """What the network is to answer for a tile: how deep in a nucleus each cell lies, and how far its border is.

    Depth is the distance to the border as a share of the nucleus's deepest point (Schmidt et al. 2018).

    Parameters
    ----------
    labels
        int32 ``(H, W)``.
    rays, grid_px
        Of the network.

    Returns
    -------
    probability
        float32 ``(h, w)``, 0 to 1, ``UNKNOWN`` where the labels are.
    distances
        float32 ``(h, w, rays)`` in pixels.
    """
    from stardist.geometry import star_dist

    known = np.maximum(labels, 0)
    distances = star_dist(known.astype(np.uint16), rays, grid=(grid_px, grid_px), mode="cpp")
    probability = _depth(known[::grid_px, ::grid_px])
    probability[labels[::grid_px, ::grid_px] == UNKNOWN] = UNKNOWN
    return probability, np.asarray(distances, dtype=np.float32)


def _depth(labels: NDArray[np.int32]) -> Floats:
    """Distance to the border of each pixel's own nucleus over the largest there; 0 outside. The tile's edge is none."""
    depth = np.zeros(labels.shape, dtype=np.float32)
    for number, box in enumerate(find_objects(labels), start=1):
        if box is None:
            continue
        rows, columns = (slice(max(0, part.start - 1), part.stop + 1) for part in box)
        own = (labels[rows, columns] == number).astype(np.uint8)
        distance = cv2.distanceTransform(own, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        depth[rows, columns] += distance / max(float(distance.max()), 1e-6)
    return depth
