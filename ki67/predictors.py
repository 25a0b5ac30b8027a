"""What anything that answers for windows of a slide has in common, be it a network or not.

Nothing here needs PyTorch: networks of TensorFlow answer in processes that must not import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Precision = Literal["auto", "int8", "bfloat16", "float32"]
"""In which numbers a network computes."""
NUCLEUS_CLASSES = (
    "background",
    "positive_nucleus",
    "positive_membrane",
    "negative_nucleus",
    "negative_membrane",
)
WHOLE_NUCLEUS_CLASSES = ("background", "positive", "negative")
"""Of a network that knows no membranes."""
STRIDE_PX = 32
"""Sides of windows are multiples of this: networks halve them up to five times."""


class PredictorSpec(Protocol):
    """What has to be known of a predictor to show it a slide; a ``ki67.networks.NetworkSpec`` says more."""

    @property
    def name(self) -> str:
        """By which people know it."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """One name for each channel of its answer."""
        ...

    @property
    def mpp(self) -> float:
        """Microns per pixel of what it is shown."""
        ...

    @property
    def threshold(self) -> float:
        """Probability from which a pixel belongs to the class, where there is only one."""
        ...


@dataclass(frozen=True)
class FixedSpec:
    """What is known of a predictor that has no ``ki67.networks.NetworkSpec``."""

    name: str
    classes: tuple[str, ...] = NUCLEUS_CLASSES
    mpp: float = 0.5
    threshold: float = 0.5


class Device(Protocol):
    """Where a predictor runs; a ``torch.device`` is one."""

    @property
    def type(self) -> str:
        """``"cpu"`` or ``"cuda"``."""
        ...


@dataclass(frozen=True)
class NamedDevice:
    """A device known by its kind alone."""

    type: str = "cpu"


class Predictor(Protocol):
    """Anything that turns tiles into class probabilities: a network, or a stand-in with a known answer."""

    @property
    def spec(self) -> PredictorSpec:
        """What is known of it."""
        ...

    @property
    def device(self) -> Device:
        """Where it runs."""
        ...

    @property
    def block_px(self) -> tuple[int, int]:
        """Height and width of the largest window it should be given."""
        ...

    @property
    def halo_px(self) -> int:
        """How far beyond a window, on every side, it should be shown what lies around."""
        ...

    def predict_levels(self, batch: NDArray[np.uint8], halo_px: int) -> NDArray[np.uint8]:
        """Probabilities uint8 ``(N, C, H - 2 * halo, W - 2 * halo)``, 255 for 1, of RGB tiles ``(N, H, W, 3)``."""
        ...


def predict_image(network: Predictor, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Probabilities 0-255 ``(C, H, W)`` of a whole image ``(H, W, 3)``, mirrored at its edges to a fitting size."""
    height, width = rgb.shape[:2]
    padded = np.pad(rgb, ((0, -height % STRIDE_PX), (0, -width % STRIDE_PX), (0, 0)), mode="symmetric")
    return network.predict_levels(padded[None], 0)[0, :, :height, :width]
