"""Drawn nuclei in the colours of hematoxylin and DAB on a faint counterstain."""

import cv2
import numpy as np

from ki67.stain import HED_VECTORS
from ki67.training.targets import POSITIVE


def stained(shape, ellipses, *, noise=0, seed=0):
    """RGB image of ellipses (x, y, half axes, angle, class) in pixels, with noise of so many gray levels."""
    amounts = np.full((*shape, 3), [0.05, 0.0, 0.02], dtype=np.float32)
    for x, y, axis, other, angle, kind in ellipses:
        disc = np.zeros(shape, dtype=np.uint8)
        cv2.ellipse(disc, ((x, y), (2 * axis, 2 * other), angle), 1, -1)
        amounts[disc > 0] = [0.15, 0.0, 0.8] if kind == POSITIVE else [0.6, 0.0, 0.05]
    light = 255 * 10 ** -(cv2.GaussianBlur(amounts, (0, 0), 0.8) @ HED_VECTORS)
    light = light + np.random.default_rng(seed).normal(0, noise, light.shape)
    return np.clip(np.rint(light), 0, 255).astype(np.uint8)
