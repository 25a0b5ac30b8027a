"""Pictures of how good predictions from H&E are: slides, patches, and correlations with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ki67.figures import NEGATIVE, OVERVIEW_PX, RgbImage, figure_pixels
from ki67.prediction.evaluation import score_lines

if TYPE_CHECKING:
    import pandas

_DPI = 100
_BLUE = np.array(NEGATIVE) / 255
_DASHED = (0, (4, 3))
MOST_INTERVALS = 200
"""Above, bars of the intervals would hide the slides."""
CORRELATIONS = {
    "spearman": "Spearman's ρ",
    "pearson": "Pearson's r",
    "spearman_pooled": "Spearman's ρ over all folds, biased downwards",
    "spearman_between_slides": "Spearman's ρ between slide means",
    "spearman_within_slides": "Spearman's ρ within slides",
    "pearson_within_slides": "Pearson's r within slides",
}


def slide_picture(slides: pandas.DataFrame, record: Mapping[str, Any], title: str) -> RgbImage:
    """Predicted index of every slide, out of fold and with its interval, against the measured one.

    Parameters
    ----------
    slides
        Columns ``ki67.prediction.cross_validation.SLIDE_COLUMNS``.
    record
        Of ``ki67.prediction.evaluation.evaluate_prediction``.
    title
        Says which method.
    """
    axes, figure = _square(title, record["cutoffs"])
    told = slides[slides["predicted"].notna()]
    known, said = 100 * told["index"], 100 * told["predicted"]
    if len(told) <= MOST_INTERVALS:
        axes.vlines(
            known, 100 * told["predicted_low"], 100 * told["predicted_high"], color=_BLUE, linewidth=1, alpha=0.3
        )
    axes.plot(known, said, "o", color=_BLUE, alpha=0.7, markersize=6, markeredgewidth=0)
    scores = record["slide"]["scores"]
    lines = [f"{len(told)} slides of {record['slide']['patients']} patients"]
    lines += [told_score(CORRELATIONS[name], scores[name]) for name in ("spearman", "pearson") if name in scores]
    if "mae" in scores:
        lines.append(told_score("mean absolute error, points", {k: 100 * v for k, v in scores["mae"].items()}, 1))
    axes.text(0.03, 0.97, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=9, bbox=_box())
    return figure_pixels(figure)


def patch_picture(patches: pandas.DataFrame, record: Mapping[str, Any], title: str) -> RgbImage:
    """Predicted share of positive nuclei of every labelled patch, out of fold, against the counted one.

    Parameters
    ----------
    patches
        Columns ``ki67.prediction.cross_validation.PATCH_COLUMNS``.
    record, title
        As of ``slide_picture``.
    """
    axes, figure = _square(title, record["cutoffs"])
    told = patches[patches["predicted"].notna() & patches["label"].notna()]
    if len(told):
        axes.hexbin(
            100 * told["label"], 100 * told["predicted"], gridsize=40, extent=(0, 100, 0, 100), mincnt=1, cmap="Blues"
        )
    found = record.get("patch")
    lines = [f"{len(told)} labelled patches"] if found else ["this method says nothing of patches"]
    names = ("spearman", "spearman_between_slides", "spearman_within_slides")
    lines += [told_score(CORRELATIONS[name], found["scores"][name]) for name in names] if found else []
    axes.text(0.03, 0.97, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=9, bbox=_box())
    return figure_pixels(figure)


def correlation_picture(record: Mapping[str, Any], title: str) -> RgbImage:
    """All correlations of slides and patches with their 95 % intervals."""
    from matplotlib.figure import Figure

    rows = [(level, name, score) for level, name, score in score_lines(record) if name in CORRELATIONS]
    figure = Figure(figsize=(OVERVIEW_PX / _DPI, 1.2 + 0.42 * max(len(rows), 1)), dpi=_DPI)
    axes: Any = figure.subplots()
    figure.subplots_adjust(
        left=0.4, right=0.97, top=1 - 0.5 / figure.get_figheight(), bottom=0.55 / figure.get_figheight()
    )
    for place, (_, _, score) in enumerate(rows):
        axes.hlines(place, score["low"], score["high"], color=_BLUE, linewidth=3, alpha=0.4)
        axes.plot(score["value"], place, "o", color=_BLUE, markersize=7)
    axes.set_yticks(
        range(len(rows)),
        [f"{'slides' if level == 'slide' else 'patches'}: {CORRELATIONS[name]}" for level, name, _ in rows],
    )
    axes.axvline(0, color="0.35", linewidth=1)
    axes.set(xlim=(-1, 1), ylim=(len(rows) - 0.4, -0.6), xlabel="correlation with what was measured, out of fold")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure_pixels(figure)


def _square(title: str, cutoffs: Sequence[float]) -> tuple[Any, Any]:
    """Axes from 0 to 100 % both ways with the cut-offs, and their figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 7), dpi=_DPI, layout="constrained")
    axes: Any = figure.subplots()
    for cutoff in cutoffs:
        for line in (axes.axvline, axes.axhline):
            line(100 * cutoff, color="0.75", linewidth=1, linestyle=_DASHED, zorder=0)
    axes.plot([0, 100], [0, 100], color="0.35", linewidth=1, zorder=1)
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", xlabel="measured on the Ki-67 slide (%)")
    axes.set_ylabel("predicted from the H&E alone, out of fold (%)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return axes, figure


def told_score(name: str, score: Mapping[str, float], digits: int = 2) -> str:
    """A score with its interval in words.

    >>> told_score("Spearman's ρ", {"value": 0.712, "low": 0.5, "high": 0.85})
    "Spearman's ρ 0.71 (0.50 to 0.85)"
    """
    if score["value"] is None or not np.isfinite(score["value"]):
        return f"{name} undefined"
    return f"{name} {score['value']:.{digits}f} ({score['low']:.{digits}f} to {score['high']:.{digits}f})"


def _box() -> dict[str, Any]:
    return {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
