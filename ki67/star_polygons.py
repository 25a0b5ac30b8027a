"""Star-convex polygons of two stains as a predictor's answer, and the nuclei that they are.

StarDist (Schmidt et al. 2018, doi:10.1007/978-3-030-00934-2_30) answers at every cell of a grid how likely it lies
inside a nucleus, and how far it is to that nucleus's border along rays. Here both stains are answered for together.

*Answer*: uint8 ``(C, H, W)``, as every predictor's, so that it is put together to fields like any other. A cell of the
grid has as many pixels as it is wide, squared, and its values lie in the channels of these pixels, one after the other:
of each stain the probability in two bytes and the distances in a byte each. Fields and windows begin at multiples of
the grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ki67.extraction import ExtractionOptions, Nuclei

CHANNELS = ("hematoxylin", "dab")
DISTANCE_STEPS = 4
"""Distances are kept in quarters of a pixel, up to 64 pixels; 0 says that nothing was asked there."""
_PROBABILITY_BYTES = 2
_MOST_PROBABLE = 2**16 - 1


@dataclass(frozen=True)
class StarOptions:
    """How polygons become nuclei.

    Attributes
    ----------
    probability
        From which a cell of the grid is a candidate.
    overlap
        A candidate goes where it shares more than this part of the smaller area with a more probable one.
    covered
        A nucleus is positive where nuclei of the DAB channel cover at least this share of it.
    smallest_um2, largest_um2
        Limits of the area of a nucleus.
    """

    probability: float = 0.5
    overlap: float = 0.4
    covered: float = 0.5
    smallest_um2: float = ExtractionOptions.smallest_um2
    largest_um2: float = ExtractionOptions.largest_um2


@dataclass(frozen=True)
class Stars:
    """Star-convex polygons in an image.

    Attributes
    ----------
    probability
        float32 ``(N,)``.
    distances
        float32 ``(N, rays)``, from the centre to the border in pixels, along rays at even angles.
    centers
        int64 ``(N, 2)``, row and column of the pixel that they go out from.
    """

    probability: NDArray[np.float32]
    distances: NDArray[np.float32]
    centers: NDArray[np.int64]

    def chosen(self, which: NDArray[np.generic]) -> Stars:
        """Some of them, in the order given."""
        return Stars(self.probability[which], self.distances[which], self.centers[which])


def answer_channels(rays: int, grid_px: int) -> int:
    """How many channels an answer has."""
    return -(-len(CHANNELS) * (_PROBABILITY_BYTES + rays) // grid_px**2)


def packed(probability: NDArray[np.floating], distances_px: NDArray[np.floating], grid_px: int) -> NDArray[np.uint8]:
    """The answer of a network for both stains; see the module.

    Parameters
    ----------
    probability
        ``(2, h, w)``, 0 to 1, in the order of ``CHANNELS``.
    distances_px
        ``(2, h, w, rays)``.
    grid_px
        Width of a cell.

    Returns
    -------
    uint8 ``(answer_channels, h * grid_px, w * grid_px)``
    """
    stains, height, width, rays = distances_px.shape
    values = np.zeros((height, width, answer_channels(rays, grid_px) * grid_px**2), dtype=np.uint8)
    for stain in range(stains):
        first = stain * (_PROBABILITY_BYTES + rays)
        levels = np.rint(np.clip(probability[stain], 0, 1) * _MOST_PROBABLE).astype(np.uint16)
        values[..., first], values[..., first + 1] = levels >> 8, levels & 255
        steps = np.clip(np.rint(distances_px[stain] * DISTANCE_STEPS), 1, 255)
        values[..., first + _PROBABILITY_BYTES : first + _PROBABILITY_BYTES + rays] = steps
    cells = values.reshape(height, width, -1, grid_px, grid_px).transpose(2, 0, 3, 1, 4)
    return np.ascontiguousarray(cells).reshape(-1, height * grid_px, width * grid_px)


def _cell_values(answer: NDArray[np.uint8], grid_px: int) -> NDArray[np.uint8]:
    """Values ``(h, w, V)`` of the cells of an answer, those that the image cuts filled up with 0."""
    channels, height, width = answer.shape
    whole = np.pad(answer, ((0, 0), (0, -height % grid_px), (0, -width % grid_px)))
    cells = whole.reshape(channels, whole.shape[1] // grid_px, grid_px, whole.shape[2] // grid_px, grid_px)
    return cells.transpose(1, 3, 0, 2, 4).reshape(cells.shape[1], cells.shape[3], -1)


def probabilities_of(answer: NDArray[np.uint8], rays: int, grid_px: int) -> NDArray[np.uint8]:
    """How likely each pixel lies inside a nucleus of each stain, uint8 ``(2, H, W)``, 255 for 1, for people to see."""
    values = _cell_values(answer, grid_px)[..., :: _PROBABILITY_BYTES + rays][..., : len(CHANNELS)]
    pixels = values.repeat(grid_px, axis=0).repeat(grid_px, axis=1)[: answer.shape[1], : answer.shape[2]]
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def candidates(answer: NDArray[np.uint8], stain: int, rays: int, grid_px: int, least_probability: float) -> Stars:
    """The polygons of one stain that are probable enough, the most probable first, in an order that nothing changes.

    Parameters
    ----------
    answer
        uint8 ``(C, H, W)``.
    stain
        Place in ``CHANNELS``.
    rays, grid_px
        Of the network.
    least_probability
        0 to 1.
    """
    first = stain * (_PROBABILITY_BYTES + rays)
    values = _cell_values(answer, grid_px)[..., first : first + _PROBABILITY_BYTES + rays]
    levels = values[..., 0].astype(np.uint16) << 8 | values[..., 1]
    rows, columns = np.nonzero(
        (levels >= max(1, least_probability * _MOST_PROBABLE)) & (values[..., -rays:].min(-1) > 0)
    )
    order = np.lexsort((columns, rows, -levels[rows, columns].astype(np.int64)))
    rows, columns = rows[order], columns[order]
    return Stars(
        (levels[rows, columns] / np.float32(_MOST_PROBABLE)).astype(np.float32),
        values[rows, columns, -rays:].astype(np.float32) / np.float32(DISTANCE_STEPS),
        np.column_stack([rows, columns]) * grid_px,
    )


def suppressed(stars: Stars, overlap: float) -> Stars:
    """Of polygons that overlap, the most probable: StarDist's non-maximum suppression.

    Parameters
    ----------
    stars
        The most probable first.
    overlap
        Part of the smaller area from which the less probable one goes.
    """
    from stardist.nms import non_maximum_suppression_inds

    if not len(stars.probability):
        return stars
    kept = non_maximum_suppression_inds(stars.distances, stars.centers, None, thresh=overlap, verbose=0)
    return stars.chosen(np.flatnonzero(kept))


def joined(one: Stars, other: Stars) -> Stars:
    """Polygons of both, the most probable first; where they are equally so, those of the first."""
    parts = [np.concatenate(pair) for pair in zip(vars(one).values(), vars(other).values(), strict=True)]
    both = Stars(*parts)
    return both.chosen(np.argsort(-both.probability, kind="stable"))


def labels_of(stars: Stars, shape: tuple[int, int]) -> NDArray[np.int32]:
    """Polygons drawn into an image, int32 ``(H, W)``: 0 or 1 + the place of the most probable one there."""
    from stardist.geometry import polygons_to_label

    if not len(stars.probability):
        return np.zeros(shape, dtype=np.int32)
    # The most probable is drawn last.
    rank = -np.arange(len(stars.probability))
    return np.asarray(polygons_to_label(stars.distances, stars.centers, shape=shape, prob=rank), dtype=np.int32)


def star_nuclei(
    answer: NDArray[np.uint8], mpp: float, *, rays: int, grid_px: int, options: StarOptions | None = None
) -> Nuclei:
    """The nuclei of both stains, joined: each has the most probable outline that either stain gives it.

    A nucleus is positive where the nuclei found in the DAB channel cover it.

    Parameters
    ----------
    answer
        uint8 ``(C, H, W)``; see the module.
    mpp
        Microns per pixel.
    rays, grid_px
        Of the network.
    options
        See there.
    """
    options = options or StarOptions()
    hematoxylin, dab = (
        suppressed(candidates(answer, stain, rays, grid_px, options.probability), options.overlap)
        for stain in range(len(CHANNELS))
    )
    shape = answer.shape[1], answer.shape[2]
    nuclei = nuclei_of(suppressed(joined(dab, hematoxylin), options.overlap), shape, mpp, options)
    rows, columns = np.nonzero(nuclei.labels)
    numbers, brown = nuclei.labels[rows, columns], labels_of(dab, shape)[rows, columns] > 0
    covered = np.bincount(numbers, brown, minlength=len(nuclei.area_px) + 1)[1:]
    return replace(nuclei, positive=covered >= options.covered * nuclei.area_px)


def nuclei_of(stars: Stars, shape: tuple[int, int], mpp: float, options: StarOptions) -> Nuclei:
    """Polygons within the limits of area as nuclei of an image, all negative.

    Sums are of whole numbers, so that they do not depend on where in an image a nucleus lies.
    """
    labels = labels_of(stars, shape)
    rows, columns = np.nonzero(labels)
    numbers, count = labels[rows, columns], len(stars.probability)
    area, down, across = (np.bincount(numbers, part, minlength=count + 1)[1:] for part in (None, rows, columns))
    inside = np.maximum(area, 1)
    nuclei = Nuclei(
        labels=labels,
        x_px=across / inside + 0.5,
        y_px=down / inside + 0.5,
        area_px=area.astype(np.int64),
        positive=np.zeros(count, dtype=bool),
        probability=stars.probability,
    )
    area_um2 = area * mpp**2
    return nuclei.chosen((area_um2 >= options.smallest_um2) & (area_um2 <= options.largest_um2))
