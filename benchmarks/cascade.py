"""What a coarse tumour network that looks first saves, and what it costs in accuracy, on annotated images.

    python -m benchmarks.cascade DATASET [DATASET ...] [--fine DIR] [--coarse DIR] [--share S ...] [--out X.json]

Every pixel of an image counts as tissue. Shares of tiles are those that the fine network need not look at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from ki67.geometry import Mask
from ki67.networks import Network, load_network
from ki67.slides import ImageReader
from ki67.training.datasets import Dataset, read_dataset
from ki67.tumor import Cascade, TumorSegmentation, segment_tumor

MASK_MPP = 2.0
MODELS = Path("resources/models")


def slides_of(dataset: Dataset) -> list[tuple[ImageReader, NDArray[np.bool_]]]:
    """Images as slides, and their tumour at the resolution of the masks."""
    pairs = []
    for path in sorted((dataset.folder / "images").iterdir()):
        rgb = np.ascontiguousarray(cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1])
        truth = cv2.imread(str(dataset.folder / "masks" / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE)
        slide = ImageReader(rgb, "png", mpp=dataset.mpp, slide_id=path.stem, stain="he")
        size = tuple(max(1, int(np.ceil(length / MASK_MPP - 1e-6))) for length in slide.size_um)
        reduced = cv2.resize(truth, (size[0], size[1]), interpolation=cv2.INTER_AREA)
        pairs.append((slide, np.asarray(reduced >= 128)))
    return pairs


def segmented(slide: ImageReader, fine: Network, cascade: Cascade | None) -> TumorSegmentation:
    """The tumour of an image, all of it tissue."""
    rows, columns = (max(1, int(np.ceil(size / MASK_MPP - 1e-6))) for size in reversed(slide.size_um))
    everything = Mask(np.ones((rows, columns), dtype=bool), MASK_MPP, "he")
    return segment_tumor(slide, everything, fine, cascade=cascade, mask_mpp=MASK_MPP)


def measured(found: list[TumorSegmentation], truth: list[NDArray[np.bool_]]) -> dict[str, float]:
    """Dice of the masks and area under the ROC curve of the probabilities over all pixels; tiles weighed alike."""
    mask = np.concatenate([one.mask.pixels.ravel() for one in found])
    probability = np.concatenate([one.probability.ravel() for one in found])
    known = np.concatenate([one.ravel() for one in truth])
    return {
        "dice": float(2 * (mask & known).sum() / max(1, mask.sum() + known.sum())),
        "auc": float(roc_auc_score(known, probability)) if 0 < known.mean() < 1 else float("nan"),
        "tiles_skipped": 1 - float(np.average([one.fine_share for one in found], weights=[one.size for one in truth])),
    }


def main(
    datasets: Annotated[list[Path], typer.Argument(help="Dataset folders of kind tumor, H&E.")],
    fine: Annotated[Path, typer.Option(help="Folder of the network that looks closely.")] = MODELS / "tumor_he",
    coarse: Annotated[Path, typer.Option(help="Folder of the one that looks first.")] = MODELS / "tumor_he_coarse",
    share: Annotated[list[float] | None, typer.Option(help="Uncertain shares of a tile to try.")] = None,
    precision: Annotated[str, typer.Option(help="In which numbers networks compute.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Compare the fine network alone, cascades and the coarse network alone."""
    near = load_network(fine, device="cpu", precision=precision)  # type: ignore[arg-type]
    far = load_network(coarse, device="cpu", precision=precision)  # type: ignore[arg-type]
    standard = Cascade(far)
    ways: dict[str, Cascade | None] = {"fine alone": None}
    for value in share or [standard.uncertain_share]:
        ways[f"cascade {value:g}"] = Cascade(far, uncertain_share=value)
    ways["coarse alone"] = Cascade(far, uncertain_share=1.0)
    result: dict[str, Any] = {}
    for folder in datasets:
        pairs = slides_of(read_dataset(folder))
        for name, way in ways.items():
            found = [segmented(slide, near, way) for slide, _ in tqdm(pairs, desc=f"{folder.name} {name}")]
            row = measured(found, [truth for _, truth in pairs])
            result[f"{folder.name} {name}"] = row
            typer.echo(f"{folder.name}\t{name}\t" + "\t".join(f"{key} {number:.4f}" for key, number in row.items()))
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
