"""Ranges of a network's activations, from images such as it was trained on, for computing in 8-bit integers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas
import safetensors.torch
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ki67.detectors import FAMILIAR_FILE, load_detector
from ki67.errors import Ki67Error
from ki67.familiarity import FEWEST_NUCLEI, MEASURES, familiar_ranges, measured
from ki67.networks import (
    NO_INT8,
    NUCLEUS_CLASSES,
    NetworkSpec,
    build_network,
    fuse_batch_normalization,
    normalization,
    read_spec,
    save_ranges,
    write_whole,
)
from ki67.nuclei import stain_amounts
from ki67.quantized import activation_ranges
from ki67.training.augmentation import Augmentation
from ki67.training.datasets import AnnotatedImage, read_dataset, read_images

log = logging.getLogger(__name__)

TILES = 96
FIELDS = 200


def calibrate(folder: Path, images: list[AnnotatedImage]) -> None:
    """Write ``int8.safetensors``, the ranges of its activations, into the folder of a network.

    Parameters
    ----------
    folder
        With the network's weights.
    images
        Tiles are taken from them at random, changed as in training, so that ranges hold for stains of all kinds.
    """
    spec = read_spec(folder)
    module = build_network(spec)
    module.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))
    tiles = [torch.from_numpy(tile[None]).permute(0, 3, 1, 2) for tile in calibration_tiles(spec, images)]
    factor, summand = normalization(spec)
    batches = (torch.addcmul(summand, tile.float(), factor) for tile in tqdm(tiles, desc="calibrate", unit="tile"))
    save_ranges(folder, activation_ranges(fuse_batch_normalization(module).float(), batches), spec)
    log.info("%s: ranges of activations from %d tiles", spec.name, len(tiles))


def calibrate_folder(folder: Path, datasets: list[Path]) -> None:
    """``calibrate`` with all images of datasets.

    Raises
    ------
    Ki67Error
        If there is no network, it does not compute in 8-bit integers, or a dataset cannot serve it.
    """
    spec = read_spec(folder)
    if spec.classifies_patches:
        raise Ki67Error(f"network {spec.name}: a {spec.architecture} {NO_INT8}; there is nothing to calibrate")
    images = [image for path in datasets for image in read_images(read_dataset(path), spec)]
    calibrate(folder, images)
    if spec.classes == NUCLEUS_CLASSES:
        write_familiar_ranges(folder, images)


def write_familiar_ranges(folder: Path, images: list[AnnotatedImage]) -> None:
    """Write ``familiar.json``, ranges of the nuclei that a five-class network finds in images, into its folder.

    Parameters
    ----------
    images
        Such as it was trained on; ``FIELDS`` of them are looked at, unchanged.
    """
    detector = load_detector("unet_resnet34", folder)
    rows = []
    for image in tqdm(images[:: max(1, len(images) // FIELDS)], desc="familiar", unit="field"):
        nuclei = detector(image.rgb)
        if len(nuclei.area_px) < FEWEST_NUCLEI:
            continue
        hematoxylin, dab = stain_amounts(nuclei, image.rgb)
        columns = {"area_um2": nuclei.area_px * detector.mpp**2, "hematoxylin_od": hematoxylin, "dab_od": dab}
        rows.append(measured(pandas.DataFrame(columns | {"positive": nuclei.positive})))
    ranges = familiar_ranges(pandas.DataFrame(rows, columns=list(MEASURES)))
    write_whole(folder / FAMILIAR_FILE, (json.dumps(ranges, indent=2) + "\n").encode())
    log.info("%s: ranges of nuclei from %d fields", detector.predictor.spec.name, len(rows))


def calibration_tiles(spec: NetworkSpec, images: list[AnnotatedImage]) -> Iterator[NDArray[np.uint8]]:
    """RGB tiles uint8 ``(H, W, 3)``, the same each time; the images take turns."""
    for index in range(TILES):
        random = np.random.default_rng([0, index])
        image = images[index * len(images) // TILES if len(images) >= TILES else index % len(images)]
        yield Augmentation().apply(image.rgb, image.target, spec.tile_px, random)[0]
