"""Fits of point pairs: the best rigid and the best affine transform between landmarks of two images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ki67.errors import Ki67Error

Points = NDArray[np.float64]


def fit_rigid(
    source: Points, target: Points, *, weights: NDArray[np.float64] | None = None, mirror: bool | None = None
) -> NDArray[np.float64]:
    """Rotation, shift and optional mirror image that carry ``source`` to ``target`` with the least squares.

    Parameters
    ----------
    source, target
        ``(N, 2)``, N >= 2, the same unit.
    weights
        ``(N,)``, all 1 if not given.
    mirror
        Whether the fit holds a mirror image; if not given, the better of the two.

    Returns
    -------
    float64 ``(3, 3)``, homogeneous.

    Raises
    ------
    Ki67Error
        If the two do not hold the same number of points, two at least.

    References
    ----------
    Umeyama, Least-squares estimation of transformation parameters between two point patterns, 1991.
    """
    _check(source, target, fewest=2)
    weight = np.ones(len(source)) if weights is None else np.asarray(weights, dtype=np.float64)
    weight = weight / weight.sum()
    source_centre, target_centre = weight @ source, weight @ target
    covariance = (target - target_centre).T @ ((source - source_centre) * weight[:, None])
    left, _, right = np.linalg.svd(covariance)
    natural = np.linalg.det(left @ right) < 0
    flip = natural if mirror is None else mirror
    matrix = np.eye(3)
    matrix[:2, :2] = left @ np.diag([1.0, 1.0 if flip == natural else -1.0]) @ right
    matrix[:2, 2] = target_centre - matrix[:2, :2] @ source_centre
    return matrix


def fit_affine(source: Points, target: Points) -> NDArray[np.float64]:
    """The affine transform ``(3, 3)`` that carries ``source`` to ``target``, both ``(N, 2)``, with the least squares.

    Raises
    ------
    Ki67Error
        If the two do not hold the same number of points, three at least.
    """
    _check(source, target, fewest=3)
    solution = np.linalg.lstsq(np.column_stack([source, np.ones(len(source))]), target, rcond=None)[0]
    return np.vstack([solution.T, [0.0, 0.0, 1.0]])


def distances(matrix: NDArray[np.float64], source: Points, target: Points) -> NDArray[np.float64]:
    """How far ``matrix`` ``(3, 3)`` puts each point of ``source`` from its partner in ``target``, both ``(N, 2)``."""
    return np.linalg.norm(source @ matrix[:2, :2].T + matrix[:2, 2] - target, axis=1)


def _check(source: Points, target: Points, fewest: int) -> None:
    if len(source) != len(target) or len(source) < fewest:
        raise Ki67Error(f"a fit of landmarks needs {fewest} or more pairs, got {len(source)} and {len(target)} points")
