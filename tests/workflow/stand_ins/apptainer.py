"""A stand-in for apptainer: writes down how it is called, and runs the command in the current environment."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

FOLDER = Path(os.environ["KI67_STAND_IN"])


def main() -> None:
    """Do what Snakemake asks for."""
    arguments = sys.argv[1:]
    with (FOLDER / "calls").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    if arguments == ["--version"]:
        print("apptainer version 1.3.4")
    elif arguments[:1] == ["pull"]:
        Path(arguments[arguments.index("--name") + 1]).touch()
    elif arguments[:1] == ["exec"]:
        execute(arguments[1:])
    else:
        sys.exit(f"the stand-in for apptainer does not know {arguments}")


def execute(arguments: list[str]) -> None:
    """Run a command as ``exec`` does; folders that are bound elsewhere are found through PYTHONPATH."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", required=True)
    parser.add_argument("--bind", action="append", default=[])
    parser.add_argument("image")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args(arguments)
    if not Path(asked.image).is_file():
        sys.exit(f"there is no image {asked.image}")
    bound = [source for source, _, target in (bind.partition(":") for bind in asked.bind) if target]
    os.environ["PYTHONPATH"] = os.pathsep.join(bound)
    os.chdir(asked.home)
    os.execvp(asked.command[0], asked.command)


if __name__ == "__main__":
    main()
