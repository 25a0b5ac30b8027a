"""Compare the results of drawn slides with what was drawn, as a table; exit status 1 where they are too far apart.

Usage: python tests/workflow/check_demo.py FOLDER, where FOLDER holds slides/<slide>/truth/ and results/.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ki67.geometry import RigidTransform
from ki67.storage import read_json, read_mask_png

LARGEST_INDEX_ERROR = 0.05
LARGEST_LANDMARK_ERROR_UM = 20.0
LANDMARKS = 500


@dataclass(frozen=True)
class Comparison:
    """A slide's result beside its truth; None where there is nothing to compare."""

    slide: str
    index: float | None
    truth: float | None
    landmark_error_um: float | None
    flags: tuple[str, ...]
    wanted_registration: bool

    @property
    def problems(self) -> list[str]:
        """What is too far from the truth, each as a few words."""
        found = []
        if self.truth is None:
            found += ["has an index without tumour"] if self.index is not None else []
            found += ["is not flagged no_tumor"] if "no_tumor" not in self.flags else []
        elif self.index is None or abs(self.index - self.truth) > LARGEST_INDEX_ERROR:
            found.append(f"index is off by more than {LARGEST_INDEX_ERROR}")
        error = self.landmark_error_um
        if self.wanted_registration and (error is None or error >= LARGEST_LANDMARK_ERROR_UM):
            found.append(f"landmarks are off by {LARGEST_LANDMARK_ERROR_UM:.0f} µm or more")
        return found


def compare(folder: Path, slide: str) -> Comparison:
    """The result of one slide beside its truth."""
    truth, results = folder / "slides" / slide / "truth", folder / "results" / slide
    record = read_json(results / "ki67.json")
    has_he = read_json(results / "check.json")["stains"]["he"] is not None
    return Comparison(
        slide=slide,
        index=record["index"],
        truth=json.loads((truth / "truth.json").read_text(encoding="utf-8"))["index"],
        landmark_error_um=landmark_error_um(truth, results) if has_he else None,
        flags=tuple(record["flags"]),
        wanted_registration=has_he,
    )


def landmark_error_um(truth: Path, results: Path) -> float | None:
    """Median distance, over points spread on the H&E tissue, of where they are carried and where they belong."""
    found: dict[str, Any] = read_json(results / "transform.json")
    if found["verdict"] not in {"accepted", "doubtful"}:
        return None
    tissue = read_mask_png(
        results / "tissue_he.png", read_json(results / "check.json")["stains"]["he"]["tissue_mpp"], "he"
    )
    rows, columns = np.nonzero(tissue.pixels)
    chosen = np.linspace(0, len(rows) - 1, min(LANDMARKS, len(rows))).astype(int)
    points = (np.column_stack([columns, rows])[chosen] + 0.5) * tissue.mpp
    wanted = RigidTransform.from_json(read_json(truth / "transform.json"))
    distances = np.linalg.norm(RigidTransform.from_json(found).apply(points) - wanted.apply(points), axis=1)
    return float(np.median(distances))


def table(comparisons: list[Comparison]) -> str:
    """The comparisons for a person."""

    def percent(value: float | None) -> str:
        return "none" if value is None else f"{100 * value:.1f} %"

    lines = [f"{'slide':<12}{'index':>9}{'truth':>9}{'landmarks':>12}  flags"]
    for one in comparisons:
        error = "none" if one.landmark_error_um is None else f"{one.landmark_error_um:.1f} µm"
        flags = ", ".join(one.flags) or "-"
        lines.append(f"{one.slide:<12}{percent(one.index):>9}{percent(one.truth):>9}{error:>12}  {flags}")
    return "\n".join(lines)


def main() -> None:
    """Print the table and what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    slides = sorted(path.parent.name for path in folder.glob("slides/*/truth"))
    comparisons = [compare(folder, slide) for slide in slides]
    print(table(comparisons))
    problems = [f"{one.slide}: {problem}" for one in comparisons for problem in one.problems]
    print("\n".join(problems) or f"All {len(slides)} slides are as they were drawn.")
    raise SystemExit(1 if problems or not slides else 0)


if __name__ == "__main__":
    main()
