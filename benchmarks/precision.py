"""Nuclei found in 8-bit integers and bfloat16 against those found in float32, pooled over all images of datasets.

    python -m benchmarks.precision --model resources/models/nuclei DATASET [DATASET ...] [--out X.json]

A nucleus of one is found by the other where it lies within 4 µm and is of the same class, each used once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from ki67.extraction import extract_nuclei
from ki67.matching import MATCH_UM
from ki67.networks import Network, Precision, load_network, predict_image
from ki67.training.datasets import read_dataset
from ki67.training.scores import f1, match_counts

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


def images_of(folder: Path, mpp: float) -> list[NDArray[np.uint8]]:
    """The images of a dataset, RGB uint8 ``(H, W, 3)``, at a network's resolution."""
    factor = read_dataset(folder).mpp / mpp
    images = []
    for path in sorted(path for path in (folder / "images").iterdir() if path.suffix.lower() in SUFFIXES):
        rgb = np.ascontiguousarray(cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1])
        size = (max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor)))
        images.append(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC))
    return images


def nuclei_of(network: Network, rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Column, row and whether positive ``(N, 3)`` of the nuclei in an image."""
    found = extract_nuclei(predict_image(network, rgb), mpp=network.spec.mpp)
    return np.column_stack([found.x_px, found.y_px, found.positive])


def agreement(found: list[NDArray[np.float64]], exact: list[NDArray[np.float64]], mpp: float) -> dict[str, float]:
    """F1 of the nuclei of one precision against those of another, both classes pooled, and both indices."""
    counts = sum(
        np.array(match_counts(one[one[:, 2] == kind], other[other[:, 2] == kind], MATCH_UM / mpp))
        for one, other in zip(found, exact, strict=True)
        for kind in (0, 1)
    )
    pooled, pooled_exact = np.concatenate(found), np.concatenate(exact)
    index, exact_index = pooled[:, 2].mean(), pooled_exact[:, 2].mean()
    return {
        "nuclei": len(pooled),
        "nuclei_float32": len(pooled_exact),
        "f1": f1(*counts),
        "index": float(index),
        "index_float32": float(exact_index),
        "index_difference": float(index - exact_index),
    }


def main(
    datasets: Annotated[list[Path], typer.Argument(help="Dataset folders with images of Ki-67.")],
    model: Annotated[Path, typer.Option(help="Folder of a network of nuclei.")],
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Compare precisions."""
    precisions: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
    networks = {name: load_network(model, device="cpu", precision=name) for name in precisions}
    result: dict[str, dict[str, dict[str, float]]] = {}
    for folder in datasets:
        images = images_of(folder, networks["float32"].spec.mpp)
        found = {
            name: [nuclei_of(network, image) for image in tqdm(images, desc=f"{folder.name} {name}")]
            for name, network in networks.items()
        }
        result[folder.name] = {
            name: agreement(found[name], found["float32"], networks[name].spec.mpp) for name in precisions[1:]
        }
        for name, row in result[folder.name].items():
            typer.echo(f"{folder.name}\t{name}\t" + "\t".join(f"{key} {value:.5g}" for key, value in row.items()))
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
