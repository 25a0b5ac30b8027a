from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np
import pytest

from ki67.guarded import GuardedError, run_guarded

ROOMY = {"cpu_s": 30, "memory_bytes": 2**30}


def test_the_result_comes_back() -> None:
    assert np.array_equal(run_guarded(lambda: np.arange(100_000), **ROOMY), np.arange(100_000))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGBUS])
def test_a_crash_is_an_error_that_names_the_signal(number: signal.Signals) -> None:
    with pytest.raises(GuardedError, match=signal.strsignal(number)):
        run_guarded(lambda: os.kill(os.getpid(), number), **ROOMY)


def test_a_function_that_does_not_end_is_stopped() -> None:
    def spin() -> None:
        while True:
            pass

    before = time.process_time()
    with pytest.raises(GuardedError, match="takes more than 1 s of processor time"):
        run_guarded(spin, cpu_s=1, memory_bytes=2**30)
    assert time.process_time() - before < 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a process allocates")
def test_a_function_that_wants_all_memory_is_stopped() -> None:
    with pytest.raises(GuardedError, match=r"needs more than 1.0 GB of memory"):
        run_guarded(lambda: np.ones(2**28), **ROOMY)
    assert run_guarded(lambda: int(np.ones(2**24).sum()), **ROOMY) == 2**24


def test_an_exception_is_told_in_words(capfd: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise ValueError("no tiles")

    with pytest.raises(GuardedError, match=r"fails with ValueError \(no tiles\)"):
        run_guarded(refuse, **ROOMY)
    assert "Traceback" in capfd.readouterr().err


def test_a_quiet_end_is_an_error_too() -> None:
    with pytest.raises(GuardedError, match="exit status 3"):
        run_guarded(lambda: os._exit(3), **ROOMY)
