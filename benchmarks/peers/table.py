"""The table of a comparison: one line a run, all rates beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HEADER = (
    "tool",
    "settings",
    "tiles/s",
    "s/mm²",
    "network stage s",
    "post-processing s",
    "peak memory MB",
    "side px",
    "nuclei",
    "nuclei/mm²",
    "ratio to ours",
)
_MISSING = "–"


def comparison_table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown table of runs, the first of which is ours.

    Parameters
    ----------
    runs
        Records with ``tool``, ``version``, ``mode``, ``settings`` and what was measured; one with ``error`` holds that
        sentence and no numbers. What a record does not say is a dash.
    """
    ours = runs[0].get("tiles_per_second")
    lines = [HEADER, tuple("---" if index < 2 else "---:" for index in range(len(HEADER)))]
    lines += [_line(run, ours) for run in runs]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def times_ours(run: dict[str, Any], ours: float | None) -> float | None:
    """How many times faster we are: our tiles per second over theirs; ``None`` where one of them has no rate."""
    rate = run.get("tiles_per_second")
    return ours / rate if ours and rate else None


def describe_settings(mode: str, settings: dict[str, Any]) -> str:
    """The settings of a run as ``mode: name value, flag, no flag``."""
    parts = [
        (name if value else f"no {name}") if isinstance(value, bool) else f"{name} {value}"
        for name, value in settings.items()
    ]
    return f"{mode}: {', '.join(parts)}" if parts else mode


def nuclei_per_mm2(run: dict[str, Any]) -> float | None:
    """Density of the nuclei found; ``None`` where the record does not say how long a square millimetre took."""
    nuclei, wall, pace = (run.get(name) for name in ("nuclei", "wall_s", "seconds_per_mm2"))
    return None if nuclei is None or not wall or not pace else nuclei * pace / wall


def _line(run: dict[str, Any], ours: float | None) -> tuple[str, ...]:
    name = f"{run['tool']} {run.get('version', '')}".strip()
    settings = describe_settings(run["mode"], run.get("settings", {}))
    if "error" in run:
        return (name, settings, run["error"].replace("|", "/"), *[_MISSING] * (len(HEADER) - 3))
    ratio = times_ours(run, ours)
    return (
        name,
        settings,
        _number(run.get("tiles_per_second"), 2),
        _number(run.get("seconds_per_mm2"), 2),
        _number(run.get("wall_s_network_stage"), 1),
        # Ours runs beside the network and has processor time only.
        _number(run.get("wall_s_postprocess", run.get("postprocess_cpu_s")), 1),
        _number(run.get("peak_rss_mb"), 0),
        _number(run.get("side_px"), 0),
        _number(run.get("nuclei"), 0),
        _number(nuclei_per_mm2(run), 0),
        _MISSING if ratio is None else f"{ratio:.2f}× slower" if ratio >= 1 else f"{1 / ratio:.2f}× faster",
    )


def _number(value: float | None, decimals: int) -> str:
    return _MISSING if value is None else f"{value:.{decimals}f}"
