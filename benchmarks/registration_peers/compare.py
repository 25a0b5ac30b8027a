"""Accuracy of our registration beside VALIS, SIFT and SimpleElastix: the same pairs, as they are and made harder.

    .venv/bin/python -m benchmarks.registration_peers.compare PAIRS.csv --perturb 20 --out X.json

The peers need their environments, which ``benchmarks/registration_peers/make_venvs.sh`` makes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from benchmarks.peers.compare import machine
from benchmarks.registration_peers.cases import Case, make_cases
from benchmarks.registration_peers.jobs import Job
from benchmarks.registration_peers.table import measure, summaries, summary_table
from ki67.errors import Ki67Error
from ki67.registration_evaluation import read_landmark_pairs
from ki67.storage import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
VENVS = ROOT / ".cache" / "registration_peers"
POLL_S = 0.5
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "VIPS_CONCURRENCY",
)


class Tool(StrEnum):
    """Tools to compare; each has a script of its name."""

    OURS = "ours"
    VALIS = "valis"
    SIFT = "sift"
    ELASTIX = "elastix"


VENV_OF = {Tool.VALIS: "valis", Tool.SIFT: "classical", Tool.ELASTIX: "classical"}


def command_of(tool: Tool, venvs: Path) -> list[str]:
    """The program of a tool, which gets the files of the jobs and of the answers; ours runs in this interpreter.

    Raises
    ------
    Ki67Error
        If the environment of a peer is missing.
    """
    if tool is Tool.OURS:
        return [sys.executable, "-m", "benchmarks.registration_peers.ours_run"]
    python = venvs / VENV_OF[tool] / "bin" / "python"
    if not python.exists():
        raise Ki67Error(
            f"{tool} has no environment in {venvs}; make it with benchmarks/registration_peers/make_venvs.sh"
        )
    return [str(python), str(Path(__file__).parent / f"{tool}_run.py")]


def run_tool(tool: Tool, command: list[str], jobs: Sequence[Job], folder: Path, threads: int) -> dict[str, Any]:
    """The answers of a tool to all jobs, with its name and version.

    A job that ends the whole program has an ``error``; the program is started again for those after it.
    """
    name, answers = {"tool": str(tool), "version": ""}, list[dict[str, Any]]()
    environment = dict(os.environ) | dict.fromkeys(THREAD_VARIABLES, str(threads))
    with tqdm(total=len(jobs), desc=tool, unit="pair") as bar:
        while len(answers) < len(jobs):
            place = folder / f"{tool}_{len(answers)}"
            result, error = run_program(command, jobs[len(answers) :], place, environment, bar)
            answers += result.pop("answers", [])
            name |= result
            if error and len(answers) < len(jobs):
                answers.append({"matrix": None, "seconds": None, "details": {}, "error": error})
                bar.update()
    return name | {"answers": answers}


def run_program(
    command: list[str], jobs: Sequence[Job], place: Path, environment: dict[str, str], bar: Any
) -> tuple[dict[str, Any], str]:
    """What a program wrote, nothing if it did not, and how it ended if it did not come to the end of its jobs."""
    place.mkdir()
    out, log = place / "answers.json", place / "log.txt"
    write_json(place / "jobs.json", [asdict(job) for job in jobs])
    files = [str(place / "jobs.json"), str(out)]
    before = bar.n
    with (
        log.open("wb") as sink,
        subprocess.Popen([*command, *files], cwd=ROOT, stdout=sink, stderr=sink, env=environment) as process,
    ):
        status = None
        while status is None:
            status = wait(process)
            bar.update(before + len(written(out).get("answers", [])) - bar.n)
    result = written(out)
    if len(result.get("answers", [])) == len(jobs):
        return result, ""
    return result, f"stopped with status {status}: {last_line(log)}"


def wait(process: subprocess.Popen[bytes]) -> int | None:
    """The exit status of a process, ``None`` if it still runs after a moment."""
    try:
        return process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return None


def written(out: Path) -> dict[str, Any]:
    """What a program has written so far."""
    return read_json(out) if out.exists() else {}


def last_line(log: Path) -> str:
    """The last line that a program wrote."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")


def parse_tools(names: str) -> list[Tool]:
    """Tools from names with commas between them."""
    try:
        return [Tool(name.strip()) for name in names.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{error}; the tools are {', '.join(Tool)}") from error


def compare_tools(
    cases: Sequence[Case], tools: Sequence[Tool], venvs: Path, threads: int, folder: Path
) -> list[dict[str, Any]]:
    """What each tool makes of the cases, one tool after the other: its name, version, summaries and runs."""
    commands = {tool: command_of(tool, venvs) for tool in tools}
    jobs = [case.job for case in cases]
    results = []
    for tool, command in commands.items():
        answered = run_tool(tool, command, jobs, folder, threads)
        runs = [measure(answer, case) for answer, case in zip(answered["answers"], cases, strict=True)]
        name = " ".join(filter(None, (answered["tool"], answered["version"])))
        results.append({"tool": name, "summaries": summaries(name, runs), "runs": runs})
    return results


def compare(
    pairs: Annotated[
        Path, typer.Argument(help="Table of pairs with landmarks, as ki67 evaluate registration reads it.")
    ],
    out: Annotated[Path, typer.Option(help="JSON file of all runs and summaries.")],
    perturb: Annotated[int, typer.Option(min=0, help="Perturbations of each pair, beside the pair as it is.")] = 0,
    tools: Annotated[str, typer.Option(help="Tools to run, with commas between them.")] = ",".join(Tool),
    venvs: Annotated[Path, typer.Option(help="Folder with the environments of the peers.")] = VENVS,
    threads: Annotated[int, typer.Option(min=1, help="Most threads of a tool.")] = min(2, os.cpu_count() or 1),
) -> None:
    """Run the tools one after the other, print the table and write all runs."""
    chosen = parse_tools(tools)
    with tempfile.TemporaryDirectory() as scratch:
        cases = list(make_cases(read_landmark_pairs(pairs), perturb, Path(scratch) / "images"))
        results = compare_tools(cases, chosen, venvs.absolute(), threads, Path(scratch))
    record = {
        "perturbations": perturb,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine() | {"threads": threads},
        "tools": results,
    }
    write_json(out, record)
    typer.echo(summary_table([row for result in results for row in result["summaries"]]))


if __name__ == "__main__":
    typer.run(compare)
