"""SIFT with RANSAC over the jobs of a benchmark: the landmarks-from-texture method that most scripts begin with."""

from __future__ import annotations

import time
from dataclasses import dataclass

import cv2
import numpy as np
from grey import read_grey
from jobs import Found, Job, Matrix, from_centres, main, mirrored

LOWE_RATIO = 0.8
FEWEST_MATCHES = 2  # that a partial affine transform follows from


@dataclass(frozen=True)
class Features:
    """Where the features of an image are, ``(N, 2)``, and what they look like, ``(N, 128)``."""

    points: Matrix
    descriptors: Matrix


def register(job: Job) -> Found:
    """Both ways round; the one with more inliers counts."""
    fixed, moving = read_grey(job.fixed), read_grey(job.moving)
    started = time.perf_counter()
    features = features_of(fixed)
    plain, plain_inliers = fit(features, features_of(moving))
    turned, turned_inliers = fit(features, features_of(np.ascontiguousarray(moving[:, ::-1])))
    mirror = turned is not None and turned_inliers > plain_inliers
    matrix = mirrored(moving.shape[1]) @ turned if mirror else plain
    details = {"inliers": max(plain_inliers, turned_inliers), "mirror": mirror}
    return Found(matrix, time.perf_counter() - started, details)


def features_of(grey: Matrix) -> Features:
    """SIFT features of an image ``(rows, columns)``, with the default settings of OpenCV but for a known fault.

    Without precise upscaling its points lie a quarter of a pixel aside.
    """
    sift = cv2.SIFT_create(enable_precise_upscale=True)  # type: ignore[attr-defined]
    points, descriptors = sift.detectAndCompute(grey, None)
    return Features(np.array([point.pt for point in points], dtype=np.float32).reshape(-1, 2), descriptors)


def fit(fixed: Features, moving: Features) -> tuple[Matrix | None, int]:
    """The partial affine transform of the matches, corners at whole numbers, and how many of them agree with it."""
    pairs = matches(fixed, moving)
    if len(pairs) < FEWEST_MATCHES:
        return None, 0
    source, target = fixed.points[pairs[:, 0]], moving.points[pairs[:, 1]]
    matrix, inliers = cv2.estimateAffinePartial2D(source, target, method=cv2.RANSAC)
    return (None, 0) if matrix is None else (from_centres(matrix), int(inliers.sum()))


def matches(fixed: Features, moving: Features) -> Matrix:
    """Indices ``(M, 2)`` of features whose nearest in the moving image is much nearer than the next."""
    if fixed.descriptors is None or moving.descriptors is None:
        return np.empty((0, 2), dtype=int)
    nearest = cv2.BFMatcher(cv2.NORM_L2).knnMatch(fixed.descriptors, moving.descriptors, k=2)
    kept = [two[0] for two in nearest if len(two) == 2 and two[0].distance < LOWE_RATIO * two[1].distance]
    return np.array([(match.queryIdx, match.trainIdx) for match in kept], dtype=int).reshape(-1, 2)


if __name__ == "__main__":
    main("SIFT + RANSAC", f"OpenCV {cv2.__version__}", register)
