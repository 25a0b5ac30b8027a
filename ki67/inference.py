"""Running a network over the tiles of a slide, and stitching its answers into bands from top to bottom."""

from __future__ import annotations

import itertools
import logging
import resource
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ki67.networks import Predictor
from ki67.slides import Slide
from ki67.tiles import TilePlan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Band:
    """The answers for one row of tiles, stitched; its columns are the same for all bands of a plan.

    Attributes
    ----------
    first_row_px, first_column_px
        Position of the band's top-left corner in the slide, in pixels at the network's resolution.
    probabilities
        uint8 ``(C, rows, columns)``, 255 for 1; 0 where no tile was.
    rgb
        uint8 ``(rows, columns, 3)``, the pixels the network saw; white where no tile was.
    covered
        bool ``(columns,)``, where tiles were.
    """

    first_row_px: int
    first_column_px: int
    probabilities: NDArray[np.uint8]
    rgb: NDArray[np.uint8]
    covered: NDArray[np.bool_]

    @property
    def end_row_px(self) -> int:
        """Row after the band's last."""
        return self.first_row_px + self.rgb.shape[0]


@dataclass(frozen=True)
class InferenceStatistics:
    """What running a network over a slide took.

    Attributes
    ----------
    tiles
        Windows looked at.
    mm2
        Area of their cores.
    read_s
        Time that reader threads spent, added up.
    network_s
        Time spent in the network.
    postprocess_s
        Time spent on its answers.
    wall_s
        Time from beginning to end.
    peak_rss_mb
        Most memory the process ever had.
    """

    tiles: int
    mm2: float
    read_s: float
    network_s: float
    postprocess_s: float
    wall_s: float
    peak_rss_mb: float

    def to_json(self) -> dict[str, Any]:
        """The statistics as plain JSON values."""
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}


class Stopwatch:
    """Adds up what the parts of a run take."""

    def __init__(self, plan: TilePlan) -> None:
        self._plan = plan
        self._started = time.perf_counter()
        self.read_s = self.network_s = self.postprocess_s = 0.0

    @contextmanager
    def postprocessing(self) -> Iterator[None]:
        """Time the block as work on the network's answers."""
        started = time.perf_counter()
        yield
        self.postprocess_s += time.perf_counter() - started

    def statistics(self) -> InferenceStatistics:
        """What was measured so far."""
        return InferenceStatistics(
            tiles=len(self._plan),
            mm2=self._plan.area_mm2,
            read_s=self.read_s,
            network_s=self.network_s,
            postprocess_s=self.postprocess_s,
            wall_s=time.perf_counter() - self._started,
            peak_rss_mb=peak_memory_mb(),
        )


def peak_memory_mb() -> float:
    """Most memory this process ever had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def predict_bands(
    slide: Slide,
    plan: TilePlan,
    network: Predictor,
    *,
    batch_size: int,
    reader_threads: int,
    label: str,
    stopwatch: Stopwatch | None = None,
) -> Iterator[Band]:
    """The network's answers on a slide, a row of tiles at a time from top to bottom.

    Threads read windows ahead of the network, in order and never more than a few batches, so memory depends on the
    width of the slide but not on its area. What is answered depends on nothing but slide, plan and network.

    Parameters
    ----------
    batch_size
        Windows handed to the network at once.
    reader_threads
        Threads that read.
    label
        Named in the progress bar and the log.
    stopwatch
        Told what reading and the network take.

    Yields
    ------
    Band
        For every row of the plan that has tiles.

    Raises
    ------
    SlideError
        If a window cannot be read.
    """
    stopwatch = stopwatch or Stopwatch(plan)
    if len(plan) == 0:
        return
    started = time.perf_counter()
    answers = _answers(_windows(slide, plan, batch_size, reader_threads, stopwatch), network, batch_size, stopwatch)
    with tqdm(total=len(plan), desc=label, unit="tile", mininterval=1.0) as progress:
        counted = _counted(answers, progress)
        for _, row in itertools.groupby(zip(plan.tiles, counted, strict=True), key=lambda item: int(item[0][0])):
            yield _stitched(plan, row, len(network.spec.classes))
    seconds = time.perf_counter() - started
    log.info("%s: %d tiles in %.1f s, %.1f tiles/s", label, len(plan), seconds, len(plan) / seconds)


_Answer = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def _windows(
    slide: Slide, plan: TilePlan, batch_size: int, reader_threads: int, stopwatch: Stopwatch
) -> Iterator[NDArray[np.uint8]]:
    """The windows of all tiles in order."""
    halo_um, core_um = plan.halo_px * plan.mpp, plan.core_px * plan.mpp

    def read(row: int, column: int) -> tuple[NDArray[np.uint8], float]:
        started = time.perf_counter()
        x_um, y_um = column * core_um - halo_um, row * core_um - halo_um
        window = slide.read(x_um, y_um, plan.window_px, plan.window_px, plan.mpp)
        return window, time.perf_counter() - started

    # One batch in the network, one waiting for it, and one tile in each thread.
    ahead = 2 * batch_size + reader_threads
    waiting: deque[Future[tuple[NDArray[np.uint8], float]]] = deque()
    with ThreadPoolExecutor(reader_threads, thread_name_prefix="reader") as readers:
        try:
            for row, column in plan.tiles.tolist():
                waiting.append(readers.submit(read, row, column))
                if len(waiting) >= ahead:
                    yield _next_window(waiting, stopwatch)
            while waiting:
                yield _next_window(waiting, stopwatch)
        finally:
            for future in waiting:
                future.cancel()


def _next_window(waiting: deque[Future[tuple[NDArray[np.uint8], float]]], stopwatch: Stopwatch) -> NDArray[np.uint8]:
    window, seconds = waiting.popleft().result()
    stopwatch.read_s += seconds
    return window


def _answers(
    windows: Iterator[NDArray[np.uint8]], network: Predictor, batch_size: int, stopwatch: Stopwatch
) -> Iterator[_Answer]:
    """Window and probabilities uint8 ``(C, H, W)`` of each window."""
    while batch := tuple(itertools.islice(windows, batch_size)):
        started = time.perf_counter()
        probabilities = network.predict(np.stack(batch))
        levels = np.rint(probabilities * np.float32(255)).astype(np.uint8)
        stopwatch.network_s += time.perf_counter() - started
        yield from zip(batch, levels, strict=True)


def _counted(answers: Iterator[_Answer], progress: tqdm[Any]) -> Iterator[_Answer]:
    for answer in answers:
        progress.update()
        yield answer


def _stitched(plan: TilePlan, row: Iterable[tuple[NDArray[np.int64], _Answer]], classes: int) -> Band:
    left, width = plan.first_column_px, plan.end_column_px - plan.first_column_px
    band: Band | None = None
    for (tile_row, tile_column), (window, probabilities) in row:
        if band is None:
            top = int(tile_row) * plan.core_px
            height = min(plan.core_px, plan.height_px - top)
            band = Band(
                first_row_px=top,
                first_column_px=left,
                probabilities=np.zeros((classes, height, width), dtype=np.uint8),
                rgb=np.full((height, width, 3), 255, dtype=np.uint8),
                covered=np.zeros(width, dtype=bool),
            )
        start = int(tile_column) * plan.core_px - left
        end = min(start + plan.core_px, width)
        core = np.s_[plan.halo_px : plan.halo_px + height, plan.halo_px : plan.halo_px + end - start]
        band.probabilities[:, :, start:end] = probabilities[:, *core]
        band.rgb[:, start:end] = window[core]
        band.covered[start:end] = True
    assert band is not None
    return band
