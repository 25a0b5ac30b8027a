"""Nuclei of a drawn section: their places, kinds, shapes and stain, the same whichever window asks for them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ki67.phantom.artifacts import NO_ARTIFACTS, Artifacts
from ki67.phantom.layout import Layout, Site
from ki67.phantom.look import Look
from ki67.phantom.textures import Floats

KINDS = ("tumor", "stroma", "lymphocyte")
TUMOR, STROMA, LYMPHOCYTE = range(3)

POSITIVE_DAB = 0.20
"""Least amount of DAB in a positive nucleus (clearly tan)."""

NEGATIVE_DAB = 0.06
"""Most DAB in a negative nucleus (hardly seen)."""

REACH_UM = 16.0
"""No nucleus, with its cytoplasm, reaches farther than this from its centre."""

_INFLUENCE_UM = 42.0
"""A place may decide, over its neighbours, about places as far away as this."""

_PLATE_UM = (4.6, 1.5)
"""Semi-axes of a metaphase plate seen from the side."""

_CELL_PLACES = 12
_RANDOMS = 40


@dataclass(frozen=True)
class Section:
    """One stained section of a layout.

    Attributes
    ----------
    index
        0 for the H&E section, 1 for the Ki-67 section.
    to_layout
        ``(3, 3)``: microns of this section's frame to microns of the layout.
    seed
        Nuclei of two sections with the same seed and index are the same.
    tumor_logit, other_positive
        Ki-67: log odds of a tumour nucleus at an average spot; share of positive nuclei in stroma and of lymphocytes.
    heterogeneity
        Ki-67: how much hot spots change the log odds.
    """

    index: int
    layout: Layout
    look: Look
    to_layout: NDArray[np.float64]
    seed: int
    tumor_logit: float = -np.inf
    other_positive: tuple[float, float] = (0.0, 0.0)
    heterogeneity: float = 0.8
    artifacts: Artifacts = NO_ARTIFACTS

    def site(self, x_um: NDArray[np.float64], y_um: NDArray[np.float64]) -> Site:
        """The layout at points ``(M, N)`` of this section's frame."""
        x, y = self.layout_points(x_um, y_um)
        site = self.layout.site(x, y, self.index)
        return replace(site, tissue_um=np.minimum(site.tissue_um, self.artifacts.remaining_um(x, y)))

    def layout_points(
        self, x_um: NDArray[np.float64], y_um: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The same points in the layout's plane."""
        matrix = self.to_layout
        return (
            matrix[0, 0] * x_um + matrix[0, 1] * y_um + matrix[0, 2],
            matrix[1, 0] * x_um + matrix[1, 1] * y_um + matrix[1, 2],
        )


@dataclass(frozen=True)
class Nuclei:
    """Nuclei of a window, one element a nucleus in every array; positions in microns of the section's frame.

    Attributes
    ----------
    randoms
        ``(N, K)`` numbers from 0 to 1 that decide about everything not decided yet.
    """

    x_um: NDArray[np.float64]
    y_um: NDArray[np.float64]
    kind: NDArray[np.int8]
    positive: NDArray[np.bool_]
    semi_major_um: Floats
    semi_minor_um: Floats
    angle: Floats
    harmonics: Floats
    hematoxylin: Floats
    dab: Floats
    vesicular: Floats
    chromatin: Floats
    rim: Floats
    edge_um: Floats
    cytoplasm_um: Floats
    nucleoli: Floats
    texture: Floats

    def __len__(self) -> int:
        return len(self.x_um)

    def take(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> Self:
        """The chosen nuclei."""
        return type(self)(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    @property
    def area_um2(self) -> Floats:
        """Area of each outline, without what other nuclei cover."""
        wobble = 1 + (self.harmonics**2).sum(axis=1) / 2
        return (np.pi * self.semi_major_um * self.semi_minor_um * wobble).astype(np.float32)


@dataclass(frozen=True)
class Window:
    """A rectangle of a section's frame, in microns."""

    x_um: float
    y_um: float
    width_um: float
    height_um: float

    def grown(self, by_um: float) -> Window:
        """The rectangle with a margin on every side."""
        return Window(self.x_um - by_um, self.y_um - by_um, self.width_um + 2 * by_um, self.height_um + 2 * by_um)


@dataclass(frozen=True)
class _Places:
    """Candidates for nuclei: ``x_um``, ``y_um`` ``(N,)``, ``kind`` ``(N,)``, ``randoms`` ``(N, K)``."""

    x_um: NDArray[np.float64]
    y_um: NDArray[np.float64]
    kind: NDArray[np.int8]
    randoms: Floats

    def take(self, which: NDArray[np.bool_]) -> _Places:
        return _Places(self.x_um[which], self.y_um[which], self.kind[which], self.randoms[which])


def place_nuclei(section: Section, window: Window) -> Nuclei:
    """All nuclei that may be seen in a window, in an order that does not depend on the window.

    Places come from jittered lattices whose cells are seeded one by one, so that neighbouring windows agree.
    """
    area = window.grown(REACH_UM + _INFLUENCE_UM)
    spacing = _spacing_um(section.look)
    lattices = [_lattice(section, area, kind, spacing[kind]) for kind in (TUMOR, STROMA, LYMPHOCYTE)]
    places = _Places(*(np.concatenate(parts) for parts in zip(*map(_columns, lattices), strict=True)))
    places, site = _settle(section, places)
    keep = _without_crowding(places, section.look)
    near = _inside(places, window.grown(REACH_UM))
    chosen = keep & near
    return _dress(section, places.take(chosen), _site_of(site, chosen))


def _columns(places: _Places) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int8], Floats]:
    return places.x_um, places.y_um, places.kind, places.randoms


def _spacing_um(look: Look) -> tuple[float, float, float]:
    """Distance between neighbouring places for each kind."""
    return look.nucleus_um * 0.78 + 0.62 * look.cell_um, 12.0, 7.2


def _lattice(section: Section, window: Window, kind: int, spacing_um: float) -> _Places:
    """Jittered lattice points of one kind in a window, drawn cell by cell."""
    cell_um = _CELL_PLACES * spacing_um
    columns = range(int(window.x_um // cell_um), int((window.x_um + window.width_um) // cell_um) + 1)
    rows = range(int(window.y_um // cell_um), int((window.y_um + window.height_um) // cell_um) + 1)
    row, column = np.divmod(np.arange(_CELL_PLACES**2), _CELL_PLACES)
    xs, ys, randoms = [], [], []
    for cell_row in rows:
        for cell_column in columns:
            # Cells left of and above the origin have negative numbers, which a seed may not hold.
            seed = np.random.SeedSequence(
                [section.seed, section.index, kind, cell_row + 1_000_000, cell_column + 1_000_000]
            )
            random = np.random.Generator(np.random.SFC64(seed)).random((_CELL_PLACES**2, _RANDOMS), dtype=np.float32)
            jitter = 0.92 * (random[:, :2] - 0.5)
            xs.append((cell_column * _CELL_PLACES + column + 0.5 * (row % 2) + jitter[:, 0]) * spacing_um)
            ys.append((cell_row * _CELL_PLACES + row + jitter[:, 1]) * spacing_um)
            randoms.append(random[:, 2:])
    x, y = np.concatenate(xs), np.concatenate(ys)
    places = _Places(x, y, np.full(len(x), kind, dtype=np.int8), np.concatenate(randoms))
    return places.take(_inside(places, window))


def _inside(places: _Places, window: Window) -> NDArray[np.bool_]:
    x, y = places.x_um - window.x_um, places.y_um - window.y_um
    return (x >= 0) & (y >= 0) & (x < window.width_um) & (y < window.height_um)


def _site_of(site: Site, which: NDArray[np.bool_]) -> Site:
    return Site(**{field.name: getattr(site, field.name)[which] for field in fields(Site)})


def _settle(section: Section, places: _Places) -> tuple[_Places, Site]:
    """The places where the layout lets a nucleus of their kind be, and the layout there."""
    site = _site_at(section, places)
    chance = places.randoms[:, 0]
    solid = (site.tissue_um > 5) & (site.lumen_um < -3)
    crowded = section.look.density * np.clip(1 + 0.10 * site.crowding, 0.4, 1.05)
    share = np.select(
        [places.kind == TUMOR, places.kind == LYMPHOCYTE],
        [
            np.where(site.nest_um > 4.5, crowded, 0),
            np.where(site.nest_um < -4.5, 0.92 * site.lymphocytes + 0.012, 0.006 * (site.nest_um > 8)),
        ],
        np.where(
            site.nest_um < -5,
            0.36 * section.look.stroma_density * (1 - site.lymphocytes) * np.clip(1 + 0.5 * site.crowding, 0.15, 2),
            0,
        ),
    )
    share = share * np.where(site.fat > 0.5, 0.12, 1) * solid
    settled = chance < share
    return places.take(settled), _site_of(site, settled)


def _rectangle(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values ``(N,)`` as a padded rectangle: cv2.remap takes images of at most 32767 columns."""
    width = 1024
    return np.pad(values, (0, -len(values) % width if len(values) else width)).reshape(-1, width)


def _site_at(section: Section, places: _Places) -> Site:
    """The layout at the places; arrays ``(N,)``."""
    site = section.site(_rectangle(places.x_um), _rectangle(places.y_um))
    return Site(**{field.name: getattr(site, field.name).ravel()[: len(places.x_um)] for field in fields(Site)})


def _without_crowding(places: _Places, look: Look) -> NDArray[np.bool_]:
    """True for nuclei that do not lie on one another: of two rivals the one of higher rank stays.

    Two rounds, so that places freed by a loser's loss are filled again; more would make far places matter.
    """
    radius = np.array([0.5 * look.nucleus_um, 2.6, 3.0], dtype=np.float32)[places.kind]
    points = np.column_stack([places.x_um, places.y_um])
    pairs = cKDTree(points).query_pairs(1.7 * float(radius.max(initial=1.0)), output_type="ndarray").reshape(-1, 2)
    first, second = pairs.T
    distance = np.hypot(*(points[first] - points[second]).T)
    # How much overlap is let through differs from pair to pair, so that some nuclei touch and some overlap.
    tolerance = 0.62 + 0.24 * (places.randoms[first, 1] + places.randoms[second, 1])
    crowded = distance < tolerance * (radius[first] + radius[second])
    first, second = first[crowded], second[crowded]
    first_yields = places.randoms[first, 2] < places.randoms[second, 2]
    loser, winner = np.where(first_yields, first, second), np.where(first_yields, second, first)
    kept = np.ones(len(points), dtype=bool)
    kept[loser] = False
    free = ~kept
    free[loser[kept[winner]]] = False
    free[winner[kept[loser]]] = False
    again = free.copy()
    again[loser[free[winner]]] = False
    return kept | again


def normal_numbers(first: Floats, second: Floats) -> Floats:
    """Standard normal numbers from two uniform ones (Box & Muller 1958)."""
    radius = np.sqrt(-2 * np.log(np.maximum(first, 1e-7)))
    return np.asarray(radius * np.cos(2 * np.pi * second), dtype=np.float32)


def _dress(section: Section, places: _Places, site: Site) -> Nuclei:
    """Give settled places their shape, structure and stain."""
    look, u, kind = section.look, places.randoms, places.kind
    tumor = kind == TUMOR
    mitotic = tumor & _mitotic(look, u)
    normal = [normal_numbers(u[:, index], u[:, index + 1]) for index in range(3, 15, 2)]
    major, minor = _semi_axes(look, kind, normal[0], normal[1])
    major = np.where(mitotic, _PLATE_UM[0] * (0.8 + 0.4 * u[:, 19]), major)
    minor = np.where(mitotic, _PLATE_UM[1], minor)
    angle = np.where(kind == STROMA, _fibre_angle(section, places) + 0.22 * normal[2], np.pi * u[:, 15])
    positive, dab = _brown(section, kind, site, u, normal[3])
    hyperchromatic = np.where(tumor & (u[:, 18] > 0.93), 1.6, 1.0)
    strength = np.array([0.52, 0.72, 0.98])[kind] * look.nucleus_strength * np.where(mitotic, 3.0, hyperchromatic)
    single = {
        "semi_major_um": major,
        "semi_minor_um": minor,
        "angle": angle,
        "hematoxylin": strength * np.exp(0.24 * normal[4]) * unmasked_hematoxylin(dab),
        "dab": dab,
        "vesicular": np.where(tumor, look.vesicular, 0.1) * (0.4 + 0.9 * u[:, 19]) / hyperchromatic * ~mitotic,
        "chromatin": np.where(kind == LYMPHOCYTE, 1.1, 1.0) * look.chromatin * (0.5 + u[:, 20]),
        "rim": np.where(tumor, look.rim, 0.25 * look.rim) * (0.4 + 0.9 * u[:, 21]) * ~mitotic,
        "edge_um": 0.7 + 0.8 * u[:, 20] + 12.0 * np.clip(u[:, 22] - 0.82, 0, 1),
        "cytoplasm_um": np.where(tumor, look.cell_um * (0.7 + 0.6 * u[:, 23]), 0),
        "texture": u[:, 16:18] * 512,
    }
    return Nuclei(
        x_um=places.x_um,
        y_um=places.y_um,
        kind=kind,
        positive=positive,
        harmonics=_harmonics(look, kind, u),
        nucleoli=_nucleoli(look, tumor & ~mitotic, u),
        **{name: np.asarray(values, dtype=np.float32) for name, values in single.items()},
    )


def _mitotic(look: Look, u: Floats) -> NDArray[np.bool_]:
    """Which tumour nuclei are mitotic figures, from digits of a random number that decides about nothing else here."""
    return np.asarray((u[:, 2].astype(np.float64) * 997) % 1 < look.mitoses)


def _semi_axes(
    look: Look, kind: NDArray[np.int8], first: Floats, second: Floats
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Long and short semi-axes in µm from two normal random numbers a nucleus."""
    tumor, lymphocyte = kind == TUMOR, kind == LYMPHOCYTE
    size = np.select(
        [tumor, lymphocyte],
        [look.nucleus_um * np.exp(look.size_spread * first), 6.4 * np.exp(0.08 * first)],
        6.6 * np.exp(0.16 * first),
    )
    elongation = np.select(
        [tumor, lymphocyte],
        [1 + look.elongation * np.abs(second), 1.06 + 0.10 * np.abs(second)],
        np.exp(1.15 + 0.38 * second),
    )
    size, stretch = np.clip(size, 4.5, 1.75 * look.nucleus_um), np.sqrt(np.clip(elongation, 1, 6))
    return np.minimum(size * stretch / 2, REACH_UM - 7), size / stretch / 2


def _fibre_angle(section: Section, places: _Places) -> NDArray[np.float64]:
    """Direction of collagen at the places, in the section's frame."""
    points = section.layout_points(_rectangle(places.x_um), _rectangle(places.y_um))
    angle = section.layout.fibre_direction(*points).ravel()[: len(places.x_um)]
    back = np.linalg.inv(section.to_layout[:2, :2])
    x, y = np.cos(angle), np.sin(angle)
    return np.arctan2(back[1, 0] * x + back[1, 1] * y, back[0, 0] * x + back[0, 1] * y)


def _harmonics(look: Look, kind: NDArray[np.int8], u: Floats) -> Floats:
    """Cosine and sine amplitudes of the outline's radius for 2 to 5 lobes, ``(N, 8)``."""
    lumpy = np.where(kind == TUMOR, look.irregularity, np.where(kind == LYMPHOCYTE, 0.02, 0.05))
    falloff = np.repeat([1.0, 1.0, 0.7, 0.5], 2)
    return ((2 * u[:, 24:32] - 1) * 1.7 * falloff * lumpy[:, None]).astype(np.float32)


def _nucleoli(look: Look, tumor: NDArray[np.bool_], u: Floats) -> Floats:
    """Up to two nucleoli a nucleus: place along both axes (-1 to 1), radius in µm, strength; ``(N, 2, 4)``."""
    place = 0.9 * (u[:, 32:36].reshape(-1, 2, 2) - 0.5)
    present = (u[:, 36:38] < look.nucleoli * np.array([0.8, 0.3])) & tumor[:, None]
    radius = 0.6 + 0.9 * u[:, 34:36][:, ::-1]
    strength = np.where(present, 0.5 + 0.6 * u[:, 32:34], 0)
    return np.concatenate([place, radius[..., None], strength[..., None]], axis=2).astype(np.float32)


def _brown(
    section: Section, kind: NDArray[np.int8], site: Site, u: Floats, normal: Floats
) -> tuple[NDArray[np.bool_], Floats]:
    """Which nuclei are Ki-67 positive, and the amount of DAB in every nucleus."""
    if section.look.stain == "he":
        return np.zeros(len(kind), dtype=bool), np.zeros(len(kind), dtype=np.float32)
    share = np.select(
        [kind == TUMOR, kind == LYMPHOCYTE],
        [positive_share(section, site.hot), section.other_positive[1]],
        section.other_positive[0],
    )
    positive = u[:, 16] < share
    return positive, dab_amounts(section.look, positive, normal, u[:, 17], u[:, 23])


def dab_amounts(look: Look, positive: NDArray[np.bool_], normal: Floats, first: Floats, second: Floats) -> Floats:
    """DAB in each nucleus from a normal and two uniform random numbers: tan to black if positive, else next to none."""
    strong = POSITIVE_DAB + look.dab_median * np.exp(look.dab_spread * normal)
    weak = POSITIVE_DAB + 0.25 * first
    faint = NEGATIVE_DAB * first**3
    return np.where(positive, np.where(second < 0.14, weak, np.minimum(strong, 2.6)), faint).astype(np.float32)


def unmasked_hematoxylin(dab: Floats) -> Floats:
    """Share of the hematoxylin that is still seen in a nucleus with this amount of DAB."""
    return np.where(dab < POSITIVE_DAB, 1, 1 - 0.95 * dab / (dab + 0.06)).astype(np.float32)


def positive_share(section: Section, hot: Floats) -> NDArray[np.float64]:
    """Probability that a tumour nucleus is positive, given the hot-spot field there."""
    if np.isinf(section.tumor_logit):
        return np.full(np.shape(hot), float(section.tumor_logit > 0))
    return 1 / (1 + np.exp(-(section.tumor_logit + section.heterogeneity * np.asarray(hot, dtype=np.float64))))


def logit_for(fraction: float, hot: Floats, heterogeneity: float) -> float:
    """The ``tumor_logit`` that makes this fraction of nuclei with the given hot-spot values positive."""
    if fraction <= 0 or len(hot) == 0:
        return -np.inf
    if fraction >= 1:
        return np.inf
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        mean = float(np.mean(1 / (1 + np.exp(-(middle + heterogeneity * np.asarray(hot, dtype=np.float64))))))
        low, high = (middle, high) if mean < fraction else (low, middle)
    return (low + high) / 2
