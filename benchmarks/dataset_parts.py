"""Some images of a dataset as a dataset of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

_PARTS = ("images", "annotations", "roi_masks", "labels", "classes", "masks")


def part_of(folder: Path, stems: set[str], out: Path) -> Path:
    """Write ``out``, a dataset of the images of these names, which are links to those of ``folder``."""
    out.mkdir(parents=True)
    shutil.copy(folder / "dataset.yaml", out)
    for part in _PARTS:
        for file in (folder / part).glob("*"):
            if file.stem in stems:
                (out / part).mkdir(exist_ok=True)
                (out / part / file.name).symlink_to(file.resolve())
    return out
