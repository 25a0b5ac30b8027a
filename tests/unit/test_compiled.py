import subprocess
import sys

import numba
import numpy as np
import pytest

from ki67 import compiled


def double(values):
    for index in range(len(values)):
        values[index] *= 2


def test_a_loop_runs_where_nothing_can_be_written(monkeypatch):
    def njit(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function 'double': no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(compiled, "njit", njit)
    values = np.arange(4)
    compiled.compiled(double)(values)
    assert values.tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("module", ["ki67.extraction", "ki67.outlines", "ki67.ring_texts"])
def test_numba_finds_no_folder_and_modules_load(module):
    code = (
        "import numba.core.caching as caching\n"
        "for kind in list(vars(caching).values()):\n"
        "    if isinstance(kind, type) and hasattr(kind, '_locator_classes'):\n"
        "        kind._locator_classes = []\n"
        f"import {module}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
