"""Nuclei drawn as ellipses, and what a network would say of them."""

import cv2
import numpy as np

from ki67.training.targets import NEGATIVE, POSITIVE, five_class_target


def drawn(shape, ellipses):
    """Five-class image of ellipses (x, y, half axes, angle, class) in pixels; later ones cover earlier ones."""
    labels = np.zeros(shape, dtype=np.uint16)
    for number, (x, y, axis, other, angle, _) in enumerate(ellipses, start=1):
        cv2.ellipse(labels, ((x, y), (2 * axis, 2 * other), angle), number, -1)
    return five_class_target(labels, {number: entry[5] for number, entry in enumerate(ellipses, start=1)})


def probabilities_of(classes):
    levels = np.stack([(classes == index) * np.uint8(255) for index in range(5)])
    return np.stack([cv2.GaussianBlur(level, (0, 0), 0.8) for level in levels])


def grid(shape, step=40, seed=0, margin=20):
    random = np.random.default_rng(seed)
    return [
        (
            float(x + random.uniform(-8, 8)),
            float(y + random.uniform(-8, 8)),
            float(random.uniform(6, 9)),
            float(random.uniform(8, 12)),
            float(random.uniform(0, 180)),
            POSITIVE if random.random() < 0.3 else NEGATIVE,
        )
        for y in range(margin, shape[0] - margin, step)
        for x in range(margin, shape[1] - margin, step)
    ]


def found_by(nuclei_x, nuclei_y, ellipses, radius=2.0):
    """For each ellipse, the numbers of the nuclei found at its middle."""
    return [np.flatnonzero(np.hypot(nuclei_x - entry[0], nuclei_y - entry[1]) < radius) for entry in ellipses]
