"""Whether nuclei depend on what must not matter: threads, batches, and where the grid of tiles begins.

    python -m benchmarks.invariance SLIDE --model resources/models/nuclei [--side-um 2000] [--out X.json]

A square in the middle of the slide is analysed again and again. A nucleus is the same where one of the same class lies
within 0.5 µm. Nuclei at the edge of the square do not count, as their tiles end elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import geopandas
import numpy as np
import typer
from scipy.spatial import cKDTree

from ki67.geometry import Mask
from ki67.inference import Running
from ki67.networks import Precision, load_network
from ki67.nuclei import detect_nuclei
from ki67.slides import open_slide

SAME_UM = 0.5
EDGE_UM = 40.0
MASK_MPP = 4.0
VARIANTS: dict[str, dict[str, Any]] = {
    "1 thread": {"running": Running(threads=1)},
    "3 threads": {"running": Running(threads=3)},
    "batches of 16": {"running": Running(batch_size=16)},
    "grid 32 px earlier": {"offset_px": (32, 32)},
    "grid 96, 640 px earlier": {"offset_px": (96, 640)},
    "grid 512, 288 px earlier": {"offset_px": (512, 288)},
    "grid 16, 48 px earlier": {"offset_px": (16, 48)},
    "grid 7, 13 px earlier": {"offset_px": (7, 13)},
    "grid 101, 250 px earlier": {"offset_px": (101, 250)},
}


def share_of_same(one: geopandas.GeoDataFrame, other: geopandas.GeoDataFrame) -> float:
    """Share of nuclei of one table that are in the other as well; the smaller of both ways round."""
    places = [table[["x_um", "y_um"]].to_numpy() for table in (one, other)]
    classes = [table["positive"].to_numpy() for table in (one, other)]
    shares = []
    for here, there in ((0, 1), (1, 0)):
        distance, nearest = cKDTree(places[there]).query(places[here])
        shares.append(np.mean((distance <= SAME_UM) & (classes[there][nearest] == classes[here])))
    return float(min(shares))


def main(
    slide: Annotated[Path, typer.Argument(help="A Ki-67 slide.")],
    model: Annotated[Path, typer.Option(help="Folder of a network of nuclei.")],
    side_um: Annotated[float, typer.Option(help="Side of the square.")] = 2000.0,
    precision: Annotated[str, typer.Option(help="In which numbers the network computes.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Analyse a square in many ways, and compare."""
    chosen: Precision = precision  # type: ignore[assignment]
    network = load_network(model, device="cpu", precision=chosen)
    with open_slide(slide, slide_id=slide.stem, stain="ki67") as opened:
        rows, columns = (int(size / MASK_MPP) for size in reversed(opened.size_um))
        half = int(side_um / 2 / MASK_MPP)
        pixels = np.zeros((rows, columns), dtype=bool)
        pixels[rows // 2 - half : rows // 2 + half, columns // 2 - half : columns // 2 + half] = True
        square = Mask(pixels, MASK_MPP, "ki67")

        def nuclei(**way: Any) -> geopandas.GeoDataFrame:
            table = detect_nuclei(opened, square, network, **way).table
            middle = np.array([columns // 2, rows // 2]) * MASK_MPP
            inside = (np.abs(table[["x_um", "y_um"]].to_numpy() - middle) < side_um / 2 - EDGE_UM).all(axis=1)
            return table[inside]

        standard = nuclei()
        result: dict[str, Any] = {"precision": network.precision, "nuclei": len(standard)}
        typer.echo(f"{network.precision}\t{len(standard)} nuclei")
        for name, way in VARIANTS.items():
            found = nuclei(**way)
            row = {
                "same": share_of_same(standard, found),
                "index_difference": float(found["positive"].mean() - standard["positive"].mean()),
            }
            result[name] = row
            typer.echo(f"{name}\tsame {row['same']:.5f}\tindex {row['index_difference']:+.5f}")
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
