"""How far a tool's transforms are off, beside the best rigid transform, and the table that says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.registration_peers.cases import Case
from ki67.landmarks import distances, fit_rigid

NEAR, FAR = 1.15, 2.0
"""Times the error of the best rigid fit up to which a registration is as good as one can be, and of use."""

ALL = "all"
HEADER = ("tool", "pair", "runs", f"within {NEAR}×", "median ratio", f"within {FAR:g}×", "median s", "no transform")
_MISSING = "–"


def measure(answer: dict[str, Any], case: Case) -> dict[str, Any]:
    """The record of one run.

    Parameters
    ----------
    answer
        With ``matrix`` ``(3, 3)`` or ``None``, ``seconds``, ``error`` and ``details``.

    Returns
    -------
    ``median_px`` between the landmarks as the transform puts them and where they are, ``best_rigid_median_px`` of the
    least-squares rigid fit to these landmarks, mirror image allowed, and ``ratio`` of the two; ``None`` where there is
    no transform.
    """
    best_px = float(np.median(distances(fit_rigid(case.fixed_px, case.moving_px), case.fixed_px, case.moving_px)))
    median_px = None
    if answer["matrix"] is not None:
        median_px = float(np.median(distances(np.array(answer["matrix"]), case.fixed_px, case.moving_px)))
    return {
        "pair": case.pair,
        "perturbation": case.perturbation,
        "perturbed_by": case.details,
        "landmarks": len(case.fixed_px),
        "median_px": median_px,
        "best_rigid_median_px": best_px,
        "ratio": None if median_px is None else median_px / best_px,
        "seconds": answer["seconds"],
        "error": answer["error"],
        "matrix": answer["matrix"],
        "details": answer["details"],
    }


def summaries(tool: str, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The summary of a tool for every pair, in their order, and for all of them."""
    pairs = list(dict.fromkeys(run["pair"] for run in runs))
    groups = {pair: [run for run in runs if run["pair"] == pair] for pair in pairs} | {ALL: list(runs)}
    return [{"tool": tool, "pair": pair, **summary(group)} for pair, group in groups.items()]


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares, medians and counts of runs; one without a transform is further off than any other."""
    ratios = np.array([np.inf if run["ratio"] is None else run["ratio"] for run in runs])
    seconds = [run["seconds"] for run in runs if run["seconds"] is not None]
    # Not NumPy's median: of two infinite ratios it makes no number.
    middle = float(np.sort(ratios)[[(len(ratios) - 1) // 2, len(ratios) // 2]].sum() / 2)
    return {
        "runs": len(runs),
        "share_near": float((ratios <= NEAR).mean()),
        "median_ratio": middle if np.isfinite(middle) else None,
        "share_far": float((ratios <= FAR).mean()),
        "median_seconds": float(np.median(seconds)) if seconds else None,
        "no_transform": sum(run["error"] is not None for run in runs),
    }


def summary_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown table of summaries."""
    lines = [HEADER, tuple("---" if index < 2 else "---:" for index in range(len(HEADER))), *map(_line, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["tool"],
        row["pair"],
        str(row["runs"]),
        f"{row['share_near']:.0%}",
        _number(row["median_ratio"], ".2f"),
        f"{row['share_far']:.0%}",
        _number(row["median_seconds"], ".1f"),
        str(row["no_transform"]),
    )


def _number(value: float | None, form: str) -> str:
    return _MISSING if value is None else format(value, form)
