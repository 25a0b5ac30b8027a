from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from ki67.errors import Finding, Flag
from ki67.slides import ImageReader, open_slide
from ki67.stain import HED_VECTORS
from ki67.tissue import BLUR_LIMIT, Focus, StainCheck, check_slide, find_tissue, focus_score

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
GLASS = (243, 242, 240)
HE_GROUND, HE_NUCLEI = (0.06, 0.22, 0.0), (0.5, 0.15, 0.0)
IHC_GROUND, IHC_NUCLEI = (0.06, 0.0, 0.02), (0.3, 0.0, 0.0)


def real(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} of the shared data is not here")
    return path


def stained(amounts, glass=GLASS, noise=0.7):
    light = np.array(glass) * 10 ** -(np.asarray(amounts, dtype=float) @ HED_VECTORS)
    return np.clip(light + np.random.default_rng(0).normal(0, noise, light.shape), 0, 255).astype(np.uint8)


def ellipse(shape, share=0.7):
    rows, columns = np.indices(shape)
    return np.hypot((rows + 0.5) / shape[0] - 0.5, (columns + 0.5) / shape[1] - 0.5) < share / 2


def thumbnail(tissue, *, stain="he", strength=1.0, glass=GLASS):
    """What a slide with this tissue looks like at 8 µm/px: each pixel holds a random share of nucleus."""
    ground, nuclei = (HE_GROUND, HE_NUCLEI) if stain == "he" else (IHC_GROUND, IHC_NUCLEI)
    share = np.random.default_rng(1).random((*tissue.shape, 1)) * 0.6
    amounts = (np.array(ground) * (1 - share) + np.array(nuclei) * share) * strength
    return stained(np.where(tissue[..., None], amounts, 0), glass)


def section(tissue, *, stain="he", blur_um=0.0):
    """A slide at 0.5 µm/px; ``tissue`` is given at 8 µm/px. Nuclei are discs of 6 µm."""
    pixels = drawn_section(tissue.tobytes(), tissue.shape, stain)
    return cv2.GaussianBlur(pixels, (0, 0), blur_um / 0.5) if blur_um else pixels.copy()


@lru_cache
def drawn_section(tissue_bytes, shape, stain):
    tissue = np.frombuffer(tissue_bytes, dtype=bool).reshape(shape)
    ground, nuclei = (HE_GROUND, HE_NUCLEI) if stain == "he" else (IHC_GROUND, IHC_NUCLEI)
    where = np.kron(tissue, np.ones((16, 16), dtype=bool))
    random = np.random.default_rng(2)
    is_nucleus = np.zeros(where.shape, dtype=np.uint8)
    for x, y in random.integers(0, where.shape[::-1], (where.size // 500, 2)):
        cv2.circle(is_nucleus, (int(x), int(y)), 6, 1, -1)
    amounts = np.where(is_nucleus[..., None] > 0, nuclei, ground) * random.lognormal(0, 0.15, (*where.shape, 1))
    return stained(np.where(where[..., None], amounts, 0), noise=2)


def check(pixels, *, stain="he", mpp=0.5):
    return check_slide(ImageReader(pixels, "png", mpp=mpp, slide_id="S07", stain=stain))


def messages(result):
    return {finding.flag: finding.message for finding in result.findings}


def overlap(found, true):
    return 2 * (found & true).sum() / (found.sum() + true.sum())


# Tissue


@pytest.mark.parametrize("glass", [(255, 255, 255), GLASS, (225, 222, 228), (238, 228, 220)])
@pytest.mark.parametrize("stain", ["he", "ki67"])
@pytest.mark.parametrize("strength", [0.35, 1.0, 2.0])
def test_tissue_is_found_on_glass_of_any_shade(stain, strength, glass):
    true = ellipse((200, 240))
    finding = find_tissue(thumbnail(true, stain=stain, strength=strength, glass=glass), 8.0, stain)
    assert overlap(finding.mask.pixels, true) > 0.95
    assert (finding.mask.mpp, finding.mask.frame, finding.pen_fraction) == (8.0, stain, 0.0)
    assert np.abs(np.array(finding.glass_rgb) - glass).max() <= 2


def test_a_field_inside_tissue_is_all_tissue():
    for stain in ("he", "ki67"):
        finding = find_tissue(thumbnail(np.ones((70, 92), dtype=bool), stain=stain), 8.0, stain)
        assert finding.mask.pixels.mean() > 0.98
        assert finding.glass_rgb == (255, 255, 255)


@pytest.mark.parametrize("shade", [255, 240, 215])
def test_blank_glass_has_no_tissue(shade):
    rows = np.linspace(-2, 2, 300)[:, None, None]
    glass = np.clip(shade + rows + np.random.default_rng(0).normal(0, 0.7, (300, 200, 3)), 0, 255).astype(np.uint8)
    assert not find_tissue(glass, 8.0, "he").mask.pixels.any()


def test_dust_is_no_tissue_and_a_small_biopsy_is():
    tissue = np.zeros((300, 300), dtype=bool)
    for row, column in ((20, 20), (50, 200), (250, 40)):
        tissue[row : row + 4, column : column + 4] = True
    tissue[150:170, 150:170] = True
    found = find_tissue(thumbnail(tissue), 8.0, "he").mask.pixels
    assert found[150:170, 150:170].all()
    assert found.sum() < 700


def test_gaps_of_fat_are_filled_and_lumens_are_not():
    tissue = ellipse((300, 300), 0.9)
    tissue[100:108, 100:108] = False
    tissue[150:190, 150:190] = False
    found = find_tissue(thumbnail(tissue), 8.0, "he").mask.pixels
    assert found[100:108, 100:108].all()
    assert not found[155:185, 155:185].any()


def test_the_shadow_of_a_slide_edge_is_no_tissue():
    image = thumbnail(ellipse((300, 300), 0.5)).astype(float)
    image *= np.clip(0.6 + np.arange(300) / 150, 0, 1)[None, :, None]
    assert overlap(find_tissue(image.astype(np.uint8), 8.0, "he").mask.pixels, ellipse((300, 300), 0.5)) > 0.95


def test_black_borders_and_unscanned_parts_are_no_tissue():
    true = ellipse((300, 300), 0.5)
    image = thumbnail(true)
    image[:6], image[:, 270:] = 0, 0
    found = find_tissue(image, 8.0, "he").mask.pixels
    assert overlap(found, true) > 0.95
    assert not found[:5].any()
    assert not found[:, 272:].any()


INKS = {"green": (1.9, 0.45, 1.2), "blue": (2.2, 1.3, 0.25), "red": (0.08, 1.4, 1.3), "black": (1.6, 1.6, 1.5)}


@pytest.mark.parametrize("ink", INKS)
@pytest.mark.parametrize("stain", ["he", "ki67"])
def test_pen_is_left_out_of_the_tissue_and_measured(ink, stain):
    true = ellipse((300, 300), 0.5)
    stroke = np.zeros((300, 300), dtype=np.float32)
    cv2.line(stroke, (20, 30), (280, 40), 1, 40)
    stroke = cv2.GaussianBlur(stroke, (0, 0), 1.5)
    image = thumbnail(true, stain=stain) * 10 ** -(stroke[..., None] * np.array(INKS[ink]))
    finding = find_tissue(image.astype(np.uint8), 8.0, stain)
    assert finding.pen_fraction == pytest.approx((stroke > 0.5).mean(), rel=0.35)
    assert overlap(finding.mask.pixels, true & (stroke < 0.1)) > 0.95


@pytest.mark.parametrize("stain", ["he", "ki67"])
@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0])
def test_no_stain_is_taken_for_pen(stain, strength):
    assert find_tissue(thumbnail(ellipse((200, 200)), stain=stain, strength=strength), 8.0, stain).pen_fraction == 0


# Focus


@pytest.mark.parametrize("stain", ["he", "ki67"])
def test_focus_falls_with_blur_and_not_with_faint_stain(stain):
    tissue = np.ones((16, 16), dtype=bool)
    scores = [focus_score(section(tissue, stain=stain, blur_um=blur), 0.5) for blur in (0.0, 1.0, 2.0, 3.0, 5.0)]
    assert scores == sorted(scores, reverse=True)
    assert scores[1] > BLUR_LIMIT > scores[3]
    sharp = section(tissue, stain=stain, blur_um=0.7)
    faint = (255 - (255 - sharp.astype(float)) * 0.4).astype(np.uint8)
    assert focus_score(faint, 0.5) == pytest.approx(focus_score(sharp, 0.5), rel=0.1)


def test_focus_of_nothing_is_no_number_and_no_blur():
    focus = Focus.of([])
    assert (focus.tiles, focus.blurred_share) == (0, 0.0)
    assert np.isnan(focus.sharpness)


@pytest.mark.parametrize("name", ["ki67_dcis/images/11955-10.png", "he_camelyon/images/10699.png"])
def test_real_fields_are_sharp_until_they_are_blurred(name):
    pixels = np.asarray(Image.open(real(name)).convert("RGB"))
    stain = name[:2] if name.startswith("he") else "ki67"
    assert messages(check(pixels, stain=stain)) == {}
    assert set(messages(check(cv2.GaussianBlur(pixels, (0, 0), 6), stain=stain))) == {Flag.OUT_OF_FOCUS}


# The check of a slide

TISSUE = ellipse((80, 80))


@pytest.mark.parametrize("stain", ["he", "ki67"])
def test_a_good_slide_has_no_findings(stain):
    result = check(section(TISSUE, stain=stain), stain=stain)
    assert (result.usable, result.findings) == (True, ())
    assert (result.reader, result.mpp, result.mpp_source) == ("image:png", 0.5, "sheet")
    assert (result.width_px, result.height_px, result.tissue_mpp) == (1280, 1280, 8.0)
    assert result.tissue_mm2 == pytest.approx(TISSUE.sum() * 64e-6, rel=0.1)
    assert result.thumbnail.shape == (80, 80, 3)
    assert overlap(result.tissue.pixels, TISSUE) > 0.95
    assert (result.identity.stain, result.focus.blurred_share) == (stain, 0.0)


@pytest.mark.parametrize(
    ("stain", "other", "looks"),
    [
        ("he", "ki67", "S07: the H&E slide looks like Ki-67"),
        ("ki67", "he", "S07: the Ki-67 slide looks like H&E"),
    ],
)
def test_swapped_stains_are_flagged(stain, other, looks):
    result = check(section(TISSUE, stain=other), stain=stain)
    confidence = f"(confidence {result.identity.confidence:.2f})"
    remedy = "check whether the columns he and ki67 of S07 are swapped"
    assert messages(result) == {Flag.WRONG_STAIN: f"{looks} {confidence}; {remedy}"}
    assert result.identity.confidence > 0.9
    assert not result.usable
    assert result.tissue_mm2 > 0.1
    assert not result.tissue.pixels.any()


def test_a_blank_slide_is_flagged():
    result = check(np.full((1200, 1000, 3), 241, np.uint8), stain="ki67")
    text = (
        "no tissue was found on the Ki-67 slide; look at its thumbnail and check column ki67 of S07 in the sample sheet"
    )
    assert messages(result) == {Flag.NO_TISSUE: f"S07: {text}"}
    assert (result.usable, result.tissue_mm2, result.focus.tiles) == (False, 0.0, 0)


def test_fluorescence_is_flagged_as_no_brightfield_scan():
    pixels = np.random.default_rng(0).poisson(2, (1280, 1280, 3)).astype(np.uint8)
    for x, y in np.random.default_rng(1).integers(0, 1280, (900, 2)):
        cv2.circle(pixels, (int(x), int(y)), 8, (5, 5, 200), -1)
    result = check(pixels, stain="ki67")
    text = "the Ki-67 slide is dark (median brightness 2 of 255), so it is no brightfield scan of that stain"
    assert messages(result) == {Flag.WRONG_STAIN: f"S07: {text}; correct column ki67 of S07 in the sample sheet"}
    assert (result.usable, result.tissue_mm2) == (False, 0.0)


def test_a_grayscale_scan_is_flagged():
    gray = np.repeat(section(TISSUE)[..., :1], 3, axis=2)
    assert "the H&E slide is colourless" in messages(check(gray, stain="he"))[Flag.WRONG_STAIN]


def test_an_unclear_stain_is_flagged_and_still_used(monkeypatch):
    monkeypatch.setattr("ki67.stain.LIMIT_WIDTH", 10.0)
    result = check(section(TISSUE))
    text = "it is unclear whether the H&E slide is H&E or Ki-67 (confidence 0.5"
    assert messages(result)[Flag.STAIN_UNCERTAIN].startswith(f"S07: {text}")
    assert result.usable


def test_a_blurred_slide_is_flagged_and_still_used():
    result = check(section(TISSUE, blur_um=4.0))
    text = "100% of the tissue sampled on the H&E slide is out of focus; "
    remedy = "scan it again, or look at its pictures before using the index"
    assert messages(result) == {Flag.OUT_OF_FOCUS: f"S07: {text}{remedy}"}
    assert result.usable


def test_a_blurred_corner_is_not_a_blurred_slide():
    pixels = section(TISSUE)
    pixels[:640] = cv2.GaussianBlur(pixels[:640], (0, 0), 8)
    result = check(pixels)
    assert list(messages(result)) == [Flag.BLURRED_PART]
    assert 0 < result.focus.blurred_share < 0.6


def test_pen_is_flagged_and_the_slide_still_used():
    pixels = section(TISSUE)
    pixels[40:440, 200:900] = (20, 90, 40)
    result = check(pixels)
    text = "mm² of the H&E slide and is left out of the tissue; check that no tumour lies under it"
    assert list(messages(result)) == [Flag.PEN_MARK]
    assert messages(result)[Flag.PEN_MARK].startswith("S07: pen covers 0.")
    assert messages(result)[Flag.PEN_MARK].endswith(text)
    assert result.usable


def test_damage_in_level_0_is_noticed_though_the_thumbnail_is_whole(tmp_path):
    pixels = section(np.ones((64, 64), dtype=bool))
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as tiff:
        for level in (pixels, np.ascontiguousarray(pixels[::16, ::16])):
            tiff.write(
                level, tile=(128, 128), photometric="rgb", compression="jpeg", subfiletype=int(level is not pixels)
            )
    with tifffile.TiffFile(path) as tiff:
        places = list(zip(tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts, strict=True))[40:]
    content = bytearray(path.read_bytes())
    for start, length in places:
        content[start : start + length] = bytes(length)
    path.write_bytes(content)
    with open_slide(path, slide_id="S07", stain="he", mpp=0.5) as slide:
        result = check_slide(slide)
    assert list(messages(result)) == [Flag.UNREADABLE]
    assert messages(result)[Flag.UNREADABLE].startswith("S07: the H&E slide cannot be decoded near x ")
    assert not result.usable


def test_a_failed_check_is_empty_and_keeps_its_finding():
    finding = Finding(Flag.MISSING_FILE, "S07: the Ki-67 slide does not exist", "ki67")
    result = StainCheck.failed(finding, "ki67")
    assert (result.usable, result.findings, result.tissue.frame) == (False, (finding,), "ki67")
    assert not result.tissue.pixels.any()
    assert result.to_json()["mpp"] is None


def test_a_check_is_plain_json():
    record = check(section(TISSUE)).to_json()
    assert record["identity"]["stain"] == "he"
    assert set(record) == {
        "usable",
        "reader",
        "mpp",
        "mpp_source",
        "width_px",
        "height_px",
        "tissue_mm2",
        "tissue_mpp",
        "identity",
        "focus",
    }
    assert set(record["focus"]) == {"tiles", "sharpness", "blurred_share"}
    assert check(np.full((600, 600, 3), 241, np.uint8)).to_json()["focus"]["sharpness"] is None


def test_an_image_smaller_than_a_sampled_tile_is_checked():
    result = check(section(np.ones((4, 6), dtype=bool)))
    assert result.findings == ()
    assert result.focus.tiles == 1


# Real slides


def test_a_real_h_and_e_slide_is_usable():
    with open_slide(real("slides/CMU-1-Small-Region.svs"), slide_id="S07", stain="he") as slide:
        result = check_slide(slide)
    assert (result.usable, result.findings) == (True, ())
    assert 0.5 < result.tissue_mm2 < 0.8


def test_a_real_fluorescence_slide_is_not_usable():
    with open_slide(real("slides/test3-DAPI-2-(387).ndpi"), slide_id="S07", stain="ki67") as slide:
        result = check_slide(slide)
    assert list(messages(result)) == [Flag.WRONG_STAIN]
    assert "is dark (median brightness 1 of 255), so it is no brightfield scan" in messages(result)[Flag.WRONG_STAIN]
    assert not result.usable
