"""How long Snakemake plans a cohort, and in how much memory: ``snakemake --dry-run`` over files of a few bytes.

.venv/bin/python -m benchmarks.planning 1000 3000 10000
.venv/bin/python -m benchmarks.planning 10000 --batches 10
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("slides", type=int, nargs="+")
    arguments.add_argument("--batches", type=int, default=1, help="plan the first of so many batches of slides")
    options = arguments.parse_args()
    print("| slides | jobs | wall s | CPU s | CPU ms a slide | peak memory MB |\n|---:|---:|---:|---:|---:|---:|")
    measured = []
    for count in options.slides:
        with tempfile.TemporaryDirectory() as folder:
            draw_cohort(Path(folder), count)
            jobs, wall_s, cpu_s, peak_mb = plan(Path(folder), options.batches)
        planned = count / options.batches
        print(
            f"| {count} | {jobs} | {wall_s:.1f} | {cpu_s:.1f} | {cpu_s / planned * 1000:.2f} | {peak_mb:.0f} |",
            flush=True,
        )
        measured.append((planned, cpu_s, peak_mb))
    if len(measured) > 2:
        planned, cpu_s, peak_mb = np.array(measured).T
        for name, values, unit in (("CPU", cpu_s, "s"), ("memory", peak_mb, "MB")):
            slope, start = np.polyfit(planned, values, 1)
            furthest = np.abs(np.polyval((slope, start), planned) / values - 1).max()
            print(f"{name}: {start:.1f} {unit} and {slope * 1000:.2f} {unit} a thousand slides, within {furthest:.0%}")


def draw_cohort(folder: Path, slides: int) -> None:
    """A sheet of pairs, and a file of a few bytes for each slide in it."""
    (folder / "slides").mkdir()
    names = [f"S{number:06d}" for number in range(slides)]
    rows = ["slide\tki67\the", *(f"{name}\tslides/{name}_ki67.svs\tslides/{name}_he.svs" for name in names)]
    (folder / "slides.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for name in names:
        for stain in ("ki67", "he"):
            (folder / "slides" / f"{name}_{stain}.svs").write_bytes(b"II*\0")


def plan(folder: Path, batches: int) -> tuple[int, float, float, float]:
    """Number of jobs, wall and processor seconds and peak memory in MB of a dry run."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--cores", "2", "--dry-run", "--quiet", "rules"]
    command += ["--config", "slides=slides.tsv"]
    if batches > 1:
        command += ["--batch", f"slides=1/{batches}", "--", "slides"]
    with (folder / "said").open("wb") as said:
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - started
    text = (folder / "said").read_text(encoding="utf-8", errors="replace")
    if status:
        raise SystemExit(text)
    totals = [line.split()[1] for line in text.splitlines() if line.startswith("total")]
    return int(totals[0]), wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


if __name__ == "__main__":
    main()
