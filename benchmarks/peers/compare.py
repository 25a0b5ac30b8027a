"""Speed of our engine beside TIAToolbox and LazySlide: the same slide, the same network, one machine, one run each.

    .venv/bin/python -m benchmarks.peers.compare slide SLIDE.tif --side-px 20480
    .venv/bin/python -m benchmarks.peers.compare run SLIDE.tif --out FOLDER --peer-side-px 8704

The peers need their environments, which ``benchmarks/peers/make_venvs.sh`` makes.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import openslide
import typer
from tqdm import tqdm

import ki67
from benchmarks.peers.slide import MPP, crop_slide, make_slide
from benchmarks.peers.table import comparison_table, times_ours
from ki67.storage import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
OURS = "ki67"

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


class Peer(StrEnum):
    """Tools to compare with; each has a script and an environment of its name."""

    TIATOOLBOX = "tiatoolbox"
    LAZYSLIDE = "lazyslide"


class Mode(StrEnum):
    """Settings that every peer is run with."""

    DEFAULTS = "defaults"
    BEST = "best"


@dataclass(frozen=True)
class Run:
    """One program to run; it gets ``--out`` and writes its record there.

    Attributes
    ----------
    tool, mode
        What the record is called if it fails.
    side_px
        Of the slide it gets.
    """

    tool: str
    mode: str
    command: tuple[str, ...]
    side_px: int


def our_run(slide: Path, model: Path, side_px: int, precision: str = "auto") -> Run:
    """Our engine as the workflow uses it, over all of the slide as the peers."""
    command = (
        sys.executable,
        "-m",
        "ki67",
        "benchmark",
        "inference",
        str(slide),
        "--model",
        str(model),
        "--everything",
        "--precision",
        precision,
        "--loop-seconds",
        "1",
    )
    return Run(OURS, "as shipped" if precision == "auto" else precision, command, side_px)


def peer_run(peer: Peer, mode: Mode, slide: Path, model: Path, side_px: int) -> Run:
    """A peer in its own environment."""
    python = ROOT / "benchmarks" / f".venv-{peer}" / "bin" / "python"
    script = Path(__file__).parent / f"{peer}_run.py"
    weights = model / "weights.safetensors"
    command = (str(python), str(script), str(slide), "--weights", str(weights), "--mode", str(mode))
    return Run(str(peer), str(mode), command, side_px)


def measure(run: Run, folder: Path, timeout_s: float) -> dict[str, Any]:
    """The record of a run, written into the folder; one with ``error`` if it failed or took too long."""
    out = folder / f"{run.tool}_{run.mode.replace(',', '').replace(' ', '_')}.json"
    out.unlink(missing_ok=True)
    failed = {"tool": run.tool, "mode": run.mode, "side_px": run.side_px}
    with out.with_suffix(".log").open("wb") as log:
        try:
            status = _status(run, out, log, timeout_s)
        except subprocess.TimeoutExpired:
            return failed | {"error": f"stopped after {timeout_s:g} s"}
        except OSError as error:
            return failed | {"error": f"does not start: {error.strerror}"}
    if status or not out.exists():
        return failed | {"error": f"failed with status {status}; see {out.with_suffix('.log').name}"}
    return {"tool": run.tool, "mode": run.mode, "side_px": run.side_px} | read_json(out)


def _status(run: Run, out: Path, log: Any, timeout_s: float) -> int:
    """The exit status of a run; its whole group ends with it, so no reading process of it outlives a timeout."""
    command = [*run.command, "--out", str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True) as process:
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _cpuinfo() -> Iterator[str]:
    path = Path("/proc/cpuinfo")
    return iter(path.read_text(encoding="utf-8").splitlines() if path.exists() else [])


def _side_px(slide: Path) -> int:
    with openslide.OpenSlide(slide) as handle:
        return min(handle.dimensions)


@app.command("slide")
def write_slide(
    out: Annotated[Path, typer.Argument(help="TIFF file to write.")],
    side_px: Annotated[int, typer.Option(help="Side at 0.5 µm/px, a multiple of 512.")] = 20480,
    fields: Annotated[int, typer.Option(min=1, help="Distinct fields of tissue.")] = 200,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; all processors if not given.")] = None,
) -> None:
    """Make the slide of the benchmark, full of Ki-67 tissue."""
    make_slide(out, side_px=side_px, fields=fields, seed=seed, workers=workers)


@app.command("run")
def compare(
    slide: Annotated[Path, typer.Argument(help="Tiled pyramidal TIFF at 0.5 µm/px.")],
    out: Annotated[Path, typer.Option(help="Folder for comparison.json, comparison.md and the record of every run.")],
    model: Annotated[Path, typer.Option(help="Folder of the nuclei network.")] = ROOT / "resources/models/nuclei",
    peers: Annotated[list[Peer] | None, typer.Option("--peer", help="Only these peers.")] = None,
    modes: Annotated[list[Mode] | None, typer.Option("--mode", help="Only these settings of the peers.")] = None,
    peer_side_px: Annotated[
        int | None, typer.Option(help="Side of the top-left part that the peers get, a multiple of 512.")
    ] = None,
    timeout_s: Annotated[float, typer.Option(help="Longest that one run may take.")] = 3600,
) -> None:
    """Run our engine and the peers one after the other and write the table."""
    out.mkdir(parents=True, exist_ok=True)
    slide, model, side_px = slide.resolve(), model.resolve(), _side_px(slide)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        peer_slide, peer_side = slide, side_px
        if peer_side_px is not None and peer_side_px < side_px:
            peer_slide, peer_side = Path(scratch).resolve() / "part.tif", peer_side_px
            crop_slide(slide, peer_slide, side_px=peer_side_px)
        runs = [our_run(peer_slide, model, peer_side), our_run(peer_slide, model, peer_side, "bfloat16")]
        runs += [
            peer_run(peer, mode, peer_slide, model, peer_side)
            for peer in peers or list(Peer)
            for mode in modes or list(Mode)
        ]
        if peer_side < side_px:
            # Last, and named after its slide: the ratios are those on the slide that all of them get.
            whole = our_run(slide, model, side_px)
            runs.append(Run(whole.tool, f"{whole.mode}, whole slide", whole.command, side_px))
        records = [measure(run, out, timeout_s) for run in tqdm(runs, desc="runs", unit="run")]
    _write_comparison(out, slide.name, side_px, records)
    typer.echo((out / "comparison.md").read_text(encoding="utf-8"))


def _write_comparison(out: Path, slide: str, side_px: int, records: list[dict[str, Any]]) -> None:
    for record in records:
        if record["tool"] == OURS:
            record.setdefault("version", ki67.__version__)
    ours = records[0].get("tiles_per_second")
    comparison = {
        "slide": slide,
        "side_px": side_px,
        "mpp": MPP,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "runs": [record | {"times_slower_than_ours": times_ours(record, ours)} for record in records],
    }
    write_json(out / "comparison.json", comparison)
    (out / "comparison.md").write_text(comparison_table(records), encoding="utf-8")


if __name__ == "__main__":
    app()
