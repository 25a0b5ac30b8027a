from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from ki67 import preflight
from ki67.errors import ConfigError, Ki67Error
from ki67.preflight import check_dates, check_weights, check_writable, date_back

AN_HOUR_S = 3600


def test_a_folder_that_can_be_written_is_fine_and_stays_as_it_is(tmp_path: Path) -> None:
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_still_to_be_made_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_writable(Path("results"))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_with_hardly_any_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "LEAST_FREE_BYTES", 2**62)
    with pytest.raises(Ki67Error, match="MB left, less than a slide needs; make room before the run"):
        check_writable(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Ki67Error, match=r"nothing can be written to .* \(Permission denied\); make it writable"):
        check_writable(tmp_path)


def test_a_slide_from_the_future_is_refused_by_name_and_date(tmp_path: Path) -> None:
    path = tmp_path / "he.svs"
    path.touch()
    check_dates({"S01": [str(path)]})
    os.utime(path, (2e9 * 2,) * 2)
    with pytest.raises(ConfigError, match=r"S02: he.svs is dated 2096-10-\d\d .*, which is in the future; correct"):
        check_dates({"S01": [], "S02": [str(path)]})


def test_results_from_the_future_are_dated_back_and_others_left_alone(tmp_path: Path) -> None:
    store = tmp_path / "S01" / "tumor_he.ome.zarr"
    store.mkdir(parents=True)
    for path in (tmp_path / "S01" / "check.json", tmp_path / "S01" / "old.json", store / ".snakemake_timestamp"):
        path.touch()
        os.utime(path, (time.time() + AN_HOUR_S,) * 2)
    os.utime(tmp_path / "S01" / "old.json", (1e9, 1e9))
    assert date_back(tmp_path) == 2
    assert (tmp_path / "S01" / "check.json").stat().st_mtime <= time.time()
    assert (store / ".snakemake_timestamp").stat().st_mtime <= time.time()
    assert (tmp_path / "S01" / "old.json").stat().st_mtime == 1e9
    assert date_back(tmp_path) == date_back(tmp_path / "absent") == 0


def test_weights_that_are_not_those_described_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    model = tmp_path / "model.json"
    model.write_text(json.dumps({"sha256": hashlib.sha256(b"weights").hexdigest()}))
    check_weights(model, "weights.safetensors")
    (tmp_path / "weights.safetensors").write_bytes(b"weight")
    with pytest.raises(Ki67Error, match=rf"network {tmp_path.name}: weights.safetensors has sha256 .*changed or cut"):
        check_weights(model, "weights.safetensors")
