"""SimpleElastix with its default rigid parameters, one start, over the jobs of a benchmark."""

from __future__ import annotations

import tempfile
import time
from importlib.metadata import version

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name it has everywhere
from grey import read_grey
from jobs import Found, Job, Matrix, from_centres, main


def register(job: Job) -> Found:
    """One run from the geometrical centres of the images; an Euler transform holds no mirror image."""
    fixed, moving = (read_grey(path).astype(np.float32) for path in (job.fixed, job.moving))
    started = time.perf_counter()
    elastix = sitk.ElastixImageFilter()
    elastix.LogToConsoleOff()
    elastix.SetFixedImage(sitk.GetImageFromArray(fixed))
    elastix.SetMovingImage(sitk.GetImageFromArray(moving))
    elastix.SetParameterMap(parameters())
    with tempfile.TemporaryDirectory() as folder:  # it writes its transform, wanted or not
        elastix.SetOutputDirectory(folder)
        elastix.Execute()
    matrix = matrix_of(elastix.GetTransformParameterMap(0))
    return Found(from_centres(matrix), time.perf_counter() - started)


def parameters() -> sitk.ParameterMap:
    """The default map, which begins at the identity, told to begin where the centres of the images meet."""
    result = sitk.GetDefaultParameterMap("rigid")
    result["AutomaticTransformInitialization"] = ["true"]
    result["WriteResultImage"] = ["false"]
    return result


def matrix_of(transform: sitk.ParameterMap) -> Matrix:
    """The Euler transform of the fixed into the moving image; without origin and spacing, points are pixel centres."""
    angle, *offset = map(float, transform["TransformParameters"])
    centre = np.array([float(value) for value in transform["CenterOfRotationPoint"]])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([turn, centre + offset - turn @ centre])


if __name__ == "__main__":
    main("SimpleElastix, one start", version("SimpleITK-SimpleElastix"), register)
