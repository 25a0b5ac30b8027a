"""Transforms between two sections that are more than rigid: affine, and smooth displacements by cubic B-splines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from ki67.errors import Stain
from ki67.geometry import Points, RigidTransform

INVERSE_GRID_UM = 50.0
INVERSE_STEPS = 20
JACOBIAN_GRID_UM = 100.0


@dataclass(frozen=True)
class Spline:
    """Displacements as a cubic B-spline, as ITK's ``BSplineTransform`` has them.

    Attributes
    ----------
    coefficients_um
        float64 ``(2, rows, columns)``, displacement along x and along y of each control point.
    corner_um
        ``(2,)``, x and y of the first control point.
    spacing_um
        ``(2,)``, between control points along x and along y.
    """

    coefficients_um: NDArray[np.float64]
    corner_um: NDArray[np.float64]
    spacing_um: NDArray[np.float64]

    def apply(self, points_um: Points) -> Points:
        """Points ``(N, 2)`` moved by their displacement, which beyond the control points is that at their edge."""
        x, y = ((points_um - self.corner_um) / self.spacing_um).T
        how: dict[str, Any] = {"order": 3, "prefilter": False, "mode": "nearest"}
        moved = [map_coordinates(axis, [y, x], **how) for axis in self.coefficients_um]
        return np.asarray(points_um + np.column_stack(moved), dtype=np.float64)


@dataclass(frozen=True)
class Deformation:
    """What is done to the source section before it is turned and shifted.

    Attributes
    ----------
    affine
        float64 ``(3, 3)``, homogeneous, microns of the source frame to microns of the source frame.
    spline
        Applied after ``affine``; none for an affine deformation.
    """

    affine: NDArray[np.float64]
    spline: Spline | None = None

    def apply(self, points_um: Points) -> Points:
        """Points ``(N, 2)`` of the source frame where they lie after the deformation."""
        moved = points_um @ self.affine[:2, :2].T + self.affine[:2, 2]
        return moved if self.spline is None else self.spline.apply(moved)

    def jacobian_range(self, size_um: tuple[float, float]) -> tuple[float, float]:
        """Least and largest change of area in a rectangle ``(width, height)`` of the source frame; 1 is none.

        Negative values are folds.
        """
        width, height = (max(2, int(np.ceil(side / JACOBIAN_GRID_UM)) + 1) for side in size_um)
        x, y = np.meshgrid(np.arange(width) * JACOBIAN_GRID_UM, np.arange(height) * JACOBIAN_GRID_UM)
        moved = self.apply(np.column_stack([x.ravel(), y.ravel()])).reshape(height, width, 2)
        x_by_y, x_by_x = np.gradient(moved[..., 0], JACOBIAN_GRID_UM)
        y_by_y, y_by_x = np.gradient(moved[..., 1], JACOBIAN_GRID_UM)
        areas = x_by_x * y_by_y - x_by_y * y_by_x
        return float(areas.min()), float(areas.max())

    def to_json(self) -> dict[str, Any]:
        """The deformation as plain JSON values, in microns."""
        record: dict[str, Any] = {"affine": self.affine.tolist(), "spline": None}
        if self.spline is not None:
            record["spline"] = {
                "coefficients": np.round(self.spline.coefficients_um, 4).tolist(),
                "corner": self.spline.corner_um.tolist(),
                "spacing": self.spline.spacing_um.tolist(),
            }
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """The deformation that ``to_json`` wrote."""
        spline = record["spline"]
        if spline is not None:
            spline = Spline(*(np.asarray(spline[name], dtype=float) for name in ("coefficients", "corner", "spacing")))
        return cls(np.asarray(record["affine"], dtype=np.float64), spline)


@dataclass(frozen=True)
class DeformedTransform:
    """A deformation, then a rigid transform.

    Attributes
    ----------
    rigid
        From the source to the target frame.
    deformation
        Of the source, before.
    """

    rigid: RigidTransform
    deformation: Deformation

    @property
    def source(self) -> Stain:
        """Frame of the points that it takes."""
        return self.rigid.source

    @property
    def target(self) -> Stain:
        """Frame of the points that it gives."""
        return self.rigid.target

    def apply(self, points_um: Points) -> Points:
        """Points ``(N, 2)`` of the source frame in the target frame, both x, y in µm."""
        points = np.asarray(points_um, dtype=np.float64).reshape(-1, 2)
        return self.rigid.apply(self.deformation.apply(points))

    def inverse(self) -> InverseTransform:
        """The transform from ``target`` back to ``source``."""
        return InverseTransform(self)


def transform_from_json(record: Mapping[str, Any]) -> RigidTransform | DeformedTransform:
    """The transform of a registration's record, with its deformation where there is one."""
    rigid = RigidTransform.from_json(dict(record))
    deformation = record.get("deformation")
    return rigid if deformation is None else DeformedTransform(rigid, Deformation.from_json(deformation))


@dataclass(frozen=True)
class InverseTransform:
    """The way back through a :class:`DeformedTransform`, right to a fraction of a micron where that does not fold."""

    forward: DeformedTransform

    @property
    def source(self) -> Stain:
        """Frame of the points that it takes."""
        return self.forward.target

    @property
    def target(self) -> Stain:
        """Frame of the points that it gives."""
        return self.forward.source

    def inverse(self) -> DeformedTransform:
        """The way forward."""
        return self.forward

    def apply(self, points_um: Points) -> Points:
        """Points ``(N, 2)`` of the deformed section's target frame in its source frame.

        Displacements are inverted on a grid of 50 µm by fixed-point iteration and interpolated, as they are smooth.
        """
        turned_back = self.forward.rigid.inverse().apply(points_um)
        if len(turned_back) == 0:
            return turned_back
        corner = turned_back.min(axis=0) - INVERSE_GRID_UM
        width, height = (np.ceil((turned_back.max(axis=0) - corner) / INVERSE_GRID_UM) + 2).astype(int)
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        grid = np.column_stack([x.ravel(), y.ravel()]) * INVERSE_GRID_UM + corner
        back = grid.copy()
        for _ in range(INVERSE_STEPS):
            back += grid - self.forward.deformation.apply(back)
        displacement = (back - grid).reshape(height, width, 2)
        columns, rows = ((turned_back - corner) / INVERSE_GRID_UM).T
        moved = [map_coordinates(displacement[..., axis], [rows, columns], order=1, mode="nearest") for axis in (0, 1)]
        return np.asarray(turned_back + np.column_stack(moved), dtype=np.float64)
