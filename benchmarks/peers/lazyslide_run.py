"""Score the nuclei of a whole slide with LazySlide and our network; runs in its own environment.

``--mode defaults`` is ``zs.seg.semantic`` with its own defaults (batches of 4, no workers, Gaussian weights, float32)
on tiles of 512 px at 0.5 µm/px that overlap by a quarter, which it asks for where tiles do not overlap; it merges the
probabilities of the whole slide and makes polygons of every class, chunk by chunk, which are then dissolved.

``--mode best`` is ``zs.seg.cells``, its own way to nuclei, at what its documentation offers for speed: larger batches,
workers, bfloat16, postprocessing in a thread beside the network, ownership of nuclei in the overlap; tiles overlap by
no more than a nucleus needs, as nuclei that touch a tile's edge are dropped. The instances of a tile are the connected
parts of its map of classes.

Both analyse the whole slide: its tissue is one rectangle, and tiles at its edges are kept.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import lazyslide
import lazyslide as zs
import numpy as np
import torch
from lazyslide.segmentation._seg_runner import CellSegmentationRunner
from lazyslide_models.base import SegmentationModel, SegmentationOutput
from measurement import (
    NEGATIVE_MEMBRANE,
    NEGATIVE_NUCLEUS,
    POSITIVE_MEMBRANE,
    POSITIVE_NUCLEUS,
    Description,
    Measurement,
    chosen,
    device,
    measured,
    parser,
    read_description,
    read_network,
    record,
    write_record,
)
from numpy.typing import NDArray
from shapely import box
from torchvision.transforms import v2
from wsidata.io import add_tissues

MODES: dict[str, dict[str, Any]] = {
    "defaults": {
        "route": "semantic",
        "tile_px": 512,
        "overlap": 0.25,
        "batch": 4,
        "workers": 0,
        "autocast": False,
        "compile": False,
        "postprocess_workers": 0,
        "overlap_ownership": False,
    },
    "best": {
        "route": "cells",
        "tile_px": 1024,
        "overlap": 64,
        "batch": 8,
        "workers": os.cpu_count(),
        "autocast": True,
        "compile": False,
        "postprocess_workers": 1,
        "overlap_ownership": True,
    },
}
CELL_CLASSES = ("Background", "positive", "negative")


class NucleusModel(SegmentationModel):
    """Our network as LazySlide takes one.

    Parameters
    ----------
    instances
        Answer with instances and three classes, as ``zs.seg.cells`` wants it, and not with the five classes alone.
    """

    name = "nuclei"
    measurement: Measurement

    def __init__(self, weights: Path, description: Description, *, instances: bool) -> None:
        self.model = read_network(weights)
        self.description = description
        self.instances = instances

    def get_transform(self) -> v2.Compose:
        """From RGB to what the network was trained on."""
        steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        return v2.Compose([*steps, v2.Normalize(self.description.mean, self.description.std)])

    def segment(self, image: torch.Tensor) -> SegmentationOutput:
        """Probabilities, and instances where they were asked for, of tiles ``(N, 3, H, W)``."""
        probabilities = self.model(image).float().softmax(dim=1)
        if not self.instances:
            self.measurement.end_network_stage()
            return SegmentationOutput(probability_map=probabilities, classes=self.description.classes)
        classes = probabilities.argmax(dim=1).to(torch.uint8).cpu().numpy()
        instances = torch.from_numpy(np.stack([instances_of(tile) for tile in classes]))
        self.measurement.end_network_stage()
        return SegmentationOutput(
            probability_map=_merged_classes(probabilities), instance_map=instances, classes=CELL_CLASSES
        )


def instances_of(classes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Connected interiors of positive and of negative nuclei, numbered from 1."""
    result = np.zeros(classes.shape, dtype=np.int32)
    for kind in (POSITIVE_NUCLEUS, NEGATIVE_NUCLEUS):
        _, labels = cv2.connectedComponents((classes == kind).astype(np.uint8), connectivity=4)
        result[labels > 0] = labels[labels > 0] + result.max()
    return result


def _merged_classes(probabilities: torch.Tensor) -> torch.Tensor:
    positive = probabilities[:, POSITIVE_NUCLEUS] + probabilities[:, POSITIVE_MEMBRANE]
    negative = probabilities[:, NEGATIVE_NUCLEUS] + probabilities[:, NEGATIVE_MEMBRANE]
    return torch.stack([1 - positive - negative, positive, negative], dim=1)


class PostprocessClock:
    """Adds up what ``zs.seg.cells`` spends on the answers of a batch while it waits for that."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watching(self) -> Any:
        """A context in which the clock runs whenever a batch is made into polygons."""
        original = CellSegmentationRunner._postprocess_batch

        def timed(*args: Any) -> Any:
            started = time.perf_counter()
            result = original(*args)
            self.seconds += time.perf_counter() - started
            return result

        return mock.patch.object(CellSegmentationRunner, "_postprocess_batch", timed)


def open_and_tile(slide: Path, mpp: float, settings: dict[str, Any]) -> tuple[Any, tuple[int, int]]:
    """The slide with tiles all over it, and its width and height in pixels at that resolution."""
    wsi = zs.open_wsi(slide, store=None, reader="openslide")
    height, width = wsi.properties.shape
    add_tissues(wsi, "tissues", [box(0, 0, width, height)])
    zs.pp.tile_tissues(
        wsi, settings["tile_px"], overlap=settings["overlap"], mpp=mpp, edge=True, background_filter=False
    )
    scale = wsi.properties.mpp / mpp
    return wsi, (round(width * scale), round(height * scale))


def segment(wsi: Any, model: NucleusModel, settings: dict[str, Any]) -> Any:
    """The shapes that LazySlide finds, with their classes."""
    common = {
        "batch_size": settings["batch"],
        "num_workers": settings["workers"],
        "device": device(),
        "amp": settings["autocast"],
        "autocast_dtype": torch.bfloat16,
        "compile": settings["compile"],
        "pbar": False,
        "key_added": "nuclei",
    }
    if settings["route"] == "semantic":
        zs.seg.semantic(wsi, model, class_names=list(model.description.classes), **common)
    else:
        zs.seg.cells(
            wsi,
            model,
            postprocess_workers=settings["postprocess_workers"],
            overlap_ownership=settings["overlap_ownership"],
            **common,
        )
    return wsi.shapes["nuclei"]


def count_nuclei(shapes: Any, smallest_area: float) -> tuple[int, int]:
    """Positive and negative nuclei; membranes that ``zs.seg.semantic`` made into shapes are none."""
    classes = shapes["class"][shapes.geometry.area >= smallest_area].astype(str)
    positive, negative = (int(classes.isin([kind, f"{kind}_nucleus"]).sum()) for kind in ("positive", "negative"))
    return positive, negative


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Analyse the slide and return the record."""
    settings = chosen(arguments, MODES[arguments.mode])
    description = read_description(arguments.weights)
    clock, instances = PostprocessClock(), settings["route"] == "cells"
    model = NucleusModel(arguments.weights, description, instances=instances)
    with measured() as measurement, clock.watching():
        model.measurement = measurement
        wsi, size_px = open_and_tile(arguments.slide, description.mpp, settings)
        shapes = segment(wsi, model, settings)
        scale = description.mpp / wsi.properties.mpp
        positive, negative = count_nuclei(shapes, arguments.smallest_px * scale**2)
    if settings["postprocess_workers"] == 0:
        # Without a thread of its own, polygons are made between the batches: that is no work of the network.
        measurement.network_s -= clock.seconds
    return record(
        tool="LazySlide",
        version=lazyslide.__version__,
        mode=arguments.mode,
        settings=settings,
        measurement=measurement,
        size_px=size_px,
        mpp=description.mpp,
        positive=positive,
        negative=negative,
    )


def main() -> None:
    """Read the command line, run, write the record."""
    options = parser(__doc__)
    options.add_argument("--route", choices=("semantic", "cells"), help="the function of zs.seg")
    options.add_argument("--tile-px", type=int)
    options.add_argument("--overlap", type=float, help="a share below 1, or pixels")
    options.add_argument("--postprocess-workers", type=int, help="threads that make polygons, of zs.seg.cells")
    options.add_argument("--overlap-ownership", action=argparse.BooleanOptionalAction, help="of zs.seg.cells")
    arguments = options.parse_args()
    write_record(arguments.out, run(arguments))


if __name__ == "__main__":
    main()
