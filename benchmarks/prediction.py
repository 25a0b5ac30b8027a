"""How well the index is predicted from H&E that carries it with a known strength, and from H&E that carries nothing.

    python -m benchmarks.prediction --slides 40 --seeds 5 --folder DIR
        [--methods forest resnet18 mean_pooling attention] [--patches 48] [--steps N] [--workers N]

Cohorts are drawn (``ki67.prediction.drawn_cohort``): in one half of them a factor moves both the morphology on the H&E
and the index, in the other half the index is drawn apart from it. Each method is cross-validated on each cohort, and
the rank correlation of what it says out of fold with the index (``ki67.prediction.evaluation``: within folds, which is
0 on average for a model that learned nothing) stands beside that of the factor itself, than which no model knows more.

Wanted: where the H&E carries the index, at least 0.8 of the factor's correlation, for each seed; where it carries
nothing, a mean over the seeds within 0.15 of 0.

``DIR/results.jsonl`` has a line for each method, seed and kind of cohort as soon as it is done. What is there already
is not done again, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed  # type: ignore[import-untyped]
from scipy.stats import spearmanr

from ki67.prediction.cross_validation import CrossValidation, cross_validate_examples, learnable
from ki67.prediction.drawn_cohort import DrawnPatient, draw_cohort
from ki67.prediction.evaluation import evaluate_prediction, within_folds
from ki67.prediction.examples import Example
from ki67.prediction.methods import LEVELS, PredictOptions, prepare
from ki67.prediction.splits import check_slides, patient_folds
from ki67.score_table import markdown_table

METHODS = ("forest", "resnet18", "mean_pooling", "attention")
LEAST_SHARE, MOST_CHANCE = 0.8, 0.15
FOLDS = 5


class Cohort:
    """A drawn cohort, and its slides as methods see them, each computed once."""

    def __init__(self, slides: int, seed: int, carries: bool, patches: int, workers: int) -> None:
        self.patients: dict[str, DrawnPatient] = {
            one.pairs.slide: one for one in draw_cohort(slides, seed, carries, patches=patches, workers=workers)
        }
        self.pairs = learnable([one.pairs for one in self.patients.values()])
        check_slides(self.pairs)
        self.index = np.array([one.slide_index for one in self.pairs], dtype=np.float64)
        self.factor = np.array([self.patients[one.slide].factor for one in self.pairs])
        self.folds = patient_folds([one.patient for one in self.pairs], self.index, FOLDS, seed=seed)
        self.workers = workers
        self._seen: dict[str, list[Example]] = {}

    def examples(self, options: PredictOptions) -> list[Example]:
        """The slides as a method sees them; methods that see features share them."""
        kind = "pixels" if options.method in ("resnet18", "vit_b16") else "features"
        if kind not in self._seen:
            parallel = Parallel(n_jobs=self.workers)
            self._seen[kind] = list(parallel(delayed(prepare)(one, options) for one in self.pairs))
        return self._seen[kind]

    def factor_scores(self) -> dict[str, float]:
        """How far the factor itself tells the index, over all slides and within folds."""
        return {
            "factor_spearman": float(spearmanr(self.factor, self.index).statistic),
            "factor_spearman_within_folds": within_folds(self.factor, self.index, self.folds, ranks=True),
        }


def measure(cohort: Cohort, options: PredictOptions, seed: int, workers: int) -> dict[str, Any]:
    """Scores of a method on a cohort, with the seconds that it took."""
    start = time.monotonic()
    examples = cohort.examples(options)
    validated: CrossValidation = cross_validate_examples(
        cohort.pairs, examples, cohort.folds, options, seed=seed, workers=workers
    )
    seconds = time.monotonic() - start
    record = evaluate_prediction(validated.slides, validated.patches)
    scores = {name: score["value"] for name, score in record["slide"]["scores"].items()}
    patches = {name: score["value"] for name, score in record["patch"]["scores"].items()} if record["patch"] else {}
    return {**scores, "patches": patches, "seconds": round(seconds, 1), **cohort.factor_scores()}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What is done already; a line that a stop cut off does not count."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a line the result of this very run."""
    return tuple(row[name] for name in ("method", "seed", "carries", "slides", "patches_per_slide", "steps"))


def run(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """All lines of this run, those that were there before and those that are new."""
    path = chosen.folder / "results.jsonl"
    chosen.folder.mkdir(parents=True, exist_ok=True)
    done = {key_of(row): row for row in rows_of(path)}
    wanted = list(_wanted(chosen))
    drawn = cache(lambda seed, carries: Cohort(chosen.slides, seed, carries, chosen.patches, chosen.workers))
    for about in wanted:
        if key_of(about) in done:
            continue
        options = PredictOptions(about["method"], steps=about["steps"], device=chosen.device)
        row = about | measure(drawn(about["seed"], about["carries"]), options, about["seed"], chosen.workers)
        done[key_of(about)] = row
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{row['method']} seed {row['seed']} {'carries' if row['carries'] else 'carries nothing'}: "
            f"Spearman {row['spearman']:+.3f}, factor {row['factor_spearman']:+.3f}, {row['seconds']:.0f} s",
            flush=True,
        )
    return [done[key_of(about)] for about in wanted]


def _wanted(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for seed in range(chosen.first_seed, chosen.first_seed + chosen.seeds):
        for carries in (True, False):
            for method in chosen.methods:
                yield {
                    "method": method,
                    "seed": seed,
                    "carries": carries,
                    "slides": chosen.slides,
                    "patches_per_slide": chosen.patches,
                    "steps": chosen.steps if method in ("resnet18", "vit_b16") else None,
                }


def summary(rows: list[dict[str, Any]]) -> str:
    """A row a method: what was wanted, and what came out."""
    table = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        carried = [row for row in own if row["carries"]]
        nothing = np.array([row["spearman"] for row in own if not row["carries"]])
        shares = np.array([row["spearman"] / row["factor_spearman"] for row in carried])
        met = shares.min() >= LEAST_SHARE and abs(nothing.mean()) <= MOST_CHANCE
        table.append(
            {
                "method": method,
                "level": LEVELS[method],
                "seeds": str(len(carried)),
                "Spearman, H&E carries the index": _mean_and_range([row["spearman"] for row in carried]),
                "of the factor": _mean_and_range([row["factor_spearman"] for row in carried]),
                "share of the factor's": _mean_and_range(shares),
                "Spearman, H&E carries nothing": _mean_and_range(nothing),
                "pooled over folds": _mean_and_range([row["spearman_pooled"] for row in own if not row["carries"]]),
                "interval holds": f"{np.mean([row['interval_coverage'] for row in own]):.0%}",
                "s a seed": f"{np.mean([row['seconds'] for row in own]):.0f}",
                "as wanted": "yes" if met else "no",
            }
        )
    return markdown_table(table)


def _mean_and_range(values: Any) -> str:
    values = np.asarray(values, dtype=np.float64)
    return f"{values.mean():.2f} ({values.min():.2f} to {values.max():.2f})"


def main() -> None:
    """Measure what is asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--patches", type=int, default=48, help="of each slide")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=[m for m in LEVELS if m != "cyclegan"])
    parser.add_argument("--steps", type=int, default=None, help="of networks of patches; their own if not given")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, required=True)
    chosen = parser.parse_args()
    print(summary(run(chosen)))


if __name__ == "__main__":
    main()
