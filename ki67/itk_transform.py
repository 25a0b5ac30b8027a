"""Transforms as ITK has them, in millimetres: for SimpleITK, elastix and 3D Slicer.

A file carries points of the H&E frame to the Ki-67 frame. Used on images it resamples the Ki-67 slide (moving) on the
grid of the H&E slide (fixed), both with their spacing in millimetres and their origin at the centre of the first pixel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name it has everywhere
from numpy.typing import NDArray

from ki67.deformation import DeformedTransform, Spline
from ki67.geometry import RigidTransform
from ki67.storage import whole

UM_PER_MM = 1000.0
SPLINE_ORDER = 3
DEPTH_MM = 1.0  # of the slab around the plane in which a B-spline in three dimensions is defined


def as_itk(transform: RigidTransform | DeformedTransform, dimension: int = 2) -> sitk.CompositeTransform:
    """The transform as ITK's composite: the deformation of the H&E, a mirror image of x, a rotation with a shift.

    Parameters
    ----------
    transform
        From the H&E to the Ki-67 frame.
    dimension
        2, or 3 for programs that know volumes only; the third coordinate stays as it is.
    """
    rigid = transform if isinstance(transform, RigidTransform) else transform.rigid
    steps: list[sitk.Transform] = []
    if isinstance(transform, DeformedTransform):
        steps.append(_affine(transform.deformation.affine, dimension))
        if transform.deformation.spline is not None:
            steps.append(_spline(transform.deformation.spline, dimension))
    mirror = np.diag([-1.0 if rigid.mirror else 1.0, 1.0, 1.0])
    steps += [_affine(mirror, dimension), _turn(rigid.matrix @ mirror, dimension)]
    composite = sitk.CompositeTransform(dimension)
    for step in reversed(steps):  # what is added last is applied first
        composite.AddTransform(step)
    return composite


def write_itk(path: Path | str, transform: RigidTransform | DeformedTransform | None, dimension: int = 2) -> None:
    """Write the transform as a text file that ITK reads; the identity where there is none."""
    identity = RigidTransform(np.eye(3), "he", "ki67")
    with whole(path) as temporary:
        sitk.WriteTransform(as_itk(transform or identity, dimension), str(temporary))


def write_itk_files(
    plane: Path | str, volume: Path | str, transform: RigidTransform | DeformedTransform | None
) -> None:
    """Write the transform in two dimensions, and in three for programs that know volumes only."""
    write_itk(plane, transform, 2)
    write_itk(volume, transform, 3)


def _affine(matrix: NDArray[np.float64], dimension: int) -> sitk.Transform:
    linear, shift = np.eye(dimension), np.zeros(dimension)
    linear[:2, :2], shift[:2] = matrix[:2, :2], matrix[:2, 2] / UM_PER_MM
    affine = sitk.AffineTransform(dimension)
    affine.SetMatrix(linear.ravel().tolist())
    affine.SetTranslation(shift.tolist())
    return affine


def _turn(matrix: NDArray[np.float64], dimension: int) -> sitk.Transform:
    """A rotation with a shift, ``(3, 3)`` without mirror image."""
    angle, shift_mm = float(np.arctan2(matrix[1, 0], matrix[0, 0])), (matrix[:2, 2] / UM_PER_MM).tolist()
    if dimension == 2:
        turn = sitk.Euler2DTransform()
        turn.SetAngle(angle)
        turn.SetTranslation(shift_mm)
        return turn
    volume = sitk.Euler3DTransform()
    volume.SetRotation(0.0, 0.0, angle)
    volume.SetTranslation([*shift_mm, 0.0])
    return volume


def _spline(spline: Spline, dimension: int) -> sitk.Transform:
    rows, columns = spline.coefficients_um.shape[1:]
    size, corner, spacing = [columns, rows], list(spline.corner_um / UM_PER_MM), list(spline.spacing_um / UM_PER_MM)
    coefficients = spline.coefficients_um / UM_PER_MM
    if dimension == 3:
        layers = SPLINE_ORDER + 1  # alike, so that the weights across them add up to 1 everywhere in the slab
        size, corner, spacing = [*size, layers], [*corner, -1.5 * DEPTH_MM], [*spacing, DEPTH_MM]
        planes = np.repeat(coefficients[:, None], layers, axis=1)
        coefficients = np.concatenate([planes, np.zeros_like(planes[:1])])
    result = sitk.BSplineTransform(dimension, SPLINE_ORDER)
    fixed = [*(float(side) for side in size), *corner, *spacing, *np.eye(dimension).ravel().tolist()]
    result.SetFixedParameters(fixed)
    result.SetParameters(coefficients.ravel().tolist())
    return result
