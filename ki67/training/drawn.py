"""Training fields drawn by the painter of the phantom slides, written as dataset folders.

Every field has a stain, strength, scale, focus and Ki-67 fraction of its own, from the whole range that drawn slides
may have, so that a network trained on them holds on slides it has never seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import yaml
from joblib import Parallel, cpu_count, delayed  # type: ignore[import-untyped]
from numpy.typing import NDArray
from tqdm import tqdm

from ki67.errors import Ki67Error, Stain
from ki67.networks import Predictor, load_network
from ki67.phantom.artifacts import PENS, Artifacts, Disc, Line
from ki67.phantom.layout import Layout
from ki67.phantom.look import Look, random_look
from ki67.phantom.nuclei import Section, logit_for
from ki67.phantom.paint import Painting, paint
from ki67.phantom.textures import Noise
from ki67.storage import whole
from ki67.training.datasets import image_paths, read_annotation, read_dataset, read_rgb
from ki67.training.restained import RealField, nucleus_stamps, real_field, restain
from ki67.training.stained_tissue import Tissue, read_tissue, stain_tissue

FieldKind = Literal["nuclei", "tumor_he", "tumor_ki67"]

_KIND_SEEDS: dict[FieldKind, int] = {"nuclei": 1, "tumor_he": 2, "tumor_ki67": 3}

_BENIGN_SHARE = 0.08
"""Of the drawn fields for networks of tumour."""
_LYMPHOID_SHARE = 0.35
"""Of the others."""
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


@dataclass(frozen=True)
class RealNuclei:
    """What is real in drawn fields: fields of nuclei, these as pictures for the painter, and H&E tissue by dataset."""

    fields: list[RealField]
    stamps: NDArray[np.float32] | None
    tissues: tuple[tuple[Tissue, ...], ...] = ()


@lru_cache(maxsize=1)
def read_real_nuclei(folder: Path) -> RealNuclei:
    """The nuclei of an ``instances`` dataset of one nuclear stain.

    Raises
    ------
    Ki67Error
        If the folder holds no picture with labels.
    """
    fields = []
    for labels_path in sorted((folder / "labels").glob("*.png")):
        bgr = cv2.imread(str(folder / "images" / labels_path.name), cv2.IMREAD_COLOR)
        labels = cv2.imread(str(labels_path), cv2.IMREAD_UNCHANGED)
        if bgr is None or labels is None:
            continue
        field = real_field(np.asarray(bgr[..., ::-1], dtype=np.uint8), np.asarray(labels, dtype=np.int32))
        fields += [] if field is None else [field]
    stamps = [stamp for field in fields for stamp in nucleus_stamps(field)]
    if not stamps:
        raise Ki67Error(f"{folder.name} holds no images/*.png with labels/*.png; give a dataset of kind instances")
    return RealNuclei(fields, np.stack(stamps))


def draw_field(options: FieldOptions, index: int, real: RealNuclei | None = None) -> Field:
    """Draw field ``index`` of a dataset; the same arguments give the same field.

    With ``real`` nuclei, half of the fields are real fields in new colours, half are drawn tissue with real nuclei;
    with tissues, three fifths are of these and the others half and half.
    """
    rng = np.random.default_rng([options.seed, _KIND_SEEDS[options.kind], 0 if real is None else 1, index])
    if real is not None and real.tissues and rng.random() < 0.6:
        return _stained_tissue(rng, options, real.tissues)
    if real is not None and real.fields and rng.random() < 0.5:
        return _restained(rng, options, real)
    benign = options.kind != "nuclei" and rng.random() < _BENIGN_SHARE
    painting = _random_painting(rng, options, None if real is None else real.stamps, benign=benign)
    rgb = degrade(painting.rgb, rng)
    if options.kind == "nuclei":
        labels, classes = _instances(painting.labels, painting.nuclei.positive)
        return Field(rgb, labels=labels, classes=classes)
    mask = tumor_mask(painting, options.mpp)
    return Field(rgb, mask=np.zeros_like(mask) if benign else mask)


def _restained(rng: np.random.Generator, options: FieldOptions, real: RealNuclei) -> Field:
    look, mpp = random_look(rng, "ki67"), _random_mpp(rng, options)
    result = restain(real.fields, look, _random_fraction(rng), options.size_px, mpp, rng)
    labels, classes = _instances(result.labels, result.positive)
    return Field(degrade(result.rgb, rng), labels=labels, classes=classes)


def _stained_tissue(rng: np.random.Generator, options: FieldOptions, tissues: tuple[tuple[Tissue, ...], ...]) -> Field:
    """A square of tissue, each dataset as often as any other, and each image of one as often as its area asks for."""
    images = tissues[int(rng.integers(len(tissues)))]
    areas = np.array([image.labels.size for image in images], dtype=np.float64)
    tissue = images[int(rng.choice(len(images), p=areas / areas.sum()))]
    look = replace(
        random_look(rng, "ki67"),
        nucleus_strength=float(np.exp(rng.uniform(np.log(0.32), np.log(1.5)))),
        dab_median=float(np.exp(rng.uniform(np.log(0.3), np.log(2.5)))),
    )
    # Magnified more than reduced: tumour nuclei may be twice as wide as those of lymph nodes.
    mpp = options.mpp * float(np.exp(rng.uniform(np.log(0.55), np.log(1.15))))
    result = stain_tissue(tissue, look, _random_fraction(rng), options.size_px, mpp, rng)
    classes = {number + 1: int(kind) for number, kind in enumerate(result.classes)}
    rgb = degrade(result.rgb, rng)
    if options.kind == "tumor_ki67":
        return Field(rgb, mask=np.where(result.tumor, 255, 0).astype(np.uint8))
    return Field(rgb, labels=result.labels.astype(np.uint16), classes=classes)


def _random_mpp(rng: np.random.Generator, options: FieldOptions) -> float:
    # The network is told options.mpp; slides are not all so well calibrated, and patients' nuclei differ.
    return options.mpp * float(np.exp(rng.uniform(np.log(0.8), np.log(1.25))))


def _random_painting(
    rng: np.random.Generator, options: FieldOptions, stamps: NDArray[np.float32] | None, *, benign: bool
) -> Painting:
    lymphoid = not benign and options.kind != "nuclei" and rng.random() < _LYMPHOID_SHARE
    # Pictures of lymph nodes come at all scales, and whoever passes them on may not know which.
    mpp = _random_mpp(rng, options) * (float(np.exp(rng.uniform(0, np.log(1.6)))) if lymphoid else 1.0)
    layout, origin, (x, y) = _random_place(rng, options.size_px * mpp)
    layout, look = layout.with_tumor_share(_random_share(rng), x, y), random_look(rng, options.stain)
    if benign:
        look = _benign(look, rng)
    elif lymphoid:
        layout, look = _lymphoid(layout, look, rng)
    heterogeneity = float(rng.uniform(0.2, 1.4))
    section = Section(
        index=0 if options.stain == "he" else 1,
        layout=layout,
        look=look,
        to_layout=np.array([[1, 0, origin[0]], [0, 1, origin[1]], [0, 0, 1]], dtype=np.float64),
        seed=int(rng.integers(2**31)),
        tumor_logit=logit_for(_random_fraction(rng), layout.hot.sample(x, y).ravel(), heterogeneity),
        other_positive=(float(rng.beta(0.5, 6)), float(rng.beta(0.6, 2.5))),
        heterogeneity=heterogeneity,
        artifacts=_random_artifacts(rng, (x, y)),
    )
    return paint(section, 0.0, 0.0, options.size_px, options.size_px, mpp, stamps=stamps)


def _lymphoid(layout: Layout, look: Look, rng: np.random.Generator) -> tuple[Layout, Look]:
    """Large pale tumour cells among lymphocytes, as in a lymph node, where the darker nuclei are not the tumour."""
    layout = replace(layout, lymphocyte_threshold=float(rng.uniform(-1.6, 0.3)))
    look = replace(
        look,
        nucleus_um=float(rng.uniform(10.5, 14.5)),
        size_spread=float(rng.uniform(0.15, 0.3)),
        vesicular=float(rng.uniform(0.35, 0.9)),
        density=float(rng.uniform(0.35, 0.85)),
    )
    return layout, look


def _benign(look: Look, rng: np.random.Generator) -> Look:
    """Nests of small, even, crowded nuclei, as of ducts, lobules and hair follicles, which are no tumour."""
    return replace(
        look,
        nucleus_um=float(rng.uniform(5.2, 7.0)),
        size_spread=float(rng.uniform(0.04, 0.10)),
        elongation=float(rng.uniform(0.1, 0.9)),
        irregularity=float(rng.uniform(0.01, 0.04)),
        vesicular=float(rng.uniform(0.0, 0.3)),
        nucleoli=float(rng.uniform(0.0, 0.2)),
        density=float(rng.uniform(0.9, 1.0)),
        cell_um=float(rng.uniform(1.0, 2.5)),
    )


def _random_place(
    rng: np.random.Generator, size_um: float
) -> tuple[Layout, NDArray[np.float64], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """A layout, the corner of a window in it, and points in that window; a fifth of them near the tissue's edge."""
    steps = (np.arange(32) + 0.5) * size_um / 32
    while True:
        edge = rng.random() < 0.2
        radius = float(rng.uniform(600, 3000)) if edge else np.inf
        layout = Layout.random(rng, radius_um=radius)
        direction = rng.uniform(0, 2 * np.pi)
        origin = (0.8 * radius if edge else 0.0) * np.array([np.cos(direction), np.sin(direction)])
        x, y = np.meshgrid(steps + origin[0], steps + origin[1])
        # Too much glass would teach little.
        if np.mean(layout.tissue_um(x, y) > 0) > 0.35:
            return layout, origin, (x, y)


def _random_artifacts(rng: np.random.Generator, window: tuple[NDArray[np.float64], NDArray[np.float64]]) -> Artifacts:
    """A fold, a defocused patch or ink, each in one field of twenty-five."""
    x, y = (float(rng.choice(axis.ravel())) for axis in window)
    has_fold, has_defocus, has_pen = rng.random(3) < 0.04
    radius = float(rng.uniform(500, 3000))
    angle = float(rng.uniform(-2, 2))
    return Artifacts(
        fold_line=Line(x, y, angle) if has_fold else None,
        defocus_disc=Disc(x, y, float(rng.uniform(100, 400))) if has_defocus else None,
        pen_circle=Disc(x - radius * np.cos(angle), y - radius * np.sin(angle), radius) if has_pen else None,
        pen_density=PENS[str(rng.choice(list(PENS)))],
        waves=Noise.random(rng, 500.0),
    )


def _random_share(rng: np.random.Generator) -> float:
    """Tumour in the field: none in a tenth, all in a fifth, anything between in the others."""
    choice = rng.random()
    return 0.0 if choice < 0.1 else 1.0 if choice > 0.8 else float(rng.uniform(0.1, 0.9))


def _random_fraction(rng: np.random.Generator) -> float:
    """Ki-67 fraction: often near 0, sometimes near 1, anything between."""
    choice = rng.random()
    if choice < 0.08:
        return 0.0
    return (
        float(rng.beta(0.8, 4)) if choice < 0.5 else float(rng.uniform(0, 1)) if choice < 0.9 else float(rng.beta(6, 1))
    )


def _instances(labels: NDArray[np.int32], positive: NDArray[np.bool_]) -> tuple[NDArray[np.uint16], dict[int, int]]:
    """Labels numbered from 1 without gaps, and the class of each: 1 positive, 2 negative."""
    counts = np.bincount(labels.ravel(), minlength=len(positive) + 1)
    kept = np.flatnonzero(counts[1:] >= SMALLEST_LABEL_PX)
    numbers = np.zeros(len(counts), dtype=np.uint16)
    numbers[kept + 1] = np.arange(1, len(kept) + 1)
    return numbers[labels], {index + 1: 1 if value else 2 for index, value in enumerate(positive[kept])}


def tumor_mask(painting: Painting, mpp: float) -> NDArray[np.uint8]:
    """255 where a pathologist would draw tumour: a smooth outline around the nests."""
    smooth = cv2.GaussianBlur(painting.tumor_um, (0, 0), 3.0 / mpp)
    return np.where(smooth > 0, 255, 0).astype(np.uint8)


def degrade(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """What lies between scanner and network: another resolution, brightness and contrast, and JPEG compression."""
    result: Any = rgb
    if rng.random() < 0.25:
        height, width = rgb.shape[:2]
        factor = float(rng.uniform(1.15, 2.0))
        small = cv2.resize(rgb, (int(width / factor), int(height / factor)), interpolation=cv2.INTER_AREA)
        result = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        black = rng.uniform(0, 0.2) * (rng.random() < 0.4)
        gain, gamma = rng.uniform(0.92, 1.15), rng.uniform(0.75, 1.35)
        levels = np.clip((np.arange(256) / 255 - black) / (1 - black), 0, 1)
        result = cv2.LUT(result, np.clip(255 * gain * levels**gamma, 0, 255).astype(np.uint8))
    # cv2 takes blue first, and JPEG keeps green best.
    _, encoded = cv2.imencode(".jpg", result[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.uniform(40, 95))])
    decoded: Any = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(decoded[..., ::-1], dtype=np.uint8)


@dataclass(frozen=True)
class Sources:
    """Real images that fields of the kinds ``nuclei`` and ``tumor_ki67`` are made from; without any, all is drawn.

    Attributes
    ----------
    nuclei_from
        An ``instances`` dataset of one nuclear stain, whose nuclei are stained anew; of no use to ``tumor_ki67``.
    tissue_from
        H&E datasets whose tissue is stained anew, for ``tumor_ki67`` of kind ``tumor``; the ``teacher`` finds nuclei.
    teacher
        Folder of a five-class network.
    """

    nuclei_from: Path | None = None
    tissue_from: tuple[Path, ...] = ()
    teacher: Path | None = None


def read_tissues(folder: Path, teacher: Predictor, mpp: float, *, tumor: bool = False) -> tuple[Tissue, ...]:
    """The tissue of all images of an H&E dataset, at so many microns per pixel, perhaps with the tumour drawn in it.

    Raises
    ------
    Ki67Error
        If the folder holds no image with a nucleus, or is to have masks of tumour and is of another kind.
    """
    dataset = read_dataset(folder)
    if tumor and dataset.kind != "tumor":
        raise Ki67Error(f"dataset {dataset.name}: kind {dataset.kind} has no tumour to stain anew; it needs tumor")
    tissues: list[Tissue | None] = []
    for path in tqdm(image_paths(dataset), desc=f"nuclei of {dataset.name}", unit="image"):
        rgb = read_rgb(dataset, path, mpp)
        tissue = read_tissue(rgb, mpp, teacher)
        if tissue is not None and tumor:
            mask = read_annotation(dataset, path.stem, rgb.shape[:2], mpp)[0] == 1
            tissue = replace(tissue, tumor=mask)
        tissues.append(tissue)
    if not (known := tuple(tissue for tissue in tissues if tissue is not None)):
        raise Ki67Error(f"{folder.name}: no nucleus was found in its images; give a dataset of H&E images")
    return known


def _read_sources(sources: Sources, options: FieldOptions) -> RealNuclei | None:
    if sources == Sources():
        return None
    if options.kind == "tumor_he" or (options.kind == "tumor_ki67" and sources.nuclei_from is not None):
        raise Ki67Error(
            f"fields of kind {options.kind} cannot be made from "
            + ("nuclei or tissue; leave both out" if options.kind == "tumor_he" else "nuclei; leave nuclei_from out")
        )
    if bool(sources.tissue_from) != (sources.teacher is not None):
        raise Ki67Error("tissue_from needs a teacher, and a teacher tissue_from; name both or neither")
    if options.kind == "tumor_ki67":
        real = RealNuclei([], None)
    elif sources.nuclei_from is None:
        raise Ki67Error("tissue_from needs nuclei_from beside it; name a dataset of kind instances")
    else:
        real = read_real_nuclei(sources.nuclei_from)
    if sources.teacher is None:
        return real
    teacher = load_network(sources.teacher, precision="bfloat16")
    with_tumor = options.kind == "tumor_ki67"
    tissues = (read_tissues(path, teacher, options.mpp, tumor=with_tumor) for path in sources.tissue_from)
    return replace(real, tissues=tuple(tissues))


def draw_fields(
    options: FieldOptions, folder: Path, *, sources: Sources | None = None, workers: int | None = None
) -> None:
    """Write a dataset folder of drawn fields (``images``, ``labels`` and ``classes`` or ``masks``, ``dataset.yaml``).

    Parameters
    ----------
    sources
        Real images to make fields from.
    workers
        Processes; the number of processors where it is ``None``. The result does not depend on it.

    Raises
    ------
    Ki67Error
        If the folder already holds files, or a source cannot serve.
    """
    if folder.exists() and any(folder.iterdir()):
        raise Ki67Error(f"{folder.name} is not empty; name a new folder for the drawn fields")
    sources = sources or Sources()
    real = _read_sources(sources, options)
    with whole(folder) as partial_folder:
        for part in ("images", "labels", "classes") if options.kind == "nuclei" else ("images", "masks"):
            (partial_folder / part).mkdir(parents=True)
        # Not the pool of the standard library: its processes would run a Snakemake script, being __main__, once more.
        # Its processes share arrays above the size given.
        parallel = Parallel(n_jobs=workers or cpu_count(), max_nbytes="100K", return_as="generator_unordered")
        drawn = parallel(delayed(_write_field)(options, real, partial_folder, index) for index in range(options.count))
        for _ in tqdm(drawn, total=options.count, desc=f"fields of {options.kind}", unit="field"):
            pass
        text = yaml.safe_dump(_description(options, sources), sort_keys=False)
        (partial_folder / "dataset.yaml").write_text(text, encoding="utf-8")


def _origin(sources: Sources) -> str:
    parts = [] if sources.nuclei_from is None else [f"nuclei of {sources.nuclei_from.name}"]
    parts += [f"tissue of {path.name}" for path in sources.tissue_from]
    return f"{', '.join(parts)}, re-stained" if parts else "drawn"


def _description(options: FieldOptions, sources: Sources) -> dict[str, Any]:
    """What dataset.yaml says."""
    is_nuclei = options.kind == "nuclei"
    return {
        "kind": "instances" if is_nuclei else "tumor",
        "stain": options.stain,
        "mpp": options.mpp,
        "origin": _origin(sources),
        "seed": options.seed,
        "licence": "CC0",
    } | ({"classes": {1: "positive", 2: "negative", 3: "left out"}} if is_nuclei else {})


def _write_field(options: FieldOptions, real: RealNuclei | None, folder: Path, index: int) -> None:
    cv2.setNumThreads(1)  # fields are drawn side by side
    field, name = draw_field(options, index, real), f"{index:06d}"
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    cv2.imwrite(str(folder / "images" / f"{name}.png"), field.rgb[..., ::-1], fast)
    if field.labels is not None:
        cv2.imwrite(str(folder / "labels" / f"{name}.png"), field.labels, fast)
        (folder / "classes" / f"{name}.json").write_text(json.dumps(field.classes), encoding="utf-8")
    if field.mask is not None:
        cv2.imwrite(str(folder / "masks" / f"{name}.png"), field.mask, fast)
