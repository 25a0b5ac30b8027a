"""How well a tumour network does on a source of images that it never saw: train on all others, measure on the one.

    python -m benchmarks.leave_one_source_out he_bcss:1008 he_bcss:1015 he_camelyon --drawn FIELDS --out FOLDER
        [--settings resources/models/train.yaml --network tumor_he --only SOURCE ...]

A source is a dataset, or the images of one that are named behind a colon. Each network is trained as the settings say,
on the other sources and the drawn fields, with the shares of the datasets that were left. A training that was stopped
goes on when the command is given again, and one that is finished is only measured. In the end stands the threshold of
probability with the greatest Youden index over all sources, each of the same weight, which the settings then take.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from benchmarks.dataset_parts import part_of
from ki67.binary_scores import best_threshold
from ki67.networks import NETWORK_SPECS, load_network
from ki67.storage import write_json
from ki67.training.datasets import image_paths, read_dataset
from ki67.training.fit import FitOptions, fit
from ki67.tumor_evaluation import TumorEvaluation, evaluate_tumor

KEPT = ("encoder_weights", "steps", "batch_size", "learning_rate", "mixed_share")


@dataclass(frozen=True)
class Source:
    """Images of one dataset."""

    folder: Path
    stems: frozenset[str]

    @classmethod
    def of(cls, text: str) -> Source:
        """``FOLDER`` or ``FOLDER:NAME,NAME``."""
        folder, _, names = text.partition(":")
        stems = names.split(",") if names else [path.stem for path in image_paths(read_dataset(Path(folder)))]
        return cls(Path(folder), frozenset(stems))

    @property
    def name(self) -> str:
        """Of the dataset, with those of its images where they are few."""
        return "_".join([self.folder.name, *sorted(self.stems)]) if len(self.stems) <= 2 else self.folder.name


def train_without(left_out: Source, sources: list[Source], chosen: argparse.Namespace) -> Path:
    """The folder of the network trained on all other sources."""
    settings = yaml.safe_load(chosen.settings.read_text(encoding="utf-8"))["train"][chosen.network]
    folder = chosen.out / f"without_{left_out.name}"
    if (folder / "weights.safetensors").exists():
        return folder
    with tempfile.TemporaryDirectory() as temporary:
        parts = [
            part_of(source.folder, set(source.stems), Path(temporary) / str(number) / source.folder.name)
            for number, source in enumerate(sources)
            if source != left_out
        ]
        shares = {name: share for name, share in settings["shares"].items() if name in {part.name for part in parts}}
        options = FitOptions(
            spec=NETWORK_SPECS[chosen.network],
            dataset_shares=shares | ({chosen.drawn.name: settings["shares"][chosen.network]} if shares else {}),
            start_from=str(chosen.start_from or settings["start_from"] or ""),
            validation_share=0.0,
            workers=chosen.workers,
            **{key: settings[key] for key in KEPT if key in settings},
        )
        fit(options, [*parts, chosen.drawn], folder)
    return folder


def measured(left_out: Source, folder: Path) -> TumorEvaluation:
    """The evaluation of a network on the source that it never saw."""
    with tempfile.TemporaryDirectory() as temporary:
        part = part_of(left_out.folder, set(left_out.stems), Path(temporary) / left_out.folder.name)
        return evaluate_tumor(part, load_network(folder))


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Source.of)
    parser.add_argument("--drawn", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settings", type=Path, default=Path("resources/models/train.yaml"))
    parser.add_argument("--network", default="tumor_he")
    parser.add_argument("--start-from", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--workers", type=int, default=1)
    chosen = parser.parse_args()
    counts = []
    for source in chosen.sources:
        if chosen.only and source.name not in chosen.only:
            continue
        evaluation = measured(source, train_without(source, chosen.sources, chosen))
        counts.append(evaluation.pixels / evaluation.pixels.sum())
        record = evaluation.to_json()
        write_json(chosen.out / f"without_{source.name}.json", record)
        scores = " ".join(f"{name} {value:.3f}" for name, value in record["pooled"].items() if isinstance(value, float))
        print(f"{source.name}: {scores}", flush=True)
    print("all sources alike: threshold {:.3f}, Youden index {:.3f}".format(*best_threshold(np.sum(counts, axis=0))))


if __name__ == "__main__":
    main()
