"""Nuclei found by colour, of which a random forest says what they are from shape, colour and texture of each.

The way of object classifiers on top of ImageJ's or QuPath's cell detection. The trees are arrays in a file without code
(``forest.safetensors``), so a forest from elsewhere can do nothing but answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from skimage.segmentation import expand_labels

from ki67.color_threshold import ColorThresholdOptions, smoothed, stain_steps
from ki67.compiled import compiled
from ki67.errors import Ki67Error
from ki67.extraction import Nuclei
from ki67.networks import write_whole
from ki67.stain import optical_density

ARCHITECTURE = "random_forest"
FOREST_FILE = "forest.safetensors"
NO_NUCLEUS, POSITIVE, NEGATIVE = 0, 1, 2
"""Classes of a forest."""
CANDIDATES = ColorThresholdOptions(nucleus_od=0.17, contrast_od=0.02, blob_um=0.9, surround_um=2.0)
"""Finds more than there is, and leaves the choice to the forest."""

RING_UM = 2.0
"""Width of the ring around a nucleus that is compared with it."""
_CHANNELS = ("red", "green", "blue", "hematoxylin", "dab", "gradient", "grain")
_SHAPES = ("area_um2", "long_axis_um", "short_axis_um", "axis_ratio", "roundness", "ellipse_fill")
FEATURES = (
    *_SHAPES,
    *(f"{channel}_mean" for channel in _CHANNELS),
    *(f"{channel}_deviation" for channel in _CHANNELS),
    *(f"{channel}_over_ring" for channel in _CHANNELS),
)
"""What is measured of a nucleus. Colours are optical densities; gradient is how steep the stain is, grain how much it
differs from its own mean over a micron."""

# Steps in which densities are added up, as integers, so that sums do not depend on where in an image a nucleus lies.
_STEPS = 2**12
_BYTE_STEPS = np.rint(optical_density(np.arange(256, dtype=np.uint8)).astype(np.float64) * _STEPS).astype(np.int32)
_GRAIN_UM = 0.5


# ---------------------------------------------------------------------------------------------- features


def nucleus_features(nuclei: Nuclei, rgb: NDArray[np.uint8], mpp: float) -> NDArray[np.float32]:
    """Shape, colour and texture of each nucleus.

    Parameters
    ----------
    nuclei
        Of the image.
    rgb
        uint8 ``(H, W, 3)``.
    mpp
        Microns per pixel.

    Returns
    -------
    float32 ``(N, len(FEATURES))``
    """
    channels = _channels(rgb, mpp)
    around = np.where(nuclei.labels == 0, expand_labels(nuclei.labels, RING_UM / mpp), 0).astype(np.int32)
    count = len(nuclei.area_px)
    inside, inside_squares = _channel_sums(nuclei.labels, channels, count)
    ring, _ = _channel_sums(around, channels, count)
    area = nuclei.area_px[:, None].astype(np.float64)
    mean = inside / area
    deviation = np.sqrt(np.maximum(inside_squares / area - mean**2, 0))
    ring_px = np.bincount(around.ravel(), minlength=count + 1)[1:, None]
    # Without anything around it a nucleus differs from nothing.
    contrast = np.where(ring_px > 0, mean - ring / np.maximum(ring_px, 1), 0)
    colours = np.hstack([mean, deviation, contrast]) / _STEPS
    return np.hstack([_shapes(nuclei, mpp), colours]).astype(np.float32)


def _channels(rgb: NDArray[np.uint8], mpp: float) -> NDArray[np.int32]:
    """What ``_CHANNELS`` names ``(C, H, W)``, in steps of 2 ** -12 of optical density."""
    hematoxylin, dab = stain_steps(rgb)
    density = hematoxylin + dab
    smooth = smoothed(density, _GRAIN_UM / mpp).astype(np.int32)
    rows, columns = np.diff(smooth, axis=0, append=smooth[-1:]), np.diff(smooth, axis=1, append=smooth[:, -1:])
    gradient = np.abs(rows) + np.abs(columns)
    grain = np.abs(density.astype(np.int32) - smooth)
    colours = [*np.moveaxis(_BYTE_STEPS[rgb], -1, 0), hematoxylin, dab]
    return np.stack([channel.astype(np.int32) for channel in (*colours, gradient, grain)])


def _shapes(nuclei: Nuclei, mpp: float) -> NDArray[np.float64]:
    """What ``_SHAPES`` names ``(N, 6)``; axes are those of the ellipse of the same second moments."""
    area = nuclei.area_px.astype(np.float64)
    moments, edges = _moments(nuclei.labels, len(area))
    # A pixel has an extent of its own, which adds a twelfth.
    across, down, mixed = (moments / area[:, None] ** 2).T
    mean, spread = (across + down) / 2 + 1 / 12, np.hypot((across - down) / 2, mixed)
    long_axis, short_axis = 2 * np.sqrt(mean + spread), 2 * np.sqrt(np.maximum(mean - spread, 1 / 12))
    # Edges between pixels are longer than the outline they follow, on the mean over directions by 4 / pi.
    perimeter = np.pi / 4 * edges
    roundness, fill = 4 * np.pi * area / perimeter**2, area / (np.pi * long_axis * short_axis)
    return np.column_stack(
        [area * mpp**2, 2 * long_axis * mpp, 2 * short_axis * mpp, short_axis / long_axis, roundness, fill]
    )


@compiled
def _channel_sums(
    labels: NDArray[np.int32], channels: NDArray[np.int32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sums of every channel and of its squares over each number from 1, ``(count, C)`` each."""
    height, width = labels.shape
    sums = np.zeros((count, len(channels)), dtype=np.int64)
    squares = np.zeros((count, len(channels)), dtype=np.int64)
    for row in range(height):
        for column in range(width):
            number = labels[row, column]
            if number:
                for channel in range(len(channels)):
                    value = np.int64(channels[channel, row, column])
                    sums[number - 1, channel] += value
                    squares[number - 1, channel] += value * value
    return sums, squares


@compiled
def _moments(labels: NDArray[np.int32], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Second moments of each number from 1 times its squared area ``(count, 3)``, and its edges ``(count,)``."""
    height, width = labels.shape
    sums = np.zeros((count, 6), dtype=np.int64)
    edges = np.zeros(count, dtype=np.int64)
    for row in range(height):
        for column in range(width):
            number = labels[row, column]
            if number:
                one = sums[number - 1]
                one[0] += 1
                one[1] += column
                one[2] += row
                one[3] += column * column
                one[4] += row * row
                one[5] += column * row
                for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                    beside_row, beside = row + down, column + right
                    inner = 0 <= beside_row < height and 0 <= beside < width
                    if not inner or labels[beside_row, beside] != number:
                        edges[number - 1] += 1
    moments = np.empty((count, 3), dtype=np.int64)
    for index in range(count):
        one = sums[index]
        moments[index, 0] = one[0] * one[3] - one[1] * one[1]
        moments[index, 1] = one[0] * one[4] - one[2] * one[2]
        moments[index, 2] = one[0] * one[5] - one[1] * one[2]
    return moments, edges


# ---------------------------------------------------------------------------------------------- forest


@dataclass(frozen=True)
class Trees:
    """Decision trees as arrays, one entry a node, the nodes of all trees behind one another.

    Attributes
    ----------
    feature
        int32 ``(M,)``, which feature decides; -1 in a leaf.
    threshold
        float64 ``(M,)``: what has at most this of the feature goes to ``below``, all else to ``above``.
    below, above
        int32 ``(M,)``, indices of nodes, which come after their parent.
    shares
        float32 ``(M, K)``, what the node says: shares of the K classes among what reached it in training, or for K = 1
        the mean of a number.
    roots
        int32 ``(T,)``, first node of each tree.
    """

    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    below: NDArray[np.int32]
    above: NDArray[np.int32]
    shares: NDArray[np.float32]
    roots: NDArray[np.int32]

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """What the trees say in the mean of features ``(N, F)``: ``(N, K)``."""
        return _mean_shares(features, self.feature, self.threshold, self.below, self.above, self.shares, self.roots)

    def sound(self, features: int, answers: int) -> bool:
        """Whether every way through the trees ends in a leaf, whatever a file may have held.

        Parameters
        ----------
        features, answers
            How many features there are to decide by, and how many numbers a leaf must say.
        """
        nodes, inner = np.arange(len(self.feature)), self.feature >= 0
        sizes = {len(array) for array in (self.threshold, self.below, self.above, self.shares)}
        if sizes != {len(nodes)} or self.shares.shape[1:] != (answers,) or not len(self.roots):
            return False
        ways = np.concatenate([self.below[inner], self.above[inner]])
        onward = np.all(ways > np.tile(nodes[inner], 2)) and np.all(ways < len(nodes))
        rooted = np.all((self.roots >= 0) & (self.roots < len(nodes)))
        return bool(onward and rooted and np.all(self.feature < features))


def joined_trees(parts: Sequence[Any], answers: NDArray[np.float64]) -> Trees:
    """Trees that scikit-learn grew (``tree_`` of each), behind one another.

    Parameters
    ----------
    answers
        What the nodes of all of them say, ``(M, K)``.
    """
    roots = np.cumsum([0, *(part.node_count for part in parts[:-1])])
    places = list(zip(parts, roots, strict=True))
    return Trees(
        feature=np.concatenate([np.where(part.children_left < 0, -1, part.feature) for part in parts]).astype(np.int32),
        threshold=np.concatenate([part.threshold for part in parts]).astype(np.float64),
        below=np.concatenate([part.children_left + root for part, root in places]).astype(np.int32),
        above=np.concatenate([part.children_right + root for part, root in places]).astype(np.int32),
        shares=answers.astype(np.float32),
        roots=roots.astype(np.int32),
    )


@compiled
def _mean_shares(
    features: NDArray[np.float32],
    feature: NDArray[np.int32],
    threshold: NDArray[np.float64],
    below: NDArray[np.int32],
    above: NDArray[np.int32],
    shares: NDArray[np.float32],
    roots: NDArray[np.int32],
) -> NDArray[np.float64]:
    means = np.zeros((len(features), shares.shape[1]))
    for index in range(len(features)):
        for root in roots:
            node = root
            while feature[node] >= 0:
                lower = features[index, feature[node]] <= threshold[node]
                node = below[node] if lower else above[node]
            for kind in range(shares.shape[1]):
                means[index, kind] += shares[node, kind]
    return means / len(roots)


@dataclass(frozen=True)
class NucleusForest:
    """Says of a nucleus found by colour whether it is one, and of which class.

    Attributes
    ----------
    name
        Of its folder when it was trained.
    trees
        See there.
    candidates
        How the nuclei it was trained on were found.
    mpp
        Microns per pixel of the images they were found in.
    sha256
        Of the file of its trees; empty before it is written.
    training
        What it was trained on and how well it does: plain JSON values.
    """

    name: str
    trees: Trees
    candidates: ColorThresholdOptions
    mpp: float = 0.5
    sha256: str = ""
    training: Mapping[str, Any] | None = None

    def revise(self, nuclei: Nuclei, rgb: NDArray[np.uint8], mpp: float) -> Nuclei:
        """Those that are nuclei more likely than not, with the class and the probability that the forest gives.

        Parameters
        ----------
        nuclei
            Found by colour.
        rgb
            uint8 ``(H, W, 3)``, the image they were found in.
        mpp
            Its microns per pixel.
        """
        shares = self.trees.probabilities(nucleus_features(nuclei, rgb, mpp))
        positive = shares[:, POSITIVE] > shares[:, NEGATIVE]
        probability = np.maximum(shares[:, POSITIVE], shares[:, NEGATIVE]).astype(np.float32)
        told = replace(nuclei, positive=positive, probability=probability)
        return told.chosen(shares[:, NO_NUCLEUS] < 0.5)


# ---------------------------------------------------------------------------------------------- on disk


def save_forest(folder: Path, forest: NucleusForest, card: str) -> NucleusForest:
    """Write ``forest.safetensors``, ``card.md`` and at last ``model.json``, each whole or not at all.

    Returns
    -------
    NucleusForest
        With the hash of its trees as written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in vars(forest.trees).items()})
    forest = replace(forest, sha256=hashlib.sha256(content).hexdigest())
    record = {
        "name": forest.name,
        "architecture": ARCHITECTURE,
        "classes": ["no_nucleus", "positive", "negative"],
        "features": list(FEATURES),
        "mpp": forest.mpp,
        "candidates": asdict(forest.candidates),
        "sha256": forest.sha256,
        "training": forest.training or {},
    }
    write_whole(folder / FOREST_FILE, content)
    write_whole(folder / "card.md", card.encode())
    write_whole(folder / "model.json", (json.dumps(record, indent=2) + "\n").encode())
    return forest


def load_forest(folder: Path) -> NucleusForest:
    """The forest of a folder that ``save_forest`` wrote.

    Raises
    ------
    Ki67Error
        If a file is missing, damaged or of another training, or the forest reads other features than are measured.
    """
    try:
        record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        content = (folder / FOREST_FILE).read_bytes()
        candidates = ColorThresholdOptions(**record["candidates"])
        forest = NucleusForest(
            record["name"], _read_trees(content), candidates, record["mpp"], record["sha256"], record["training"]
        )
        features = tuple(record["features"])
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise Ki67Error(
            f"forest {folder.name}: model.json or {FOREST_FILE} is missing or damaged ({error!r:.80}); fetch it again "
            "or train one with: snakemake train_nuclei_forest"
        ) from error
    if hashlib.sha256(content).hexdigest() != forest.sha256:
        raise Ki67Error(
            f"forest {folder.name}: {FOREST_FILE} is not the one that model.json describes; fetch or train it again"
        )
    if features != FEATURES:
        raise Ki67Error(f"forest {folder.name}: it reads other features than are measured here; train it again")
    return forest


def _read_trees(content: bytes) -> Trees:
    trees = Trees(**safetensors.numpy.load(content))
    if not trees.sound(len(FEATURES), 3):
        raise ValueError("its trees do not end")
    return trees
