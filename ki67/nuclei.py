"""The nuclei of a slide, found while the network is still running: where each is, its outline, its class and stain.

Answers of the network come block by block and are put together to fields (``ki67.fields``). Each field sees a margin
around its own pixels, and a nucleus is counted where its centre of mass lies, so each is counted once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
from numpy.typing import NDArray

from ki67.class_calibration import DabLevels
from ki67.compiled import compiled
from ki67.errors import Finding
from ki67.extraction import ExtractionOptions, Nuclei, extract_nuclei
from ki67.fields import OWN_COLUMNS_PX, OWN_ROWS_PX, Band, Field, FieldAssembly, Progress, fields_of_bands
from ki67.geometry import Mask
from ki67.inference import Block, InferenceRun, InferenceStatistics, Running
from ki67.nucleus_review import ReviewOptions, review_nuclei
from ki67.nucleus_table import COLUMNS, empty_nuclei, nucleus_table
from ki67.outlines import OUTLINE_VERTICES, outline_nuclei, polygons
from ki67.predictors import Predictor
from ki67.probability_zarr import ProbabilityWriter, probability_zarr
from ki67.slides import Slide
from ki67.stain import OD_TO_HED, optical_density
from ki67.tiles import TilePlan, cells_of, plan_tiles

__all__ = [
    "OUTLINE_VERTICES",
    "REACH_UM",
    "Extract",
    "ExtractionOptions",
    "FoundNuclei",
    "Maps",
    "Nuclei",
    "NucleusDetection",
    "Revise",
    "Running",
    "detect_nuclei",
    "extract_nuclei",
    "field_margin_px",
    "nuclei_of_bands",
    "nuclei_of_field",
    "nuclei_table",
    "outline_nuclei",
    "polygons",
]

Revise = Callable[[Nuclei, NDArray[np.uint8], float], Nuclei]
"""A second look at all nuclei of an image uint8 ``(H, W, 3)`` of so many microns per pixel: which are kept, and what
they are."""

Extract = Callable[[NDArray[np.uint8], float], Nuclei]
"""Single nuclei from a predictor's answer uint8 ``(C, H, W)`` to an image of so many microns per pixel, for predictors
of other classes than ``ki67.extraction.extract_nuclei`` takes."""

Maps = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""Probabilities for people to see, uint8 ``(C, H, W)``, of an answer that does not hold them as such."""

REACH_UM = 20.0
"""Farthest that a nucleus and what decides on it reach from its middle: the nucleus, the next one that it touches, and
how deep that is."""

CELL_PX = 64
"""Side of the cells in which nuclei are looked for."""

# Tiles so far from the tumour are looked at, so that nuclei on its edge are seen whole.
_MARGIN_UM = 8.0
# Fields that may wait for a thread.
_MOST_WAITING = 16
# Optical density is added up in steps of 2 ** -20, as integers, so sums do not depend on the order of pixels.
_DENSITY_STEPS = 2**20
_STEPS_OF_BYTE = np.rint(optical_density(np.arange(256, dtype=np.uint8)).astype(np.float64) * _DENSITY_STEPS).astype(
    np.int64
)


@dataclass(frozen=True)
class NucleusDetection:
    """The nuclei of a slide.

    Attributes
    ----------
    table
        See ``ki67.nucleus_table``; coordinates in microns of the slide's frame, sorted by y and x.
    statistics
        Of the network's run.
    levels
        Of DAB, by which nuclei were called positive; None where the network decided.
    findings
        What makes the nuclei doubtful.
    stains
        Their colours on the slide and what is shown of them, where the method depends on it: plain JSON values.
    """

    table: geopandas.GeoDataFrame
    statistics: InferenceStatistics
    levels: DabLevels | None = None
    findings: tuple[Finding, ...] = ()
    stains: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """All but the table as plain JSON values."""
        return {
            "statistics": self.statistics.to_json(),
            "dab_levels": self.levels and asdict(self.levels),
            "findings": [finding.to_json() for finding in self.findings],
            **({} if self.stains is None else {"stains": dict(self.stains)}),
        }


def detect_nuclei(
    slide: Slide,
    tumor: Mask,
    network: Predictor,
    *,
    cell_px: int = CELL_PX,
    offset_px: tuple[int, int] = (0, 0),
    options: ExtractionOptions | None = None,
    extract: Extract | None = None,
    revise: Revise | None = None,
    review: ReviewOptions | None = None,
    running: Running | None = None,
    probabilities: Path | str | None = None,
    maps: Maps | None = None,
) -> NucleusDetection:
    """All nuclei in the tiles of a slide that touch the tumour.

    Parameters
    ----------
    slide
        Ki-67.
    tumor
        In the slide's frame. Nuclei outside of it but in its tiles are kept, with ``in_tumor`` false.
    network
        Of the five classes of ``ki67.predictors.NUCLEUS_CLASSES``, or of those that ``extract`` takes.
    cell_px, offset_px
        Side of a cell, and where the grid begins; see ``ki67.tiles``. Small cells follow the outlines of small nests of
        tumour closely.
    options
        How probabilities of the five classes become nuclei.
    extract
        How answers of other classes become nuclei; then ``options`` do not matter.
    revise
        A second look at the nuclei of every field.
    review
        How all nuclei of the slide are looked at together in the end; not at all if not given.
    running
        No nucleus depends on it.
    probabilities
        Where to write the network's probabilities as OME-Zarr; nowhere if not given.
    maps
        What is written of an answer; the answer itself if not given.

    Raises
    ------
    SlideError
        If the slide cannot be read somewhere.
    """
    mpp = network.spec.mpp
    plan = plan_tiles(
        tumor,
        slide.size_um,
        mpp=mpp,
        cell_px=cell_px,
        halo_px=network.halo_px,
        block_cells=cells_of(network.block_px, cell_px),
        margin_um=_MARGIN_UM,
        offset_px=offset_px,
    )
    with ExitStack() as stack:
        write = None
        if probabilities is not None:
            store = stack.enter_context(probability_zarr(probabilities, plan, network.spec.classes, tumor.frame))
            write = partial(_write, store, maps)
        run = stack.enter_context(InferenceRun(slide, plan, network, label=f"{slide.slide_id} nuclei", running=running))
        found = _nuclei_of_run(run, extract or partial(_extracted, options or ExtractionOptions()), revise, write)
        with run.postprocessing():
            levels = None
            if review is not None:
                together, levels = reviewed(found, review)
                found = [together]
            table = nuclei_table(found, tumor)
        statistics = run.statistics()
    return NucleusDetection(table, statistics, levels)


def _extracted(options: ExtractionOptions, probabilities: NDArray[np.uint8], mpp: float) -> Nuclei:
    return extract_nuclei(probabilities, mpp=mpp, options=options)


def _write(store: ProbabilityWriter, maps: Maps | None, block: Block) -> None:
    store.write(block if maps is None else replace(block, probabilities=maps(block.probabilities)))


def _nuclei_of_run(
    run: InferenceRun, extract: Extract, revise: Revise | None, write: Callable[[Block], None] | None
) -> list[FoundNuclei]:
    """The nuclei of all fields, found on the run's threads between its windows."""
    mpp = run.plan.mpp
    assembly = FieldAssembly(field_margin_px(mpp))
    waiting: deque[Future[FoundNuclei | None]] = deque()
    found: list[FoundNuclei | None] = []

    def look(fields: Iterable[Field]) -> None:
        for field in fields:
            waiting.append(run.submit(nuclei_of_field, field, mpp=mpp, extract=extract, revise=revise))
            # What waits holds on to answers, so not too much may wait.
            while len(waiting) > _MOST_WAITING:
                found.append(waiting.popleft().result())

    for block in run.blocks():
        look(assembly.fields(_progress(run.plan, block)))
        assembly.add(Band(block.row_px, block.column_px, block.probabilities, block.rgb))
        if write is not None:
            waiting.append(run.submit(write, block))
    look(assembly.fields())
    return [part for part in [*found, *(future.result() for future in waiting)] if part is not None]


def _progress(plan: TilePlan, block: Block) -> Progress:
    """What is there when a block comes: all rows of blocks above it, and what lies left of it in its own."""
    top, left = plan.block_corner_px(block.row, block.column)
    return Progress(row_px=top, next_row_px=top + plan.block_px[0], column_px=left)


@dataclass(frozen=True)
class FoundNuclei:
    """Nuclei of one field of a slide, in microns of its frame: columns of the table, and outlines."""

    columns: dict[str, NDArray[Any]]
    outlines: NDArray[np.object_]


def field_margin_px(mpp: float) -> int:
    """How far fields look around their own pixels, at so many microns per pixel; even, as answers may be in cells."""
    return 2 * round(REACH_UM / mpp / 2)


def nuclei_of_bands(bands: Iterable[Band], *, mpp: float, options: ExtractionOptions) -> Iterator[FoundNuclei]:
    """The nuclei of bands that come from top to bottom, each nucleus once, field by field."""
    for field in fields_of_bands(bands, margin_px=field_margin_px(mpp)):
        yield nuclei_of_field(field, mpp=mpp, extract=partial(_extracted, options))


def _joined(parts: list[FoundNuclei]) -> FoundNuclei:
    if not parts:
        return FoundNuclei({}, np.empty(0, dtype=object))
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    return FoundNuclei(columns, np.concatenate([part.outlines for part in parts]))


def nuclei_of_field(field: Field, *, mpp: float, extract: Extract, revise: Revise | None = None) -> FoundNuclei:
    """The nuclei whose centre of mass is one of the field's own pixels.

    It depends on nothing but the field, and can run on any thread beside others.

    Parameters
    ----------
    field
        With a margin of ``field_margin_px``.
    mpp
        Microns per pixel.
    extract
        How answers become nuclei.
    revise
        A second look at the nuclei. It sees those of the margin too, so that it can look around the field's own.
    """
    probabilities, rgb = field.arrays()
    nuclei = extract(probabilities, mpp)
    if revise is not None:
        nuclei = revise(nuclei, rgb, mpp)
    nuclei = nuclei.chosen(_owned(nuclei, field.margin_px))
    if len(nuclei.area_px) == 0:
        return _joined([])
    hematoxylin, dab = stain_amounts(nuclei, rgb)
    corner_px = np.array([field.first_column_px, field.first_row_px]) - field.margin_px
    columns = {
        "x_um": _shifted(nuclei.x_px, nuclei.area_px, int(corner_px[0])) * mpp,
        "y_um": _shifted(nuclei.y_px, nuclei.area_px, int(corner_px[1])) * mpp,
        "positive": nuclei.positive,
        "probability": nuclei.probability,
        "area_um2": nuclei.area_px * mpp**2,
        "dab_od": dab,
        "hematoxylin_od": hematoxylin,
    }
    return FoundNuclei(columns, polygons((outline_nuclei(nuclei) + corner_px) * mpp))


def _owned(nuclei: Nuclei, margin_px: int) -> NDArray[np.bool_]:
    """Which nuclei have their centre of mass in own pixels."""
    row, column = np.floor(nuclei.y_px) - margin_px, np.floor(nuclei.x_px) - margin_px
    return np.asarray((row >= 0) & (row < OWN_ROWS_PX) & (column >= 0) & (column < OWN_COLUMNS_PX))


def _shifted(middle_px: NDArray[np.float64], area_px: NDArray[np.int64], shift_px: int) -> NDArray[np.float64]:
    """Middles shifted by whole pixels, to the last digit as if the field had begun at the slide's corner."""
    total = np.rint((middle_px - 0.5) * area_px) + shift_px * area_px
    return total / area_px + 0.5


def stain_amounts(nuclei: Nuclei, rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean optical density of hematoxylin and of DAB over each nucleus.

    The amounts of ``ki67.stain.separate_hed`` are linear in optical density, so it is enough to separate the means.
    """
    sums = _density_sums(nuclei.labels, rgb, len(nuclei.area_px), _STEPS_OF_BYTE)
    amounts = (sums / (_DENSITY_STEPS * nuclei.area_px[:, None])) @ OD_TO_HED.astype(np.float64)
    return amounts[:, 0], amounts[:, 2]


@compiled
def _density_sums(
    labels: NDArray[np.int32], rgb: NDArray[np.uint8], count: int, steps_of_byte: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Sums ``(count, 3)`` of the optical density of red, green and blue over each number from 1."""
    height, width = labels.shape
    sums = np.zeros((count, 3), dtype=np.int64)
    for row in range(height):
        for column in range(width):
            number = labels[row, column]
            if number:
                for channel in range(3):
                    sums[number - 1, channel] += steps_of_byte[rgb[row, column, channel]]
    return sums


def reviewed(found: Iterable[FoundNuclei], options: ReviewOptions) -> tuple[FoundNuclei, DabLevels | None]:
    """The nuclei of all fields that are plausible beside each other, with the class and uncertainty each then has.

    Returns
    -------
    nuclei
        With the column ``uncertainty`` besides the others.
    levels
        Of DAB, which told the classes; None where the network did.
    """
    nuclei = _joined([part for part in found if len(part.outlines)])
    if not len(nuclei.outlines):
        return nuclei, None
    judged = nuclei.columns
    review = review_nuclei(judged["probability"], judged["positive"], judged["area_um2"], judged["dab_od"], options)
    columns = nuclei.columns | {"positive": review.positive, "uncertainty": review.uncertainty}
    kept = {name: values[review.kept] for name, values in columns.items()}
    return FoundNuclei(kept, nuclei.outlines[review.kept]), review.levels


def nuclei_table(found: Iterable[FoundNuclei], tumor: Mask) -> geopandas.GeoDataFrame:
    """The table of the nuclei of all fields; see ``ki67.nucleus_table``."""
    joined = _joined([part for part in found if len(part.outlines)])
    if not len(joined.outlines):
        return empty_nuclei()
    columns = {"uncertainty": 1 - joined.columns["probability"]} | joined.columns
    columns["in_tumor"] = tumor.contains(np.column_stack([columns["x_um"], columns["y_um"]]))
    return nucleus_table({name: columns[name] for name in COLUMNS if name != "nucleus_id"}, joined.outlines)
