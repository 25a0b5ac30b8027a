from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ki67.stain import HED_VECTORS, identify_stain, optical_density, separate_hed

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def stained(amounts, noise=0.0):
    """RGB of amounts of hematoxylin, eosin and DAB ``(..., 3)``, as light absorbs."""
    light = 255 * 10 ** -(np.asarray(amounts, dtype=float) @ HED_VECTORS)
    return np.clip(light + np.random.default_rng(0).normal(0, noise, light.shape), 0, 255).round().astype(np.uint8)


def field(*, ground, nuclei, share=0.3, noise=4.0):
    """128 x 128 pixels of ground, of which a share are nuclei; amounts vary as they do in tissue."""
    rng = np.random.default_rng(1)
    is_nucleus = rng.random((128, 128, 1)) < share
    amounts = np.where(is_nucleus, nuclei, ground) * rng.lognormal(0, 0.4, (128, 128, 1))
    return stained(amounts, noise)


HE = {"ground": (0.1, 0.25, 0), "nuclei": (0.6, 0.15, 0)}
IHC_NEGATIVE = {"ground": (0.05, 0, 0.01), "nuclei": (0.35, 0, 0)}
IHC_POSITIVE = {"ground": (0.05, 0, 0.03), "nuclei": (0.1, 0, 0.9)}


def test_optical_density_is_the_logarithm_of_lost_light():
    pixels = np.array([[255, 128, 26]], dtype=np.uint8)
    assert optical_density(pixels)[0] == pytest.approx([0, np.log10(255 / 128), np.log10(255 / 26)], abs=1e-6)
    assert optical_density(pixels).dtype == np.float32


def test_optical_density_of_black_is_finite():
    assert optical_density(np.zeros((2, 3), np.uint8)).max() == pytest.approx(np.log10(255))


def test_glass_has_no_optical_density_and_nothing_has_less():
    pixels = np.array([[240, 235, 230], [255, 255, 255], [120, 117.5, 115]]).astype(np.uint8)
    density = optical_density(pixels, background=(240, 235, 230))
    assert density[:2] == pytest.approx(np.zeros((2, 3)), abs=1e-6)
    assert density[2] == pytest.approx(np.log10(2) * np.ones(3), abs=5e-3)
    assert density.dtype == np.float32


@pytest.mark.parametrize("amounts", [(0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5), (0.2, 0.4, 0), (0.3, 0, 0.6)])
def test_amounts_of_stain_are_recovered(amounts):
    assert separate_hed(stained(amounts)) == pytest.approx(np.array(amounts), abs=0.02)


def test_amounts_keep_the_shape_of_the_image():
    assert separate_hed(np.full((4, 5, 3), 200, np.uint8)).shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("drawn", "stain"),
    [
        (field(**HE), "he"),
        (field(**HE, share=0.7), "he"),
        (field(**HE, share=0.02), "he"),
        (field(ground=(0.03, 0.08, 0), nuclei=(0.2, 0.06, 0)), "he"),
        (field(**IHC_NEGATIVE), "ki67"),
        (field(**IHC_POSITIVE), "ki67"),
        (field(**IHC_NEGATIVE, share=0.95), "ki67"),
        (field(ground=(0.12, 0, 0), nuclei=(0.15, 0, 0)), "ki67"),
        (field(ground=(0.02, 0, 0.1), nuclei=(0, 0, 1.8)), "ki67"),
    ],
    ids=["he", "he lymph node", "he stroma", "he pale", "negative", "positive", "crowded", "pale", "black DAB"],
)
def test_h_and_e_is_told_from_ki67(drawn, stain):
    identity = identify_stain(drawn)
    assert identity.stain == stain
    assert identity.reason == "clear"
    assert identity.confidence > 0.9


def test_brightness_of_the_scan_does_not_decide():
    for drawn, stain in ((field(**HE), "he"), (field(**IHC_POSITIVE), "ki67")):
        darker = (drawn * 0.85).astype(np.uint8)
        assert identify_stain(darker).stain == stain


def test_glass_among_the_pixels_does_not_decide():
    drawn = np.concatenate([np.full((1000, 128, 3), 244, np.uint8), field(**HE)])
    assert identify_stain(drawn).stain == "he"


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((128, 128, 3), 243, np.uint8), "blank"),
        (np.zeros((0, 3), np.uint8), "blank"),
        (field(**HE)[:10, :10], "blank"),
        (np.random.default_rng(0).poisson([2, 2, 40], (128, 128, 3)).astype(np.uint8), "dark"),
        (np.repeat(field(**HE)[..., :1], 3, axis=2), "colourless"),
        (stained(np.zeros((128, 128, 3))) * np.array([0.4, 0.9, 0.4]), "green"),
    ],
    ids=["glass", "nothing", "few pixels", "fluorescence", "grayscale", "green"],
)
def test_what_is_neither_stain_is_unknown_for_a_reason(pixels, reason):
    identity = identify_stain(pixels.astype(np.uint8))
    assert (identity.stain, identity.reason, identity.confidence) == ("unknown", reason, 0.0)
    assert identity.excluded is (reason != "blank")


def test_a_hue_halfway_between_the_stains_is_not_guessed():
    amounts = np.random.default_rng(0).lognormal(-1, 0.4, (128, 128, 1)) * np.array([0.81, 0.19, 0])
    identity = identify_stain(stained(amounts))
    assert (identity.stain, identity.reason) == ("unknown", "between")
    assert 0.5 <= identity.confidence < 0.8
    assert not identity.excluded


@pytest.mark.parametrize(
    ("folder", "stain"),
    [
        ("he_bcss", "he"),
        ("he_camelyon", "he"),
        ("ki67_bcdata", "ki67"),
        ("ki67_dcis", "ki67"),
        ("ki67_deepliif", "ki67"),
        ("ki67_glioma", "ki67"),
        ("ki67_shidc", "ki67"),
    ],
)
def test_real_fields_are_told_apart(folder, stain):
    images = DATA / folder / "images"
    if not images.exists():
        pytest.skip(f"{folder} of the shared data is not here")
    files = sorted(file for file in images.iterdir() if file.suffix in {".png", ".jpg"})
    found = [identify_stain(np.asarray(Image.open(file).convert("RGB"))[::5, ::5]).stain for file in files[::4]]
    assert set(found) == {stain}
