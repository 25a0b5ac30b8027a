"""What the runs of both peers share: the network, the measuring of time and memory, and the record they write.

Imports neither peer nor ``ki67``, so that it works in the environment of each peer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import safetensors.torch
import segmentation_models_pytorch as smp
import torch
from torch import nn

TILE_AREA_PX = 256 * 256
"""Rates are in tiles of 256 px, however large the windows are that a tool reads."""

BACKGROUND, POSITIVE_NUCLEUS, POSITIVE_MEMBRANE, NEGATIVE_NUCLEUS, NEGATIVE_MEMBRANE = range(5)


@dataclass(frozen=True)
class Description:
    """What ``model.json`` beside the weights says of the network."""

    classes: tuple[str, ...]
    mpp: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def read_description(weights: Path) -> Description:
    """The description beside a weights file."""
    record = json.loads((weights.parent / "model.json").read_text(encoding="utf-8"))
    return Description(tuple(record["classes"]), record["mpp"], tuple(record["mean"]), tuple(record["std"]))


def read_network(weights: Path) -> nn.Module:
    """The network in float32, ready to answer with logits ``(N, 5, H, W)``."""
    network = smp.Unet("resnet34", encoder_weights=None, classes=5)
    network.load_state_dict(safetensors.torch.load_file(weights))
    return network.float().eval()


# ---------------------------------------------------------------------------------------------- measuring


@dataclass
class Measurement:
    """What a run took; ``measured`` fills it in.

    Attributes
    ----------
    wall_s, network_s
        From beginning to end, and of that the part until the merged answers of the network were there.
    cpu_s
        Of the process and its children.
    peak_rss_mb
        Most memory of the process and its children together; pages they share count once.
    """

    wall_s: float = 0.0
    network_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_mb: float = 0.0
    _started: float = field(default=0.0, repr=False)

    def end_network_stage(self) -> None:
        """Say that all answers of the network are merged; called again, the last call counts."""
        self.network_s = time.perf_counter() - self._started


@contextmanager
def measured() -> Iterator[Measurement]:
    """Measure the block; the caller has to end the network stage."""
    result, watch = Measurement(), _MemoryWatch()
    cpu_before = _cpu_seconds()
    watch.start()
    result._started = time.perf_counter()
    yield result
    result.wall_s = time.perf_counter() - result._started
    watch.stop()
    result.cpu_s = max(_cpu_seconds(), watch.cpu_s) - cpu_before
    result.peak_rss_mb = max(watch.peak_mb, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _cpu_seconds() -> float:
    """Of this process and of the children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class _MemoryWatch:
    """Looks several times a second at the memory and processor time of this process and its children."""

    def __init__(self, interval_s: float = 0.3) -> None:
        self.peak_mb = self.cpu_s = 0.0
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stopped.wait(self._interval_s):
            living = [_memory_and_cpu(child) for child in process.children(recursive=True)]
            # Without children there is nothing shared, and the kernel's own peak of this process misses no moment.
            if living:
                living.append(_memory_and_cpu(process))
                self.peak_mb = max(self.peak_mb, sum(memory for memory, _ in living) / 2**20)
            self.cpu_s = max(self.cpu_s, _cpu_seconds() + sum(cpu for _, cpu in living[:-1]))


def _memory_and_cpu(process: psutil.Process) -> tuple[float, float]:
    try:
        times = process.cpu_times()
        return process.memory_full_info().pss, times.user + times.system
    except psutil.Error:
        return 0.0, 0.0


# ---------------------------------------------------------------------------------------------- command line and record


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that both peers have; what is not given follows from ``--mode``."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("slide", type=Path)
    result.add_argument("--weights", type=Path, required=True, help="weights.safetensors with model.json beside it")
    result.add_argument("--out", type=Path, required=True, help="JSON file of the record")
    result.add_argument("--mode", choices=("defaults", "best"), default="defaults")
    result.add_argument("--batch", type=int, help="windows in the network at once")
    result.add_argument("--workers", type=int, help="processes that read")
    result.add_argument("--autocast", action=argparse.BooleanOptionalAction, help="bfloat16 where the network allows")
    result.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile, as the tool offers it")
    result.add_argument("--smallest-px", type=int, default=20, help="nuclei with fewer pixels of interior do not count")
    return result


def chosen(arguments: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a mode, with those that were given on the command line instead where there are any."""
    given = {name: getattr(arguments, name, None) for name in settings}
    return {name: settings[name] if value is None else value for name, value in given.items()}


def device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def record(
    *,
    tool: str,
    version: str,
    mode: str,
    settings: dict[str, Any],
    measurement: Measurement,
    size_px: tuple[int, int],
    mpp: float,
    positive: int,
    negative: int,
) -> dict[str, Any]:
    """The record of a run over a whole slide.

    Parameters
    ----------
    size_px, mpp
        Width and height of what was analysed, and the resolution it was analysed at; every pixel counts once, however
        often windows overlapped.
    positive, negative
        Nuclei found.
    """
    unique_px = size_px[0] * size_px[1]
    return {
        "tool": tool,
        "version": version,
        "mode": mode,
        "settings": {**settings, "device": device(), "threads": torch.get_num_threads(), "processors": os.cpu_count()},
        "torch": torch.__version__,
        "wall_s_network_stage": measurement.network_s,
        "wall_s_postprocess": measurement.wall_s - measurement.network_s,
        "wall_s": measurement.wall_s,
        "cpu_s": measurement.cpu_s,
        "peak_rss_mb": measurement.peak_rss_mb,
        "unique_px": unique_px,
        "tiles_per_second": unique_px / TILE_AREA_PX / measurement.wall_s,
        "seconds_per_mm2": measurement.wall_s / (unique_px * mpp**2 / 1e6),
        "nuclei": positive + negative,
        "positive_nuclei": positive,
    }


def write_record(path: Path, values: dict[str, Any]) -> None:
    """Write the record as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
