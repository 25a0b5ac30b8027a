"""Patch pairs on disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ki67.errors import ConfigError
from ki67.prediction.patch_pairs import PatchPairs, read_patch_pairs, write_patch_pairs


def some_pairs(count: int = 40, size: int = 16) -> PatchPairs:
    generator = np.random.default_rng(0)
    return PatchPairs(
        slide="A",
        patient="P1",
        marker="Ki-67",
        mpp=1.0,
        he=generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
        center_um=generator.uniform(0, 1000, (count, 2)),
        positive=generator.integers(0, 20, count).astype(np.int32),
        negative=generator.integers(0, 20, count).astype(np.int32),
        label=np.where(np.arange(count) % 4 == 0, np.nan, generator.uniform(size=count)).astype(np.float32),
        nuclei_he=generator.uniform(0, 40, count).astype(np.float32),
        slide_index=0.21,
        rejected={"background": 3},
        settings={"patch_um": 128},
    )


@pytest.mark.parametrize("count", [0, 1, 40])
def test_what_was_written_is_read(tmp_path: Path, count: int) -> None:
    pairs = some_pairs(count)
    write_patch_pairs(tmp_path / "pairs.zarr", pairs, ki67=pairs.he[::-1])
    read = read_patch_pairs(tmp_path / "pairs.zarr")
    for name in ("he", "center_um", "positive", "negative", "label", "nuclei_he"):
        np.testing.assert_array_equal(getattr(read, name), getattr(pairs, name))
        assert getattr(read, name).dtype == getattr(pairs, name).dtype
    assert (read.slide, read.patient, read.slide_index, read.rejected) == ("A", "P1", 0.21, {"background": 3})
    assert read.labelled.sum() == np.isfinite(pairs.label).sum()


def test_a_slide_without_an_index_has_none(tmp_path: Path) -> None:
    write_patch_pairs(tmp_path / "pairs.zarr", replace(some_pairs(), slide_index=None, rejected={}))
    assert read_patch_pairs(tmp_path / "pairs.zarr").slide_index is None


def test_a_folder_of_something_else_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pairs\.zarr holds no patch pairs.*predict_pairs"):
        read_patch_pairs(tmp_path / "pairs.zarr")


def test_columns_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="nuclei_he has 39 values for 40 patches"):
        replace(some_pairs(), nuclei_he=np.zeros(39, np.float32))
