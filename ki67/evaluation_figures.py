"""Pictures of fields that show which nuclei were found, missed, made up or taken for the other class."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.evaluation_fields import EvaluationField
from ki67.extraction import Nuclei
from ki67.matching import match_points
from ki67.training.targets import NEGATIVE, OTHER, POSITIVE

Colour = tuple[int, int, int]
COLOURS: dict[str, Colour] = {
    "positive found": (214, 39, 40),
    "negative found": (31, 119, 180),
    "missed": (255, 255, 0),
    "made up": (0, 0, 0),
    "wrong class": (255, 0, 255),
}
_MAGNIFIED = 2
_LEGEND_PX = 30


def error_picture(field: EvaluationField, nuclei: Nuclei, radius_px: float, title: str) -> NDArray[np.uint8]:
    """A field at twice its size with a mark for every nucleus and a legend above.

    Found nuclei are circles, missed ones squares, those made up crosses; nuclei of other classes are not shown.

    Parameters
    ----------
    field, nuclei
        Annotated and found.
    radius_px
        Of the matching.
    title
        Begins the legend.

    Returns
    -------
    uint8 ``(2 H + legend, 2 W, 3)``
    """
    enlarged = cv2.resize(field.rgb, None, fx=_MAGNIFIED, fy=_MAGNIFIED, interpolation=cv2.INTER_CUBIC)
    rgb = np.ascontiguousarray(enlarged, dtype=np.uint8)
    if field.roi is not None:
        outside = cv2.resize((~field.roi).astype(np.uint8), rgb.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
        rgb[outside] = (rgb[outside].astype(np.uint16) + 3 * 255) // 4
    known = field.nuclei[field.nuclei[:, 2] != OTHER]
    found = np.column_stack([nuclei.x_px, nuclei.y_px, np.where(nuclei.positive, POSITIVE, NEGATIVE)])
    found = found[field.within(found)]
    ours, theirs = match_points(found[:, :2], known[:, :2], radius_px)
    for one, other in zip(found[ours], known[theirs], strict=True):
        right = "positive found" if one[2] == POSITIVE else "negative found"
        _mark(rgb, one, COLOURS[right if one[2] == other[2] else "wrong class"], None)
    others = field.nuclei[field.nuclei[:, 2] == OTHER]
    extra = np.delete(found, ours, axis=0)
    of_others, _ = match_points(extra[:, :2], others[:, :2], radius_px)
    for point in np.delete(extra, of_others, axis=0):
        _mark(rgb, point, COLOURS["made up"], cv2.MARKER_TILTED_CROSS)
    for point in np.delete(known, theirs, axis=0):
        _mark(rgb, point, COLOURS["missed"], cv2.MARKER_SQUARE)
    return np.concatenate([_legend(rgb.shape[1], title), rgb])


def _mark(rgb: NDArray[np.uint8], point: NDArray[np.float64], colour: Colour, marker: int | None) -> None:
    place = round(float(point[0]) * _MAGNIFIED), round(float(point[1]) * _MAGNIFIED)
    if marker is None:
        cv2.circle(rgb, place, 7, colour, 2, cv2.LINE_AA)
    else:
        cv2.drawMarker(rgb, place, colour, marker, 12, 2, cv2.LINE_AA)


def _legend(width: int, title: str) -> NDArray[np.uint8]:
    legend = np.full((_LEGEND_PX, width, 3), 255, dtype=np.uint8)
    cv2.putText(legend, title, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    left = 16 + cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0]
    for name, colour in COLOURS.items():
        cv2.circle(legend, (left + 8, 15), 5, colour, 2, cv2.LINE_AA)
        cv2.putText(legend, name, (left + 18, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        left += 30 + cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0]
    return legend
