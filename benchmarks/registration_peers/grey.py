"""Grey images for the tools that see no colour."""

from __future__ import annotations

import cv2
from jobs import Matrix


def read_grey(path: str) -> Matrix:
    """uint8 ``(rows, columns)``.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    grey = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    if grey is None:
        raise OSError(f"{path} cannot be read as an image")
    return grey
