"""Ranges of a network's activations, from images such as it was trained on, for computing in 8-bit integers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ki67.networks import (
    NetworkSpec,
    build_network,
    fuse_batch_normalization,
    normalization,
    read_spec,
    save_ranges,
)
from ki67.quantized import activation_ranges
from ki67.training.augmentation import Augmentation
from ki67.training.datasets import AnnotatedImage, read_dataset, read_images

log = logging.getLogger(__name__)

TILES = 96


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
        If there is no network, or a dataset cannot serve it.
    """
    spec = read_spec(folder)
    calibrate(folder, [image for path in datasets for image in read_images(read_dataset(path), spec)])


def calibration_tiles(spec: NetworkSpec, images: list[AnnotatedImage]) -> Iterator[NDArray[np.uint8]]:
    """RGB tiles uint8 ``(H, W, 3)``, the same each time; the images take turns."""
    for index in range(TILES):
        random = np.random.default_rng([0, index])
        image = images[index * len(images) // TILES if len(images) >= TILES else index % len(images)]
        yield Augmentation().apply(image.rgb, image.target, spec.tile_px, random)[0]
