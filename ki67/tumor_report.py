"""What an evaluation of tumour shows to people: ROC curves, pictures of images, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ki67.binary_scores import area_under_roc, level_of, roc_curve, threshold_scores
from ki67.figures import figure_pixels, round_length_um
from ki67.predictors import Predictor
from ki67.score_table import best_median_worst, markdown_table, score_cell
from ki67.training.datasets import read_dataset
from ki67.tumor_evaluation import BESIDE, MaskSettings, TumorAnswer, TumorCounts, TumorEvaluation, answer
from ki67.tumor_fields import SCORED_MPP, TumorField, at_shape, chosen_images, read_tumor_field

TRUTH, PREDICTION = "#ffe119", "#00d5ff"
PIXELS, PATCHES = "#1f4e9c", "#c4500a"
PANEL_PX = 760
_DPI = 100


def tumor_pictures(
    folder: Path, network: Predictor, evaluation: TumorEvaluation, settings: MaskSettings | None = None
) -> dict[str, NDArray[np.uint8]]:
    """Pictures of the best, the median and the worst image by Dice, for which these are looked at once more.

    Where the truth has no tumour, Dice says nothing of how much was found, and specificity stands for it.

    Returns
    -------
    dict
        ``best``, ``median`` and ``worst`` to RGB uint8 ``(H, W, 3)``.

    Raises
    ------
    Ki67Error
        If an image cannot be read any more.
    """
    dataset = read_dataset(folder)
    scores = [_score(image, evaluation.threshold) for image in evaluation.images]
    pictures: dict[str, NDArray[np.uint8]] = {}
    drawn: dict[int, NDArray[np.uint8]] = {}
    for name, place in best_median_worst(scores).items():
        counts = evaluation.images[place]
        if place not in drawn:
            field = read_tumor_field(dataset, chosen_images(dataset, [counts.name])[0])
            said = answer(field, network, settings or MaskSettings())
            drawn[place] = tumor_picture(field, said, picture_title(counts, evaluation.threshold))
        pictures[name] = drawn[place]
    return pictures


def picture_title(counts: TumorCounts, threshold: float) -> str:
    """Name of an image and how well its tumour was found."""
    negative, positive = counts.pixels.sum(axis=1)
    if not positive:
        found = 1 - _pixel_scores(counts, threshold)["specificity"] if negative else 0.0
        return f"{counts.name}: no tumour in the truth, {found:.1%} of the pixels called tumour"
    dice = _pixel_scores(counts, threshold)["dice"], threshold_scores(counts.mask, 1)["dice"]
    area = f"AUC {area_under_roc(counts.pixels):.2f}, " if negative else ""
    return f"{counts.name}: {area}Dice {dice[0]:.2f} by threshold alone, {dice[1]:.2f} of the workflow's mask"


def _score(counts: TumorCounts, threshold: float) -> float:
    return _pixel_scores(counts, threshold)["dice" if counts.pixels[1].any() else "specificity"]


def _pixel_scores(counts: TumorCounts, threshold: float) -> dict[str, float]:
    return threshold_scores(counts.pixels, level_of(threshold, counts.pixels.shape[1]))


def tumor_picture(field: TumorField, said: TumorAnswer, title: str) -> NDArray[np.uint8]:
    """An image with the outlines of truth and prediction, and the probability beside it.

    Parameters
    ----------
    field, said
        The image and what the network says of it. What does not count is faded.
    title
        Above all.

    Returns
    -------
    RGB uint8 ``(H, W, 3)``
        The image at most 760 px long, with a scale bar, a legend and a colour bar.
    """
    height, width = field.truth.shape
    factor = PANEL_PX / max(height, width)
    shape = max(1, round(height * factor)), max(1, round(width * factor))
    rgb = _resized(field.rgb, shape)
    truth, mask, known = (at_shape(pixels, shape) for pixels in (field.truth, said.mask, field.known))
    rgb[~known] = 255 - (255 - rgb[~known]) // 3
    figure = Figure(figsize=((2 * shape[1] + 150) / _DPI, (shape[0] + 110) / _DPI), dpi=_DPI, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    seen, map_axes = figure.subplots(1, 2)
    seen.imshow(rgb, interpolation="none")
    levels = np.ma.masked_array(_resized(said.probability, shape) / 255.0, ~known)
    map_axes.imshow(np.full_like(rgb, 217))
    drawn = map_axes.imshow(levels, vmin=0, vmax=1, cmap="magma", interpolation="none")
    for axes in (seen, map_axes):
        axes.set_axis_off()
        _outline(axes, truth, TRUTH)
    _outline(seen, mask, PREDICTION)
    _scale_bar(seen, shape, SCORED_MPP / factor)
    figure.colorbar(drawn, cax=map_axes.inset_axes((1.02, 0, 0.03, 1)), label="probability of tumour")
    lines = [Line2D([], [], color=colour, linewidth=3, path_effects=_cased(3)) for colour in (TRUTH, PREDICTION)]
    labels = ["truth", "prediction, smoothed as by the workflow"]
    if not known.all():
        labels += ["faded, grey: does not count"]
        lines += [Line2D([], [], linestyle="none")]
    figure.legend(lines, labels, loc="outside lower left", ncols=3, frameon=False, fontsize=11)
    return figure_pixels(figure)


def _resized(image: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    interpolation = cv2.INTER_AREA if image.shape[0] > shape[0] else cv2.INTER_CUBIC
    return np.array(cv2.resize(image, shape[::-1], interpolation=interpolation), dtype=np.uint8)


def _cased(width: float) -> list[Any]:
    """A dark line around a bright one, so that it shows on any stain."""
    return [patheffects.Stroke(linewidth=width + 1.4, foreground="black"), patheffects.Normal()]


def _outline(axes: Any, inside: NDArray[np.bool_], colour: str) -> None:
    # Goes on beyond the picture, so that no line runs along its edge.
    padded = np.pad(inside.astype(np.uint8), 4, mode="edge")
    contours, _ = cv2.findContours(padded, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE, offset=(-4, -4))
    for contour in contours:
        x, y = contour[:, 0].T
        closed = np.append(x, x[0]), np.append(y, y[0])
        axes.plot(*closed, color=colour, linewidth=1.3, path_effects=_cased(1.3), scalex=False, scaley=False)


def _scale_bar(axes: Any, shape: tuple[int, int], mpp: float) -> None:
    length_um = round_length_um(shape[1] * mpp / 4)
    length_px = length_um / mpp
    left, bottom = 14, shape[0] - 14
    label = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 4}
    text = axes.text(left + length_px / 2, bottom - 8, label, ha="center", va="bottom", fontsize=10, bbox=box)
    text.set_zorder(5)
    axes.plot(
        *([left, left + length_px], [bottom, bottom]),
        color="black",
        linewidth=4,
        solid_capstyle="butt",
        path_effects=[patheffects.Stroke(linewidth=9, foreground="white"), patheffects.Normal()],
        scalex=False,
        scaley=False,
        zorder=6,
    )


def roc_picture(evaluation: TumorEvaluation) -> NDArray[np.uint8]:
    """ROC curves over the pixels and over the patches of all images, with the point at the network's threshold.

    Returns
    -------
    RGB uint8 ``(H, W, 3)``
    """
    figure = Figure(figsize=(6.2, 6.2), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle=(0, (4, 3)))
    for name, counts, colour, marker in (
        ("pixels", evaluation.pixels, PIXELS, "o"),
        ("patches of 64 µm", evaluation.patches, PATCHES, "s"),
    ):
        false_positive, true_positive = roc_curve(counts)
        area = area_under_roc(counts)
        if np.isnan(area):
            continue
        place = level_of(evaluation.threshold, counts.shape[1])
        axes.plot(false_positive, true_positive, color=colour, linewidth=2, label=f"{name}, AUC {area:.3f}")
        point = false_positive[place], true_positive[place]
        told = f"at {evaluation.threshold:g}: sensitivity {point[1]:.2f}, specificity {1 - point[0]:.2f}"
        axes.plot(
            *point, marker, color=colour, markersize=9, markeredgecolor="white", label=told, linestyle="none", zorder=5
        )
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity")
    names = [one.get("name", "") for one in (evaluation.identity, *evaluation.beside.values())]
    axes.set_title(f"{' and '.join(names)} on {evaluation.dataset}", loc="left", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", fontsize=10)
    else:
        axes.text(0.5, 0.4, "only one class in the truth: no curve", ha="center", fontsize=11)
    return figure_pixels(figure)


def tumor_table(records: Sequence[dict[str, Any]]) -> str:
    """Evaluations as a Markdown table, a row for each dataset and network.

    Parameters
    ----------
    records
        As ``TumorEvaluation.to_json`` returns them, or read from JSON.
    """
    return markdown_table([_row(record) for record in records])


def _row(record: dict[str, Any]) -> dict[str, str]:
    intervals = record["intervals"] or {}

    def cell(part: str, name: str) -> str:
        return score_cell(record[part][name], intervals.get(part, {}).get(name), 2)

    return {
        "dataset": record["dataset"],
        "network": " and ".join(one["name"] for one in (record["model"], *map(record.get, BESIDE)) if one),
        "learned from it": "yes" if record["learned_from"] else "no",
        "images": str(len(record["images"])),
        "AUC": cell("pooled", "auc"),
        "Dice": cell("pooled", "dice"),
        "sensitivity": cell("pooled", "sensitivity"),
        "specificity": cell("pooled", "specificity"),
        "AUC of patches": cell("patches", "auc"),
        "accuracy of patches": cell("patches", "accuracy"),
        "Dice of the mask": cell("mask", "dice"),
    }
