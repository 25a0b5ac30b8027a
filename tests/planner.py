"""Runs Snakemake in forks of a process that has imported it: importing takes three quarters of what a plan takes.

For plans and for what is refused before a job starts, of which the tests have a hundred. Each fork is as fresh as a
process of its own: nothing of the workflow is imported before, and its arguments, folder and environment are given.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

LONGEST_S = 900


def run_forked(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What ``python -m snakemake ...`` says in a folder, both streams in ``stdout``."""
    assert command[:3] == [sys.executable, "-m", "snakemake"], command
    server = _server()
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as said:
        asked = {"arguments": command[3:], "folder": str(folder), "environment": environment, "said": said.name}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        status = os.waitstatus_to_exitcode(int(server.stdout.readline()))
        return subprocess.CompletedProcess(command, status, said.read())


@cache
def _server() -> Any:
    """The process that forks, which ends with this one."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "tests.planner"]
    return subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve() -> None:
    """Answer each line with the status of the process that did what it asks."""
    import snakemake.cli  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(**json.loads(line))
        print(os.waitpid(child, 0)[1], flush=True)


def _run(arguments: list[str], folder: str, environment: dict[str, str], said: str) -> NoReturn:
    """Become ``python -m snakemake`` in a folder, for no longer than it may take."""
    signal.alarm(LONGEST_S)
    file = os.open(said, os.O_WRONLY | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for stream, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(stream, target)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = folder
    sys.argv[1:] = arguments
    runpy.run_module("snakemake", run_name="__main__", alter_sys=True)
    sys.exit(0)


if __name__ == "__main__":
    serve()
