import logging
import threading

import numpy as np
import pytest

from ki67.errors import Finding, Flag, SlideError
from ki67.geometry import Mask
from ki67.inference import Stopwatch, predict_bands
from ki67.slides import ImageReader
from ki67.tiles import plan_tiles
from tests.unit.drawn_networks import Darkness, slide_of


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def bands_of(slide, mask, *, batch_size=3, reader_threads=2, core_px=64, halo_px=16, network=None):
    plan = plan_tiles(mask, slide.size_um, mpp=0.5, core_px=core_px, halo_px=halo_px)
    network = network or Darkness()
    return list(
        predict_bands(slide, plan, network, batch_size=batch_size, reader_threads=reader_threads, label="S01 tumor")
    )


def everywhere(slide) -> Mask:
    width, height = slide.size_um
    return Mask(np.ones((int(height), int(width)), dtype=bool), 1.0, "he")


def test_bands_put_together_are_the_network_s_answer_to_the_whole_slide():
    pixels = noise(150, 210)
    bands = bands_of(slide_of(pixels, stain="he"), everywhere(slide_of(pixels)))
    assert [band.first_row_px for band in bands] == [0, 64, 128]
    assert [band.end_row_px for band in bands] == [64, 128, 150]
    stitched = np.concatenate([band.probabilities[0] for band in bands])
    np.testing.assert_array_equal(stitched, 255 - pixels[..., 0])
    np.testing.assert_array_equal(np.concatenate([band.rgb for band in bands]), pixels)
    assert all(band.covered.all() for band in bands)


def test_where_no_tile_was_the_answer_is_zero_and_said_to_be_not_covered():
    pixels = noise(128, 256)
    mask = np.zeros((64, 128), dtype=bool)
    mask[10, 40] = mask[10, 120] = True  # tiles 1 and 3 of the upper row
    (band,) = bands_of(slide_of(pixels, stain="he"), Mask(mask, 1.0, "he"))
    assert band.first_column_px == 64
    assert band.probabilities.shape == (1, 64, 192)
    np.testing.assert_array_equal(band.covered, np.repeat([True, False, True], 64))
    assert not band.probabilities[:, :, 64:128].any()
    assert (band.rgb[:, 64:128] == 255).all()
    np.testing.assert_array_equal(band.probabilities[0, :, 128:], 255 - pixels[:64, 192:, 0])


@pytest.mark.parametrize(("batch_size", "reader_threads"), [(1, 1), (7, 4), (100, 2)])
def test_answers_depend_on_neither_batch_size_nor_threads(batch_size, reader_threads):
    slide = slide_of(noise(200, 200), stain="he")
    expected = bands_of(slide, everywhere(slide), batch_size=2, reader_threads=1)
    found = bands_of(slide, everywhere(slide), batch_size=batch_size, reader_threads=reader_threads)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)


def test_a_slide_at_another_resolution_is_read_at_the_network_s():
    pixels = np.repeat(np.repeat(noise(64, 64), 2, axis=0), 2, axis=1)
    slide = slide_of(pixels, stain="he", mpp=0.25)
    (band,) = bands_of(slide, everywhere(slide))
    np.testing.assert_array_equal(band.probabilities[0], 255 - pixels[::2, ::2, 0])


def test_the_network_sees_the_halo_on_every_side_and_white_beyond_the_slide():
    seen = []

    class Watching(Darkness):
        def predict(self, batch):
            seen.extend(batch.copy())
            return super().predict(batch)

    pixels = noise(64, 64)
    bands_of(slide_of(pixels, stain="he"), everywhere(slide_of(pixels)), network=Watching())
    (window,) = seen
    assert window.shape == (96, 96, 3)
    assert (window[:16] == 255).all()
    assert (window[:, 80:] == 255).all()
    np.testing.assert_array_equal(window[16:80, 16:80], pixels)


def test_reading_stays_only_a_few_batches_ahead():
    reads, answered, furthest = [], [], []

    class Counting(ImageReader):
        def read(self, *arguments):
            reads.append(threading.get_ident())
            furthest.append(len(reads) - len(answered))
            return super().read(*arguments)

    class Slow(Darkness):
        def predict(self, batch):
            answered.extend(batch)
            return super().predict(batch)

    slide = Counting(noise(640, 640), "png", mpp=0.5, slide_id="S01", stain="he")
    bands_of(slide, everywhere(slide), batch_size=2, reader_threads=2, network=Slow())
    assert len(reads) == 100
    assert max(furthest) <= 2 * 2 + 2 + 2
    assert threading.get_ident() not in reads


def test_an_unreadable_tile_raises_the_slide_s_error():
    class Damaged(ImageReader):
        def read(self, x_um, y_um, *arguments):
            if y_um > 50:
                raise SlideError(Finding(Flag.UNREADABLE, "S01: cannot be decoded", "he"))
            return super().read(x_um, y_um, *arguments)

    slide = Damaged(noise(300, 300), "png", mpp=0.5, slide_id="S01", stain="he")
    with pytest.raises(SlideError, match="S01: cannot be decoded"):
        bands_of(slide, everywhere(slide))


def test_no_tiles_give_no_bands():
    assert bands_of(slide_of(noise(64, 64)), Mask.empty("he")) == []


def test_statistics_count_tiles_area_and_time(caplog):
    slide = slide_of(noise(128, 128), stain="he")
    plan = plan_tiles(everywhere(slide), slide.size_um, mpp=0.5, core_px=64, halo_px=16)
    stopwatch = Stopwatch(plan)
    with caplog.at_level(logging.INFO):
        bands = predict_bands(
            slide, plan, Darkness(), batch_size=2, reader_threads=1, label="S01 tumor", stopwatch=stopwatch
        )
        for _ in bands:
            with stopwatch.postprocessing():
                pass
    record = stopwatch.statistics().to_json()
    assert record["tiles"] == 4
    assert record["mm2"] == pytest.approx(0.064**2, abs=1e-4)
    assert 0 < record["network_s"] <= record["wall_s"]
    assert record["read_s"] > 0
    assert record["peak_rss_mb"] > 10
    assert "S01 tumor: 4 tiles in" in caplog.text
