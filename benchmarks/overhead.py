"""What the workflow costs beyond its stages: wall time of a run beside the seconds that its stages need.

    .venv/bin/python -m benchmarks.overhead [--slides 2] [--area-mm2 10] [--cores 1]

Draws slides, scores them in a temporary folder with a thread a job, and adds up what every job took from start to end
of its Python (the benchmark files) and what its stage took once everything was imported (the logs). The ratios are
those of wall time, times cores, to these sums: 1 is a run without a gap.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NETWORK_RULES = ("tumor", "transfer", "nuclei", "register")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--slides", type=int, default=2)
    arguments.add_argument("--area-mm2", type=float, default=10)
    arguments.add_argument("--cores", type=int, default=1)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), options.slides, options.area_mm2)
        wall_s, cpu_s = score(Path(folder), options.cores)
        jobs, stages = job_seconds(Path(folder) / "logs"), stage_seconds(Path(folder) / "logs")
    print("| rule | jobs s | stages s |\n|---|---:|---:|")
    for rule in jobs:
        print(f"| {rule} | {jobs[rule]:.1f} | {stages[rule]:.1f} |")
    total, floor = sum(jobs.values()), sum(stages.values())
    print(
        f"wall {wall_s:.1f} s, processor {cpu_s:.1f} s, jobs {total:.1f} s, stages {floor:.1f} s, {options.cores} cores"
    )
    print(f"wall over jobs {wall_s * options.cores / total:.2f}, over stages {wall_s * options.cores / floor:.2f}")


def draw(folder: Path, slides: int, area_mm2: float) -> None:
    """Pairs of sections with the seeds 1, 2, ... and their sheet."""
    rows = ["slide\tki67\the"]
    for seed in range(1, slides + 1):
        command = [sys.executable, "-m", "ki67", "phantom", "--out", str(folder / f"S{seed}"), "--workers", "1"]
        subprocess.run([*command, "--area-mm2", str(area_mm2), "--seed", str(seed)], cwd=ROOT, check=True)
        rows.append(f"S{seed}\tS{seed}/ki67.tif\tS{seed}/he.tif")
    (folder / "slides.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def score(folder: Path, cores: int) -> tuple[float, float]:
    """Wall and processor seconds of a run of the whole workflow."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--cores", str(cores), "--quiet", "all", "--set-threads", *(f"{rule}=1" for rule in NETWORK_RULES)]
    with (folder / "said").open("wb") as said:
        started = time.monotonic()
        run = subprocess.Popen([*command, "--config", "slides=slides.tsv"], stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(run.pid, 0)
        wall_s = time.monotonic() - started
    if status:
        raise SystemExit((folder / "said").read_text(encoding="utf-8", errors="replace"))
    return wall_s, used.ru_utime + used.ru_stime


def job_seconds(logs: Path) -> dict[str, float]:
    """Seconds of all jobs of each rule, by their benchmark files."""
    seconds: dict[str, float] = defaultdict(float)
    for path in sorted(logs.glob("*/*.tsv")):
        seconds[path.parent.name] += float(path.read_text(encoding="utf-8").splitlines()[1].split("\t")[0])
    return seconds


def stage_seconds(logs: Path) -> dict[str, float]:
    """Seconds of the stages, by the line that closes the log of each job."""
    seconds: dict[str, float] = defaultdict(float)
    for path in sorted(logs.glob("*/*.log")):
        found = re.findall(r", ([0-9.]+) s$", path.read_text(encoding="utf-8"), re.MULTILINE)
        seconds[path.parent.name] += float(found[-1])
    return seconds


if __name__ == "__main__":
    main()
