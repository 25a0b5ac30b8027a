"""Where the tumour mask of a slide comes from: network, H&E or a person's regions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ki67 import tumor_mask
from ki67.geometry import Mask, RigidTransform
from ki67.slides import Slide, open_slide
from ki67.tumor_mask import TumorMask, TumorSettings, carry_tumor_mask, make_tumor_mask

SETTINGS = {
    "mask_mpp": 2.0,
    "threshold": None,
    "smallest_region_mm2": 0.0,
    "smallest_hole_mm2": 0.0,
    "device": "cpu",
    "precision": "auto",
    "batch_size": 1,
    "reader_threads": 1,
}
LIMIT, DRAWN = TumorSettings(regions="limit", **SETTINGS), TumorSettings(regions="tumor", **SETTINGS)
LEFT_HALF = json.dumps({"type": "Polygon", "coordinates": [[[0, 0], [100, 0], [100, 160], [0, 160], [0, 0]]]})
TISSUE = Mask(np.ones((10, 13), dtype=bool), 8.0, "ki67")


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    """100 x 80 µm."""
    Image.new("RGB", (200, 160), "white").save(tmp_path / "slide.png")
    return open_slide(tmp_path / "slide.png", slide_id="S01", stain="ki67", mpp=0.5)


def test_a_persons_tumour_needs_no_network(slide: Slide) -> None:
    found = make_tumor_mask(slide, TISSUE, DRAWN, model="absent/model.json", geojson=LEFT_HALF)
    assert found.source == "roi"
    assert found.mask.pixels.shape == (40, 50)
    assert found.mask.pixels[:, :24].all()
    assert not found.mask.pixels[:, 26:].any()


def test_regions_limit_where_the_network_looks(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Mask] = []

    def segment(slide: Slide, allowed: Mask, settings: TumorSettings, *folders: Path | None) -> TumorMask:
        seen.append(allowed)
        return TumorMask(allowed, slide.stain)

    monkeypatch.setattr(tumor_mask, "_segment", segment)
    assert make_tumor_mask(slide, TISSUE, LIMIT, model="m/model.json", geojson=LEFT_HALF).source == "ki67"
    make_tumor_mask(slide, TISSUE, LIMIT, model="m/model.json")
    assert not seen[0].pixels[:, 26:].any()
    assert seen[1] is TISSUE


def test_a_carried_mask_stays_in_the_regions(slide: Slide) -> None:
    everywhere = Mask(np.ones((50, 60), dtype=bool), 2.0, "he")
    same_place = RigidTransform(np.eye(3), "he", "ki67")
    carried = {"tumor_he": everywhere, "transform": same_place}
    limited = carry_tumor_mask(slide, TISSUE, LIMIT, geojson=LEFT_HALF, **carried)
    assert limited.source == "he"
    assert not limited.mask.pixels[:, 26:].any()
    assert carry_tumor_mask(slide, TISSUE, LIMIT, **carried).mask.pixels.all()
    assert carry_tumor_mask(slide, TISSUE, DRAWN, geojson=LEFT_HALF, **carried).source == "roi"


def test_the_record_of_an_unusable_slide_is_empty() -> None:
    assert TumorMask(Mask.empty("he")).to_json() == {
        "segmented": False,
        "tumor_source": None,
        "tumor_mm2": 0.0,
        "model": None,
        "coarse_model": None,
        "nuclei_model": None,
        "fine_share": None,
        "statistics": None,
        "excluded": False,
        "limited": False,
    }
