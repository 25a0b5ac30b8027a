"""A function in a process of its own, with limits, so that what kills it costs its result and nothing else.

Decoders of images are C libraries. A damaged or hostile file can make one of them crash, never end or ask for all
memory, which no ``except`` catches.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from ki67.errors import Ki67Error

_Result = TypeVar("_Result")

# Sent to a process that has used more processor time than it may.
_OUT_OF_TIME = signal.SIGXCPU
_GRACE_S = 5


class GuardedError(Ki67Error):
    """The function did not give a result; the message is the end of a sentence that begins with what it was to do."""


def run_guarded(function: Callable[[], _Result], *, cpu_s: int, memory_bytes: int) -> _Result:
    """The result of a function that runs in a forked process.

    To be called before this process has started threads, which a forked one lacks.

    Parameters
    ----------
    function
        Takes nothing; what it returns must pickle.
    cpu_s
        Seconds of processor time that it may use, so that a busy machine does not stop it.
    memory_bytes
        What it may allocate beyond what the process has now (on Linux; elsewhere there is no such limit).

    Raises
    ------
    GuardedError
        If it raised, crashed, or needed more than it may.

    Examples
    --------
    >>> run_guarded(lambda: 6 * 7, cpu_s=10, memory_bytes=2**30)
    42
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(function, sender, cpu_s, memory_bytes), daemon=True)
    process.start()
    sender.close()
    try:
        done, result = receiver.recv()
    except EOFError:
        process.join()
        raise GuardedError(_cause(process.exitcode or 0, cpu_s)) from None
    finally:
        receiver.close()
    process.join()
    if not done:
        raise GuardedError(result)
    return result


def _run(function: Callable[[], Any], sender: Connection, cpu_s: int, memory_bytes: int) -> None:
    """What the process does: limit itself, call, and send the result or why there is none."""
    _limit(cpu_s, memory_bytes)
    try:
        sender.send((True, function()))
    except MemoryError:
        sender.send((False, f"needs more than {memory_bytes / 2**30:.1f} GB of memory"))
    except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this result alone
        traceback.print_exc()
        sender.send((False, f"fails with {type(error).__name__} ({str(error)[:120]})"))


def _limit(cpu_s: int, memory_bytes: int) -> None:
    faulthandler.disable()  # whoever waits tells of a crash
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + _GRACE_S))
    if sys.platform == "linux":
        # Not the address space, of which threads and allocators reserve gigabytes that nobody uses.
        limit = _data_bytes() + memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process now."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), 0)


def _cause(exitcode: int, cpu_s: int) -> str:
    """Why a process ended that sent nothing."""
    if exitcode == -_OUT_OF_TIME:
        return f"takes more than {cpu_s} s of processor time"
    if exitcode < 0:
        return f"crashes the decoder ({signal.strsignal(-exitcode) or f'signal {-exitcode}'})"
    return f"ends the decoder (exit status {exitcode})"
