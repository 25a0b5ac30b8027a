"""The picture of agreement: the computed index beside that of every reader, and their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ki67.agreement import Estimate
from ki67.agreement_tables import INDEX
from ki67.cohort import REFERENCE
from ki67.figures import NEGATIVE, OVERVIEW_PX, RgbImage, figure_pixels
from ki67.figures import REFERENCE as REFERENCE_COLOR

if TYPE_CHECKING:
    import pandas

MOST_READERS = 8
LONGEST_NAME = 32
LABEL_SHARE = 0.2  # of half the height of a panel that a label of two lines takes
WORDS = {"bias": "bias", "limit_low": "lower limit", "limit_high": "upper limit"}
MOST_INTERVALS = 200  # above, bars of the intervals would hide the slides
_DPI = 100
_TITLE_INCHES = 0.5
_ROW_INCHES = 4.8
_DASHED = (0, (4, 3))


def reader_name(column: str) -> str:
    """What a reader is called in a picture.

    >>> reader_name("reference_index_bo"), reader_name("reference_index")
    ('reader bo', 'reader')
    """
    name = column.removeprefix(REFERENCE).removeprefix("_")
    return f"reader {_shortened(name)}" if name else "reader"


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def agreement_picture(slides: pandas.DataFrame, record: Mapping[str, Any]) -> RgbImage:
    """A row for each reader: the index beside the reader's with the cut-offs, and Bland and Altman's differences.

    Parameters
    ----------
    slides
        Table with the columns ``index``, those of the readers, and perhaps ``index_low`` and ``index_high``.
    record
        Of ``ki67.agreement_tables.cohort_agreement`` for the same slides.

    Returns
    -------
    uint8 ``(H, W, 3)``
        A line of text where there are no readers.
    """
    from matplotlib.figure import Figure

    pairs = [pair for pair in record["pairs"] if pair["first"] == INDEX]
    drawn = pairs[:MOST_READERS]
    height = _TITLE_INCHES + _ROW_INCHES * len(drawn)
    figure = Figure(figsize=(OVERVIEW_PX / _DPI, height), dpi=_DPI)
    figure.text(0.01, 1 - _TITLE_INCHES / 2 / height, _title(record, len(pairs)), va="center", fontsize=12)
    scored = slides[slides[INDEX].notna()]
    margins = {"left": 0.065, "right": 0.85, "wspace": 0.22, "hspace": 0.28}
    around = {"top": 1 - (_TITLE_INCHES + 0.35) / height, "bottom": 0.55 / height}
    panels: Any = figure.subplots(len(drawn), 2, squeeze=False, gridspec_kw=margins | around) if drawn else []
    for (beside, apart), pair in zip(panels, drawn, strict=True):
        compared = scored[scored[pair["second"]].notna()]
        _draw_indices(beside, compared, pair, record["cutoffs"])
        _draw_differences(apart, compared, pair, end=beside.get_xlim()[1])
    return figure_pixels(figure)


def _title(record: Mapping[str, Any], readers: int) -> str:
    if not readers:
        return "The sample sheet gives no reader's index, so there is no agreement to show"
    left_out = f", {record['without_index']} without an index left out" if record["without_index"] else ""
    more = f"; {MOST_READERS} of {readers} readers, see agreement.csv for all" if readers > MOST_READERS else ""
    slides = "1 slide" if record["slides"] == 1 else f"{record['slides']} slides"
    return f"Agreement of the computed index with readers, {slides}{left_out}{more}"


def _percent(table: pandas.DataFrame, column: str) -> NDArray[np.float64]:
    return 100 * table[column].to_numpy(dtype="float64")


def _draw_indices(axes: Any, compared: pandas.DataFrame, pair: Mapping[str, Any], cutoffs: Sequence[float]) -> None:
    index, reader = _percent(compared, INDEX), _percent(compared, pair["second"])
    end = max([30.0, *(1.05 * np.concatenate([index, reader]))])
    for cutoff in cutoffs:
        for line in (axes.axvline, axes.axhline):
            line(100 * cutoff, color="0.75", linewidth=1, linestyle=_DASHED, zorder=0)
    axes.plot([0, end], [0, end], color="0.35", linewidth=1, zorder=1)
    if {"index_low", "index_high"} <= set(compared.columns) and len(index) <= MOST_INTERVALS:
        limits = _percent(compared, "index_low"), _percent(compared, "index_high")
        axes.vlines(reader, *limits, color=np.array(NEGATIVE) / 255, linewidth=1, alpha=0.4, zorder=2)
    axes.plot(reader, index, **_dots(len(index)))
    measures = pair["measures"]
    lines = [f"n = {pair['n']}", _in_words("ICC(2,1)", measures["icc_2_1"]), _in_words("CCC", measures["concordance"])]
    axes.text(0.03, 0.97, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=9, bbox=_box())
    axes.set(xlim=(0, end), ylim=(0, end), aspect="equal")
    axes.set(xlabel="reader's index (%)", ylabel="computed index (%)")
    axes.set_title(reader_name(pair["second"]), loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_differences(axes: Any, compared: pandas.DataFrame, pair: Mapping[str, Any], *, end: float) -> None:
    index, reader = _percent(compared, INDEX), _percent(compared, pair["second"])
    axes.axhline(0, color="0.35", linewidth=1, zorder=1)
    axes.plot((index + reader) / 2, index - reader, **_dots(len(index)))
    found: dict[str, Estimate] = {name: pair["measures"][name] for name in ("bias", "limit_low", "limit_high")}
    limits = [100 * abs(limit) for one in found.values() for limit in (one.low, one.high) if not np.isnan(limit)]
    reach = 5.0 + max([0.0, *np.abs(index - reader), *limits])
    for name, one in found.items():
        value, low, high = 100 * one.value, 100 * one.low, 100 * one.high
        shade, style = np.array(REFERENCE_COLOR) / 255, "-" if name == "bias" else _DASHED
        # Limits that lie on the bias would be told over it.
        if np.isnan(value) or (name != "bias" and abs(value - 100 * found["bias"].value) < LABEL_SHARE * reach):
            continue
        axes.axhspan(low, high, color=shade, alpha=0.12, linewidth=0, zorder=0)
        axes.axhline(value, color=shade, linewidth=1.5, linestyle=style, zorder=2)
        told = f"{WORDS[name]} {value:+.1f}\n({low:+.1f} to {high:+.1f})"
        axes.annotate(told, (1.02, value), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    axes.set(xlim=(0, end), ylim=(-reach, reach))
    axes.set(xlabel="mean of both (%)", ylabel="computed less reader's (points)")
    axes.spines[["top", "right"]].set_visible(False)


def _in_words(name: str, found: Estimate) -> str:
    """A measure with its interval.

    >>> _in_words("CCC", Estimate(0.912, 0.85, 0.95, 40))
    'CCC 0.91 (0.85 to 0.95)'
    """
    if np.isnan(found.value):
        return f"{name} undefined"
    interval = "" if np.isnan(found.low) else f" ({found.low:.2f} to {found.high:.2f})"
    return f"{name} {found.value:.2f}{interval}"


def _dots(count: int) -> dict[str, Any]:
    """How slides are drawn, fainter where there are many."""
    few = count <= MOST_INTERVALS
    shade = {"color": np.array(NEGATIVE) / 255, "alpha": 0.7 if few else 0.25, "markeredgewidth": 0}
    return {**shade, "marker": "o", "linestyle": "none", "markersize": 6 if few else 4, "zorder": 3, "clip_on": False}


def _box() -> dict[str, Any]:
    return {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
