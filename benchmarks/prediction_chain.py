"""The index from H&E alone, from slides to predictions by one command: how long it takes, and what it says.

    .venv/bin/python -m benchmarks.prediction_chain [--pairs 14] [--alone 4] [--area-mm2 2] [--method mean_pooling]

Draws pairs of slides whose H&E carries the index, and more of which only the H&E is in the sheet. One run of Snakemake
scores the pairs, makes patch pairs, learns, evaluates and predicts those with an H&E alone. Their predicted indices
stand beside those of the Ki-67 sections that the run did not see.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed
from scipy.stats import spearmanr

from ki67.prediction.drawn_cohort import draw_factors
from ki67.score_table import markdown_table

ROOT = Path(__file__).resolve().parents[1]
FOLDS = 5


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pairs", type=int, default=14, help="slides to learn from, at least 10")
    arguments.add_argument("--alone", type=int, default=4, help="slides with an H&E alone")
    arguments.add_argument("--area-mm2", type=float, default=2.0)
    arguments.add_argument("--method", default="mean_pooling")
    arguments.add_argument("--cores", type=int, default=2)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--folder", type=Path, help="where to leave slides and results; nothing is left without it")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        truth = draw(folder, chosen)
        started = time.monotonic()
        run(folder, chosen)
        minutes = (time.monotonic() - started) / 60
        print(told(folder, truth, chosen.method))
    print(f"{chosen.pairs} pairs, {chosen.alone} H&E alone, {chosen.cores} cores: {minutes:.1f} minutes")


def draw(folder: Path, chosen: argparse.Namespace) -> dict[str, float]:
    """Slides and sheet; the true index of each slide."""
    names = [f"P{number + 1:02d}" for number in range(chosen.pairs)]
    names += [f"H{number + 1:02d}" for number in range(chosen.alone)]
    factors, indices = draw_factors(len(names), chosen.seed, True)
    Parallel(n_jobs=chosen.cores)(
        delayed(draw_pair)(folder / name, chosen.area_mm2, 1000 * chosen.seed + number, factor, index)
        for number, (name, factor, index) in enumerate(zip(names, factors, indices, strict=True))
        if not (folder / name / "truth").is_dir()
    )
    rows = [f"{name}\t{f'{name}/ki67.tif' if name.startswith('P') else ''}\t{name}/he.tif\t{name}" for name in names]
    (folder / "slides.tsv").write_text("slide\tki67\the\tpatient\n" + "\n".join(rows) + "\n", encoding="utf-8")
    truths = (json.loads((folder / name / "truth" / "truth.json").read_text(encoding="utf-8")) for name in names)
    return {name: truth["index"] for name, truth in zip(names, truths, strict=True)}


def draw_pair(folder: Path, area_mm2: float, seed: int, factor: float, index: float) -> None:
    command = [sys.executable, "-m", "ki67", "phantom", "--out", folder, "--area-mm2", area_mm2, "--seed", seed]
    command += ["--proliferation", factor, "--ki67-fraction", index, "--tumor-share", 0.6, "--laboratory", seed % 3]
    command += ["--stain-strength", 1, "--workers", 1]
    subprocess.run([*map(str, command)], cwd=ROOT, check=True, capture_output=True)


def run(folder: Path, chosen: argparse.Namespace) -> None:
    """Everything from slides to predictions, by one command."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    settings = {"slides": "slides.tsv", "predict": {"method": chosen.method, "folds": FOLDS}}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML as well
    command += ["--cores", str(chosen.cores), "--quiet", "rules", "progress"]
    command += ["--configfile", str(folder / "settings.json")]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if found.returncode:
        raise SystemExit(found.stdout)


def told(folder: Path, truth: dict[str, float], method: str) -> str:
    """What was predicted of slides with an H&E alone, and out of fold of those learned from."""
    cohort = pd.read_csv(folder / "results" / "cohort" / "cohort.csv", index_col="slide", keep_default_na=False)
    rows = []
    for slide in (name for name in truth if name.startswith("H")):
        found = cohort.loc[slide]
        rows.append(
            {
                "slide": slide,
                "true index": f"{truth[slide]:.3f}",
                "predicted": found["predicted_index"] or "none",
                "interval": " to ".join(filter(None, [found["predicted_low"], found["predicted_high"]])),
                "why not": found["predicted_reason"],
            }
        )
    learned = pd.read_csv(folder / "prediction" / method / "out_of_fold.csv", index_col="slide")
    rank = spearmanr(learned["predicted"], [truth[slide] for slide in learned.index]).statistic
    return f"{markdown_table(rows)}\nout of fold, {len(learned)} slides: Spearman with the true index {rank:.2f}"


if __name__ == "__main__":
    main()
