"""Frames, masks and rigid transforms: everything that says where something is, in microns.

A frame is ``"he"`` or ``"ki67"``: microns, origin at the top-left corner of level 0, x to the right, y down. A mask
pixel ``[row, column]`` covers the square from ``(column, row) * mpp`` to ``(column + 1, row + 1) * mpp``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ki67.errors import Ki67Error, Stain

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Mask:
    """A boolean image that starts at the origin of its frame.

    Attributes
    ----------
    pixels
        bool ``(rows, columns)``.
    mpp
        Microns per mask pixel.
    frame
        The frame whose origin is the mask's top-left corner.
    """

    pixels: NDArray[np.bool_]
    mpp: float
    frame: Stain

    @classmethod
    def empty(cls, frame: Stain, mpp: float = 8.0) -> Self:
        """A mask of one false pixel, for slides that cannot be read."""
        return cls(np.zeros((1, 1), dtype=bool), mpp, frame)

    @property
    def area_mm2(self) -> float:
        """Area of all true pixels in mm²."""
        return float(self.pixels.sum()) * self.mpp**2 / 1e6

    def contains(self, points_um: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether each point ``(N, 2)`` (x, y in µm of this frame) lies on a true pixel; outside the image is false."""
        if len(points_um) == 0:
            return np.zeros(0, dtype=bool)
        columns, rows = np.floor(np.asarray(points_um) / self.mpp).astype(np.int64).T
        height, width = self.pixels.shape
        inside = (columns >= 0) & (rows >= 0) & (columns < width) & (rows < height)
        result = np.zeros(len(points_um), dtype=bool)
        result[inside] = self.pixels[rows[inside], columns[inside]]
        return result


@dataclass(frozen=True)
class RigidTransform:
    """Rotation, shift and optional mirror image from one frame to another.

    Attributes
    ----------
    matrix
        float ``(3, 3)``, homogeneous, microns of ``source`` to microns of ``target``.
    source, target
        Frames.
    """

    matrix: NDArray[np.float64]
    source: Stain
    target: Stain

    def __post_init__(self) -> None:
        linear = np.asarray(self.matrix)[:2, :2]
        if np.asarray(self.matrix).shape != (3, 3) or not np.allclose(linear @ linear.T, np.eye(2), atol=1e-6):
            raise Ki67Error(f"a rigid transform needs a 3x3 matrix with orthonormal 2x2 part, got {self.matrix!r}")

    @classmethod
    def from_parameters(
        cls, *, angle_deg: float, shift_um: tuple[float, float], mirror: bool, source: Stain, target: Stain
    ) -> Self:
        """The transform that mirrors x (if ``mirror``), then rotates by ``angle_deg`` about the origin, then shifts.

        Positive angles turn the x axis towards the y axis (clockwise on screen, as y points down).
        """
        cosine, sine = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
        matrix = np.eye(3)
        matrix[:2, :2] = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([-1.0 if mirror else 1.0, 1.0])
        matrix[:2, 2] = shift_um
        return cls(matrix, source, target)

    @property
    def mirror(self) -> bool:
        """Whether the transform holds a mirror image."""
        return bool(np.linalg.det(self.matrix[:2, :2]) < 0)

    @property
    def angle_deg(self) -> float:
        """Rotation in degrees in (-180, 180], applied after the mirroring of x where there is one."""
        sign = -1.0 if self.mirror else 1.0
        return float(np.rad2deg(np.arctan2(sign * self.matrix[1, 0], sign * self.matrix[0, 0])))

    def apply(self, points_um: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points ``(N, 2)`` of the source frame in the target frame, both x, y in µm."""
        points = np.asarray(points_um, dtype=np.float64).reshape(-1, 2)
        return points @ self.matrix[:2, :2].T + self.matrix[:2, 2]

    def inverse(self) -> RigidTransform:
        """The transform from ``target`` back to ``source``."""
        matrix = np.linalg.inv(self.matrix).astype(np.float64)
        return RigidTransform(matrix, self.target, self.source)

    def to_json(self) -> dict[str, Any]:
        """The transform as plain JSON values."""
        return {
            "source": self.source,
            "target": self.target,
            "unit": "micrometer",
            "matrix": self.matrix.tolist(),
            "angle_deg": self.angle_deg,
            "mirror": self.mirror,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """The transform that ``to_json`` wrote."""
        return cls(np.asarray(record["matrix"], dtype=np.float64), record["source"], record["target"])


class Transform(Protocol):
    """What carries points from one frame to another and back, rigidly or not."""

    @property
    def source(self) -> Stain:
        """Frame of the points that it takes."""

    @property
    def target(self) -> Stain:
        """Frame of the points that it gives."""

    def apply(self, points_um: Points) -> Points:
        """Points ``(N, 2)`` of the source frame in the target frame, both x, y in µm."""

    def inverse(self) -> Transform:
        """The transform from ``target`` back to ``source``."""


def warp_mask(mask: Mask, transform: Transform, shape: tuple[int, int], mpp: float) -> Mask:
    """Carry a mask into the transform's target frame by nearest neighbour.

    Parameters
    ----------
    mask
        In ``transform.source``.
    shape
        Rows and columns of the result.
    mpp
        Microns per pixel of the result.

    Raises
    ------
    Ki67Error
        If the mask is not in the transform's source frame.
    """
    if mask.frame != transform.source:
        raise Ki67Error(f"a mask in frame {mask.frame} cannot be carried by a transform from {transform.source}")
    back = transform.inverse()
    columns = (np.arange(shape[1]) + 0.5) * mpp
    pixels = np.zeros(shape, dtype=bool)
    rows_at_once = max(1, 4_000_000 // max(1, shape[1]))
    for start in range(0, shape[0], rows_at_once):
        rows = (np.arange(start, min(shape[0], start + rows_at_once)) + 0.5) * mpp
        x, y = np.meshgrid(columns, rows)
        inside = mask.contains(back.apply(np.column_stack([x.ravel(), y.ravel()])))
        pixels[start : start + len(rows)] = inside.reshape(x.shape)
    return Mask(pixels, mpp, transform.target)
