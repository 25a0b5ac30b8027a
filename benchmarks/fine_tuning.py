"""What fine-tuning on a few annotated fields brings on the other fields of the same laboratory.

    python -m benchmarks.fine_tuning ../shared/data/ki67_dcis --out fine_tuning.json [--fields 5 --draws 3 --minutes 10]

For each draw, some fields are learned from with the command's own recipe (``ki67.training.fine_tuning``), and all
others are evaluated before and after. Weights that learned from sets which do not allow training stay in a temporary
folder.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dataset_parts import part_of
from ki67.detectors import load_detector
from ki67.nuclei_evaluation import evaluate_nuclei
from ki67.storage import write_json
from ki67.training.datasets import image_paths, read_dataset
from ki67.training.fine_tuning import SHIPPED_NUCLEI, fine_tune


def scores(folder: Path, model: Path) -> dict[str, float]:
    """F1 of both classes, their mean, F1 of detection and RMSE of the index on a dataset."""
    record = evaluate_nuclei(folder, load_detector("unet_resnet34", model))
    f1 = {name: values["f1"] for name, values in record["pooled"].items()}
    return f1 | {"mean": (f1["positive"] + f1["negative"]) / 2, "rmse": record["index"].get("rmse", float("nan"))}


def one_draw(folder: Path, chosen: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Learn from some fields, and compare on the others."""
    stems = [path.stem for path in image_paths(read_dataset(folder))]
    taken = set(np.random.default_rng(seed).choice(stems, size=chosen.fields, replace=False).tolist())
    with tempfile.TemporaryDirectory() as temporary:
        learned = part_of(folder, taken, Path(temporary) / "learned")
        others = part_of(folder, set(stems) - taken, Path(temporary) / "others")
        before = scores(others, chosen.model)
        tuned = Path(temporary) / "nuclei_tuned"
        fine_tune(
            [learned],
            tuned,
            start_from=chosen.model,
            minutes=chosen.minutes,
            steps=chosen.steps,
            seed=seed,
            allow_unlicensed=True,
        )
        return {"seed": seed, "fields": sorted(taken), "before": before, "after": scores(others, tuned)}


def main() -> None:
    """Draw, learn, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--fields", type=int, default=5)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--steps", type=int, help="instead of minutes, the same on every machine")
    parser.add_argument("--model", type=Path, default=SHIPPED_NUCLEI)
    chosen = parser.parse_args()
    results = []
    for seed in range(chosen.draws):
        results.append(one_draw(chosen.dataset, chosen, seed))
        gained = {name: results[-1]["after"][name] - value for name, value in results[-1]["before"].items()}
        print(seed, " ".join(f"{name} {value:+.3f}" for name, value in gained.items()), flush=True)
        if chosen.out:
            write_json(chosen.out, {"draws": results})
    gain = np.mean([result["after"]["mean"] - result["before"]["mean"] for result in results])
    print(f"mean F1 of both classes, mean of {len(results)} draws: {gain:+.3f}")


if __name__ == "__main__":
    main()
