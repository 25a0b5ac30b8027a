"""The training of a network: from annotated images to a folder with weights, card and learning curve."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ki67.errors import Ki67Error
from ki67.networks import (
    NUCLEUS_CLASSES,
    NetworkSpec,
    build_network,
    channels_last,
    choose_device,
    computes_bfloat16,
    initialize_encoder,
    initialize_network,
    load_network,
    network_of,
    normalization,
    save_network,
    write_whole,
)
from ki67.training import datasets as data
from ki67.training.augmentation import NO_AUGMENTATION, TUMOR_AUGMENTATION, USUAL_AUGMENTATION, Augmentation, mix
from ki67.training.calibration import calibrate, write_familiar_ranges
from ki67.training.cards import card_tables, check_allowed, dataset_record, write_curve
from ki67.training.learning_rate import learning_rate_factor
from ki67.training.outlined_centers import outline_centers
from ki67.training.patches import PatchLoss, choose_patches, patch_label
from ki67.training.scores import score_nuclei, score_tumor
from ki67.training.targets import IGNORED

log = logging.getLogger(__name__)

_STEPS_TIMED = 20
_CURVE_POINTS = 20
_VALIDATION_TILES = 32


@dataclass(frozen=True)
class FitOptions:
    """How a network is trained.

    Attributes
    ----------
    spec
        What is trained.
    steps
        Optimizer steps; the learning rate falls with a cosine until the last one.
    minutes
        If given, ``steps`` is set after a few steps so that training takes about this long.
    batch_size
        Tiles a step.
    learning_rate
        Highest value, reached after ``warmup_steps``.
    weight_decay
        Of AdamW.
    averaging
        Decay of the moving average of the weights, which is what is kept.
    encoder_weights
        ``imagenet``, ``none`` or a file; see ``ki67.networks.initialize_encoder``.
    start_from
        Folder of a trained network to go on from; then ``encoder_weights`` does not matter.
    outlines_from
        Folder of a network of nuclei that outlines those of which only the centre is marked; discs where there is none.
    validation_share
        Share of each dataset's groups that is held out.
    patches_per_slide
        A classifier of patches learns from at most so many of each class of a slide, which is a group of a dataset.
    dataset_shares
        Name of a dataset to its share of the training tiles, relative to the others; by default each dataset's area.
    mixed_share
        Share of the tiles that are put together from places in two images; see ``ki67.training.augmentation.mix``.
    threshold
        Probability from which a pixel or patch belongs to the only class of a network; written beside the weights.
    augmentation
        Random changes of tiles; None for those that are usual for nuclei or for tumour.
    allow_unlicensed
        Train on datasets whose ``use`` does not allow training; the card says so.
    checkpoint_seconds
        Time between checkpoints.
    workers
        Processes that prepare tiles.
    device
        ``auto``, ``cpu`` or a name that torch knows.
    seed
        Of the first weights, the split, the tiles and their changes.
    """

    spec: NetworkSpec
    steps: int = 2000
    minutes: float | None = None
    batch_size: int = 8
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 1e-2
    averaging: float = 0.995
    encoder_weights: str = "imagenet"
    start_from: str = ""
    outlines_from: str = ""
    validation_share: float = 0.1
    patches_per_slide: int = 2000
    dataset_shares: dict[str, float] = field(default_factory=dict)
    mixed_share: float = 0.0
    threshold: float = 0.5
    augmentation: Augmentation | None = None
    allow_unlicensed: bool = False
    checkpoint_seconds: float = 120.0
    workers: int = 1
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """What training gave.

    Attributes
    ----------
    spec
        As written to ``model.json``.
    scores
        Of the held-out images; empty where none were held out.
    steps
        Optimizer steps taken.
    seconds
        Time spent on them, over all runs that resumed one another.
    """

    spec: NetworkSpec
    scores: dict[str, float]
    steps: int
    seconds: float


def fit(
    options: FitOptions, datasets: list[Path], folder: Path, *, on_step: Callable[[int], None] | None = None
) -> Fitted:
    """Train a network and write it into a folder.

    The folder gets ``weights.safetensors``, ``model.json``, ``card.md``, ``scores.json``, ``curve.csv`` and
    ``curve.png``, that of a U-Net ``int8.safetensors`` and that of a network of nuclei ``familiar.json`` as well. Until
    then it holds ``checkpoint.pt``, from which an interrupted training with the same options goes on exactly as it
    would have.

    Parameters
    ----------
    datasets
        Folders of annotated images.
    on_step
        Called after every step with its number.

    Raises
    ------
    Ki67Error
        If there is no dataset, one of them does not allow training or cannot serve this network.
    """
    # OpenCV's own threads do not survive in the forked processes that prepare tiles.
    cv2.setNumThreads(0)
    folder.mkdir(parents=True, exist_ok=True)
    described = [data.read_dataset(path) for path in datasets]
    check_allowed(described, options.spec.name, allow_unlicensed=options.allow_unlicensed)
    images = [image for dataset in described for image in _images(dataset, options)]
    training, validation = data.split(images, options.validation_share, options.seed)
    log.info("%s: %d images to train on, %d held out", options.spec.name, len(training), len(validation))
    state = _Training(options, training, validation, folder / "checkpoint.pt")
    state.run(on_step)
    spec, scores = _finish(options, state, described, training, validation, folder)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return Fitted(spec, scores, state.step, state.seconds)


def _images(dataset: data.Dataset, options: FitOptions) -> list[data.AnnotatedImage]:
    images = data.read_images(dataset, options.spec)
    if dataset.kind != "nuclei" or not options.outlines_from:
        return images
    network = load_network(Path(options.outlines_from), device=options.device)
    shown = tqdm(images, desc=f"outlines of {dataset.name}", unit="image")
    return [outline_centers(image, network, options.spec.classes) for image in shown]


# ---------------------------------------------------------------------------------------------- tiles


class TrainingTiles(Dataset[tuple[NDArray[np.uint8], NDArray[np.uint8]]]):
    """An endless row of tiles, each drawn from its number alone, so that training can go on from any step.

    A tile for a U-Net is from anywhere in an image and has an answer for every pixel; one for a classifier of patches
    lies where ``choose_patches`` says and has a single answer.
    """

    def __init__(self, images: list[data.AnnotatedImage], options: FitOptions, *, first: int = 0) -> None:
        self._images = images
        self._options = options
        self._first = first
        usual = TUMOR_AUGMENTATION if len(options.spec.classes) == 1 else USUAL_AUGMENTATION
        self._augmentation = options.augmentation or usual
        self._centers: list[NDArray[np.float64]] | None = None
        if options.spec.classifies_patches:
            self._centers = choose_patches(images, options.spec, options.patches_per_slide, options.seed)
        sizes = [len(one) for one in self._centers] if self._centers else [image.target.size for image in images]
        self._cumulative = np.cumsum(image_shares(images, options.dataset_shares, sizes))

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        random = np.random.default_rng([self._options.seed, self._first + index])
        if self._options.mixed_share and random.random() < self._options.mixed_share:
            tile, answer = mix(self._tile(random), self._tile(random), random)
        else:
            tile, answer = self._tile(random)
        return tile, answer if self._centers is None else patch_label(answer, self._options.spec.patch_share)

    def _tile(self, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        number = int(np.searchsorted(self._cumulative, random.random(), side="right"))
        image, tile_px = self._images[number], self._options.spec.tile_px
        if self._centers is None:
            return self._augmentation.apply(image.rgb, image.target, tile_px, random)
        column, row = self._centers[number][random.integers(len(self._centers[number]))]
        return self._augmentation.apply(image.rgb, image.target, tile_px, random, center_px=(column, row))


def image_shares(
    images: list[data.AnnotatedImage], dataset_shares: dict[str, float], sizes: list[int]
) -> NDArray[np.float64]:
    """Probability with which a tile is taken from each image: by size, and between datasets as asked for.

    Parameters
    ----------
    sizes
        Of the images: their areas, or how many patches were chosen in them.
    """
    areas = np.array(sizes, dtype=np.float64)
    names = np.array([image.dataset for image in images])
    if unknown := sorted(set(dataset_shares) - set(names)):
        raise Ki67Error(f"dataset_shares names {unknown[0]}, which is not among the datasets {sorted(set(names))}")
    for name in sorted(set(names)):
        if dataset_shares:
            areas[names == name] *= dataset_shares.get(name, 0.0) / max(1.0, areas[names == name].sum())
    if not areas.sum() > 0:
        raise Ki67Error("dataset_shares leaves nothing to train on; give at least one dataset a share above 0")
    shares = areas / areas.sum()
    # The last share takes what rounding left, so that no draw falls behind it.
    shares[-1] += 1 - shares.sum()
    return shares


def _in_worker(_: int) -> None:
    cv2.setNumThreads(0)


def _loader(tiles: TrainingTiles, options: FitOptions) -> Iterator[list[torch.Tensor]]:
    loader = DataLoader(
        tiles,
        batch_size=options.batch_size,
        num_workers=options.workers,
        worker_init_fn=_in_worker,
        prefetch_factor=4 if options.workers else None,
    )
    return iter(loader)


# ---------------------------------------------------------------------------------------------- loss


class SegmentationLoss(nn.Module):
    """Cross entropy and Dice in equal parts, ignored pixels left out; for one class the binary forms of both.

    Dice loss: Milletari et al. 2016.
    """

    def __init__(self, class_weights: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights)
        self._binary = len(class_weights) == 1
        mode = "binary" if self._binary else "multiclass"
        self._dice = smp.losses.DiceLoss(mode=mode, ignore_index=IGNORED, smooth=1.0)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of float32 logits ``(N, C, H, W)`` against an integer target ``(N, H, W)``."""
        target = target.long()
        if not self._binary:
            entropy = functional.cross_entropy(
                logits, target, self.get_buffer("class_weights"), ignore_index=IGNORED, reduction="mean"
            )
            return entropy + self._dice(logits, target)
        known = target != IGNORED
        entropy = functional.binary_cross_entropy_with_logits(logits[:, 0][known], target[known].float())
        return entropy + self._dice(logits, target)


def loss_of(spec: NetworkSpec, images: list[data.AnnotatedImage]) -> nn.Module:
    """What a network is to make small on such images."""
    return PatchLoss() if spec.classifies_patches else SegmentationLoss(class_weights(images, len(spec.classes)))


def class_weights(images: list[data.AnnotatedImage], classes: int) -> torch.Tensor:
    """Weights of the classes in the cross entropy: one over the root of their share of pixels, mean 1."""
    if classes == 1:
        return torch.ones(1)
    counts = sum(np.bincount(image.target.ravel(), minlength=256)[:classes] for image in images)
    shares = np.asarray(counts, dtype=np.float64) / max(1, np.sum(counts))
    weights = np.where(shares > 0, 1 / np.sqrt(np.maximum(shares, 1e-3)), 0)
    return torch.tensor(weights / weights[weights > 0].mean(), dtype=torch.float32)


# ---------------------------------------------------------------------------------------------- loop


def _first_weights(module: nn.Module, options: FitOptions) -> str:
    if options.start_from:
        return initialize_network(module, options.spec, Path(options.start_from))
    return initialize_encoder(module, options.spec, options.encoder_weights)


class _Training:
    """The state of one training, which a checkpoint holds."""

    def __init__(
        self,
        options: FitOptions,
        training: list[data.AnnotatedImage],
        validation: list[data.AnnotatedImage],
        checkpoint: Path,
    ) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.training = training
        self.device = choose_device(options.device)
        self.module = channels_last(build_network(options.spec), self.device)
        self.start = _first_weights(self.module, options)
        log.info("%s: %s", options.spec.name, self.start)
        self.average = channels_last(build_network(options.spec), self.device).eval()
        self.average.load_state_dict(self.module.state_dict())
        self.loss = loss_of(options.spec, training).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), options.learning_rate, weight_decay=options.weight_decay, fused=True
        )
        self.scale, self.shift = (value.to(self.device) for value in normalization(options.spec))
        self.held_out = _fixed_tiles(validation, options.spec)
        self.step, self.steps = 0, options.steps
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []
        self.checkpoint = checkpoint
        self._resume()

    def run(self, on_step: Callable[[int], None] | None) -> None:
        """Take the steps that are left."""
        tiles = TrainingTiles(self.training, self.options, first=self.step * self.options.batch_size)
        batches = _loader(tiles, self.options)
        started, seconds_before = time.monotonic(), self.seconds
        saved = started
        losses: list[float] = []
        with tqdm(total=self.steps, initial=self.step, desc=self.options.spec.name, unit="step") as progress:
            while self.step < self.steps:
                losses.append(self._take_step(*next(batches)))
                self.seconds = seconds_before + time.monotonic() - started
                self._plan_by_time(progress)
                progress.update()
                if self.step % max(1, self.steps // _CURVE_POINTS) == 0 or self.step == self.steps:
                    self._note(losses)
                    progress.set_postfix(
                        {key: f"{value:.3f}" for key, value in self.curve[-1].items() if "loss" in key}
                    )
                    losses = []
                if time.monotonic() - saved >= self.options.checkpoint_seconds:
                    self._save(losses)
                    saved = time.monotonic()
                if on_step is not None:
                    on_step(self.step)

    def _take_step(self, rgb: torch.Tensor, target: torch.Tensor) -> float:
        factor = learning_rate_factor(self.step, self.steps, self.options.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * factor
        self.module.train()
        # Dropout as well depends on the number of the step alone.
        torch.manual_seed(self.options.seed + self.step)
        loss = self.loss(self._logits(self.module, rgb), target.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 5.0)
        self.optimizer.step()
        self.step += 1
        self._average_weights()
        value = float(loss.detach())
        if not np.isfinite(value):
            raise Ki67Error(
                f"network {self.options.spec.name}: the loss is {value} at step {self.step}; lower learning_rate"
            )
        return value

    def _logits(self, module: nn.Module, rgb: torch.Tensor) -> torch.Tensor:
        tiles = rgb.to(self.device).permute(0, 3, 1, 2)
        normalized = torch.addcmul(self.shift, tiles.float(), self.scale)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=computes_bfloat16(self.device)):
            return module(normalized).float()

    @torch.no_grad()
    def _average_weights(self) -> None:
        # Early on the average forgets faster, or it would keep the random start.
        keep = min(self.options.averaging, (1 + self.step) / (10 + self.step))
        ours, theirs = self.average.state_dict(), self.module.state_dict()
        floating = [name for name, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_([ours[name] for name in floating], [theirs[name] for name in floating], 1 - keep)

    def _plan_by_time(self, progress: tqdm[Any]) -> None:
        minutes = self.options.minutes
        if minutes is None or self.step != min(_STEPS_TIMED, self.options.warmup_steps):
            return
        # The first step takes longer than the others, so the number is rather too small than too large.
        self.steps = max(self.step + 1, int(minutes * 60 / (self.seconds / self.step)))
        progress.total = self.steps
        log.info("%s: %d steps fit into %g minutes", self.options.spec.name, self.steps, minutes)

    @torch.inference_mode()
    def _note(self, losses: list[float]) -> None:
        """Add a row to the learning curve."""
        held_out = [
            float(self.loss(self._logits(self.average, rgb[None]), target[None].to(self.device)))
            for rgb, target in self.held_out
        ]
        self.curve.append(
            {
                "step": self.step,
                "seconds": round(self.seconds, 1),
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "training_loss": float(np.mean(losses)) if losses else float("nan"),
                "validation_loss": float(np.mean(held_out)) if held_out else float("nan"),
            }
        )

    # The learning curve's losses since its last row are not kept: they change no weights.
    def _save(self, _: list[float]) -> None:
        buffer = io.BytesIO()
        torch.save(
            {
                "fingerprint": _fingerprint(self.options, self.training),
                "module": self.module.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": {
                    "step": self.step,
                    "steps": self.steps,
                    "seconds": self.seconds,
                    "curve": self.curve,
                    "start": self.start,
                },
            },
            buffer,
        )
        write_whole(self.checkpoint, buffer.getvalue())

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["fingerprint"] != _fingerprint(self.options, self.training):
            log.warning("%s: the checkpoint is of other options or images; starting anew", self.options.spec.name)
            return
        self.module.load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in state["progress"].items():
            setattr(self, name, value)
        log.info("%s: going on from step %d of %d", self.options.spec.name, self.step, self.steps)


def _fingerprint(options: FitOptions, images: list[data.AnnotatedImage]) -> str:
    """Of everything that decides what the weights become."""
    same = replace(options, checkpoint_seconds=0.0, workers=0, device="auto")
    text = json.dumps(
        [
            asdict(same),
            [(image.dataset, image.name, _checksum(image.rgb), _checksum(image.target)) for image in images],
        ],
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(pixels: NDArray[np.uint8]) -> int:
    return zlib.crc32(np.ascontiguousarray(pixels).data)


def _fixed_tiles(images: list[data.AnnotatedImage], spec: NetworkSpec) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One unchanged tile of each of a few held-out images, always the same."""
    chosen = images[:: max(1, len(images) // _VALIDATION_TILES)][:_VALIDATION_TILES]
    random = np.random.default_rng(0)
    tiles = [NO_AUGMENTATION.apply(image.rgb, image.target, spec.tile_px, random) for image in chosen]
    if spec.classifies_patches:
        tiles = [(rgb, patch_label(target, spec.patch_share)) for rgb, target in tiles]
    # A tile without any known pixel has no loss.
    return [(torch.from_numpy(rgb), torch.from_numpy(target)) for rgb, target in tiles if (target != IGNORED).any()]


# ---------------------------------------------------------------------------------------------- results


def _finish(
    options: FitOptions,
    state: _Training,
    described: list[data.Dataset],
    training: list[data.AnnotatedImage],
    validation: list[data.AnnotatedImage],
    folder: Path,
) -> tuple[NetworkSpec, dict[str, float]]:
    spec = replace(options.spec, threshold=options.threshold)
    network = network_of(state.average, spec, device=options.device)
    score = score_tumor if len(spec.classes) == 1 else score_nuclei
    scores = {name: round(value, 4) for name, value in score(network, validation).items()}
    record = {
        "datasets": [dataset_record(dataset, training, validation) for dataset in described],
        "encoder": state.start,
        "steps": state.step,
        "batch_size": options.batch_size,
        "seconds": round(state.seconds),
        "seed": options.seed,
        "finished": datetime.now(UTC).strftime("%Y-%m-%d"),
        "allow_unlicensed": options.allow_unlicensed,
        **({"patches_per_slide": options.patches_per_slide} if spec.classifies_patches else {}),
        "validation": {name: value if np.isfinite(value) else None for name, value in scores.items()},
    }
    spec = replace(spec, training=record)
    write_curve(folder, state.curve, spec.name)
    write_whole(folder / "scores.json", (json.dumps(record["validation"], indent=2) + "\n").encode())
    spec = save_network(folder, state.average, spec, card(spec))
    if not spec.classifies_patches:
        calibrate(folder, training)
    if spec.classes == NUCLEUS_CLASSES:
        write_familiar_ranges(folder, training)
    return spec, scores


def card(spec: NetworkSpec) -> str:
    """The text for people that goes with the weights: what it is, what it was trained on, how well it does."""
    record = spec.training
    lines = [
        f"# {spec.name}",
        "",
        f"A {spec.architecture} with the classes {', '.join(spec.classes)}, for {spec.mpp} µm/px, "
        f"trained on {card_tiles(spec)} of {spec.tile_px} px.",
        f"{record['encoder']} {record['steps']} steps of {record['batch_size']} tiles, seed {record['seed']}, "
        f"{record['seconds'] / 60:.0f} minutes, finished on {record['finished']}.",
        *card_tables(record),
    ]
    return "\n".join(lines)


def card_tiles(spec: NetworkSpec) -> str:
    """What a network was trained on, in words."""
    if not spec.classifies_patches:
        return "tiles"
    return f"at most {spec.training['patches_per_slide']} patches of tumour and as many of other tissue a slide, each"
