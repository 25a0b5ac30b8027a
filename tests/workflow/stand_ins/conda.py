"""A stand-in for conda: makes an environment of what is installed here, with nothing in it that the specification lacks.

Snakemake calls it as it calls conda. ``env create`` makes a virtual environment that shows links to the installed
distributions of the specification alone, and tells of every module that a job takes from elsewhere. What cannot be tried
in this way is whether the channel has Python and pip in these versions.
"""

from __future__ import annotations

import json
import os
import sys
import venv
from importlib import metadata
from pathlib import Path

import yaml

FOLDER = Path(os.environ["KI67_STAND_IN"])
# Snakemake puts the libraries of whoever started it behind those of the environment, where they would hide what is missing.
SITECUSTOMIZE = """
import atexit, os, pathlib, sys

def tell():
    home = pathlib.Path(os.environ["KI67_STAND_IN"])
    files = {name: getattr(module, "__file__", None) or "" for name, module in list(sys.modules.items())}
    foreign = {name.partition(".")[0] for name, file in files.items() if file.startswith(os.environ["KI67_DRIVER"])}
    with (home / "foreign").open("a") as out:
        out.write("".join(f"{name}\\n" for name in sorted(foreign)))

if sys.prefix != os.environ["KI67_DRIVER"]:
    atexit.register(tell)
"""


def create(file: Path, prefix: Path) -> None:
    """An environment at ``prefix`` with the distributions under ``pip`` in ``file``, which must be installed here."""
    venv.create(prefix, with_pip=False, symlinks=True)
    (site_packages,) = prefix.glob("lib/python*/site-packages")
    (pip,) = [entry["pip"] for entry in yaml.safe_load(file.read_text())["dependencies"] if isinstance(entry, dict)]
    for pin in pip:
        name, version = pin.split("==")
        distribution = metadata.distribution(name)
        if distribution.version != version:
            sys.exit(f"{pin} is asked for, and {distribution.version} is installed")
        for top in {path.parts[0] for path in distribution.files or []} - {"..", "__pycache__"}:
            link = site_packages / top
            if not link.is_symlink():
                link.symlink_to(Path(str(distribution.locate_file(top))).resolve())
    (site_packages / "sitecustomize.py").write_text(SITECUSTOMIZE)


def main() -> None:
    """Do what Snakemake asks for, and write down the call."""
    arguments = sys.argv[1:]
    with (FOLDER / "calls").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    if arguments == ["--version"]:
        print("conda 24.7.1")
    elif arguments == ["info", "--json"]:
        print(json.dumps({"conda_prefix": str(FOLDER), "platform": "linux-64"}))
    elif arguments[:1] == ["config"]:
        print(json.dumps({"get": {"channel_priority": "strict"}}))
    elif arguments[:2] == ["env", "create"]:
        create(Path(arguments[arguments.index("--file") + 1]), Path(arguments[arguments.index("--prefix") + 1]))
    elif arguments[:1] != ["clean"]:
        sys.exit(f"the stand-in for conda does not know {arguments}")


if __name__ == "__main__":
    main()
