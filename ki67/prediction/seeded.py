"""Training that gives the same weights each time: random numbers of its own, and sums in one order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch from a seed, and afterwards those that would have come without."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, and convolutions of a GPU in an order that stays, so that no sum depends on either."""
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    torch.set_num_threads(1)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cudnn.deterministic, cudnn.benchmark = before


def rounded(module: nn.Module) -> nn.Module:
    """The module in evaluation, with the weights that ``weight_arrays`` keeps of it: matrices in half precision."""
    for value in module.state_dict().values():
        if _is_kept_half(value):
            value.copy_(value.half().float())
    return module.eval()


def weight_arrays(module: nn.Module) -> dict[str, NDArray[Any]]:
    """The weights of a rounded module, for a file."""
    return {
        name: np.ascontiguousarray((value.half() if _is_kept_half(value) else value).cpu().numpy())
        for name, value in module.state_dict().items()
    }


def module_of(build: Callable[[], nn.Module], arrays: Mapping[str, NDArray[Any]]) -> nn.Module:
    """A module with the weights of ``weight_arrays``, in evaluation; no random ones are drawn before."""
    with torch.device("meta"):
        module = build()
    weights = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    module.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}, assign=True
    )
    return module.eval()


def _is_kept_half(value: torch.Tensor) -> bool:
    return value.ndim > 1 and value.is_floating_point()
