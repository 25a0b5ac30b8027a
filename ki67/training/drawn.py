"""Training fields drawn by the painter of the phantom slides, written as dataset folders.

Every field has a stain, strength, scale, focus and Ki-67 fraction of its own, from the whole range that drawn slides
may have, so that a network trained on them holds on slides it has never seen.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from ki67.errors import Ki67Error, Stain
from ki67.phantom.layout import Layout
from ki67.phantom.look import random_look
from ki67.phantom.nuclei import Section, logit_for
from ki67.phantom.paint import Painting, paint

FieldKind = Literal["nuclei", "tumor_he", "tumor_ki67"]

SMALLEST_LABEL_PX = 12
"""Instances of which less is seen are left unlabelled."""


@dataclass(frozen=True)
class FieldOptions:
    """What to draw.

    Attributes
    ----------
    kind
        ``nuclei``: Ki-67 fields with instances and classes; ``tumor_he`` and ``tumor_ki67``: fields with tumour masks.
    count, size_px, mpp, seed
        How many square fields, of which size, at how many microns per pixel.
    """

    kind: FieldKind
    count: int
    size_px: int = 512
    mpp: float = 0.5
    seed: int = 0

    @property
    def stain(self) -> Stain:
        """The stain of the fields."""
        return "he" if self.kind == "tumor_he" else "ki67"


@dataclass(frozen=True)
class Field:
    """One drawn field: uint8 ``(N, N, 3)``, and either uint16 labels with classes or a uint8 tumour mask."""

    rgb: NDArray[np.uint8]
    labels: NDArray[np.uint16] | None = None
    classes: dict[int, int] | None = None
    mask: NDArray[np.uint8] | None = None


def draw_field(options: FieldOptions, index: int) -> Field:
    """Draw field ``index`` of a dataset; the same options and index give the same field."""
    rng = np.random.default_rng([options.seed, index])
    painting = _random_painting(rng, options)
    rgb = degrade(painting.rgb, rng)
    if options.kind == "nuclei":
        labels, classes = _instances(painting)
        return Field(rgb, labels=labels, classes=classes)
    return Field(rgb, mask=tumor_mask(painting, options.mpp))


def _random_painting(rng: np.random.Generator, options: FieldOptions) -> Painting:
    # The network is told options.mpp; slides are not all so well calibrated, and patients' nuclei differ.
    mpp = options.mpp * float(np.exp(rng.uniform(np.log(0.8), np.log(1.25))))
    size_um = options.size_px * mpp
    edge = rng.random() < 0.2
    radius = float(rng.uniform(600, 3000)) if edge else np.inf
    layout = Layout.random(rng, radius_um=radius)
    origin = (radius * 0.85 if edge else 0.0) * np.array([np.cos(a := rng.uniform(0, 6.3)), np.sin(a)])
    steps = np.arange(0, size_um, size_um / 32)
    x, y = np.meshgrid(steps + origin[0], steps + origin[1])
    layout = layout.with_tumor_share(_random_share(rng), x, y)
    heterogeneity = float(rng.uniform(0.2, 1.4))
    section = Section(
        index=0 if options.stain == "he" else 1,
        layout=layout,
        look=random_look(rng, options.stain),
        to_layout=np.array([[1, 0, origin[0]], [0, 1, origin[1]], [0, 0, 1]], dtype=np.float64),
        seed=int(rng.integers(2**31)),
        tumor_logit=logit_for(_random_fraction(rng), layout.hot.sample(x, y).ravel(), heterogeneity),
        other_positive=(float(rng.beta(0.5, 6)), float(rng.beta(0.6, 2.5))),
        heterogeneity=heterogeneity,
    )
    return paint(section, 0.0, 0.0, options.size_px, options.size_px, mpp)


def _random_share(rng: np.random.Generator) -> float:
    """Tumour in the field: none in a tenth, all in a fifth, anything between in the others."""
    choice = rng.random()
    return 0.0 if choice < 0.1 else 1.0 if choice > 0.8 else float(rng.uniform(0.1, 0.9))


def _random_fraction(rng: np.random.Generator) -> float:
    """Ki-67 fraction: often near 0, sometimes near 1, anything between."""
    choice = rng.random()
    if choice < 0.08:
        return 0.0
    return float(rng.beta(0.8, 4)) if choice < 0.5 else float(rng.uniform(0, 1)) if choice < 0.9 else float(rng.beta(6, 1))


def _instances(painting: Painting) -> tuple[NDArray[np.uint16], dict[int, int]]:
    """Labels numbered from 1 without gaps, and the class of each: 1 positive, 2 negative."""
    counts = np.bincount(painting.labels.ravel(), minlength=len(painting.nuclei) + 1)
    kept = np.flatnonzero(counts[1:] >= SMALLEST_LABEL_PX)
    numbers = np.zeros(len(counts), dtype=np.uint16)
    numbers[kept + 1] = np.arange(1, len(kept) + 1)
    positive = painting.nuclei.positive[kept]
    return numbers[painting.labels], {index + 1: 1 if value else 2 for index, value in enumerate(positive)}


def tumor_mask(painting: Painting, mpp: float) -> NDArray[np.uint8]:
    """255 where a pathologist would draw tumour: a smooth outline around the nests."""
    smooth = cv2.GaussianBlur(painting.nest_um, (0, 0), 3.0 / mpp)
    return np.where(smooth > 0, 255, 0).astype(np.uint8)


def degrade(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """What lies between scanner and network: another resolution, brightness and contrast, and JPEG compression."""
    result = rgb
    if rng.random() < 0.25:
        height, width = rgb.shape[:2]
        factor = float(rng.uniform(1.15, 2.0))
        small = cv2.resize(rgb, (int(width / factor), int(height / factor)), interpolation=cv2.INTER_AREA)
        result = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.4:
        gain, gamma = rng.uniform(0.92, 1.12), rng.uniform(0.8, 1.3)
        table = np.clip(255 * gain * (np.arange(256) / 255) ** gamma, 0, 255).astype(np.uint8)
        result = cv2.LUT(result, table)
    quality = int(rng.uniform(40, 95))
    _, encoded = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED), dtype=np.uint8)


def draw_fields(
    options: FieldOptions, folder: Path, *, nuclei_from: Path | None = None, workers: int | None = None
) -> None:
    """Write a dataset folder of drawn fields (``images``, ``labels`` and ``classes`` or ``masks``, ``dataset.yaml``).

    Parameters
    ----------
    nuclei_from
        An ``instances`` dataset whose real nuclei are re-stained instead of drawing nuclei.
    workers
        Processes; the number of processors where it is ``None``. The result does not depend on it.

    Raises
    ------
    Ki67Error
        If the folder already holds files, or ``nuclei_from`` is no dataset of instances.
    """
    if folder.exists() and any(folder.iterdir()):
        raise Ki67Error(f"{folder.name} is not empty; name a new folder for the drawn fields")
    draw: Callable[[int], Field] = partial(draw_field, options)
    parts = ("images", "labels", "classes") if options.kind == "nuclei" else ("images", "masks")
    for part in parts:
        (folder / part).mkdir(parents=True)
    write = partial(_write_field, draw, folder)
    for _ in _over_processes(write, options.count, workers):
        pass
    description = {
        "kind": "instances" if options.kind == "nuclei" else "tumor",
        "stain": options.stain,
        "mpp": options.mpp,
        "origin": f"drawn by ki67 {options.kind} seed {options.seed}",
        "licence": "CC0",
    }
    if options.kind == "nuclei":
        description["classes"] = {1: "positive", 2: "negative"}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")


def _over_processes(work: Callable[[int], None], count: int, workers: int | None) -> Iterator[None]:
    workers = workers or multiprocessing.cpu_count()
    if workers == 1:
        yield from map(work, range(count))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.map(work, range(count), chunksize=8)


def _write_field(draw: Callable[[int], Field], folder: Path, index: int) -> None:
    field, name = draw(index), f"{index:06d}"
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    cv2.imwrite(str(folder / "images" / f"{name}.png"), field.rgb[..., ::-1], fast)
    if field.labels is not None:
        cv2.imwrite(str(folder / "labels" / f"{name}.png"), field.labels, fast)
        (folder / "classes" / f"{name}.json").write_text(json.dumps(field.classes), encoding="utf-8")
    if field.mask is not None:
        cv2.imwrite(str(folder / "masks" / f"{name}.png"), field.mask, fast)
