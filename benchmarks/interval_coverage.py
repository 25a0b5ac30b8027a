"""How often the intervals of the index hold the true one, over drawn tumours whose nuclei are independent or clustered.

    python -m benchmarks.interval_coverage [--simulations N] [--seed S] [--only WORDS] [--out X.json]

Clustered nuclei: the log odds of being positive are a Gaussian field over the tumour whose correlation falls to 1/e at
0.5 mm, exponentially (``exp(-d / 0.5)``, the longest reach) or as a bell (``exp(-(d / 0.5)²)``); the true index is the
mean of the probability over all such fields.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import binom
from tqdm import tqdm

from ki67.intervals import block_bootstrap, wilson_interval
from ki67.nucleus_squares import TumorNuclei

CELL_UM = 100.0


@dataclass(frozen=True)
class Tumor:
    """A drawn tumour: a square, all of it or half of it in nests, with nuclei whose index is clustered."""

    area_mm2: float = 100.0
    nuclei: int = 20_000
    correlation_um: float = 500.0
    bell: bool = False
    nests: bool = False
    index: float = 0.2
    spread: float = 0.8

    @property
    def cells(self) -> int:
        return round(float(np.sqrt(self.area_mm2)) * 1000 / CELL_UM)

    @property
    def truth(self) -> float:
        """Mean probability of being positive over all fields."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        return float((weights * expit(logit(self.index) + self.spread * nodes)).sum() / weights.sum())


def spectrum(tumor: Tumor) -> NDArray[np.float64]:
    """Square root of the power of the field on a torus twice as wide as the tumour (circulant embedding)."""
    size = 2 * tumor.cells
    along = np.minimum(np.arange(size), size - np.arange(size)) * CELL_UM / tumor.correlation_um
    distance = np.hypot(along[:, None], along)
    correlation = np.exp(-(distance**2)) if tumor.bell else np.exp(-distance)
    return np.sqrt(np.maximum(np.fft.fft2(correlation).real, 0))


def field(root: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """A Gaussian field of unit variance over the tumour's cells."""
    half = len(root) // 2
    return np.fft.ifft2(root * np.fft.fft2(random.standard_normal(root.shape))).real[:half, :half]


def draw_nuclei(tumor: Tumor, root: NDArray[np.float64], random: np.random.Generator) -> TumorNuclei:
    """Nuclei of one drawn tumour."""
    size = tumor.cells
    probability = expit(logit(tumor.index) + tumor.spread * field(root, random))
    inside = np.flatnonzero(field(root, random) > 0 if tumor.nests else np.ones((size, size), dtype=bool))
    cell = random.choice(inside, tumor.nuclei)
    corner = np.column_stack([cell % size, cell // size])
    points = (corner + random.random((tumor.nuclei, 2))) * CELL_UM
    return TumorNuclei(points, random.random(tumor.nuclei) < probability.ravel()[cell])


def coverage_of_clusters(tumor: Tumor, simulations: int, *, seed: int = 0, quiet: bool = True) -> dict[str, float]:
    """Share of drawn tumours whose intervals hold the true index, and how wide these are."""
    root, random, truth = spectrum(tumor), np.random.default_rng(seed), tumor.truth
    rows, indices, blocks = [], [], []
    for number in tqdm(range(simulations), disable=quiet):
        nuclei = draw_nuclei(tumor, root, random)
        positive, total = int(nuclei.positive.sum()), len(nuclei)
        found = block_bootstrap(nuclei, seed=number)
        limits = [wilson_interval(positive, total), (found.low, found.high) if found else (np.nan, np.nan)]
        rows.append([(low <= truth <= high, high - low) for low, high in limits])
        indices.append(positive / total)
        blocks.append(found.blocks if found else 0.0)
    wilson, bootstrap = np.array(rows, dtype=float).mean(axis=0)
    return {
        "simulations": simulations,
        "true_index": truth,
        "blocks_least": float(np.min(blocks)),
        "wilson": float(wilson[0]),
        "wilson_width": float(wilson[1]),
        "block_bootstrap": float(bootstrap[0]),
        "block_bootstrap_width": float(bootstrap[1]),
        "ideal_width": float(2 * 1.96 * np.std(indices)),
    }


def coverage_of_binomials(simulations: int, *, seed: int = 0) -> dict[str, float]:
    """Share of Wilson intervals that hold the true index of independent nuclei: 500 to 50,000 of them, 5 to 50 %."""
    random = np.random.default_rng(seed)
    held = 0
    for _ in range(simulations):
        total, index = round(500 * 100 ** random.random()), random.uniform(0.05, 0.5)
        low, high = wilson_interval(int(random.binomial(total, index)), total)
        held += low <= index <= high
    exact = [exact_coverage(total, index) for total in (500, 1000, 2000, 5000) for index in (0.05, 0.1, 0.2, 0.35, 0.5)]
    return {
        "simulations": simulations,
        "wilson": held / simulations,
        "exact_lowest": min(exact),
        "exact_highest": max(exact),
    }


def exact_coverage(total: int, index: float) -> float:
    """Probability that Wilson's interval of ``total`` independent nuclei holds the index, over all counts."""
    fewest, most = binom.ppf([1e-9, 1 - 1e-9], total, index).astype(int)
    counts = np.arange(fewest, most + 1)
    limits = np.array([wilson_interval(int(count), total) for count in counts])
    inside = (limits[:, 0] <= index) & (index <= limits[:, 1])
    return float(binom.pmf(counts[inside], total, index).sum())


SCENARIOS = {
    "exponential, 100 mm²": Tumor(),
    "bell, 100 mm²": Tumor(bell=True),
    "exponential, 200 mm² half in nests": Tumor(area_mm2=200.0, nests=True),
    "exponential, 25 mm²": Tumor(area_mm2=25.0),
    "independent nuclei, 100 mm²": Tumor(spread=0.0),
}


def main(
    simulations: Annotated[int, typer.Option(help="Of each kind.")] = 4000,
    seed: Annotated[int, typer.Option()] = 0,
    only: Annotated[str, typer.Option(help="Only the tumours whose description holds this.")] = "",
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Measure what the intervals cover."""
    result: dict[str, Any] = {"independent": coverage_of_binomials(simulations, seed=seed)}
    typer.echo(json.dumps(result))
    for name, tumor in ((name, tumor) for name, tumor in SCENARIOS.items() if only in name):
        result[name] = coverage_of_clusters(tumor, simulations, seed=seed, quiet=False)
        typer.echo(f"{name}\t" + "\t".join(f"{key} {value:.4g}" for key, value in result[name].items()))
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
