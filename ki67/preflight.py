"""What is looked at before the first job of a run: that results can be written, dates, and the networks' weights.

Each would otherwise fail the same stage of every slide, after hours.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from ki67.errors import ConfigError, Ki67Error

LEAST_FREE_BYTES = 50 * 2**20  # what a slide of 100 mm² leaves, with its tables and pictures
_TOLERANCE_S = 2.0


def check_writable(folder: Path) -> None:
    """Refuse a folder of results that cannot be written to, or has hardly any room.

    Parameters
    ----------
    folder
        Asked itself where it exists, else the working directory.

    Raises
    ------
    Ki67Error
        With what the system says and what to do.
    """
    place = folder if folder.is_dir() else Path()
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"0")
    except OSError as error:
        raise Ki67Error(
            f"nothing can be written to {folder}/ ({error.strerror}); make it writable or make room, or run with "
            "--directory in a folder that is"
        ) from error
    state = os.statvfs(place)
    free = state.f_bavail * state.f_frsize
    if free < LEAST_FREE_BYTES:
        raise Ki67Error(
            f"the disk of {folder}/ has {free / 2**20:.0f} MB left, less than a slide needs; make room before the run"
        )


def check_dates(files: Mapping[str, Iterable[str]]) -> None:
    """Refuse slides that are dated in the future: whatever is made of them would count as older than they are.

    Parameters
    ----------
    files
        Files that exist, by slide.

    Raises
    ------
    ConfigError
        At the first of them.
    """
    now = time.time()
    for slide, paths in files.items():
        for path in paths:
            dated = Path(path).stat().st_mtime
            if dated > now + _TOLERANCE_S:
                raise ConfigError(
                    f"{slide}: {Path(path).name} is dated {datetime.fromtimestamp(dated):%Y-%m-%d %H:%M}, which is in "
                    "the future; correct the clock of this machine, or the date of the file with the command touch"
                )


def date_back(results: Path) -> int:
    """Give files that a clock which was ahead has dated in the future the date of now, and tell how many these were.

    Snakemake goes by dates: until they had come, it would repeat what is finished, and refuse what follows from it.

    Parameters
    ----------
    results
        Folder with a folder for each slide.
    """
    latest, changed = time.time() + _TOLERANCE_S, 0
    for path in _dated_files(results):
        with suppress(OSError):  # removed meanwhile, or not ours to change
            if path.stat().st_mtime > latest:
                os.utime(path)
                changed += 1
    return changed


def _dated_files(results: Path) -> Iterator[Path]:
    """What Snakemake asks for its date: the files of every slide, and a mark in each folder that is an output."""
    for folder in (path for path in results.glob("*") if path.is_dir()):
        for path in folder.iterdir():
            mark = path / ".snakemake_timestamp"
            yield from (path, *([mark] if mark.is_file() else []))


def check_weights(model: Path, weights: str) -> None:
    """Refuse weights that are not those that the ``model.json`` beside them describes.

    Raises
    ------
    Ki67Error
        With the digests of both.
    """
    described = json.loads(model.read_text(encoding="utf-8")).get("sha256", "")
    found = hashlib.sha256((model.parent / weights).read_bytes()).hexdigest()
    if found != described:
        raise Ki67Error(
            f"network {model.parent.name}: {weights} has sha256 {found[:12]}... where model.json says "
            f"{described[:12]}...; the file was changed or cut off, fetch or train it again"
        )
