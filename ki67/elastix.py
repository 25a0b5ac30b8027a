"""Refinement by elastix: rigid, affine and by B-splines.

It maximises mutual information: how much one stain's density tells of the other's.

References
----------
Klein et al., elastix: a toolbox for intensity-based medical image registration, 2010. Marstal et al., SimpleElastix,
2016. Mattes et al., PET-CT image registration in the chest using free-form deformations, 2003 (the metric). Klein et
al., Adaptive stochastic gradient descent optimisation for image registration, 2009 (the optimiser). Rueckert et al.,
Nonrigid registration using free-form deformations, 1999 (B-splines).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name it has everywhere
from numpy.typing import NDArray

from ki67.deformation import Deformation, Spline
from ki67.geometry import RigidTransform
from ki67.section import BoolImage, Section, carry_back, dilated

UM_PER_MM = 1000.0  # elastix sees millimetres: its step sizes and scales are made for them
FEWEST_PIXELS = 64
LEAST_CONTRAST = 0.005  # standard deviation of optical density; elastix ends the whole program on a flat image


@dataclass(frozen=True)
class Refinement:
    """How thoroughly elastix searches.

    Attributes
    ----------
    resolutions
        Levels of the pyramid, each twice as coarse as the one below; the finest is the section's own.
    iterations, samples
        Steps, and random places compared at each step: the same at all levels, or one number a level, coarsest first.
    reach_um
        How far outside the tissue the two sections are compared; the outlines lie there if the start is off.
    grid_um
        Between the control points of a B-spline.
    """

    resolutions: int
    iterations: int | tuple[int, ...]
    samples: int | tuple[int, ...]
    reach_um: float = 200.0
    grid_um: float = 1000.0


def refine_rigid(he: Section, ki67: Section, start: RigidTransform, how: Refinement) -> RigidTransform | None:
    """The rigid transform near ``start`` with the highest mutual information; none without overlap or contrast.

    The start, mirror image included, is the position and direction of the H&E image in space, so that elastix begins
    at the identity and its Euler transform, which can hold no mirror image, need not. Results are the same on every run
    and for any number of processors.

    Parameters
    ----------
    he, ki67
        At one resolution.
    """
    compared = _compared(he, ki67, start, how.reach_um)
    if not _comparable(he, ki67, start, compared):
        return None
    he_window = _window(compared)
    ki67_window = _window(dilated(ki67.tissue, 2 * how.reach_um / ki67.mpp))
    rigid = _parameters("rigid", how)
    rigid["CenterOfRotationPoint"] = [repr(float(value)) for value in start.apply(he.centre_um)[0] / UM_PER_MM]
    found = _run(
        _image(he.density, he.mpp, he_window, start.matrix),
        _image(compared.astype(np.uint8), he.mpp, he_window, start.matrix),
        _image(ki67.density, ki67.mpp, ki67_window, np.eye(3)),
        [rigid],
    )
    if found is None:
        return None
    return RigidTransform(_euler_matrix(found[0]) @ start.matrix, start.source, start.target)


def find_deformation(
    he: Section,
    ki67: Section,
    start: RigidTransform,
    how: Refinement,
    *,
    spline: bool,
    seen: BoolImage | None = None,
) -> Deformation | None:
    """What must be done to the H&E section for ``start`` to put it on the Ki-67 section, by mutual information.

    Parameters
    ----------
    he, ki67
        At one resolution.
    spline
        An affine transform alone, or a cubic B-spline after it.
    seen
        Pixels of the H&E that may be compared, all if not given.

    Returns
    -------
    In the H&E frame; none without overlap or contrast.
    """
    compared = _compared(he, ki67, start, how.reach_um, seen)
    if not _comparable(he, ki67, start, compared):
        return None
    window, identity = _window(compared), np.eye(3)
    affine, smooth = _parameters("affine", how), _parameters("bspline", how)
    affine["CenterOfRotationPoint"] = [repr(float(value)) for value in he.centre_um / UM_PER_MM]
    smooth["Registration"], smooth["Metric"] = ["MultiResolutionRegistration"], ["AdvancedMattesMutualInformation"]
    smooth["FinalGridSpacingInPhysicalUnits"] = [repr(how.grid_um / UM_PER_MM)] * 2
    found = _run(
        _image(he.density, he.mpp, window, identity),
        _image(compared.astype(np.uint8), he.mpp, window, identity),
        _image(carry_back(ki67.density, start, he.mpp, he.tissue.shape), he.mpp, window, identity),
        [affine, smooth] if spline else [affine],
    )
    if found is None:
        return None
    return Deformation(_affine_matrix(found[0]), _spline(found[1]) if spline else None)


def _compared(
    he: Section, ki67: Section, start: RigidTransform, reach_um: float, seen: BoolImage | None = None
) -> BoolImage:
    """Where the two are compared, on the grid of the H&E: near the tissue of both.

    So neither a part missing from one nor control tissue beside the other pulls at the fit.
    """
    reach_px = reach_um / he.mpp
    other = carry_back(ki67.tissue, start, he.mpp, he.tissue.shape) > 0.5
    compared = dilated(he.tissue, reach_px) & dilated(other, reach_px)
    return compared if seen is None else compared & seen


def _comparable(he: Section, ki67: Section, start: RigidTransform, compared: BoolImage) -> bool:
    """Whether there is enough to compare, and contrast in both: elastix ends the whole program on a flat image."""
    if np.count_nonzero(compared) < FEWEST_PIXELS:
        return False
    there = carry_back(ki67.density, start, he.mpp, he.tissue.shape)
    seen = (he.density[compared], there[compared], ki67.density[_window(ki67.tissue)])
    return bool(min(values.std() for values in seen) >= LEAST_CONTRAST)


def _window(pixels: BoolImage) -> tuple[slice, slice]:
    """Rows and columns that hold all true pixels."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _image(pixels: NDArray[Any], mpp: float, window: tuple[slice, slice], placement: NDArray[np.float64]) -> sitk.Image:
    """A window of a picture as an image in millimetres of the Ki-67 frame, where ``placement`` ``(3, 3)`` puts it."""
    rows, columns = window
    corner_um = np.array([columns.start + 0.5, rows.start + 0.5]) * mpp
    image = sitk.GetImageFromArray(np.ascontiguousarray(pixels[window]))
    image.SetSpacing([mpp / UM_PER_MM] * 2)
    image.SetOrigin(((placement[:2, :2] @ corner_um + placement[:2, 2]) / UM_PER_MM).tolist())
    image.SetDirection(placement[:2, :2].ravel().tolist())
    return image


def _run(fixed: sitk.Image, mask: sitk.Image, moving: sitk.Image, stages: list[Any]) -> list[Any] | None:
    """What elastix found, a map of parameters a stage, each beginning where the one before ended."""
    elastix = sitk.ElastixImageFilter()
    elastix.LogToConsoleOff()
    elastix.LogToFileOff()
    elastix.SetNumberOfThreads(1)
    elastix.SetFixedImage(fixed)
    elastix.SetFixedMask(mask)
    elastix.SetMovingImage(moving)
    elastix.SetParameterMap(sitk.VectorOfParameterMap(stages))
    with tempfile.TemporaryDirectory() as folder, _quiet():
        elastix.SetOutputDirectory(folder)  # it writes the resampled image, wanted or not
        try:
            elastix.Execute()
        except RuntimeError:  # too few samples fall on both images: not a place where the section can lie
            return None
    return list(elastix.GetTransformParameterMap())


def _parameters(kind: str, how: Refinement) -> Any:
    parameters = sitk.GetDefaultParameterMap(kind, how.resolutions)
    iterations, samples = (
        [str(number) for number in (numbers if isinstance(numbers, tuple) else (numbers,))]
        for numbers in (how.iterations, how.samples)
    )
    chosen = {
        "AutomaticTransformInitialization": "false",
        "MaximumNumberOfSamplingAttempts": "1",  # more may overflow the stack
        "RandomSeed": "67",
        "RequiredRatioOfValidSamples": "0.05",
        "UseDirectionCosines": "true",
        "UseMultiThreadingForMetrics": "false",  # sums in another order would differ in the last digits
        "ResampleInterpolator": "FinalNearestNeighborInterpolator",  # nobody looks at the resampled image
    }
    for name, value in chosen.items():
        parameters[name] = [value]
    parameters["MaximumNumberOfIterations"], parameters["NumberOfSpatialSamples"] = iterations, samples
    return parameters


def _numbers(found: Any, name: str) -> NDArray[np.float64]:
    return np.array([float(value) for value in found[name]])


def _euler_matrix(found: Any) -> NDArray[np.float64]:
    """Elastix's Euler transform as a matrix ``(3, 3)`` in microns."""
    angle, *shift_mm = _numbers(found, "TransformParameters")
    turn = RigidTransform.from_parameters(
        angle_deg=float(np.rad2deg(angle)), shift_um=(0.0, 0.0), mirror=False, source="ki67", target="ki67"
    )
    return _about_centre(found, turn.matrix[:2, :2], np.array(shift_mm))


def _affine_matrix(found: Any) -> NDArray[np.float64]:
    """Elastix's affine transform as a matrix ``(3, 3)`` in microns."""
    parameters = _numbers(found, "TransformParameters")
    return _about_centre(found, parameters[:4].reshape(2, 2), parameters[4:])


def _about_centre(found: Any, linear: NDArray[np.float64], shift_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    centre_mm = _numbers(found, "CenterOfRotationPoint")
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = (centre_mm + shift_mm - linear @ centre_mm) * UM_PER_MM
    return matrix


def _spline(found: Any) -> Spline:
    columns, rows = (int(value) for value in found["GridSize"])
    coefficients = _numbers(found, "TransformParameters").reshape(2, rows, columns)
    corner, spacing = (_numbers(found, name) for name in ("GridOrigin", "GridSpacing"))
    return Spline(coefficients * UM_PER_MM, corner * UM_PER_MM, spacing * UM_PER_MM)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what elastix says on standard output, even with its logs off, from the terminal."""
    sys.stdout.flush()
    terminal = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(terminal, 1)
        os.close(nowhere)
        os.close(terminal)
