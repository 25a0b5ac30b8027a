"""Running a network over a slide: reading, network and the work on its answers at the same time, block by block.

On a processor every thread takes a window through reading and the network on its own, each with a single thread of
torch: nothing waits for anything, and no result depends on the number of threads. On a GPU threads read ahead of the
network, which answers in the calling thread. Work on the answers goes to the same threads in between.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ParamSpec, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ki67.predictors import Predictor
from ki67.slides import Slide
from ki67.tiles import BlockPlan, TilePlan, Window

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

TILE_PX = 256
"""Side of the tile in which amounts and rates are given."""
_GLIBC_TRIM_THRESHOLD, _GLIBC_MMAP_THRESHOLD, _GLIBC_ARENA_MAX = -1, -3, -8


@dataclass(frozen=True)
class Block:
    """The answers for one block of a plan: the smallest rectangle around its windows.

    Attributes
    ----------
    row, column
        In the grid of blocks.
    row_px, column_px
        Top-left corner in the slide, in pixels at the network's resolution.
    probabilities
        uint8 ``(C, H, W)``, 255 for 1; 0 where no window was.
    rgb
        uint8 ``(H, W, 3)``, the pixels the network saw; white where no window was.
    windows
        What was answered for.
    """

    row: int
    column: int
    row_px: int
    column_px: int
    probabilities: NDArray[np.uint8]
    rgb: NDArray[np.uint8]
    windows: tuple[Window, ...]

    def answered(self) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
        """Row and column in the slide, and probabilities ``(C, h, w)``, of each window."""
        for window in self.windows:
            top, left = window.row_px - self.row_px, window.column_px - self.column_px
            place = slice(top, top + window.height_px), slice(left, left + window.width_px)
            yield window.row_px, window.column_px, self.probabilities[:, *place]


@dataclass(frozen=True)
class Running:
    """How a network runs; no result depends on it.

    Attributes
    ----------
    batch_size
        Windows of one shape that a GPU is given at once; a processor takes one at a time.
    reader_threads
        Threads that read ahead of a GPU.
    threads
        Threads that read and run the network on a processor; by default as many as torch would use, or, in a process
        without it, as many as there are processors.
    """

    batch_size: int = 4
    reader_threads: int = 4
    threads: int | None = None


@dataclass(frozen=True)
class InferenceStatistics:
    """What running a network over a slide took.

    Attributes
    ----------
    tiles
        What was analysed, in tiles of 256² pixels.
    mm2
        Their area on the slide.
    read_s, postprocess_s
        Processor time of reading, and of the work on the answers, added up over threads.
    network_s
        Processor time of the network added up over threads; on a GPU the time that the caller waited for it.
    wall_s
        Time from beginning to end.
    peak_rss_mb
        Most memory the process ever had.
    threads
        Threads at work.
    """

    tiles: float
    mm2: float
    read_s: float
    network_s: float
    postprocess_s: float
    wall_s: float
    peak_rss_mb: float
    threads: int

    def to_json(self) -> dict[str, Any]:
        """The statistics as plain JSON values."""
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}

    def __add__(self, later: InferenceStatistics) -> InferenceStatistics:
        """Of two runs one after the other; the area is that of the first, which saw all of it."""
        return InferenceStatistics(
            tiles=self.tiles + later.tiles,
            mm2=self.mm2,
            read_s=self.read_s + later.read_s,
            network_s=self.network_s + later.network_s,
            postprocess_s=self.postprocess_s + later.postprocess_s,
            wall_s=self.wall_s + later.wall_s,
            peak_rss_mb=max(self.peak_rss_mb, later.peak_rss_mb),
            threads=max(self.threads, later.threads),
        )


def peak_memory_mb() -> float:
    """Most memory this process ever had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class _Clock:
    """Adds up, over threads, the time that one kind of work takes."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started = self._now()
        try:
            yield
        finally:
            with self._lock:
                self.seconds += self._now() - started


class InferenceRun:
    """A network at work on a slide; a context that holds its threads.

    What is answered depends on nothing but slide, plan and network. Memory depends on the number of threads, and
    neither on the slide's area nor on its width.

    Parameters
    ----------
    label
        Named in the progress bar and the log.
    running
        See there.

    Examples
    --------
    >>> with InferenceRun(slide, plan, network, label="S01 tumor") as run:  # doctest: +SKIP
    ...     for block in run.blocks():
    ...         run.submit(count, block)
    """

    def __init__(
        self,
        slide: Slide,
        plan: TilePlan,
        network: Predictor,
        *,
        label: str,
        running: Running | None = None,
    ) -> None:
        running = running or Running()
        self.plan = plan
        self._on_gpu = network.device.type != "cpu"
        self.threads = running.reader_threads if self._on_gpu else running.threads or _usual_threads()
        self._slide, self._network, self._label, self._batch_size = slide, network, label, running.batch_size
        self._read = _Clock(time.thread_time)
        self._networked = _Clock(time.perf_counter if self._on_gpu else time.thread_time)
        self._postprocess = _Clock(time.thread_time)
        self._tiles, self._pixels = 0.0, 0
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        keep_freed_memory()
        self._usual_threads = _usual_threads()
        self._pool = ThreadPoolExecutor(
            self.threads, thread_name_prefix="inference", initializer=partial(_limit_torch, 1)
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        _limit_torch(self._usual_threads)

    def submit(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Do work on the answers on the run's threads, between the windows that wait there."""

        def timed() -> R:
            with self._postprocess.running():
                return work(*args, **kwargs)

        return self._pool.submit(timed)

    @contextmanager
    def postprocessing(self) -> Iterator[None]:
        """Time the block, which runs in the calling thread, as work on the answers."""
        with self._postprocess.running():
            yield

    def statistics(self) -> InferenceStatistics:
        """What was measured so far."""
        return InferenceStatistics(
            tiles=self._tiles,
            mm2=self._pixels * self.plan.mpp**2 / 1e6,
            read_s=self._read.seconds,
            network_s=self._networked.seconds,
            postprocess_s=self._postprocess.seconds,
            wall_s=time.perf_counter() - self._started,
            peak_rss_mb=peak_memory_mb(),
            threads=self.threads,
        )

    def blocks(self) -> Iterator[Block]:
        """The answers of all blocks, row by row.

        Raises
        ------
        SlideError
            If a window cannot be read.
        """
        plans = list(self.plan.blocks())
        tiles = sum(_tiles(plan) for plan in plans)
        started = time.perf_counter()
        answers = self._answers([window for plan in plans for window in plan.windows])
        with tqdm(total=round(tiles), desc=self._label, unit="tile", mininterval=1.0) as progress:
            for plan in plans:
                block = self._block(plan, list(itertools.islice(answers, len(plan.windows))))
                self._tiles += _tiles(plan)
                self._pixels += self.plan.area_px(plan.windows)
                progress.update(round(self._tiles) - progress.n)
                yield block
        seconds = time.perf_counter() - started
        if plans:
            log.info("%s: %.0f tiles in %.1f s, %.1f tiles/s", self._label, tiles, seconds, tiles / seconds)

    # ------------------------------------------------------------------------------------------ windows

    def _answers(self, windows: list[Window]) -> Iterator[_Answer]:
        return self._answers_of_gpu(windows) if self._on_gpu else self._ahead(self._read_and_predict, windows)

    def _ahead(self, work: Callable[[Window], R], windows: list[Window], ahead: int = 0) -> Iterator[R]:
        """Results in order; two blocks for every thread, and some windows, are being worked on or wait."""
        height, width = self.plan.block_px
        most_px = (2 * self.threads + ahead) * height * width
        waiting: deque[tuple[Future[R], int]] = deque()
        waiting_px = 0
        try:
            for window in windows:
                area_px = window.height_px * window.width_px
                while waiting and waiting_px + area_px > most_px:
                    future, done_px = waiting.popleft()
                    waiting_px -= done_px
                    yield future.result()
                waiting.append((self._pool.submit(work, window), area_px))
                waiting_px += area_px
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()

    def _read_window(self, window: Window) -> NDArray[np.uint8]:
        halo, mpp = self.plan.halo_px, self.plan.mpp
        with self._read.running():
            return self._slide.read(
                (window.column_px - halo) * mpp,
                (window.row_px - halo) * mpp,
                window.width_px + 2 * halo,
                window.height_px + 2 * halo,
                mpp,
            )

    def _read_and_predict(self, window: Window) -> _Answer:
        pixels = self._read_window(window)
        with self._networked.running():
            levels = self._network.predict_levels(pixels[None], self.plan.halo_px)[0]
        return self._inner(pixels), levels

    def _answers_of_gpu(self, windows: list[Window]) -> Iterator[_Answer]:
        read = self._ahead(self._read_window, windows, ahead=2 * self._batch_size)
        for _, group in itertools.groupby(read, key=lambda pixels: pixels.shape):
            while batch := list(itertools.islice(group, self._batch_size)):
                with self._networked.running():
                    levels = self._network.predict_levels(np.stack(batch), self.plan.halo_px)
                yield from zip(map(self._inner, batch), levels, strict=True)

    def _inner(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        halo = self.plan.halo_px
        return pixels[halo : pixels.shape[0] - halo, halo : pixels.shape[1] - halo]

    def _block(self, plan: BlockPlan, answers: list[_Answer]) -> Block:
        top, left = min(w.row_px for w in plan.windows), min(w.column_px for w in plan.windows)
        bottom = max(w.row_px + w.height_px for w in plan.windows)
        right = max(w.column_px + w.width_px for w in plan.windows)
        size = bottom - top, right - left
        probabilities = np.zeros((len(answers[0][1]), *size), dtype=np.uint8)
        rgb = np.full((*size, 3), 255, dtype=np.uint8)
        for window, (pixels, levels) in zip(plan.windows, answers, strict=True):
            place = (
                slice(window.row_px - top, window.row_px - top + window.height_px),
                slice(window.column_px - left, window.column_px - left + window.width_px),
            )
            probabilities[:, *place], rgb[place] = levels, pixels
        self._clear_beyond_slide(top, left, probabilities)
        return Block(plan.row, plan.column, top, left, probabilities, rgb, plan.windows)

    def _clear_beyond_slide(self, top: int, left: int, probabilities: NDArray[np.uint8]) -> None:
        height, width = max(0, self.plan.height_px - top), max(0, self.plan.width_px - left)
        probabilities[:, height:], probabilities[:, :, width:] = 0, 0
        probabilities[:, : max(0, -top)], probabilities[:, :, : max(0, -left)] = 0, 0


def _usual_threads() -> int:
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else len(os.sched_getaffinity(0))


def _limit_torch(threads: int) -> None:
    """Set the threads of torch, where it was imported: never in a process of TensorFlow."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


_Answer = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def _tiles(plan: BlockPlan) -> float:
    """What a block's windows hold, in tiles of 256² pixels."""
    return sum(window.height_px * window.width_px for window in plan.windows) / TILE_PX**2


def keep_freed_memory() -> None:
    """Ask glibc to keep what is freed for the next window, and to keep it for all threads in one place.

    By default it hands arrays of tens of megabytes back to the system and asks for them again at every layer, which
    costs a tenth of the network's time on large windows. Other C libraries are left alone.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        for setting, value in (
            (_GLIBC_ARENA_MAX, 1),
            (_GLIBC_MMAP_THRESHOLD, 2**30),
            (_GLIBC_TRIM_THRESHOLD, 2**31 - 1),
        ):
            libc.mallopt(setting, value)
    except (OSError, AttributeError):
        return
