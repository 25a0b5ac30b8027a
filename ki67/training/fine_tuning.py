"""A trained network goes on learning from a few annotated fields of the laboratory that will use it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from ki67.detectors import FAMILIAR_FILE, load_detector, read_ranges_of_training
from ki67.errors import Ki67Error
from ki67.familiarity import joined_ranges
from ki67.networks import NUCLEUS_CLASSES, WHOLE_NUCLEUS_CLASSES, NetworkSpec, read_spec
from ki67.nucleus_review import REVIEW_FILE
from ki67.storage import write_json
from ki67.training.datasets import Dataset, image_paths, read_dataset
from ki67.training.fit import FitOptions, Fitted, fit
from ki67.training.review_fitting import fit_review

log = logging.getLogger(__name__)

SHIPPED_NUCLEI = Path(__file__).resolve().parents[2] / "resources" / "models" / "nuclei"
LEARNING_RATE = 2e-4
"""A fifth of that of a training from the beginning, so that what was learnt is adapted and not replaced."""
_WARMUP_STEPS = 20
_VALIDATION_SHARE = 0.1
_FEWEST_GROUPS_TO_HOLD_OUT = 10


def fine_tuning_options(
    spec: NetworkSpec,
    *,
    start_from: Path = SHIPPED_NUCLEI,
    groups: int = 0,
    minutes: float = 10.0,
    steps: int | None = None,
    seed: int = 0,
    allow_unlicensed: bool = False,
) -> FitOptions:
    """The recipe: a low learning rate from trained weights, and none held out where there are too few to spare.

    Nuclei of which only the centre is marked take the outline that the network already sees
    (``ki67.training.outlined_centers``). Discs instead of outlines made F1 worse, not better.

    Parameters
    ----------
    spec
        Of the network in ``start_from``.
    groups
        Number of patients or slides that the images are from; with fewer than ten all are trained on.
    minutes
        How long it takes, about.
    steps
        If given, this many steps instead of so many minutes, which makes the result the same on every run.

    Examples
    --------
    >>> from ki67.networks import nuclei_spec
    >>> fine_tuning_options(nuclei_spec(), groups=3).validation_share
    0.0
    """
    options = FitOptions(
        spec=replace(spec, training={}),
        minutes=minutes if steps is None else None,
        learning_rate=LEARNING_RATE,
        warmup_steps=_WARMUP_STEPS,
        start_from=str(start_from),
        outlines_from=str(start_from) if spec.classes in (NUCLEUS_CLASSES, WHOLE_NUCLEUS_CLASSES) else "",
        validation_share=_VALIDATION_SHARE if groups >= _FEWEST_GROUPS_TO_HOLD_OUT else 0.0,
        allow_unlicensed=allow_unlicensed,
        seed=seed,
    )
    return options if steps is None else replace(options, steps=steps)


def fine_tune(
    datasets: list[Path],
    folder: Path,
    *,
    start_from: Path = SHIPPED_NUCLEI,
    minutes: float = 10.0,
    steps: int | None = None,
    seed: int = 0,
    allow_unlicensed: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Fitted:
    """Train a network further and write it into another folder; see ``fine_tuning_options`` and ``ki67.training.fit``.

    Raises
    ------
    Ki67Error
        If the folder is that of the network it starts from, or as ``fit`` does.
    """
    if folder.resolve() == start_from.resolve():
        raise Ki67Error(f"{folder} holds the network to start from, which would be lost; name another folder")
    options = fine_tuning_options(
        read_spec(start_from),
        start_from=start_from,
        groups=sum(group_count(read_dataset(path)) for path in datasets),
        minutes=minutes,
        steps=steps,
        seed=seed,
        allow_unlicensed=allow_unlicensed,
    )
    fitted = fit(options, datasets, folder, on_step=on_step)
    if options.outlines_from:
        _adapt_review(datasets, start_from, folder)
    return fitted


def _adapt_review(datasets: list[Path], start_from: Path, folder: Path) -> None:
    """Fit the review of nuclei to the annotated fields, and keep what the network knew before familiar."""
    before, now = read_ranges_of_training(start_from), read_ranges_of_training(folder)
    if before and now:
        write_json(folder / FAMILIAR_FILE, joined_ranges(before, now))
    method = "unet_resnet34" if read_spec(folder).classes == NUCLEUS_CLASSES else "unet_resnet50"
    review = fit_review(datasets, load_detector(method, folder))
    if review is not None:
        write_json(folder / REVIEW_FILE, asdict(review))
        log.info("review: nuclei from a plausibility of %g", review.least_plausible)


def group_count(dataset: Dataset) -> int:
    """Number of patients or slides that the images of a dataset are from."""
    return len({dataset.groups.get(path.stem, path.stem) for path in image_paths(dataset)})
