"""Write lock files, conda environments and Dockerfiles from what is installed: what is asked for, all that it needs.

Usage: .venv/bin/python .ci/lock.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {"requirements.in": "requirements.lock", "requirements-test.in": "requirements-test.lock"}
SLIDES = "imagecodecs numpy opencv-python-headless openslide-bin openslide-python pillow simplejpeg tifffile"
TABLES = "geopandas ome-zarr pandas pyarrow shapely zarr"
ENVIRONMENTS = {
    "registration": f"{SLIDES} matplotlib numba scipy SimpleITK-SimpleElastix",
    "torch": f"{SLIDES} {TABLES} matplotlib numba pyyaml safetensors scikit-image scikit-learn scipy "
    "segmentation-models-pytorch torch torchvision tqdm",
    "tensorflow": f"{SLIDES} {TABLES} keras matplotlib numba pyyaml scikit-image scikit-learn scipy stardist "
    "tensorflow tqdm",
    "report": f"{SLIDES} {TABLES} anndata dask jinja2 matplotlib numba scikit-image scipy spatialdata statsmodels tqdm",
}
# What starts the jobs, on a cluster as well: Snakemake, and what the rules and the check of the sheet import.
DRIVERS = {"driver": f"{SLIDES} jsonschema pyyaml snakemake[reports] snakemake-executor-plugin-slurm"}
# Of the environments and images, whatever Python this machine has.
PYTHON = "3.11.13"
PIP = "25.2"
ENVIRONMENT_HEADER = f"""# Written by .ci/lock.py, with the versions of requirements.lock.
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=={PYTHON}
  - pip=={PIP}
  - pip:
"""
# An image holds libraries alone: Snakemake mounts the folder of the workflow.
DOCKERFILE = """# Written by .ci/lock.py, with the versions of requirements.lock. In the folder of the workflow:
#   docker build -f envs/{name}.Dockerfile -t ki67-{name} envs
FROM python:{python}-slim-bookworm
RUN pip install --no-cache-dir --disable-pip-version-check pip=={pip} \\
    && pip install --no-cache-dir --no-deps \\
{pins}
"""
HEADER = "# Written by .ci/lock.py from {source}, for Python 3.11 on Linux; install with: pip install --no-deps -r\n"


def direct_requirements(path: Path) -> Iterator[Requirement]:
    """The requirements a file names, those of the files it refers to included."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            yield from direct_requirements(path.parent / text.removeprefix("-r "))
        elif text:
            yield Requirement(text)


def closure(requirements: Iterator[Requirement]) -> dict[str, str]:
    """Version of every distribution the requirements need on this machine, by its canonical name."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        distribution = metadata.distribution(name)
        if not requirement.specifier.contains(distribution.version, prereleases=True):
            raise SystemExit(f"{requirement} is needed, but {name} {distribution.version} is installed")
        versions[name] = distribution.version
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting.extend(needed_by(distribution, extra))
    return dict(sorted(versions.items()))


def needed_by(distribution: metadata.Distribution, extra: str) -> Iterator[Requirement]:
    """What a distribution with one of its extras (or none) asks for on this machine."""
    for text in distribution.requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def lock_text(source: str) -> str:
    """Content of the lock file of a requirements file."""
    pins = closure(direct_requirements(ROOT / source))
    return HEADER.format(source=source) + "".join(f"{name}=={version}\n" for name, version in pins.items())


def pinned(names: str) -> list[str]:
    """The distributions of a software stack and all that they need, each with its version."""
    return [f"{name}=={version}" for name, version in closure(Requirement(name) for name in names.split()).items()]


def environment_text(names: str) -> str:
    """Content of the file of a conda environment."""
    return ENVIRONMENT_HEADER + "".join(f"      - {pin}\n" for pin in pinned(names))


def dockerfile_text(name: str) -> str:
    """Content of the Dockerfile of a software stack."""
    pins = " \\\n".join(f"       {pin}" for pin in pinned(ENVIRONMENTS[name]))
    return DOCKERFILE.format(name=name, python=PYTHON, pip=PIP, pins=pins)


def files() -> dict[str, str]:
    """Content of every file this script writes, by path."""
    locks = {lock: lock_text(source) for source, lock in LOCKS.items()}
    environments = {f"envs/{name}.yaml": environment_text(names) for name, names in (ENVIRONMENTS | DRIVERS).items()}
    return locks | environments | {f"envs/{name}.Dockerfile": dockerfile_text(name) for name in ENVIRONMENTS}


def main() -> None:
    """Write the files, or with ``--check`` say which one differs from what is installed."""
    for name, text in files().items():
        if "--check" not in sys.argv:
            (ROOT / name).write_text(text, encoding="utf-8")
        elif (ROOT / name).read_text(encoding="utf-8") != text:
            raise SystemExit(f"{name} differs from what is installed; run: .venv/bin/python .ci/lock.py")


if __name__ == "__main__":
    main()
