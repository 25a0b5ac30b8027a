import numpy as np
import pytest
import torch
from PIL import Image

from ki67 import benchmark
from ki67.benchmark import Loop, run_stage, time_loops
from ki67.errors import Ki67Error
from ki67.inference import Running
from ki67.networks import nuclei_spec, save_network, tumor_spec
from tests.unit.test_networks import lively


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for spec in (nuclei_spec(), tumor_spec("tumor_he", "he")):
        save_network(folder / spec.name, lively(spec), spec, "# A card\n")
    return folder


@pytest.fixture
def slide(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "S01.png")
    return tmp_path / "S01.png"


@pytest.mark.parametrize(("network", "found"), [("nuclei", "nuclei"), ("tumor_he", "tumor_mm2")])
def test_a_stage_is_run_with_all_that_it_writes_and_tells_what_it_took(models, slide, network, found):
    record = run_stage(slide, models / network, 0.5, True, "cpu", "float32", Running(threads=1))
    assert record["unique_px"] == 300 * 400
    assert record["mm2"] == pytest.approx(0.03)
    assert record["threads"] == 1
    assert 0 < record["read_cpu_s"] < record["cpu_s"]
    assert 0 < record["postprocess_cpu_s"] < record["cpu_s"]
    assert record["wall_s"] > 0
    assert found in record


def test_loops_are_timed_in_all_their_sizes(models, monkeypatch):
    loops = [Loop(64, 96, 1, 1), Loop(64, 64, 4, 2)]
    monkeypatch.setattr(benchmark, "_loops", lambda block_px, workers: iter(loops))
    before = torch.get_num_threads()
    try:
        timed = time_loops(models / "nuclei", "cpu", "auto", 2, 0.05)
    finally:
        torch.set_num_threads(before)
    assert [row["batch_size"] for row in timed] == [1, 4]
    assert all(row["tiles_per_second"] > 0 for row in timed)


@pytest.mark.slow  # all loops, in a process of their own
def test_the_benchmark_puts_stage_and_floor_together(models, slide):
    result = benchmark.benchmark_inference(
        slide,
        models / "nuclei",
        mpp=0.5,
        everything=True,
        device="cpu",
        precision="float32",
        running=Running(threads=2),
        loop_seconds=0.0,
    )
    rate = max(loop["tiles_per_second"] for loop in result["loops"])
    unique = result["unique_px"] / 65536
    assert result["network_floor_s"] == pytest.approx(unique / rate)
    beside = (result["read_cpu_s"] + result["postprocess_cpu_s"]) / 2
    assert result["floor_s"] == pytest.approx(result["network_floor_s"] + beside)
    assert result["wall_over_floor"] == pytest.approx(result["wall_s"] / result["floor_s"])
    assert result["tiles_per_second"] == pytest.approx(unique / result["wall_s"])


def test_a_slide_without_tissue_cannot_be_timed(models, tmp_path):
    Image.new("RGB", (400, 300), "white").save(tmp_path / "glass.png")
    with pytest.raises(Ki67Error, match=r"glass.png: no tissue was found, .* use --everything"):
        benchmark.benchmark_inference(tmp_path / "glass.png", models / "nuclei", mpp=0.5, device="cpu")
