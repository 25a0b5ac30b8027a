"""What goes wrong with sections: folds, a patch out of focus, pen on the glass, a part that is missing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ki67.phantom.textures import Floats, Noise

Points = NDArray[np.float64]

DEFOCUS_UM = 2.4
"""Standard deviation of the blur in a patch out of focus."""

PENS: dict[str, tuple[float, float, float]] = {
    "green": (1.9, 0.45, 1.2),
    "blue": (2.2, 1.3, 0.25),
    "black": (2.4, 2.3, 2.1),
}
"""Natural optical density of marker ink in red, green and blue."""


_WAVES = Noise(texture=0, wavelength_um=500.0, angle=0.3, offset_um=(0.0, 0.0))


@dataclass(frozen=True)
class Line:
    """A line through a point, with the direction of its normal; microns of the layout."""

    x_um: float
    y_um: float
    normal: float

    def distance_um(self, x_um: Points, y_um: Points) -> Points:
        """Signed distance of points, positive on the side of the normal."""
        return (x_um - self.x_um) * np.cos(self.normal) + (y_um - self.y_um) * np.sin(self.normal)


@dataclass(frozen=True)
class Disc:
    """A disc; microns of the layout."""

    x_um: float
    y_um: float
    radius_um: float

    def depth_um(self, x_um: Points, y_um: Points) -> Points:
        """Signed distance to the rim, positive inside."""
        return self.radius_um - np.hypot(x_um - self.x_um, y_um - self.y_um)


@dataclass(frozen=True)
class Artifacts:
    """The artifacts of one section; ``None`` where it has none of a kind.

    Attributes
    ----------
    fold_line, fold_width_um
        Tissue lies double along this line.
    defocus_disc
        Where the scanner's focus failed.
    pen_circle, pen_width_um, pen_density
        A ring of ink on the cover glass, its width, and its natural optical density.
    missing_side
        Tissue on the side of this line's normal is missing.
    waves
        Make these lines look drawn by accident.
    """

    fold_line: Line | None = None
    fold_width_um: float = 45.0
    defocus_disc: Disc | None = None
    pen_circle: Disc | None = None
    pen_width_um: float = 350.0
    pen_density: tuple[float, float, float] = PENS["green"]
    missing_side: Line | None = None
    waves: Noise = _WAVES

    def remaining_um(self, x_um: Points, y_um: Points) -> Floats:
        """Signed distance to the missing part, positive in what remains."""
        if self.missing_side is None:
            return np.full(np.shape(x_um), 1e6, dtype=np.float32)
        edge = -self.missing_side.distance_um(x_um, y_um) + 40 * self.waves.sample(x_um, y_um)
        return edge.astype(np.float32)

    def fold(self, x_um: Points, y_um: Points) -> Floats:
        """How many more layers of tissue lie here, 0 to about 1.5."""
        if self.fold_line is None:
            return np.zeros(np.shape(x_um), dtype=np.float32)
        across = self.fold_line.distance_um(x_um, y_um) + 60 * self.waves.sample(x_um, y_um)
        return (1.5 * np.clip((self.fold_width_um - np.abs(across)) / 8, 0, 1)).astype(np.float32)

    def defocus(self, x_um: Points, y_um: Points) -> Floats:
        """Share of defocused light, 0 to 1."""
        if self.defocus_disc is None:
            return np.zeros(np.shape(x_um), dtype=np.float32)
        return np.clip(self.defocus_disc.depth_um(x_um, y_um) / 100, 0, 1).astype(np.float32)

    def pen(self, x_um: Points, y_um: Points) -> Floats:
        """Thickness of ink, 0 to about 1."""
        if self.pen_circle is None:
            return np.zeros(np.shape(x_um), dtype=np.float32)
        # A hand trembles in longer waves than tissue tears.
        waves = self.waves.sample(x_um / 5, y_um / 5)
        across = np.abs(self.pen_circle.depth_um(x_um, y_um) + 0.12 * self.pen_circle.radius_um * waves)
        # A pen that runs dry: two thirds of a ring.
        angle = np.arctan2(y_um - self.pen_circle.y_um, x_um - self.pen_circle.x_um)
        ink = np.clip((self.pen_width_um / 2 - across) / 15, 0, 1) * np.clip((2.1 - np.abs(angle)) * 20, 0, 1)
        return (ink * np.clip(0.85 + 0.12 * waves, 0, 1)).astype(np.float32)


NO_ARTIFACTS = Artifacts()
