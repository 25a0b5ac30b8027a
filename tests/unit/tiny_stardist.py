"""A small StarDist model that learns drawn discs in seconds, and what it answers; in a process of its own.

PyTorch is imported by other tests, and TensorFlow must not be beside it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
import zarr

from ki67.geometry import Mask
from ki67.inference import Running
from ki67.slides import ImageReader
from ki67.stardist_nuclei import load_star_detector, stain_channels
from ki67.training.star_fit import StarFitOptions, fit_star
from ki67.training.targets import NEGATIVE, POSITIVE
from tests.unit.drawn_nuclei import grid
from tests.unit.stained_discs import stained

SHAPE = (256, 256)
FIELDS = 8
OPTIONS = StarFitOptions(
    depth=1,
    filters=8,
    steps=160,
    batch_size=4,
    tile_px=128,
    learning_rate=3e-3,
    warmup_steps=10,
    averaging=0.95,
    checkpoint_seconds=0.0,
    threads=2,
    device="cpu",
    precision="float32",
)


def ellipses_of(seed: int, shape: tuple[int, int] = SHAPE) -> list[tuple[float, ...]]:
    return grid(shape, step=32, seed=seed)


def write_dataset(folder: Path) -> Path:
    """Drawn fields of blue and brown nuclei, with their outlines and classes."""
    for part in ("images", "labels", "classes"):
        (folder / part).mkdir(parents=True)
    described = {"kind": "instances", "mpp": 0.5, "licence": "CC0"}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    for seed in range(FIELDS):
        ellipses = ellipses_of(seed)
        labels = np.zeros(SHAPE, dtype=np.uint16)
        for number, (x, y, axis, other, angle, _) in enumerate(ellipses, start=1):
            cv2.ellipse(labels, ((x, y), (2 * axis, 2 * other), angle), number, -1)
        classes = {number: int(entry[5]) for number, entry in enumerate(ellipses, start=1)}
        cv2.imwrite(str(folder / "images" / f"{seed}.png"), stained(SHAPE, ellipses, noise=4, seed=seed)[..., ::-1])
        cv2.imwrite(str(folder / "labels" / f"{seed}.png"), labels)
        (folder / "classes" / f"{seed}.json").write_text(json.dumps(classes), encoding="utf-8")
    return folder


class StoppedError(Exception):
    """As good as a kill, right after a checkpoint."""


def trained(datasets: Path, folder: Path, *, stop_at: int | None = None) -> dict[str, Any]:
    """Train, perhaps stopped once on the way; what the loss was, and what was written."""
    losses: dict[int, float] = {}

    def watch(step: int, loss: float) -> None:
        losses[step] = loss
        if step == stop_at and (folder / "checkpoint.npz").exists() and not (folder / "stopped").exists():
            (folder / "stopped").touch()
            raise StoppedError

    first = None
    try:
        fitted = fit_star(OPTIONS, [datasets], folder, on_step=watch)
    except StoppedError:
        first = sorted(losses)
        fitted = fit_star(OPTIONS, [datasets], folder, on_step=watch)
    return {
        "losses": [losses[step] for step in sorted(losses)],
        "steps_before_the_stop": first,
        "scores": fitted.scores,
        "steps": fitted.steps,
        "files": sorted(path.name for path in folder.iterdir()),
    }


def told(nuclei: Any) -> dict[str, list[float]]:
    return {name: getattr(nuclei, name).tolist() for name in ("x_px", "y_px", "area_px", "positive")}


def table_told(table: Any) -> str:
    return table.drop(columns="geometry").to_json() + json.dumps([str(outline) for outline in table.geometry])


def kept(path: Path) -> dict[str, Any]:
    """What is in an image of probabilities."""
    group = zarr.open_group(path, mode="r")
    finest = np.asarray(group["s0"])
    return {"shape": finest.shape, "highest": finest.max(axis=(1, 2)).tolist(), "told": dict(group.attrs["ki67"])}


def answers(model: Path) -> dict[str, Any]:
    """What a trained model finds on an image and on a slide, in different ways."""
    detector = load_star_detector(model, device="cpu", precision="float32")
    ellipses = ellipses_of(100, (512, 640))
    rgb = stained((512, 640), ellipses, noise=4, seed=100)
    tumor = Mask(np.ones((64, 80), dtype=bool), 4.0, "ki67")
    small = Mask(np.pad(np.ones((30, 40), dtype=bool), ((10, 24), (20, 20))), 4.0, "ki67")
    slide = ImageReader(rgb, "png", mpp=0.5, slide_id="S01", stain="ki67")
    probabilities = model.parent / "probabilities.ome.zarr"
    found = detector.of_slide(slide, tumor, running=Running(threads=1), probabilities=probabilities)
    # Shown alike, whatever of the tumour is looked at.
    shown = detector.shown(stain_channels(rgb))
    in_part, whole = (shown.of_slide(slide, mask, running=Running(threads=1)).table for mask in (small, tumor))
    return {
        "identity": dict(detector.identity),
        "halo_px": detector.network.spec.halo_px,
        "image": told(detector(rgb)),
        "slide": table_told(found.table),
        "again": table_told(detector.of_slide(slide, tumor, running=Running(threads=2)).table),
        "part": in_part[in_part["in_tumor"]][["x_um", "y_um", "area_um2", "positive"]].to_numpy(dtype=float).tolist(),
        "whole": whole[["x_um", "y_um", "area_um2", "positive"]].to_numpy(dtype=float).tolist(),
        "record": found.to_json(),
        "probabilities": kept(probabilities),
        "torch": "torch" in sys.modules,
    }


def main(folder: Path) -> None:
    datasets = write_dataset(folder / "discs")
    results = {
        "whole": trained(datasets, folder / "model"),
        "stopped": trained(datasets, folder / "stopped_model", stop_at=60),
        "answers": answers(folder / "model"),
    }
    assert {POSITIVE, NEGATIVE} == {int(entry[5]) for entry in ellipses_of(0)}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
