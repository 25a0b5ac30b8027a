"""Processor time and speed of whole-slide readers: the same windows of the same slides, and whether pixels agree.

    .venv/bin/python -m benchmarks.readers.compare SLIDE.svs SLIDE.tif --out table.md

The peers need their environment: see ``README.md`` beside this file.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import openslide
import typer
from tqdm import tqdm

from benchmarks.readers.measure import OURS, READERS, Plan

ROOT = Path(__file__).resolve().parents[2]
PEERS_PYTHON = ROOT / "benchmarks" / ".venv-readers" / "bin" / "python"
REFERENCE = "OpenSlide"
THREADS = (1, 2)
HEADER = (
    "slide",
    "reader",
    "CPU ms per Mpx",
    "× OpenSlide",
    *(f"Mpx/s, {count} thread{'s' * (count > 1)}" for count in THREADS),
    "largest difference",
    "mean difference",
)
LEVEL_TOLERANCE = 1.02


@dataclass(frozen=True)
class Result:
    """One reader on one slide.

    Attributes
    ----------
    slide, reader
        What the table calls them.
    cpu_ms
        Processor milliseconds per megapixel of the result, with one thread.
    speeds
        Megapixels of the result per second of wall time, for each of ``THREADS``.
    largest, mean
        Absolute difference to OpenSlide's pixels, of 255.
    error
        Why there are no numbers.
    """

    slide: str
    reader: str
    cpu_ms: float = math.nan
    speeds: tuple[float, ...] = ()
    largest: int = 0
    mean: float = 0.0
    error: str = ""


def plan_windows(slide: openslide.OpenSlide, *, mpp: float, width_px: int, height_px: int, count: int) -> Plan:
    """Windows edge to edge, ``count`` at most, around the middle of the slide; ``mpp`` to the nearest whole reduction.

    Raises
    ------
    ValueError
        If not one window fits into the slide.
    """
    base_mpp = float(slide.properties[openslide.PROPERTY_NAME_MPP_X])
    downsamples = slide.level_downsamples
    level = max(
        n for n, downsample in enumerate(downsamples) if n == 0 or base_mpp * downsample <= mpp * LEVEL_TOLERANCE
    )
    level_mpp = base_mpp * downsamples[level]
    factor = max(1, round(mpp / level_mpp))
    step = width_px * factor, height_px * factor
    columns, rows = (size // side for size, side in zip(slide.level_dimensions[level], step, strict=True))
    if not columns * rows:
        raise ValueError(f"no window of {step} px fits into {slide.level_dimensions[level]} px")
    corners = [(column * step[0], row * step[1]) for row in range(rows) for column in range(columns)]
    first = max(0, (len(corners) - count) // 2)
    return Plan(
        level, downsamples[level], factor, level_mpp, width_px, height_px, tuple(corners[first : first + count])
    )


def compare_on_slide(path: Path, plan: Plan, *, repeats: int) -> list[Result]:
    """Every reader on one slide, OpenSlide first."""
    names = [REFERENCE, OURS, *(name for name in READERS if name != REFERENCE)]
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{number}.npy" for number, name in enumerate(names)}
        results = []
        for name in tqdm(names, desc=path.name):
            results.append(_result(name, path, plan, repeats, files[name], files[REFERENCE]))
            if name != REFERENCE:
                files[name].unlink(missing_ok=True)
    return results


def comparison_table(results: Sequence[Result]) -> str:
    """Markdown table; the processor time of a slide's OpenSlide is what the others of that slide are compared with."""
    reference = {result.slide: result.cpu_ms for result in results if result.reader == REFERENCE}
    lines = [HEADER, ("---", "---", *["---:"] * (len(HEADER) - 2))]
    lines += [_line(result, reference.get(result.slide, math.nan)) for result in results]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _result(name: str, path: Path, plan: Plan, repeats: int, pixels: Path, reference: Path) -> Result:
    try:
        record = _run(name, path, plan, repeats, pixels)
    except subprocess.CalledProcessError as error:
        return Result(path.name, name, error=error.stderr.strip().splitlines()[-1][:120])
    largest, mean = _difference(np.load(pixels), np.load(reference))
    runs = [record["runs"][str(count)] for count in THREADS]
    return Result(
        path.name,
        f"{name} {record['version']}" if name not in (REFERENCE, OURS) else name,
        runs[0]["cpu_s"] * 1000 / plan.megapixels,
        tuple(plan.megapixels / run["wall_s"] for run in runs),
        largest,
        mean,
    )


def _run(name: str, path: Path, plan: Plan, repeats: int, pixels: Path) -> dict[str, Any]:
    """The record of a reader; each runs in a process of its own, in the environment that has it."""
    module = Path(__file__).with_name("measure.py")
    program = [sys.executable, "-m", "benchmarks.readers.measure"] if name == OURS else [str(PEERS_PYTHON), str(module)]
    options = ["--reader", name, "--plan", json.dumps(asdict(plan)), "--repeats", str(repeats), "--pixels", str(pixels)]
    threads = ["--threads", *map(str, THREADS)]
    command = [*program, str(path.resolve()), *options, *threads]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=600)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _difference(pixels: np.ndarray, reference: np.ndarray) -> tuple[int, float]:
    """Largest and mean absolute difference."""
    difference = np.maximum(pixels, reference) - np.minimum(pixels, reference)
    return int(difference.max()), float(difference.mean())


def _line(result: Result, reference_ms: float) -> tuple[str, ...]:
    if result.error:
        return (result.slide, result.reader, result.error.replace("|", "/"), *["–"] * (len(HEADER) - 3))
    return (
        result.slide,
        result.reader,
        f"{result.cpu_ms:.1f}",
        f"{reference_ms / result.cpu_ms:.2f}",
        *(f"{speed:.0f}" for speed in result.speeds),
        str(result.largest),
        f"{result.mean:.3f}",
    )


def main(
    slides: Annotated[list[Path], typer.Argument(help="Slides that give their microns per pixel.", exists=True)],
    mpp: Annotated[float, typer.Option(help="Microns per pixel of the result, about.")] = 0.5,
    width_px: Annotated[int, typer.Option(help="Of a window.")] = 1600,
    height_px: Annotated[int, typer.Option(help="Of a window.")] = 1088,
    windows: Annotated[int, typer.Option(help="Windows of a slide, at most.")] = 12,
    repeats: Annotated[int, typer.Option(help="Passes, of which the fastest counts.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Markdown file for the table.")] = None,
) -> None:
    """Measure all readers on all slides and print the table."""
    results: list[Result] = []
    for path in slides:
        with openslide.OpenSlide(path) as slide:
            plan = plan_windows(slide, mpp=mpp, width_px=width_px, height_px=height_px, count=windows)
        results += compare_on_slide(path, plan, repeats=repeats)
    table = comparison_table(results)
    typer.echo(table)
    if out is not None:
        out.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
