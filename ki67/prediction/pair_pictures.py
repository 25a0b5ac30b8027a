"""A picture of the patch pairs of a slide: some that may be learned from, and some that may not, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki67.figures import figure_pixels
from ki67.prediction.pair_filters import REJECTION_WORDS, Rejection
from ki67.prediction.pair_making import MadePairs

LABELLED_SHOWN = 8
SHOWN_OF_EACH_REASON = 4
PAIRS_A_ROW = 4
_CELL_INCHES = (3.1, 1.85)
_TITLE_INCHES = 0.55
_DPI = 100
_GAP_SHARE = 32
_WORD_COLOR = {True: "#1a1a1a", False: "#b00000"}


def pairs_picture(made: MadePairs) -> NDArray[np.uint8]:
    """Pairs side by side, H&E left and the Ki-67 slide at the same place right.

    First those with a label, from the lowest to the highest, then up to four for each reason why there is none, with
    patches that were left out at the end.

    Returns
    -------
    uint8 ``(H, W, 3)``
        The title alone where there are no patches.
    """
    from matplotlib.figure import Figure

    shown = [(_pair(made, patch), _words(made, patch), made.reasons[patch] is None) for patch in _chosen(made)]
    shown += [(patch, REJECTION_WORDS[Rejection.WHITE_HE], False) for patch in made.white]
    rows = -(-len(shown) // PAIRS_A_ROW)
    size = (PAIRS_A_ROW * _CELL_INCHES[0], _TITLE_INCHES + rows * _CELL_INCHES[1])
    figure = Figure(figsize=size, dpi=_DPI)
    figure.text(0.008, 1 - 0.08 / size[1], "\n".join(_title(made)), va="top", fontsize=10)
    panels: Any = []
    if rows:
        top = 1 - (_TITLE_INCHES + 0.25) / size[1]
        places = {"left": 0.008, "right": 0.992, "bottom": 0.05 / size[1], "top": top, "wspace": 0.05, "hspace": 0.28}
        panels = figure.subplots(rows, PAIRS_A_ROW, squeeze=False, gridspec_kw=places).ravel()
    for number, panel in enumerate(panels):
        panel.axis("off")
        if number < len(shown):
            pixels, words, labelled = shown[number]
            panel.imshow(pixels, interpolation="lanczos")
            panel.set_title(words, fontsize=9, pad=3, color=_WORD_COLOR[labelled])
    return figure_pixels(figure)


def _chosen(made: MadePairs) -> list[int]:
    """Patches to be shown: labelled ones by their label, then some of each reason from top to bottom."""
    labelled = np.flatnonzero(made.pairs.labelled)
    order = labelled[np.argsort(made.pairs.label[labelled], kind="stable")]
    chosen = [int(patch) for patch in _spread(order, LABELLED_SHOWN)]
    for reason in Rejection:
        patches = np.array([patch for patch, found in enumerate(made.reasons) if found is reason], dtype=np.int64)
        chosen += [int(patch) for patch in _spread(patches, SHOWN_OF_EACH_REASON)]
    return chosen


def _spread(patches: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the patches, evenly spaced."""
    if len(patches) <= most:
        return patches
    return patches[np.linspace(0, len(patches) - 1, most).round().astype(np.int64)]


def _pair(made: MadePairs, patch: int) -> NDArray[np.uint8]:
    he = made.pairs.he[patch]
    if made.ki67 is None:
        return he
    gap = np.full((len(he), max(1, len(he) // _GAP_SHARE), 3), 255, dtype=np.uint8)
    return np.concatenate([he, gap, made.ki67[patch]], axis=1)


def _words(made: MadePairs, patch: int) -> str:
    pairs, reason = made.pairs, made.reasons[patch]
    if reason is not None:
        return REJECTION_WORDS[reason]
    total = int(pairs.positive[patch] + pairs.negative[patch])
    return f"{100 * pairs.label[patch]:.0f} %: {pairs.positive[patch]} of {total} positive"


def _title(made: MadePairs) -> Sequence[str]:
    pairs = made.pairs
    labelled = int(pairs.labelled.sum())
    first = f"{pairs.slide}: {labelled} of {len(pairs)} patches have a label ({pairs.marker})"
    counts = [f"{REJECTION_WORDS[Rejection(name)]} {count}" for name, count in pairs.rejected.items()]
    return first, "; ".join(counts) or "none was left out"
