"""Rigid refinement by elastix, which maximises mutual information: how much one stain's density tells of the other's.

References
----------
Klein et al., elastix: a toolbox for intensity-based medical image registration, 2010. Marstal et al., SimpleElastix,
2016. Mattes et al., PET-CT image registration in the chest using free-form deformations, 2003 (the metric). Klein et
al., Adaptive stochastic gradient descent optimisation for image registration, 2009 (the optimiser).
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
    iterations
        Steps at each level.
    samples
        Random places compared at each step.
    reach_um
        How far outside the tissue the two sections are compared; the outlines lie there if the start is off.
    """

    resolutions: int
    iterations: int
    samples: int
    reach_um: float = 200.0


def refine_rigid(he: Section, ki67: Section, start: RigidTransform, how: Refinement) -> RigidTransform | None:
    """The rigid transform near ``start`` with the highest mutual information; none without overlap or contrast.

    The start, mirror image included, is the position and direction of the H&E image in space, so that elastix begins
    at the identity and its Euler transform, which can hold no mirror image, need not. Results are the same on every run
    and for any number of processors.
    """
    compared = _compared(he, ki67, start, how.reach_um)
    if np.count_nonzero(compared) < FEWEST_PIXELS:
        return None
    he_window = _window(compared)
    ki67_window = _window(dilated(ki67.tissue, 2 * how.reach_um / ki67.mpp))
    if min(he.density[compared].std(), ki67.density[ki67_window].std()) < LEAST_CONTRAST:
        return None
    elastix = sitk.ElastixImageFilter()
    elastix.LogToConsoleOff()
    elastix.LogToFileOff()
    elastix.SetNumberOfThreads(1)
    elastix.SetFixedImage(_image(he.density, he.mpp, he_window, start.matrix))
    elastix.SetFixedMask(_image(compared.astype(np.uint8), he.mpp, he_window, start.matrix))
    elastix.SetMovingImage(_image(ki67.density, ki67.mpp, ki67_window, np.eye(3)))
    elastix.SetParameterMap(_parameters(how, start.apply(he.centre_um)[0]))
    with tempfile.TemporaryDirectory() as folder, _quiet():
        elastix.SetOutputDirectory(folder)  # it writes the resampled image, wanted or not
        try:
            elastix.Execute()
        except RuntimeError:  # too few samples fall on both images: not a place where the section can lie
            return None
    correction = _correction(elastix.GetTransformParameterMap(0))
    return RigidTransform(correction @ start.matrix, start.source, start.target)


def _compared(he: Section, ki67: Section, start: RigidTransform, reach_um: float) -> BoolImage:
    """Where the two are compared, on the grid of the H&E: near the tissue of both.

    So neither a part missing from one nor control tissue beside the other pulls at the fit.
    """
    reach_px = reach_um / he.mpp
    other = carry_back(ki67.tissue, start, he.mpp, he.tissue.shape) > 0.5
    return dilated(he.tissue, reach_px) & dilated(other, reach_px)


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


def _parameters(how: Refinement, centre_um: NDArray[np.float64]) -> Any:
    parameters = sitk.GetDefaultParameterMap("rigid", how.resolutions)
    chosen = {
        "AutomaticTransformInitialization": "false",
        "MaximumNumberOfSamplingAttempts": "1",  # more may overflow the stack
        "MaximumNumberOfIterations": str(how.iterations),
        "NumberOfSpatialSamples": str(how.samples),
        "RandomSeed": "67",
        "RequiredRatioOfValidSamples": "0.05",
        "UseDirectionCosines": "true",
        "UseMultiThreadingForMetrics": "false",  # sums in another order would differ in the last digits
        "ResampleInterpolator": "FinalNearestNeighborInterpolator",  # nobody looks at the resampled image
    }
    for name, value in chosen.items():
        parameters[name] = [value]
    parameters["CenterOfRotationPoint"] = [repr(float(value)) for value in centre_um / UM_PER_MM]
    return parameters


def _correction(found: Any) -> NDArray[np.float64]:
    """Elastix's Euler transform of the Ki-67 frame as a matrix ``(3, 3)`` in microns."""
    angle, *shift_mm = (float(value) for value in found["TransformParameters"])
    centre_um = np.array([float(value) for value in found["CenterOfRotationPoint"]]) * UM_PER_MM
    turn = RigidTransform.from_parameters(
        angle_deg=float(np.rad2deg(angle)), shift_um=(0.0, 0.0), mirror=False, source="ki67", target="ki67"
    ).matrix
    turn[:2, 2] = centre_um + np.array(shift_mm) * UM_PER_MM - turn[:2, :2] @ centre_um
    return turn


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
