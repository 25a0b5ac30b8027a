import logging
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from ki67.errors import Finding, Flag, SlideError
from ki67.geometry import Mask
from ki67.inference import InferenceRun, Running
from ki67.networks import Network, build_network, tumor_spec
from ki67.slides import ImageReader
from ki67.tiles import plan_tiles
from tests.unit.drawn_networks import Darkness, slide_of


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def blocks_of(slide, mask, *, network=None, running=None, **sizes):
    sizes = {"cell_px": 64, "halo_px": 16, "block_cells": (2, 3)} | sizes
    plan = plan_tiles(mask, slide.size_um, mpp=0.5, **sizes)
    with InferenceRun(slide, plan, network or Darkness(), label="S01 tumor", running=running) as run:
        return list(run.blocks())


def put_together(blocks, shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels, pixels and how often each pixel of a slide of that shape was answered for."""
    levels, rgb = np.zeros(shape, dtype=np.uint8), np.full((*shape, 3), 255, dtype=np.uint8)
    count = np.zeros(shape, dtype=int)
    for block in blocks:
        for row, column, answer in block.answered():
            top, left = max(0, row), max(0, column)
            bottom, right = min(shape[0], row + answer.shape[1]), min(shape[1], column + answer.shape[2])
            levels[top:bottom, left:right] = answer[0, top - row : bottom - row, left - column : right - column]
            seen = block.rgb[
                top - block.row_px : bottom - block.row_px, left - block.column_px : right - block.column_px
            ]
            rgb[top:bottom, left:right] = seen
            count[top:bottom, left:right] += 1
    return levels, rgb, count


def everywhere(slide) -> Mask:
    width, height = slide.size_um
    return Mask(np.ones((int(height), int(width)), dtype=bool), 1.0, "he")


@pytest.mark.parametrize("offset_px", [(0, 0), (40, 9)])
def test_blocks_put_together_are_the_network_s_answer_to_the_whole_slide(offset_px):
    pixels = noise(150, 610)
    blocks = blocks_of(slide_of(pixels, stain="he"), everywhere(slide_of(pixels)), offset_px=offset_px)
    assert [(block.row, block.column) for block in blocks] == sorted((block.row, block.column) for block in blocks)
    levels, rgb, count = put_together(blocks, (150, 610))
    assert (count == 1).all()
    np.testing.assert_array_equal(levels, 255 - pixels[..., 0])
    np.testing.assert_array_equal(rgb, pixels)


def test_where_no_window_was_the_answer_is_zero():
    pixels = noise(128, 256)
    mask = np.zeros((64, 128), dtype=bool)
    mask[10, 40] = mask[10, 120] = True  # cells 1 and 3 of the upper row
    slide = slide_of(pixels, stain="he")
    (block,) = blocks_of(slide, Mask(mask, 1.0, "he"), block_cells=(1, 4), halo_px=0)
    assert (block.row_px, block.column_px) == (0, 64)
    assert block.probabilities.shape == (1, 64, 192)
    assert not block.probabilities[:, :, 64:128].any()
    assert (block.rgb[:, 64:128] == 255).all()
    np.testing.assert_array_equal(block.probabilities[0, :, 128:], 255 - pixels[:64, 192:, 0])


def test_beyond_the_slide_nothing_is_found():
    class Everywhere(Darkness):
        def predict(self, batch):
            return np.ones((len(batch), 1, *batch.shape[1:3]), dtype=np.float32)

    slide = slide_of(noise(100, 90), stain="he")
    (block,) = blocks_of(slide, everywhere(slide), network=Everywhere(), offset_px=(10, 20), block_cells=(4, 4))
    assert (block.row_px, block.column_px) == (-10, -20)
    assert (block.probabilities[0, 10:110, 20:110] == 255).all()
    assert block.probabilities.sum() == 255 * 100 * 90


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_answers_of_a_real_network_do_not_depend_on_the_number_of_threads(threads):
    torch.manual_seed(0)
    spec = replace(tumor_spec("tumor_he", "he"))
    network = Network(build_network(spec), spec, device="cpu")
    slide = slide_of(noise(300, 500), stain="he")
    expected = blocks_of(slide, everywhere(slide), network=network, running=Running(threads=1))
    before = torch.get_num_threads()
    found = blocks_of(slide, everywhere(slide), network=network, running=Running(threads=threads))
    assert torch.get_num_threads() == before
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)


@pytest.mark.parametrize(("batch_size", "reader_threads"), [(1, 1), (3, 2), (100, 4)])
def test_a_gpu_is_given_windows_of_one_shape_and_answers_in_order(batch_size, reader_threads):
    class OnGpu(Darkness):
        device = torch.device("cuda")

        def __init__(self):
            super().__init__()
            self.shapes = []

        def predict(self, batch):
            assert threading.current_thread() is threading.main_thread()
            self.shapes.append(batch.shape)
            return super().predict(batch)

    pixels, network = noise(300, 500), OnGpu()
    slide = slide_of(pixels, stain="he")
    running = Running(batch_size=batch_size, reader_threads=reader_threads)
    levels, _, count = put_together(
        blocks_of(slide, everywhere(slide), network=network, running=running, block_cells=(1, 2)), (300, 500)
    )
    assert (count == 1).all()
    np.testing.assert_array_equal(levels, 255 - pixels[..., 0])
    assert max(shape[0] for shape in network.shapes) <= batch_size


def test_a_slide_at_another_resolution_is_read_at_the_network_s():
    pixels = np.repeat(np.repeat(noise(64, 64), 2, axis=0), 2, axis=1)
    slide = slide_of(pixels, stain="he", mpp=0.25)
    (block,) = blocks_of(slide, everywhere(slide))
    np.testing.assert_array_equal(block.probabilities[0], 255 - pixels[::2, ::2, 0])


def test_the_network_sees_the_halo_on_every_side_and_white_beyond_the_slide():
    seen = []

    class Watching(Darkness):
        def predict(self, batch):
            seen.extend(batch.copy())
            return super().predict(batch)

    pixels = noise(64, 64)
    blocks_of(slide_of(pixels, stain="he"), everywhere(slide_of(pixels)), network=Watching())
    (window,) = seen
    assert window.shape == (96, 96, 3)
    assert (window[:16] == 255).all()
    assert (window[:, 80:] == 255).all()
    np.testing.assert_array_equal(window[16:80, 16:80], pixels)


def test_windows_are_read_only_a_few_ahead_of_who_uses_them():
    reads = []

    class Counting(ImageReader):
        def read(self, *arguments):
            reads.append(threading.get_ident())
            return super().read(*arguments)

    slide = Counting(noise(640, 640), "png", mpp=0.5, slide_id="S01", stain="he")
    plan = plan_tiles(everywhere(slide), slide.size_um, mpp=0.5, cell_px=64, halo_px=16, block_cells=(1, 1))
    with InferenceRun(slide, plan, Darkness(), label="S01 tumor", running=Running(threads=2)) as run:
        for used, _ in enumerate(run.blocks()):
            assert len(reads) <= used + 1 + 2 * 2
    assert len(reads) == 100
    assert threading.get_ident() not in reads


def test_work_on_the_answers_runs_on_the_run_s_threads_and_is_timed():
    slide = slide_of(noise(300, 300), stain="he")
    plan = plan_tiles(everywhere(slide), slide.size_um, mpp=0.5, cell_px=64, halo_px=16, block_cells=(1, 1))

    def work(block):
        sum(range(20_000))
        return threading.current_thread().name, block.row

    with InferenceRun(slide, plan, Darkness(), label="S01 tumor", running=Running(threads=2)) as run:
        done = [future.result() for future in [run.submit(work, block) for block in run.blocks()]]
        statistics = run.statistics()
    assert {name.rpartition("_")[0] for name, _ in done} == {"inference"}
    assert [row for _, row in done] == [block.row for block in plan.blocks()]
    assert statistics.postprocess_s > 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_unreadable_window_raises_the_slide_s_error(device):
    class Damaged(ImageReader):
        def read(self, x_um, y_um, *arguments):
            if y_um > 50:
                raise SlideError(Finding(Flag.UNREADABLE, "S01: cannot be decoded", "he"))
            return super().read(x_um, y_um, *arguments)

    network = Darkness()
    network.device = torch.device(device)
    slide = Damaged(noise(300, 300), "png", mpp=0.5, slide_id="S01", stain="he")
    with pytest.raises(SlideError, match="S01: cannot be decoded"):
        blocks_of(slide, everywhere(slide), network=network)


def test_no_cells_give_no_blocks():
    assert blocks_of(slide_of(noise(64, 64)), Mask.empty("he")) == []


def test_statistics_count_tiles_area_and_time(caplog):
    slide = slide_of(noise(128, 128), stain="he")
    plan = plan_tiles(everywhere(slide), slide.size_um, mpp=0.5, cell_px=64, halo_px=16)
    with (
        caplog.at_level(logging.INFO),
        InferenceRun(slide, plan, Darkness(), label="S01 tumor", running=Running(threads=1)) as run,
    ):
        for _ in run.blocks():
            with run.postprocessing():
                sum(range(1000))
        statistics = run.statistics()
    assert statistics.tiles == 4 * 64**2 / 256**2
    assert statistics.mm2 == pytest.approx(0.064**2)
    assert statistics.threads == 1
    assert 0 < statistics.network_s <= statistics.wall_s
    assert statistics.read_s > 0
    assert statistics.postprocess_s > 0
    assert statistics.peak_rss_mb > 10
    assert "S01 tumor: 0 tiles in" in caplog.text
