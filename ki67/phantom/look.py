"""How one slide looks: stain vectors and strengths, size and structure of nuclei, tints, focus, scanner."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ki67.errors import Stain

Triple = tuple[float, float, float]

# Optical density per unit amount in red, green and blue (Ruifrok & Johnston 2001, and the bluer, greyer and redder
# variants that scanners show); a look mixes two of a kind.
HEMATOXYLIN_HE = ((0.65, 0.70, 0.29), (0.55, 0.77, 0.33), (0.68, 0.66, 0.31), (0.60, 0.73, 0.20))
HEMATOXYLIN_KI67 = ((0.65, 0.70, 0.29), (0.82, 0.52, 0.22), (0.70, 0.60, 0.38), (0.76, 0.58, 0.30), (0.66, 0.66, 0.16))
EOSIN = ((0.07, 0.97, 0.22), (0.10, 0.92, 0.36), (0.16, 0.88, 0.45), (0.04, 0.84, 0.52), (0.18, 0.93, 0.30))
DAB = ((0.27, 0.57, 0.78), (0.40, 0.58, 0.71), (0.20, 0.50, 0.84), (0.34, 0.60, 0.72), (0.30, 0.52, 0.80))


@dataclass(frozen=True)
class Look:
    """Everything about a section that is not where things are.

    Attributes
    ----------
    hematoxylin_vector, eosin_vector, dab_vector
        Optical density (base 10) in red, green, blue of one unit of stain.
    white
        Red, green, blue of empty glass, 0 to 255.
    nucleus_strength
        Hematoxylin in nuclei, 1 as usual.
    stroma_amounts, cytoplasm_amounts, ground_amounts
        Hematoxylin, eosin and DAB in collagen, in the cytoplasm of tumour cells, and everywhere in tissue.
    dab_median, dab_spread
        Median amount of DAB in positive nuclei, and standard deviation of its logarithm.
    nucleus_um, size_spread, elongation, irregularity
        Tumour nuclei: mean diameter, standard deviation of its logarithm, mean aspect ratio minus 1, lumpiness.
    vesicular, chromatin, rim, nucleoli
        Their structure, 0 to 1.
    density
        Share of places in a nest that hold a nucleus.
    stroma_density
        The same in stroma, 1 as usual.
    cell_um
        Mean distance from nucleus to the cell border.
    fibre, cleft
        Contrast of collagen and share of gaps in it, 0 to 1.
    blur_um, noise, sharpening
        Standard deviation of the focus and of the camera's noise (grey levels), strength of the unsharp mask.
    mitoses
        Share of tumour nuclei that are mitotic figures, plates of dense chromatin.
    """

    stain: Stain
    hematoxylin_vector: Triple
    eosin_vector: Triple
    dab_vector: Triple
    white: Triple
    nucleus_strength: float
    stroma_amounts: Triple
    cytoplasm_amounts: Triple
    ground_amounts: Triple
    dab_median: float
    dab_spread: float
    nucleus_um: float
    size_spread: float
    elongation: float
    irregularity: float
    vesicular: float
    chromatin: float
    rim: float
    nucleoli: float
    density: float
    stroma_density: float
    cell_um: float
    fibre: float
    cleft: float
    blur_um: float
    noise: float
    sharpening: float
    mitoses: float = 0.0


def _mixed(rng: np.random.Generator, vectors: tuple[Triple, ...]) -> Triple:
    """A stain vector between two of the given ones, of length 1."""
    first, second = (np.array(vectors[index]) for index in rng.integers(len(vectors), size=2))
    mixed = first + rng.uniform(0, 1) * (second - first) + rng.normal(0, 0.02, 3)
    mixed = np.clip(mixed, 0.01, None)
    red, green, blue = mixed / np.linalg.norm(mixed)
    return float(red), float(green), float(blue)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _log_between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _white(rng: np.random.Generator) -> Triple:
    """The colour of empty glass: from pure white to greyish, yellowish or bluish."""
    level, warmth, tint = rng.uniform(228, 255), rng.normal(0, 5) * (rng.random() < 0.6), rng.normal(0, 2)
    red, green, blue = np.clip([level + warmth, level + tint, level - 1.5 * warmth], 195, 255)
    return float(red), float(green), float(blue)


def random_look(rng: np.random.Generator, stain: Stain, *, stain_strength: float | None = None) -> Look:
    """A look from the whole range that slides may have.

    Parameters
    ----------
    stain_strength
        Multiplies every stain; drawn from 0.65 to 1.5 where it is ``None``.
    """
    strength = _log_between(rng, 0.65, 1.5) if stain_strength is None else stain_strength
    if stain == "he":
        hematoxylin = _mixed(rng, HEMATOXYLIN_HE)
        stroma = (_between(rng, 0.02, 0.10), _between(rng, 0.15, 0.42), 0.0)
        cytoplasm = (_between(rng, 0.05, 0.22), _between(rng, 0.12, 0.36), 0.0)
        ground = (_between(rng, 0.0, 0.05), _between(rng, 0.02, 0.10), 0.0)
    else:
        hematoxylin = _mixed(rng, HEMATOXYLIN_KI67)
        brown = _log_between(rng, 0.004, 0.07)
        stroma = (_between(rng, 0.02, 0.14), 0.0, brown * _between(rng, 0.3, 1.2))
        cytoplasm = (_between(rng, 0.02, 0.14), 0.0, brown * _between(rng, 0.3, 1.6))
        ground = (_between(rng, 0.0, 0.05), 0.0, brown * _between(rng, 0.0, 0.6))
    scaled = [tuple(strength * amount for amount in amounts) for amounts in (stroma, cytoplasm, ground)]
    return Look(
        stain=stain,
        hematoxylin_vector=hematoxylin,
        eosin_vector=_mixed(rng, EOSIN),
        dab_vector=_mixed(rng, DAB),
        white=_white(rng),
        nucleus_strength=strength * (_log_between(rng, 0.7, 1.15) if stain == "he" else _log_between(rng, 0.45, 1.15)),
        stroma_amounts=scaled[0],  # type: ignore[arg-type]
        cytoplasm_amounts=scaled[1],  # type: ignore[arg-type]
        ground_amounts=scaled[2],  # type: ignore[arg-type]
        dab_median=strength * _log_between(rng, 0.28, 1.25),
        dab_spread=_between(rng, 0.25, 0.65),
        nucleus_um=_between(rng, 8.8, 12.6),
        size_spread=_between(rng, 0.08, 0.24),
        elongation=_between(rng, 0.12, 0.55),
        irregularity=_between(rng, 0.02, 0.07),
        vesicular=_between(rng, 0.0, 0.65),
        chromatin=_between(rng, 0.12, 0.45),
        rim=_between(rng, 0.0, 0.6),
        nucleoli=_between(rng, 0.0, 1.0),
        density=_between(rng, 0.75, 1.0),
        stroma_density=_log_between(rng, 0.4, 1.4),
        cell_um=_between(rng, 2.5, 6.0),
        fibre=_between(rng, 0.3, 0.9),
        cleft=_between(rng, 0.0, 0.8),
        blur_um=_log_between(rng, 0.3, 0.95),
        noise=_between(rng, 0.5, 4.0),
        sharpening=_between(rng, 0.0, 0.8) * float(rng.random() < 0.6),
    )
