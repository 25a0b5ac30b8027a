"""The training of a random forest that tells nuclei found by colour apart: no nucleus, positive, negative."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from tqdm import tqdm

from ki67.color_threshold import ColorThresholdOptions, color_levels
from ki67.errors import Ki67Error
from ki67.extraction import Nuclei, extract_nuclei
from ki67.matching import MATCH_UM, match_points
from ki67.networks import nuclei_spec
from ki67.random_forest import (
    CANDIDATES,
    FEATURES,
    NEGATIVE,
    NO_NUCLEUS,
    POSITIVE,
    NucleusForest,
    Trees,
    joined_trees,
    nucleus_features,
    save_forest,
)
from ki67.training import datasets as data
from ki67.training.cards import card_tables, check_allowed, dataset_record
from ki67.training.scores import is_known, score_found_nuclei

log = logging.getLogger(__name__)

_LEFT_OUT = -1


@dataclass(frozen=True)
class ForestOptions:
    """How a forest is trained.

    Attributes
    ----------
    name
        Of the forest, as its folder is called.
    trees
        How many.
    leaves
        Most of each tree.
    nuclei_a_leaf
        Fewest that a leaf was made from.
    candidates
        How nuclei are found.
    validation_share
        Share of each dataset's groups that is held out.
    allow_unlicensed
        Train on datasets whose ``use`` does not allow training; the card says so.
    workers
        Threads that grow trees. No tree depends on it.
    seed
        Of the split and the trees.
    """

    name: str = "nuclei_forest"
    trees: int = 100
    leaves: int = 400
    nuclei_a_leaf: int = 3
    candidates: ColorThresholdOptions = CANDIDATES
    validation_share: float = 0.1
    allow_unlicensed: bool = False
    workers: int = 1
    seed: int = 0


def train_forest(
    datasets: list[Path], folder: Path, options: ForestOptions | None = None
) -> tuple[NucleusForest, dict[str, float]]:
    """Train a forest and write it into a folder, as ``ki67.random_forest.save_forest`` does.

    A nucleus found by colour is the annotated one that it is matched with, no farther than 4 µm away, or none.

    Parameters
    ----------
    datasets
        Folders of kind ``instances`` or ``nuclei``.

    Returns
    -------
    forest, scores
        As written, and F1 of nuclei in the held-out images; see ``ki67.training.scores.score_found_nuclei``.

    Raises
    ------
    Ki67Error
        If there is no dataset, one of them does not allow training or cannot serve, or a class is missing in all.
    """
    options = options or ForestOptions()
    described = [data.read_dataset(path) for path in datasets]
    check_allowed(described, options.name, allow_unlicensed=options.allow_unlicensed)
    spec = nuclei_spec(options.name)
    images = [image for dataset in described for image in data.read_images(dataset, spec)]
    training, validation = data.split(images, options.validation_share, options.seed)
    forest = NucleusForest(options.name, _grown(training, spec.mpp, options), options.candidates, spec.mpp)
    scores = _scores(forest, validation)
    record = {
        "datasets": [dataset_record(dataset, training, validation) for dataset in described],
        "trees": options.trees,
        "leaves": options.leaves,
        "nuclei_a_leaf": options.nuclei_a_leaf,
        "seed": options.seed,
        "finished": datetime.now(UTC).strftime("%Y-%m-%d"),
        "allow_unlicensed": options.allow_unlicensed,
        "validation": scores,
    }
    forest = replace(forest, training=record)
    return save_forest(folder, forest, _card(forest, record)), scores


def _grown(images: list[data.AnnotatedImage], mpp: float, options: ForestOptions) -> Trees:
    examples = [_examples(image, mpp, options.candidates) for image in tqdm(images, desc=options.name, unit="image")]
    features, kinds = (np.concatenate(part) for part in zip(*examples, strict=True))
    counts = {name: int((kinds == kind).sum()) for name, kind in _NAMES.items()}
    log.info("%s: %s", options.name, ", ".join(f"{count} {name}" for name, count in counts.items()))
    if missing := [name for name, count in counts.items() if not count]:
        raise Ki67Error(
            f"forest {options.name}: no nucleus found in the datasets is {missing[0]}; add images with such"
        )
    forest = RandomForestClassifier(
        options.trees,
        max_leaf_nodes=options.leaves,
        min_samples_leaf=options.nuclei_a_leaf,
        random_state=options.seed,
        n_jobs=options.workers,
    )
    return trees_of(forest.fit(features, kinds))


_NAMES = {"no nucleus": NO_NUCLEUS, "positive": POSITIVE, "negative": NEGATIVE}


def _examples(
    image: data.AnnotatedImage, mpp: float, candidates: ColorThresholdOptions
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features and class of what is found in an image, without that of which the annotation says nothing."""
    found = extract_nuclei(color_levels(image.rgb, mpp, candidates), mpp=mpp)
    kinds = _kinds(found, image, mpp)
    return nucleus_features(found, image.rgb, mpp)[kinds != _LEFT_OUT], kinds[kinds != _LEFT_OUT]


def _kinds(found: Nuclei, image: data.AnnotatedImage, mpp: float) -> NDArray[np.int64]:
    """What each found nucleus is ``(N,)``: a class of the forest, or ``_LEFT_OUT``."""
    places = np.column_stack([found.x_px, found.y_px])
    kinds = np.where(is_known(places, image), NO_NUCLEUS, _LEFT_OUT)
    of_found, of_known = match_points(places, image.nuclei[:, :2], MATCH_UM / mpp)
    annotated = image.nuclei[of_known, 2].astype(np.int64)
    kinds[of_found] = np.where(np.isin(annotated, (POSITIVE, NEGATIVE)), annotated, _LEFT_OUT)
    return kinds


def trees_of(forest: RandomForestClassifier) -> Trees:
    """The trees of a trained forest of the three classes."""
    parts = [tree.tree_ for tree in forest.estimators_]
    shares = np.concatenate([part.value[:, 0] for part in parts])
    return joined_trees(parts, shares / shares.sum(axis=1, keepdims=True))


def _scores(forest: NucleusForest, images: list[data.AnnotatedImage]) -> dict[str, float]:
    """Scores of held-out images that have a value, to four digits."""
    found = []
    for image in images:
        candidates = extract_nuclei(color_levels(image.rgb, forest.mpp, forest.candidates), mpp=forest.mpp)
        found.append(forest.revise(candidates, image.rgb, forest.mpp))
    scores = score_found_nuclei(found, images, forest.mpp) if images else {}
    return {name: round(value, 4) for name, value in scores.items() if np.isfinite(value)}


def _card(forest: NucleusForest, record: dict[str, Any]) -> str:
    lines = [
        f"# {forest.name}",
        "",
        f"A random forest of {record['trees']} trees on {len(FEATURES)} features of shape, colour and texture, for "
        f"nuclei found by colour at {forest.mpp} µm/px: no nucleus, positive, negative. Seed {record['seed']}, "
        f"finished on {record['finished']}.",
        *card_tables(record),
    ]
    return "\n".join(lines)
