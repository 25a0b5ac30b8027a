"""What a network stage costs on a slide, beside what cannot be avoided: decoding the tiles and running the network."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ki67.errors import Ki67Error
from ki67.geometry import Mask
from ki67.inference import TILE_PX, InferenceStatistics, Running, keep_freed_memory
from ki67.networks import Network, Precision, load_network, read_spec
from ki67.nuclei_geojson import write_nuclei_geojson
from ki67.slides import Slide, open_slide
from ki67.storage import write_nuclei_parquet, write_tumor_zarr
from ki67.tissue import find_tissue

_TISSUE_MPP = 8.0
_LARGEST_LOOP_PX = 2**22
R = TypeVar("R")


@dataclass(frozen=True)
class Loop:
    """A bare loop over the network: nothing is read, nothing is kept.

    Attributes
    ----------
    height_px, width_px, batch_size
        Of its input.
    workers
        Python threads that each run the network; the processor's threads are shared out among them.
    """

    height_px: int
    width_px: int
    batch_size: int
    workers: int


def benchmark_inference(
    path: Path,
    model: Path,
    *,
    mpp: float | None = None,
    everything: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    running: Running | None = None,
    loop_seconds: float = 4.0,
) -> dict[str, Any]:
    """Run the stage of a network on a slide, then the network alone, each in a process of its own.

    Parameters
    ----------
    path
        The slide.
    model
        Folder of a network; its classes say which stage runs.
    mpp
        Microns per pixel of level 0, where the file does not say.
    everything
        Look at the whole slide rather than at its tissue.
    device, precision, running
        As the stage gets them.
    loop_seconds
        How long each bare loop is timed.

    Returns
    -------
    ``tiles_per_second`` (unique analysed pixels / 256² / wall), ``seconds_per_mm2``, ``wall_s`` (loading the network
    and writing the results included), ``read_cpu_s``, ``network_floor_s`` (the fastest bare loop),
    ``postprocess_cpu_s``, ``floor_s`` (network and, where it runs on the same cores, the processor time of reading and
    post-processing shared out among them; on a GPU the larger of network and reading), ``wall_over_floor``,
    ``peak_rss_mb``, and more.

    Raises
    ------
    Ki67Error
        If there is no network, or nothing to look at on the slide.
    """
    spec = read_spec(model)
    running = running or Running(threads=len(os.sched_getaffinity(0)))
    stage = _in_own_process(run_stage, path, model, mpp, everything, device, precision, running)
    if stage["tiles"] == 0:
        raise Ki67Error(f"{path.name}: no tissue was found, so nothing can be timed; use --everything to look at all")
    loops = _in_own_process(time_loops, model, device, precision, stage["threads"], loop_seconds)
    fastest = max(loops, key=lambda loop: float(loop["tiles_per_second"]))
    unique_tiles = stage["unique_px"] / TILE_PX**2
    network_floor_s = unique_tiles / fastest["tiles_per_second"]
    if stage["device"] == "cpu":
        floor_s = network_floor_s + (stage["read_cpu_s"] + stage["postprocess_cpu_s"]) / stage["threads"]
    else:
        floor_s = max(network_floor_s, stage["read_cpu_s"] / stage["threads"])
    return {
        "network": spec.name,
        "tiles_per_second": unique_tiles / stage["wall_s"],
        "seconds_per_mm2": stage["wall_s"] / stage["mm2"],
        "network_floor_s": network_floor_s,
        "floor_s": floor_s,
        "wall_over_floor": stage["wall_s"] / floor_s,
        "postprocess_share_of_cpu": stage["postprocess_cpu_s"] / stage["cpu_s"],
        **stage,
        "loops": loops,
    }


def _in_own_process(work: Callable[..., R], *arguments: Any) -> R:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


# ---------------------------------------------------------------------------------------------- the stage


def run_stage(
    path: Path,
    model: Path,
    mpp: float | None,
    everything: bool,
    device: str,
    precision: Precision,
    running: Running,
) -> dict[str, Any]:
    """Run a network's stage as the workflow does, with the files it writes, and tell what it took."""
    stain = read_spec(model).stain
    with open_slide(path, slide_id=path.stem, stain=stain, mpp=mpp) as slide, tempfile.TemporaryDirectory() as folder:
        where = _everywhere(slide) if everything else find_tissue(slide.thumbnail(_TISSUE_MPP), _TISSUE_MPP, stain).mask
        started, processor_s = time.perf_counter(), time.process_time()
        network = load_network(model, device=device, precision=precision)
        run = _find_tumor if len(network.spec.classes) == 1 else _find_nuclei
        statistics, found, writing_s = run(slide, where, network, running, Path(folder))
        return {
            "slide": path.name,
            "device": network.device.type,
            "precision": network.precision,
            "threads": statistics.threads,
            "tiles": statistics.tiles,
            "mm2": statistics.mm2,
            "unique_px": round(statistics.mm2 * 1e6 / network.spec.mpp**2),
            "wall_s": time.perf_counter() - started,
            "cpu_s": time.process_time() - processor_s,
            "read_cpu_s": statistics.read_s,
            "network_s": statistics.network_s,
            "postprocess_cpu_s": statistics.postprocess_s + writing_s,
            "peak_rss_mb": statistics.peak_rss_mb,
            **found,
        }


def _everywhere(slide: Slide) -> Mask:
    rows, columns = (int(np.ceil(size / _TISSUE_MPP)) for size in reversed(slide.size_um))
    return Mask(np.ones((rows, columns), dtype=bool), _TISSUE_MPP, slide.stain)


def _find_tumor(
    slide: Slide, where: Mask, network: Network, running: Running, folder: Path
) -> tuple[InferenceStatistics, dict[str, Any], float]:
    from ki67.tumor import segment_tumor

    found = segment_tumor(slide, where, network, running=running)
    written = time.process_time()
    write_tumor_zarr(folder / "tumor.ome.zarr", found.mask, found.probability)
    return found.statistics, {"tumor_mm2": found.mask.area_mm2}, time.process_time() - written


def _find_nuclei(
    slide: Slide, where: Mask, network: Network, running: Running, folder: Path
) -> tuple[InferenceStatistics, dict[str, Any], float]:
    from ki67.nuclei import detect_nuclei

    found = detect_nuclei(slide, where, network, running=running)
    written = time.process_time()
    write_nuclei_parquet(folder / "nuclei.parquet", found.table)
    write_nuclei_geojson(folder / "nuclei.geojson.gz", folder / "nuclei.parquet", slide.mpp, slide_id=slide.slide_id)
    return found.statistics, {"nuclei": len(found.table)}, time.process_time() - written


# ---------------------------------------------------------------------------------------------- the network alone


def time_loops(model: Path, device: str, precision: Precision, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Tiles of 256² a second that a network does in bare loops of many sizes, each after a warm-up."""
    keep_freed_memory()
    network = load_network(model, device=device, precision=precision)
    window_px = network.block_px[0] + 2 * network.halo_px, network.block_px[1] + 2 * network.halo_px
    results = []
    for loop in _loops(window_px, 1 if network.device.type != "cpu" else threads):
        rate = _rate(network, loop, threads, seconds)
        results.append({**vars(loop), "tiles_per_second": rate})
    return results


def _loops(window_px: tuple[int, int], most_workers: int) -> Iterator[Loop]:
    for height, width in ((256, 256), (512, 512), (1024, 1024), window_px):
        for batch_size in (1, 4, 16):
            if batch_size * height * width <= _LARGEST_LOOP_PX:
                for workers in sorted({1, most_workers}):
                    yield Loop(height, width, batch_size, workers)


def _rate(network: Network, loop: Loop, threads: int, seconds: float) -> float:
    """Of all workers together; each runs the network again and again until the time is up."""
    own_threads = max(1, threads // loop.workers)
    with ThreadPoolExecutor(loop.workers, initializer=partial(torch.set_num_threads, own_threads)) as pool:
        torch.set_num_threads(own_threads)
        list(pool.map(lambda _: _repeat(network, loop, 0.0), range(loop.workers)))
        rates = pool.map(lambda _: _repeat(network, loop, seconds), range(loop.workers))
        return sum(rates)


def _repeat(network: Network, loop: Loop, seconds: float) -> float:
    batch = network.random_input(loop.batch_size, loop.height_px, loop.width_px)
    started, runs = time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - started < seconds:
        network.run_bare(batch)
        runs += 1
    tiles = runs * loop.batch_size * loop.height_px * loop.width_px / TILE_PX**2
    return tiles / (time.perf_counter() - started)
