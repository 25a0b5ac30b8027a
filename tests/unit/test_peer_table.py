import numpy as np
import pytest

from benchmarks.peers.compare import Run, measure
from benchmarks.peers.slide import JPEG_QUALITY, crop_slide, laid_out, make_slide
from benchmarks.peers.table import HEADER, comparison_table, describe_settings, nuclei_per_mm2, times_ours
from ki67.slides import open_slide

OURS = {"tool": "ki67", "version": "0.1.0", "mode": "as shipped", "tiles_per_second": 20.0}
PEER = {
    "tool": "Peer",
    "version": "1.0",
    "mode": "best",
    "settings": {"batch": 8, "autocast": True, "compile": False},
    "tiles_per_second": 5.0,
    "seconds_per_mm2": 12.0,
    "wall_s": 24.0,
    "nuclei": 3000,
}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_line_has_a_cell_for_every_column_and_rates_stand_beside_ours():
    header, _, ours, peer = comparison_table([OURS, PEER]).splitlines()
    assert cells(header) == list(HEADER)
    assert cells(ours)[0] == "ki67 0.1.0"
    assert cells(ours)[-1] == "1.00× slower"
    assert cells(peer)[:3] == ["Peer 1.0", "best: batch 8, autocast, no compile", "5.00"]
    assert cells(peer)[-3:] == ["3000", "1500", "4.00× slower"]


def test_a_peer_that_is_faster_is_called_faster():
    assert cells(comparison_table([OURS, PEER | {"tiles_per_second": 40.0}]).splitlines()[-1])[-1] == "2.00× faster"


def test_a_failed_run_is_a_line_with_its_sentence_and_no_numbers():
    failed = {"tool": "Peer", "mode": "defaults", "error": "stopped after 5 s", "side_px": 2048}
    line = cells(comparison_table([OURS, failed]).splitlines()[-1])
    assert line == ["Peer", "defaults", "stopped after 5 s", *["–"] * (len(HEADER) - 3)]


def test_there_is_no_ratio_if_our_own_run_failed():
    failed = {"tool": "ki67", "mode": "as shipped", "error": "failed with status 1"}
    assert cells(comparison_table([failed, PEER]).splitlines()[-1])[-1] == "–"
    assert times_ours(PEER, None) is None


def test_density_follows_from_time_and_pace():
    assert nuclei_per_mm2(PEER) == 1500
    assert nuclei_per_mm2(OURS) is None


def test_settings_of_a_run_without_any_are_its_mode():
    assert describe_settings("as shipped", {}) == "as shipped"


def test_fields_are_laid_out_edge_to_edge_and_equally_often():
    fields = [np.full((512, 512, 3), value, dtype=np.uint8) for value in (10, 20)]
    rows = list(laid_out(fields, across=2, seed=3))
    image = np.concatenate(rows)
    assert image.shape == (1024, 1024, 3)
    assert np.array_equal(np.unique(image), [10, 20])
    assert (image == 10).mean() == 0.5
    assert all(np.array_equal(*pair) for pair in zip(rows, laid_out(fields, across=2, seed=3), strict=True))


def test_the_slide_is_read_at_its_resolution_and_its_part_is_its_top_left(tmp_path):
    slide, part = tmp_path / "slide.tif", tmp_path / "part.tif"
    make_slide(slide, side_px=1024, fields=2, seed=0, workers=1)
    crop_slide(slide, part, side_px=512)
    with (
        open_slide(slide, slide_id="slide", stain="ki67") as whole,
        open_slide(part, slide_id="part", stain="ki67") as corner,
    ):
        assert whole.size_um == pytest.approx((512, 512))
        assert corner.size_um == pytest.approx((256, 256))
        expected = whole.read(0, 0, 512, 512, 0.5).astype(float)
        # Compressed twice.
        assert np.abs(corner.read(0, 0, 512, 512, 0.5) - expected).mean() < 4
    assert JPEG_QUALITY == 90


def test_a_side_that_fields_do_not_fill_is_refused(tmp_path):
    with pytest.raises(ValueError, match="multiple of 512"):
        make_slide(tmp_path / "slide.tif", side_px=1000, fields=1, seed=0)


def test_a_run_that_takes_too_long_is_stopped_and_said_so(tmp_path):
    slow = Run("Peer", "defaults", ("sh", "-c", "sleep 30"), 2048)
    assert measure(slow, tmp_path, 0.2)["error"] == "stopped after 0.2 s"


def test_a_run_that_fails_or_does_not_start_is_an_error_in_its_record(tmp_path):
    assert "status 3" in measure(Run("Peer", "best", ("sh", "-c", "exit 3"), 2048), tmp_path, 10)["error"]
    assert "does not start" in measure(Run("Peer", "best", ("no-such-program",), 2048), tmp_path, 10)["error"]


def test_the_record_of_a_run_is_what_it_wrote(tmp_path):
    script = 'echo \'{"tool": "Peer 2", "tiles_per_second": 4.5}\' > "$2"'
    run = Run("peer", "best", ("sh", "-c", script, "peer"), 2048)
    assert measure(run, tmp_path, 10) == {"tool": "Peer 2", "mode": "best", "side_px": 2048, "tiles_per_second": 4.5}
