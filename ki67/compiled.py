"""Loops over pixels that no library has, compiled to machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(loop: Loop) -> Loop:
    """A loop compiled by numba at its first call, which leaves the interpreter to other threads while it runs.

    Machine code is kept on disk for the next process, one version for every kind of processor: in ``__pycache__``
    beside the source, or where that is read-only in the user's cache, or in ``NUMBA_CACHE_DIR``. Where nothing can be
    written each process compiles anew, which takes seconds and changes no result. It runs on one thread, without the
    liberties that floating-point arithmetic could be given, so the same input gives the same output everywhere.
    """
    try:
        return cast(Loop, njit(nogil=True, cache=True)(loop))
    except RuntimeError:  # numba found no folder to keep it in
        return cast(Loop, njit(nogil=True)(loop))
