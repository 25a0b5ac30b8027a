"""Files that would crash a decoder, never end or fill the memory cost their own row and nothing else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tifffile

from benchmarks.fuzz_slides import draw_slides, look_at, mutated
from ki67 import tissue
from ki67.errors import Flag
from ki67.tissue import check_slide_file


def checked(path: Path) -> tissue.StainCheck:
    return check_slide_file(path, slide_id="S07", stain="ki67", mpp=0.5, tissue_mpp=8.0)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_slides(tmp_path_factory.mktemp("drawn"))


def test_dozens_of_damaged_files_are_rows(drawn: list[Path], tmp_path: Path) -> None:
    originals = {path.name: path.read_bytes() for path in drawn}
    assert all(look_at(path).kind == "usable" for path in drawn)
    outcomes = [look_at(path) for _, path in mutated(originals, tmp_path, count=40, seed=2)]
    assert {"usable", "unreadable"} <= {outcome.kind for outcome in outcomes}
    assert max(outcome.cpu_s for outcome in outcomes) < 60


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "S07: the Ki-67 slide crashes the decoder (Segmentation fault)"),
        (lambda: np.ones(2**31), "S07: the Ki-67 slide needs more than 1.8 GB of memory when it is read"),
        (lambda: 1 // 0, "S07: the Ki-67 slide fails with ZeroDivisionError"),
    ],
)
def test_what_kills_the_decoder_costs_the_slide(
    drawn: list[Path], monkeypatch: pytest.MonkeyPatch, harm: object, sentence: str
) -> None:
    """No file is known that does the first two, so the reader is made to do it."""
    monkeypatch.setattr(tissue, "open_slide", lambda *_, **__: harm())
    found = checked(drawn[0])
    assert not found.usable
    assert not found.tissue.pixels.any()
    (finding,) = found.findings
    assert finding.flag == Flag.UNREADABLE
    assert finding.message.startswith(sentence)
    assert "copy it again from its source" in finding.message


def test_tiles_that_expand_enormously_are_refused(tmp_path: Path) -> None:
    """Ten kilobytes of deflate that become a tile of 4 GB."""
    path = tmp_path / "bomb.tif"
    small = np.zeros((256, 256), np.uint8)
    tifffile.imwrite(path, small, tile=(256, 256), compression="deflate", photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name in ("ImageWidth", "ImageLength", "TileWidth", "TileLength"):
            tiff.pages[0].tags[name].overwrite(65536 - 256, dtype=4)
    found = checked(path)
    assert not found.usable
    assert found.findings[0].flag == Flag.UNREADABLE
