"""The training of StarDist: from outlines of nuclei to a folder that StarDist itself, and this project, can read.

The loss is StarDist's own (Schmidt et al. 2018); the loop is that of ``ki67.training.fit``: tiles drawn from their
number alone, a cosine for the learning rate, a moving average of the weights, a checkpoint from which an interrupted
training ends as it would have.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ki67.errors import Ki67Error
from ki67.phantom.textures import Floats
from ki67.predictors import Precision
from ki67.star_polygons import StarOptions
from ki67.stardist_model import (
    ARCHITECTURE,
    CONFIG_FILE,
    MODEL_FILE,
    THRESHOLDS_FILE,
    WEIGHTS_FILE,
    StarSpec,
    choose_precision,
    read_star_spec,
    star_model,
    start_tensorflow,
)
from ki67.storage import whole, write_json, write_text
from ki67.training.cards import card_tables, check_allowed, dataset_record, write_curve
from ki67.training.datasets import Dataset, read_dataset, split
from ki67.training.learning_rate import learning_rate_factor
from ki67.training.star_scores import answered, best_thresholds, star_scores
from ki67.training.star_tiles import StarImage, mosaic_image, read_star_images, star_targets, star_tile, usual_view

log = logging.getLogger(__name__)

_CURVE_POINTS = 20
_MOST_HELD_OUT = 60
_DISTANCE_WEIGHT, _BACKGROUND_WEIGHT = 0.2, 1e-4
_LARGEST_GRADIENT = 5.0
_PROGRESS = "progress"


@dataclass(frozen=True)
class StarFitOptions:
    """How a StarDist model is trained.

    Attributes
    ----------
    name
        As its folder is called.
    mpp
        Microns per pixel of what it is shown.
    rays, grid_px, depth, filters
        Of the model: directions, width of its cells, halvings of its U-Net, and filters at the finest scale.
    steps, batch_size, tile_px
        Optimizer steps, tiles of each, and their side.
    learning_rate, warmup_steps
        Highest value, and when it is reached; see ``ki67.training.learning_rate``.
    averaging
        Decay of the moving average of the weights, which is what is kept.
    validation_share
        Share of each dataset's groups that is held out.
    allow_unlicensed
        Train on datasets whose ``use`` does not allow training; the card says so.
    checkpoint_seconds
        Time between checkpoints.
    threads
        Of TensorFlow, and as many that prepare tiles.
    device, precision
        See ``ki67.stardist_model``; weights are float32 in any case.
    seed
        Of the first weights, the split and the tiles.
    """

    name: str = ARCHITECTURE
    mpp: float = 0.5
    rays: int = 32
    grid_px: int = 2
    depth: int = 2
    filters: int = 32
    steps: int = 4000
    batch_size: int = 8
    tile_px: int = 256
    learning_rate: float = 5e-4
    warmup_steps: int = 50
    averaging: float = 0.995
    validation_share: float = 0.1
    allow_unlicensed: bool = False
    checkpoint_seconds: float = 120.0
    threads: int = 1
    device: str = "auto"
    precision: Precision = "auto"
    seed: int = 0

    def config(self) -> dict[str, Any]:
        """What is asked of StarDist's ``Config2D``."""
        return {
            "n_rays": self.rays,
            "grid": (self.grid_px, self.grid_px),
            "n_channel_in": 1,
            "unet_n_depth": self.depth,
            "unet_n_filter_base": self.filters,
            "train_patch_size": (self.tile_px, self.tile_px),
            "train_batch_size": self.batch_size,
            "train_learning_rate": self.learning_rate,
            "train_background_reg": _BACKGROUND_WEIGHT,
            "train_loss_weights": (1, _DISTANCE_WEIGHT),
        }


@dataclass(frozen=True)
class StarFitted:
    """What training gave.

    Attributes
    ----------
    spec
        As it is read from the folder.
    scores
        Of the held-out images; empty where none were held out.
    steps
        Optimizer steps taken.
    seconds
        Time spent on them, over all runs that resumed one another.
    """

    spec: StarSpec
    scores: dict[str, float]
    steps: int
    seconds: float


def fit_star(
    options: StarFitOptions, datasets: list[Path], folder: Path, *, on_step: Callable[[int, float], None] | None = None
) -> StarFitted:
    """Train StarDist and write it into a folder.

    The folder gets ``config.json``, ``thresholds.json`` and ``weights_best.h5`` as StarDist writes them, and
    ``model.json``, ``card.md``, ``scores.json``, ``curve.csv`` and ``curve.png``. Until then it holds
    ``checkpoint.npz``, from which an interrupted training with the same options goes on.

    Parameters
    ----------
    datasets
        Folders of kind ``instances``; see ``ki67.training.star_tiles.read_star_images``.
    on_step
        Called after every step with its number and loss.

    Raises
    ------
    Ki67Error
        If there is no dataset, one of them does not allow training or cannot serve, or TensorFlow cannot run.
    """
    cv2.setNumThreads(1)  # tiles are prepared side by side
    folder.mkdir(parents=True, exist_ok=True)
    described = [read_dataset(path) for path in datasets]
    check_allowed(described, options.name, allow_unlicensed=options.allow_unlicensed)
    shown = tqdm(described, desc=f"datasets of {options.name}", unit="dataset")
    images = [image for dataset in shown for image in read_star_images(dataset, options.mpp)]
    training, validation = split(images, options.validation_share, options.seed)
    log.info("%s: %d channels to train on, %d held out", options.name, len(training), len(validation))
    state = _Training(options, training, validation, folder / "checkpoint.npz")
    state.run(on_step)
    scores = _finish(options, state, described, training, validation, folder)
    (folder / "checkpoint.npz").unlink(missing_ok=True)
    return StarFitted(read_star_spec(folder), scores, state.step, state.seconds)


# ---------------------------------------------------------------------------------------------- tiles

_Example = tuple[Floats, Floats, Floats]


class StarTiles:
    """An endless row of tiles with their answers, each drawn from its number alone.

    Every dataset gives as many tiles as any other, and each image of one as many as its area asks for.
    """

    def __init__(self, images: Sequence[StarImage], options: StarFitOptions) -> None:
        self._images, self._options = images, options
        names = np.array([image.dataset for image in images])
        areas = np.array([image.amount.size for image in images], dtype=np.float64)
        shares = [area / areas[names == name].sum() for area, name in zip(areas, names, strict=True)]
        self._cumulative = np.cumsum(shares) / len(set(names))
        self._of_one_stain: dict[str, list[StarImage]] = {}
        for image in images:
            if image.diameter_px is not None:
                self._of_one_stain.setdefault(image.dataset, []).append(image)

    def __getitem__(self, number: int) -> _Example:
        """Amount ``(tile_px, tile_px, 1)``, probability ``(h, w, 1)`` and distances ``(h, w, rays)``."""
        options, random = self._options, np.random.default_rng([self._options.seed, number])
        drawn = min(int(np.searchsorted(self._cumulative, random.random(), side="right")), len(self._images) - 1)
        image = self._images[drawn]
        if image.diameter_px is not None:
            image = mosaic_image(self._of_one_stain[image.dataset], options.tile_px, options.mpp, random)
        amount, labels = star_tile(image, options.tile_px, options.mpp, random)
        return _example(amount, labels, options)

    def batches(self, first: int) -> Generator[tuple[NDArray[np.float32], ...]]:
        """Batches of tiles from a number on, prepared ahead in threads."""
        ahead = 3 * self._options.batch_size
        waiting: deque[Future[_Example]] = deque()
        with ThreadPoolExecutor(self._options.threads, thread_name_prefix="tiles") as pool:
            try:
                while True:
                    while len(waiting) < ahead:
                        waiting.append(pool.submit(self.__getitem__, first))
                        first += 1
                    batch = [waiting.popleft().result() for _ in range(self._options.batch_size)]
                    yield tuple(map(np.stack, zip(*batch, strict=True)))
            finally:
                for future in waiting:
                    future.cancel()


def _example(amount: Floats, labels: NDArray[np.int32], options: StarFitOptions) -> _Example:
    probability, distances = star_targets(labels, options.rays, options.grid_px)
    return amount[..., None], probability[..., None], distances


def _fixed_examples(images: Sequence[StarImage], options: StarFitOptions) -> list[_Example]:
    """The middle of each of a few held-out images, as they are."""
    examples = []
    for image in (usual_view(image, options.mpp) for image in _few_of(images)):
        short = [max(0, options.tile_px - length) for length in image.amount.shape]
        sides = [(missing // 2, missing - missing // 2) for missing in short]
        amount, labels = (np.pad(part, sides, mode="symmetric") for part in (image.amount, image.labels))
        top, left = ((length - options.tile_px) // 2 for length in amount.shape)
        place = np.s_[top : top + options.tile_px, left : left + options.tile_px]
        examples.append(_example(np.ascontiguousarray(amount[place]), np.ascontiguousarray(labels[place]), options))
    return examples


def _few_of(images: Sequence[StarImage]) -> Sequence[StarImage]:
    """At most so many of them, evenly chosen."""
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), _MOST_HELD_OUT)).round().astype(int))
    return [images[index] for index in chosen] if images else []


# ---------------------------------------------------------------------------------------------- loop


def star_loss(tensorflow: Any, answer: Any, probability: Any, distances: Any) -> Any:
    """Binary cross entropy of the probability, and the mean difference of distances, deep places weighing more.

    As in StarDist, distances outside of nuclei are drawn to 0, a little. Where nothing is known nothing counts.
    """
    found, reach = (tensorflow.cast(part, tensorflow.float32) for part in answer)
    known = tensorflow.cast(probability >= 0, tensorflow.float32)
    told, likely = tensorflow.maximum(probability, 0.0), tensorflow.clip_by_value(found, 1e-6, 1 - 1e-6)
    entropy = -(told * tensorflow.math.log(likely) + (1 - told) * tensorflow.math.log(1 - likely))
    cells = tensorflow.maximum(tensorflow.reduce_sum(known), 1.0)
    error = tensorflow.reduce_mean(tensorflow.abs(distances - reach), axis=-1, keepdims=True)
    outside = tensorflow.reduce_mean(tensorflow.abs(reach), axis=-1, keepdims=True)
    depth = tensorflow.maximum(tensorflow.reduce_sum(told), 1.0)
    distance = tensorflow.reduce_sum(told * error) / depth
    background = tensorflow.reduce_sum(known * (1 - told) * outside) / cells
    return (
        tensorflow.reduce_sum(known * entropy) / cells
        + _DISTANCE_WEIGHT * distance
        + _DISTANCE_WEIGHT * _BACKGROUND_WEIGHT * background
    )


class _Training:
    """The state of one training, which a checkpoint holds."""

    def __init__(
        self, options: StarFitOptions, training: list[StarImage], validation: list[StarImage], checkpoint: Path
    ) -> None:
        self.options, self.training, self.checkpoint = options, training, checkpoint
        self.tensorflow = tensorflow = start_tensorflow(options.device, threads=options.threads)
        import keras

        keras.utils.clear_session()
        keras.utils.set_random_seed(options.seed)
        on_gpu = bool(tensorflow.config.get_visible_devices("GPU"))
        precision = choose_precision(options.precision, on_gpu=on_gpu)
        self.star = star_model(options.config(), options.name, precision)
        self.average_star = star_model(options.config(), options.name, precision)
        self.model, self.average = self.star.keras_model, self.average_star.keras_model
        self.average.set_weights(self.model.get_weights())
        self.optimizer = keras.optimizers.Adam(options.learning_rate)
        self.optimizer.build(self.model.trainable_variables)
        self.held_out = _fixed_examples(validation, options)
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict[str, float]] = []
        self._compiled_step, self._compiled_loss = self._compiled()
        self._resume()

    def _compiled(self) -> tuple[Any, Any]:
        tensorflow, options = self.tensorflow, self.options
        cells = options.tile_px // options.grid_px
        shapes = [(options.tile_px, options.tile_px, 1), (cells, cells, 1), (cells, cells, options.rays)]
        batch = [tensorflow.TensorSpec([None, *shape], tensorflow.float32) for shape in shapes]
        scalar = tensorflow.TensorSpec([], tensorflow.float32)

        def take_step(images: Any, probability: Any, distances: Any, keep: Any) -> Any:
            with tensorflow.GradientTape() as tape:
                loss = star_loss(tensorflow, self.model([images], training=True), probability, distances)
            weights = self.model.trainable_variables
            gradients, _ = tensorflow.clip_by_global_norm(tape.gradient(loss, weights), _LARGEST_GRADIENT)
            self.optimizer.apply(gradients, weights)
            for ours, theirs in zip(self.average.trainable_variables, weights, strict=True):
                ours.assign(keep * ours + (1 - keep) * theirs)
            return loss

        def held_out_loss(images: Any, probability: Any, distances: Any) -> Any:
            return star_loss(tensorflow, self.average([images], training=False), probability, distances)

        return (
            tensorflow.function(take_step, input_signature=[*batch, scalar]),
            tensorflow.function(held_out_loss, input_signature=batch),
        )

    def run(self, on_step: Callable[[int, float], None] | None) -> None:
        """Take the steps that are left."""
        options = self.options
        tiles = StarTiles(self.training, options).batches(self.step * options.batch_size)
        started, seconds_before = time.monotonic(), self.seconds
        saved, losses = started, list[float]()
        shown = tqdm(total=options.steps, initial=self.step, desc=options.name, unit="step")
        with closing(tiles) as batches, shown as progress:
            while self.step < options.steps:
                loss = self._take_step(next(batches))
                losses.append(loss)
                self.seconds = seconds_before + time.monotonic() - started
                progress.update()
                if self.step % max(1, options.steps // _CURVE_POINTS) == 0 or self.step == options.steps:
                    self._note(losses)
                    told = {key: f"{value:.3f}" for key, value in self.curve[-1].items() if "loss" in key}
                    progress.set_postfix(told)
                    losses = []
                if time.monotonic() - saved >= options.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()
                if on_step is not None:
                    on_step(self.step, loss)

    def answer(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the average of the weights answers; see ``ki67.training.star_scores.Answers``."""
        probability, distances = (np.asarray(part, dtype=np.float32) for part in self.average([images], training=False))
        return probability[..., 0], distances

    def _take_step(self, batch: tuple[NDArray[np.float32], ...]) -> float:
        options = self.options
        factor = learning_rate_factor(self.step, options.steps, options.warmup_steps)
        self.optimizer.learning_rate = options.learning_rate * factor
        # Early on the average forgets faster, or it would keep the random start.
        keep = np.float32(min(options.averaging, (2 + self.step) / (11 + self.step)))
        value = float(self._compiled_step(*batch, keep))
        self.step += 1
        if not np.isfinite(value):
            raise Ki67Error(f"network {options.name}: the loss is {value} at step {self.step}; lower learning_rate")
        return value

    def _note(self, losses: list[float]) -> None:
        """Add a row to the learning curve."""
        held_out = [float(self._compiled_loss(*(part[None] for part in example))) for example in self.held_out]
        self.curve.append(
            {
                "step": self.step,
                "seconds": round(self.seconds, 1),
                "learning_rate": float(self.optimizer.learning_rate.numpy()),
                "training_loss": float(np.mean(losses)) if losses else float("nan"),
                "validation_loss": float(np.mean(held_out)) if held_out else float("nan"),
            }
        )

    def _arrays(self) -> dict[str, Any]:
        """All variables by the name they have in a checkpoint."""
        groups = {"model": self.model.weights, "average": self.average.weights, "optimizer": self.optimizer.variables}
        return {
            f"{group}_{number:03d}": variable for group, held in groups.items() for number, variable in enumerate(held)
        }

    # The learning curve's losses since its last row are not kept: they change no weights.
    def _save(self) -> None:
        progress = {
            "fingerprint": _fingerprint(self.options, self.training),
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
        }
        arrays: dict[str, Any] = {name: np.asarray(variable) for name, variable in self._arrays().items()}
        arrays[_PROGRESS] = np.frombuffer(json.dumps(progress).encode(), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        with whole(self.checkpoint) as partial:
            partial.write_bytes(buffer.getvalue())

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        with np.load(self.checkpoint, allow_pickle=False) as held:
            progress = json.loads(held[_PROGRESS].tobytes())
            if progress["fingerprint"] != _fingerprint(self.options, self.training):
                log.warning("%s: the checkpoint is of other options or images; starting anew", self.options.name)
                return
            for name, variable in self._arrays().items():
                variable.assign(held[name])
        self.step, self.seconds, self.curve = (progress[name] for name in ("step", "seconds", "curve"))
        log.info("%s: going on from step %d of %d", self.options.name, self.step, self.options.steps)


def _fingerprint(options: StarFitOptions, images: Sequence[StarImage]) -> str:
    """Of everything that decides what the weights become."""
    same = replace(options, checkpoint_seconds=0.0, threads=1, device="auto")
    checksums = [
        (image.dataset, image.name, image.channel, _checksum(image.amount), _checksum(image.labels)) for image in images
    ]
    return hashlib.sha256(json.dumps([asdict(same), checksums], sort_keys=True).encode()).hexdigest()


def _checksum(pixels: NDArray[np.generic]) -> int:
    return zlib.crc32(np.ascontiguousarray(pixels).data)


# ---------------------------------------------------------------------------------------------- results


def _finish(
    options: StarFitOptions,
    state: _Training,
    described: list[Dataset],
    training: list[StarImage],
    validation: list[StarImage],
    folder: Path,
) -> dict[str, float]:
    views = [usual_view(image, options.mpp) for image in _few_of(validation)]
    shown = tqdm(views, desc="held-out images", unit="image")
    held_out = [answered(state.answer, view, options.grid_px, options.mpp) for view in shown]
    stars = best_thresholds(held_out)
    scores = star_scores(held_out, stars)
    with whole(folder / WEIGHTS_FILE) as partial:
        state.average.save_weights(str(partial))
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    write_json(folder / CONFIG_FILE, vars(state.average_star.config))
    write_json(folder / THRESHOLDS_FILE, {"prob": stars.probability, "nms": stars.overlap})
    write_json(folder / "scores.json", scores)
    write_curve(folder, state.curve, options.name)
    record = {
        "datasets": [dataset_record(dataset, _once(training), _once(validation)) for dataset in described],
        "steps": state.step,
        "batch_size": options.batch_size,
        "seconds": round(state.seconds),
        "seed": options.seed,
        "finished": datetime.now(UTC).strftime("%Y-%m-%d"),
        "allow_unlicensed": options.allow_unlicensed,
        "validation": scores,
    }
    write_text(folder / "card.md", _card(options, stars, record))
    model = {"name": options.name, "architecture": ARCHITECTURE, "classes": ["nucleus"], "mpp": options.mpp}
    write_json(folder / MODEL_FILE, model | {"sha256": digest, "training": record})
    return scores


def _once(images: Sequence[StarImage]) -> list[StarImage]:
    """One channel of each image."""
    return list({(image.dataset, image.name): image for image in images}.values())


def _card(options: StarFitOptions, stars: StarOptions, record: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"# {options.name}",
            "",
            f"StarDist of one channel, for {options.mpp} µm/px: {options.rays} rays on a grid of {options.grid_px} px, "
            f"from a U-Net of depth {options.depth} with {options.filters} filters, trained on tiles of "
            f"{options.tile_px} px.",
            f"Thresholds, chosen on the held-out images: probability {stars.probability}, overlap {stars.overlap}.",
            f"{record['steps']} steps of {record['batch_size']} tiles, seed {record['seed']}, "
            f"{record['seconds'] / 60:.0f} minutes, finished on {record['finished']}.",
            *card_tables(record),
        ]
    )
