"""Print the index of each real field beside the annotated one.

Usage: python tests/workflow/real/compare.py FOLDER, where FOLDER holds the results of a run on slides.tsv beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from ki67.storage import read_nuclei_parquet

SHEET = Path(__file__).with_name("slides.tsv")


def share(positive: int, total: int) -> float:
    """Positive of all, NaN where there are none."""
    return positive / total if total else float("nan")


def compare(folder: Path) -> pd.DataFrame:
    """One row a field: indices found and annotated, and counts inside the annotated part."""
    sheet = pd.read_csv(SHEET, sep="\t", comment="#", dtype=str).dropna(subset=["ki67", "mpp_ki67"])
    scored = pd.read_csv(folder / "results" / "cohort" / "cohort.csv", index_col="slide")
    rows = [compare_field(folder, row, scored.loc[row["slide"]]) for _, row in sheet.iterrows()]
    return pd.DataFrame(rows).set_index("field")


def compare_field(folder: Path, row: pd.Series, scored: pd.Series) -> dict[str, object]:
    """The row of one field."""
    image = (SHEET.parent / row["ki67"]).resolve()
    dataset = image.parents[1]
    nuclei = read_nuclei_parquet(folder / "results" / row["slide"] / "nuclei.parquet")
    inside = nuclei[nuclei["in_tumor"] & annotated_part(dataset, image.stem, nuclei, float(row["mpp_ki67"]))]
    annotations = json.loads((dataset / "annotations" / f"{image.stem}.json").read_text(encoding="utf-8"))
    labels = [one.get("label", one.get("label_id")) for one in annotations]
    positive, negative = labels.count(1), labels.count(2)
    return {
        "field": row["slide"],
        "index": scored["index"],
        "index inside": share(int(inside["positive"].sum()), len(inside)),
        "annotated": share(positive, positive + negative),
        "nuclei": len(inside),
        "annotated nuclei": positive + negative,
        "flags": scored["flags"],
    }


def annotated_part(dataset: Path, stem: str, nuclei: pd.DataFrame, mpp: float) -> np.ndarray:
    """Whether each nucleus lies where the field is annotated."""
    path = dataset / "roi_masks" / f"{stem}.png"
    if not path.is_file():
        return np.ones(len(nuclei), dtype=bool)
    mask = np.asarray(Image.open(path).convert("L")) > 0
    columns, rows = np.floor(nuclei[["x_um", "y_um"]].to_numpy() / mpp).astype(int).T
    return mask[np.clip(rows, 0, mask.shape[0] - 1), np.clip(columns, 0, mask.shape[1] - 1)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    table = compare(parser.parse_args().folder)
    print(table.to_string(float_format=lambda value: f"{value:.3f}"))
    difference = (table["index inside"] - table["annotated"]).abs()
    print(f"mean absolute difference inside the annotated part: {difference.mean():.3f}")


if __name__ == "__main__":
    main()
