"""Seconds and memory that scoring a table of nuclei takes: every measure and map.

    python -m benchmarks.index_speed [--nuclei N] [--out X.json]

Nuclei are drawn evenly over a tumour of 5,000 nuclei per mm². Seconds are of the clock and of this process alone, which
differ on a machine that does other work; the peak of memory is that of the whole process, table and imports included.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from ki67.geometry import Mask
from ki67.index import ki67_index

PER_MM2 = 5000


def draw_table(nuclei: int, side_um: float) -> pd.DataFrame:
    """A table of nuclei with the columns that are scored."""
    random = np.random.default_rng(0)
    x_um, y_um = random.uniform(0, side_um, (2, nuclei))
    positive = random.random(nuclei) < 0.1 + 0.2 * x_um / side_um
    columns = {"x_um": x_um, "y_um": y_um, "positive": positive, "in_tumor": np.ones(nuclei, dtype=bool)}
    measured = {"area_um2": random.normal(40, 5, nuclei), "dab_od": np.where(positive, 0.8, 0.1)}
    return pd.DataFrame(columns | {name: values.astype(np.float32) for name, values in measured.items()})


def main(
    nuclei: Annotated[int, typer.Option()] = 2_000_000,
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Measure a slide of so many nuclei."""
    side_um = 1000 * float(np.sqrt(nuclei / PER_MM2))
    table = draw_table(nuclei, side_um)
    pixels = int(np.ceil(side_um / 2))
    tumor = Mask(np.ones((pixels, pixels), dtype=bool), 2.0, "ki67")
    result: dict[str, float] = {"nuclei": nuclei}
    clock, processor = time.perf_counter(), time.process_time()
    ki67_index(table, tumor)
    result |= {
        "wall_s": time.perf_counter() - clock,
        "processor_s": time.process_time() - processor,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    typer.echo("\t".join(f"{key} {value:.4g}" for key, value in result.items()))
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
