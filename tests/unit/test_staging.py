"""A copy of a slide on a disk of the machine that reads it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from ki67.errors import ChangedSlideError
from ki67.slides import open_slide, slide_checksum
from ki67.staging import local_copy, open_near


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    path = tmp_path / "shared" / "slide.tif"
    path.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb")
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def read(path: Path) -> np.ndarray:
    with open_slide(path, slide_id="S1", stain="ki67", mpp=0.5) as opened:
        return opened.read(20.0, 30.0, 100, 80, 0.5)


def test_a_copy_gives_the_same_pixels_and_checksum_and_goes(slide: Path, disk: Path) -> None:
    with local_copy(slide, disk) as copy:
        assert disk in copy.parents
        assert (read(copy) == read(slide)).all()
        assert slide_checksum(copy) == slide_checksum(slide)
    assert not list(disk.iterdir())
    assert slide.is_file()


def test_a_copy_goes_when_reading_it_fails(slide: Path, disk: Path) -> None:
    with pytest.raises(ZeroDivisionError), local_copy(slide, disk):
        raise ZeroDivisionError
    assert not list(disk.iterdir())


def test_all_files_of_a_slide_are_copied(tmp_path: Path, disk: Path) -> None:
    (tmp_path / "scan" / "deep").mkdir(parents=True)
    for name in ("scan.mrxs", "scan/Slidedat.ini", "scan/deep/Data0000.dat"):
        (tmp_path / name).write_text(name)
    with local_copy(tmp_path / "scan.mrxs", disk) as copy:
        assert (copy.parent / "scan" / "deep" / "Data0000.dat").read_text() == "scan/deep/Data0000.dat"
        assert slide_checksum(copy) == slide_checksum(tmp_path / "scan.mrxs")


def test_without_a_folder_or_a_file_nothing_is_copied(slide: Path, disk: Path) -> None:
    with local_copy(slide, None) as path:
        assert path == slide
    with local_copy(slide.with_name("absent.tif"), disk) as path:
        assert path == slide.with_name("absent.tif")
    assert not list(disk.iterdir())


def test_a_slide_is_read_where_it_is_if_the_disk_cannot_hold_it(
    slide: Path, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with slide.open("r+b") as file:
        file.truncate(shutil.disk_usage(disk).total * 2)
    with caplog.at_level(logging.WARNING), local_copy(slide, disk) as path:
        assert path == slide
    assert "are needed and" in caplog.text
    with caplog.at_level(logging.WARNING), local_copy(slide, disk / "absent") as path:
        assert path == slide
    assert not list(disk.iterdir())


def test_a_job_reads_a_copy_only_if_it_is_to_make_one(slide: Path, disk: Path) -> None:
    checked = {"file": slide_checksum(slide), "mpp": 0.5}
    for copy_slide, there in ((0, 0), (1, 1)):
        resources = {"tmpdir": str(disk), "copy_slide": copy_slide}
        with open_near(slide, checked, resources, slide_id="S1", stain="ki67") as opened:
            assert opened.read(0.0, 0.0, 10, 10, 0.5).shape == (10, 10, 3)
            assert len(list(disk.iterdir())) == there
    assert not list(disk.iterdir())


def test_a_copy_of_another_file_than_was_checked_is_refused(slide: Path, disk: Path) -> None:
    checked = {"file": slide_checksum(slide) | {"sha256": "0" * 64}, "mpp": 0.5}
    resources = {"tmpdir": str(disk), "copy_slide": 1}
    with (
        pytest.raises(ChangedSlideError, match="S1: the Ki-67 slide is not the file that the stage check saw"),
        open_near(slide, checked, resources, slide_id="S1", stain="ki67"),
    ):
        pass
    assert not list(disk.iterdir())
