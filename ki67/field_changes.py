"""Changes of a field that must not change what is found in it: other stains, focus, scale and compression."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ki67.stain import OD_TO_HED, optical_density


@dataclass(frozen=True)
class FieldChange:
    """What is done to an image, in this order.

    Attributes
    ----------
    hematoxylin, dab
        Factors of the amounts of the stains.
    blur_px
        Standard deviation of a Gaussian, in pixels of the image.
    mpp
        Microns per pixel that the image is given at; its own if not given.
    jpeg_quality
        Of the file it is saved as; not saved if not given.
    """

    hematoxylin: float = 1.0
    dab: float = 1.0
    blur_px: float = 0.0
    mpp: float | None = None
    jpeg_quality: int | None = None

    def apply(self, rgb: NDArray[np.uint8], mpp: float) -> tuple[NDArray[np.uint8], float]:
        """The image uint8 ``(H, W, 3)`` changed, and its microns per pixel then."""
        if (self.hematoxylin, self.dab) != (1.0, 1.0):
            rgb = restained(rgb, self.hematoxylin, self.dab)
        if self.blur_px > 0:
            rgb = np.asarray(cv2.GaussianBlur(rgb, (0, 0), self.blur_px), dtype=np.uint8)
        if self.mpp is not None:
            factor = mpp / self.mpp
            way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
            rgb, mpp = np.asarray(cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=way)), self.mpp
        if self.jpeg_quality is not None:
            encoded = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality])[1]
            decoded = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), dtype=np.uint8)
            rgb = np.ascontiguousarray(decoded[..., ::-1])
        return rgb, mpp


UNCHANGED = FieldChange()
CHANGES: dict[str, FieldChange] = {
    "hematoxylin_less": FieldChange(hematoxylin=0.7),
    "hematoxylin_more": FieldChange(hematoxylin=1.3),
    "dab_less": FieldChange(dab=0.7),
    "dab_more": FieldChange(dab=1.3),
    "blurred": FieldChange(blur_px=1.0),
    "mpp_0.25": FieldChange(mpp=0.25),
    "mpp_0.5": FieldChange(mpp=0.5),
    "jpeg_60": FieldChange(jpeg_quality=60),
}
"""What scores should not depend on."""


def restained(rgb: NDArray[np.uint8], hematoxylin: float, dab: float) -> NDArray[np.uint8]:
    """An image ``(..., 3)`` with its amounts of hematoxylin and DAB multiplied (vectors of Ruifrok & Johnston 2001)."""
    amounts = optical_density(rgb) @ OD_TO_HED
    amounts[..., 0] *= hematoxylin
    amounts[..., 2] *= dab
    density = amounts @ np.linalg.inv(OD_TO_HED)
    return np.clip(np.rint(255 * 10.0**-density), 0, 255).astype(np.uint8)
