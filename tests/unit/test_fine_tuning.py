import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from typer.testing import CliRunner

from ki67.cli import app
from ki67.errors import Ki67Error
from ki67.networks import build_network, load_network, nuclei_spec, save_network
from ki67.training import calibration
from ki67.training.datasets import read_dataset
from ki67.training.fine_tuning import SHIPPED_NUCLEI, fine_tune, fine_tuning_options, group_count
from ki67.training.fit import fit
from tests.unit.test_training import StopTrainingError, write_dataset


# Of the module, so that what its fixtures train is trained on one thread too: other numbers of threads add in other orders.
@pytest.fixture(autouse=True, scope="module")
def _one_thread_and_few_tiles_to_calibrate():
    threads, tiles = torch.get_num_threads(), calibration.TILES
    torch.set_num_threads(1)
    calibration.TILES = 6
    yield
    calibration.TILES = tiles
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A network to start from, in the form in which trained ones are kept."""
    torch.manual_seed(0)
    spec = replace(nuclei_spec(), tile_px=64, training={"steps": 7})
    folder = tmp_path_factory.mktemp("models") / "start"
    save_network(folder, build_network(spec), spec, "# start\n")
    return folder


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "fields", count=5)


def quick(start, **changes):
    options = fine_tuning_options(load_network(start, device="cpu").spec, start_from=start, steps=3)
    return replace(options, batch_size=2, warmup_steps=2, workers=0, device="cpu", **changes)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, start, fields) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tuned"
    fit(quick(start), [fields], folder)
    return folder


def weights(folder):
    """What the optimizer moves, which the running means and variances are not."""
    loaded = safetensors.numpy.load_file(folder / "weights.safetensors")
    learnt = [value.astype(np.float64).ravel() for name, value in sorted(loaded.items()) if "running_" not in name]
    return np.concatenate(learnt)


def test_fine_tuning_moves_the_weights_of_the_start_a_little(start, tuned):
    first, last = weights(start), weights(tuned)
    moved = np.linalg.norm(last - first) / np.linalg.norm(first)
    assert 1e-4 < moved < 0.05
    spec, record = (load_network(folder, device="cpu").spec for folder in (start, tuned))
    assert spec.sha256 != record.sha256
    assert f"(sha256 {spec.sha256[:12]})" in record.training["encoder"]
    assert record.training["steps"] == 3


def test_fine_tuning_that_was_stopped_ends_with_the_weights_of_one_that_was_not(tmp_path, start, fields, tuned, caplog):
    def interrupt(step: int) -> None:
        if step == 2:
            raise StopTrainingError

    with pytest.raises(StopTrainingError):
        fit(quick(start, checkpoint_seconds=0.0), [fields], tmp_path / "resumed", on_step=interrupt)
    with caplog.at_level(logging.INFO):
        fit(quick(start), [fields], tmp_path / "resumed")
    assert "going on from step 2 of 3" in caplog.text
    files = [(folder / "weights.safetensors").read_bytes() for folder in (tmp_path / "resumed", tuned)]
    assert files[0] == files[1]


def test_few_patients_are_all_trained_on(tmp_path):
    def held_out(groups):
        return fine_tuning_options(nuclei_spec(), groups=groups).validation_share

    assert held_out(9) == 0
    assert held_out(10) > 0
    folder = write_dataset(tmp_path / "d", count=5, groups={"00": "p1", "01": "p1", "02": "p2", "03": "p2"})
    assert group_count(read_dataset(folder)) == 3


def test_the_recipe_is_gentle_and_takes_minutes_or_steps():
    options = fine_tuning_options(nuclei_spec(), minutes=5, seed=3)
    assert options.learning_rate == 2e-4
    assert (options.minutes, options.seed, options.start_from) == (5, 3, str(SHIPPED_NUCLEI))
    assert fine_tuning_options(nuclei_spec(), steps=40).minutes is None
    assert fine_tuning_options(nuclei_spec(), steps=40).steps == 40


def test_the_shipped_network_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert json.loads((SHIPPED_NUCLEI / "model.json").read_text())["name"] == "nuclei"


def test_the_command_fine_tunes_and_says_how_to_use_it(tmp_path, start):
    fields = write_dataset(tmp_path / "fields", count=10)
    arguments = ["fine-tune", str(fields), "--out", str(tmp_path / "tuned"), "--start-from", str(start), "--steps", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert f"to use it, set models.nuclei: {tmp_path / 'tuned'}/" in result.output
    assert load_network(tmp_path / "tuned", device="cpu").spec.training["validation"]


def test_what_may_not_be_trained_on_or_would_be_lost_is_refused(tmp_path, start):
    private = write_dataset(tmp_path / "private", count=1, use="not stated", licence="")
    with pytest.raises(Ki67Error, match=r"dataset private: its use is 'not stated' .* does not allow training"):
        fine_tune([private], tmp_path / "tuned", start_from=start)
    with pytest.raises(Ki67Error, match=r"holds the network to start from, which would be lost; name another folder"):
        fine_tune([private], start, start_from=start)
    with pytest.raises(Ki67Error, match=r"network nowhere: no readable model.json"):
        fine_tune([private], tmp_path / "tuned", start_from=tmp_path / "nowhere")
