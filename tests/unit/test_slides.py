from __future__ import annotations

import ctypes
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
from PIL import Image

from ki67 import slides
from ki67.errors import ChangedSlideError, Flag, SlideError
from ki67.slides import companion_files, open_slide

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def real(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} of the shared data is not here")
    return path


def ramp(width=800, height=600):
    """Red grows by 1 every 4 pixels to the right, green every 4 pixels down."""
    y, x = np.indices((height, width))
    return np.stack([x // 4 % 256, y // 4 % 256, np.full_like(x, 77)], axis=2).astype(np.uint8)


def write_pyramid(path, levels, *, mpp=0.5, compression="deflate"):
    with tifffile.TiffWriter(path) as tiff:
        for number, pixels in enumerate(levels):
            resolution = None if mpp is None else tuple(1e4 / np.broadcast_to(mpp, 2) / 4**number)
            tiff.write(
                pixels,
                tile=(128, 128),
                photometric="rgb",
                compression=compression,
                subfiletype=int(number > 0),
                resolution=resolution,
                resolutionunit="NONE" if mpp is None else "CENTIMETER",
            )
    return path


def opened(path, *, mpp=None, stain="ki67"):
    return open_slide(path, slide_id="S07", stain=stain, mpp=mpp)


def finding_of(path, *, mpp=None, stain="ki67"):
    with pytest.raises(SlideError) as caught:
        opened(path, mpp=mpp, stain=stain)
    finding = caught.value.finding
    assert finding.stain == stain
    assert str(path) not in finding.message
    assert path.name not in finding.message
    return finding.flag, finding.message


@pytest.fixture
def pyramid(tmp_path):
    return write_pyramid(tmp_path / "slide.tif", [ramp(), ramp()[::4, ::4]])


# What is read


def test_a_pyramid_says_what_it_is(pyramid):
    with opened(pyramid) as slide:
        assert (slide.slide_id, slide.stain, slide.reader) == ("S07", "ki67", "openslide:generic-tiff")
        assert (slide.width_px, slide.height_px) == (800, 600)
        assert slide.mpp == pytest.approx(0.5, rel=1e-4)
        assert slide.mpp_source == "file"
        assert slide.size_um == pytest.approx((400, 300), rel=1e-4)


def test_pixels_at_their_own_scale_are_returned_unchanged(pyramid):
    with opened(pyramid, mpp=0.5) as slide:
        assert np.array_equal(slide.read(50, 25, 64, 32, 0.5), ramp()[50:82, 100:164])


def test_a_position_between_pixels_is_interpolated(pyramid):
    with opened(pyramid, mpp=0.5) as slide:
        tile = slide.read(50.25, 25.1, 200, 100, 0.5).astype(float)
    expected = (np.arange(200) + 100.5) / 4 - 3 / 8
    assert np.abs(tile[..., 0] - expected).max() <= 1


@pytest.mark.parametrize("mpp", [0.25, 0.37, 0.5, 0.77, 1.0, 2.0, 3.3])
def test_the_same_place_is_seen_at_every_scale(pyramid, mpp):
    with opened(pyramid, mpp=0.5) as slide:
        tile = slide.read(120.3, 80.7, 20, 20, mpp).astype(float)
    centers = (np.arange(20) + 0.5) * mpp
    assert np.abs(tile[..., 0].mean(axis=0) - ((120.3 + centers) / 2 - 0.375)).max() < 1.1
    assert np.abs(tile[..., 1].mean(axis=1) - ((80.7 + centers) / 2 - 0.375)).max() < 1.1


@pytest.mark.parametrize("mpp", [1.0, 0.95, 1.9])
def test_reduced_pixels_are_averages_of_area(tmp_path, mpp):
    checkerboard = np.indices((400, 400)).sum(axis=0) % 2 * 255
    path = write_pyramid(tmp_path / "board.tif", [np.repeat(checkerboard[..., None], 3, axis=2).astype(np.uint8)])
    with opened(path, mpp=0.5) as slide:
        tile = slide.read(20, 20, 64, 64, mpp)
    assert np.abs(tile.astype(int) - 127).max() <= 20
    assert abs(tile.mean() - 127.5) < 2


def test_the_coarsest_level_that_is_fine_enough_is_read(tmp_path):
    fine, coarse = np.full((800, 800, 3), 50, np.uint8), np.full((200, 200, 3), 200, np.uint8)
    with opened(write_pyramid(tmp_path / "slide.tif", [fine, coarse]), mpp=0.5) as slide:
        shades = {mpp: int(slide.read(100, 100, 8, 8, mpp).mean()) for mpp in (0.25, 0.5, 1.9, 1.99, 2.0, 8.0)}
    assert shades == {0.25: 50, 0.5: 50, 1.9: 50, 1.99: 200, 2.0: 200, 8.0: 200}


def test_outside_the_slide_is_white(pyramid):
    with opened(pyramid, mpp=0.5) as slide:
        corner = slide.read(-10, -10, 40, 40, 0.5)
        far = slide.read(5000, -5000, 10, 10, 0.7)
    assert (corner[:20] == 255).all()
    assert (corner[:, :20] == 255).all()
    assert np.array_equal(corner[20:, 20:], ramp()[:20, :20])
    assert (far == 255).all()


def test_a_thumbnail_holds_the_whole_slide(pyramid):
    with opened(pyramid, mpp=0.5) as slide:
        thumbnail = slide.thumbnail(7.0)
    assert thumbnail.shape == (43, 58, 3)
    assert thumbnail[20, 50, 0] == pytest.approx((50.5 * 7) / 2, abs=2)


def test_a_large_read_in_pieces_gives_the_same_pixels(pyramid, monkeypatch):
    with opened(pyramid, mpp=0.5) as slide:
        whole = slide.read(3.3, 4.4, 300, 200, 1.3)
        monkeypatch.setattr(slides, "BLOCK_PX", 97)
        assert np.abs(slide.read(3.3, 4.4, 300, 200, 1.3).astype(int) - whole).max() <= 1


def test_many_threads_read_what_one_reads(pyramid):
    places = [(x * 3.0, x * 2.0) for x in range(60)]
    with opened(pyramid, mpp=0.5) as slide, ThreadPoolExecutor(8) as pool:
        alone = [slide.read(x, y, 64, 64, 0.5) for x, y in places]
        together = list(pool.map(lambda place: slide.read(*place, 64, 64, 0.5), places))
    assert np.array_equal(alone, together)


def test_a_jpeg_compressed_pyramid_is_read(tmp_path):
    path = write_pyramid(tmp_path / "slide.tif", [np.full((512, 512, 3), 180, np.uint8)], compression="jpeg")
    with opened(path) as slide:
        assert np.abs(slide.read(0, 0, 512, 512, 0.5).astype(int) - 180).max() <= 2


def test_spaces_and_umlauts_in_a_path_do_no_harm(tmp_path):
    folder = tmp_path / "Müller & Söhne, Block 3"
    folder.mkdir()
    with opened(write_pyramid(folder / "Schnitt Ä 1.svs", [ramp()])) as slide:
        assert slide.width_px == 800
    Image.fromarray(ramp()).save(folder / "Bild ß.png")
    with opened(folder / "Bild ß.png", mpp=0.5) as slide:
        assert slide.reader == "image:png"


# Plain images


@pytest.mark.parametrize(("suffix", "reader"), [("png", "image:png"), ("bmp", "image:bmp"), ("tif", "image:tiff")])
def test_a_plain_image_is_read_with_the_mpp_of_the_sheet(tmp_path, suffix, reader):
    path = tmp_path / f"field.{suffix}"
    Image.fromarray(ramp()).save(path)
    with opened(path, mpp=0.5) as slide:
        assert (slide.reader, slide.mpp, slide.mpp_source) == (reader, 0.5, "sheet")
        assert np.array_equal(slide.read(50, 25, 64, 32, 0.5), ramp()[50:82, 100:164])


def test_content_decides_and_not_the_suffix(tmp_path):
    Image.fromarray(ramp()).save(tmp_path / "field.svs", format="JPEG", quality=95)
    with opened(tmp_path / "field.svs", mpp=0.5) as slide:
        assert slide.reader == "image:jpeg"


def test_transparent_pixels_are_white(tmp_path):
    rgba = np.dstack([ramp(40, 40), np.zeros((40, 40), np.uint8)])
    rgba[:20, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "field.png")
    with opened(tmp_path / "field.png", mpp=1.0) as slide:
        pixels = slide.read(0, 0, 40, 40, 1.0)
    assert np.array_equal(pixels[:20], ramp(40, 40)[:20])
    assert (pixels[20:] == 255).all()


def test_half_transparent_pixels_are_laid_over_white(tmp_path):
    tifffile.imwrite(
        tmp_path / "field.tif", np.full((8, 8, 4), [0, 100, 255, 128], np.uint8), extrasamples=["UNASSALPHA"]
    )
    with opened(tmp_path / "field.tif", mpp=1.0) as slide:
        assert slide.read(0, 0, 1, 1, 1.0)[0, 0].tolist() == [127, 177, 255]


def test_grey_images_become_three_equal_channels(tmp_path):
    Image.fromarray(ramp()[..., 0]).save(tmp_path / "field.png")
    with opened(tmp_path / "field.png", mpp=1.0) as slide:
        assert np.array_equal(slide.read(0, 0, 800, 600, 1.0), np.repeat(ramp()[..., :1], 3, axis=2))


def test_palette_images_show_their_colours(tmp_path):
    Image.fromarray(ramp(64, 64)).quantize(256).save(tmp_path / "field.png")
    palette = np.random.default_rng(0).integers(0, 2**16, (3, 256), dtype=np.uint16)
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tifffile.imwrite(tmp_path / "field.tif", indices, photometric="palette", colormap=palette)
    with opened(tmp_path / "field.png", mpp=1.0) as slide:
        assert np.abs(slide.read(0, 0, 64, 64, 1.0).astype(int) - ramp(64, 64)).max() <= 8
    with opened(tmp_path / "field.tif", mpp=1.0) as slide:
        assert np.abs(slide.read(0, 0, 16, 16, 1.0).reshape(-1, 3) - palette.T / 257).max() <= 1


@pytest.mark.parametrize("bits", [12, 16])
def test_deep_images_are_scaled_to_8_bits(tmp_path, bits):
    deep = (ramp().astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16)
    deep[0, 0] = 2**bits - 1
    tifffile.imwrite(tmp_path / "field.tif", deep, photometric="rgb")
    Image.fromarray(deep[..., 0]).save(tmp_path / "field.png")
    for name in ("field.tif", "field.png"):
        with opened(tmp_path / name, mpp=1.0) as slide:
            assert np.abs(slide.read(0, 0, 800, 600, 1.0)[1:, :, 0].astype(int) - ramp()[1:, :, 0]).max() <= 1


def test_a_planar_tiff_is_read_as_rgb(tmp_path):
    tifffile.imwrite(tmp_path / "field.tif", np.moveaxis(ramp(), 2, 0), photometric="rgb", planarconfig="separate")
    with opened(tmp_path / "field.tif", mpp=1.0) as slide:
        assert np.array_equal(slide.read(0, 0, 800, 600, 1.0), ramp())


# Microns per pixel


def test_the_sheet_goes_before_the_file(pyramid):
    with opened(pyramid, mpp=0.25) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.25, "sheet")
        assert slide.size_um == (200, 150)


def test_a_slide_without_mpp_names_the_column_to_fill(tmp_path):
    path = write_pyramid(tmp_path / "slide.tif", [ramp()], mpp=None)
    message = "S07: the Ki-67 slide gives no microns per pixel; set mpp_ki67 for S07 in the sample sheet"
    assert finding_of(path) == (Flag.NO_MPP, message)
    with opened(path, mpp=0.5) as slide:
        assert (slide.reader, slide.mpp_source) == ("openslide:generic-tiff", "sheet")


def test_a_plain_image_without_mpp_names_the_column_to_fill(tmp_path):
    Image.fromarray(ramp()).save(tmp_path / "field.png")
    message = "S07: the H&E slide gives no microns per pixel; set mpp_he for S07 in the sample sheet"
    assert finding_of(tmp_path / "field.png", stain="he") == (Flag.NO_MPP, message)


def test_screen_resolution_in_a_file_is_no_scale_of_a_slide(tmp_path):
    path = write_pyramid(tmp_path / "slide.tif", [ramp()], mpp=25400 / 72)
    message = (
        "S07: the Ki-67 slide has 352.8 microns per pixel in its file, and only 0.05 to 1.1 can be scored; "
        "set mpp_ki67 for S07 in the sample sheet"
    )
    assert finding_of(path) == (Flag.IMPLAUSIBLE_MPP, message)
    with opened(path, mpp=0.5) as slide:
        assert slide.mpp == 0.5


@pytest.mark.parametrize("mpp", [0.01, 2.0, -0.5, float("nan")])
def test_an_implausible_mpp_in_the_sheet_is_named(pyramid, mpp):
    flag, message = finding_of(pyramid, mpp=mpp)
    assert flag is Flag.IMPLAUSIBLE_MPP
    assert message == (
        f"S07: the Ki-67 slide has {mpp:.4g} microns per pixel in the sample sheet, and only 0.05 to 1.1 can be scored; "
        "correct mpp_ki67 for S07"
    )


def test_pixels_that_are_not_square_are_refused(tmp_path):
    path = write_pyramid(tmp_path / "slide.tif", [ramp()], mpp=(0.5, 0.25))
    message = "S07: the Ki-67 slide gives 0.5 microns per pixel across and 0.25 down; set mpp_ki67 for S07 in the sample sheet"
    assert finding_of(path) == (Flag.IMPLAUSIBLE_MPP, message)


def test_pixels_that_are_nearly_square_get_the_mean(tmp_path):
    with opened(write_pyramid(tmp_path / "slide.tif", [ramp()], mpp=(0.50, 0.52))) as slide:
        assert slide.mpp == pytest.approx(0.51, rel=1e-3)


# Files that cannot be read


def test_a_missing_file_names_the_column_to_correct(tmp_path):
    message = "S07: the Ki-67 slide does not exist; correct column ki67 of S07 in the sample sheet"
    assert finding_of(tmp_path / "no.svs") == (Flag.MISSING_FILE, message)
    (tmp_path / "file.svs").write_text("x")
    assert finding_of(tmp_path / "file.svs" / "no.svs") == (Flag.MISSING_FILE, message)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "slide.svs").touch()
    message = "S07: the H&E slide is an empty file of 0 bytes; copy it again from its source"
    assert finding_of(tmp_path / "slide.svs", stain="he") == (Flag.UNREADABLE, message)


def test_a_folder_is_no_slide(tmp_path):
    (tmp_path / "slide.svs").mkdir()
    message = "S07: the Ki-67 slide is a folder, not a file; correct column ki67 of S07 in the sample sheet"
    assert finding_of(tmp_path / "slide.svs") == (Flag.UNREADABLE, message)


def test_a_text_file_with_the_suffix_of_a_slide_is_named(tmp_path):
    (tmp_path / "slide.svs").write_text("This is not a slide.\n" * 100)
    message = (
        "S07: the Ki-67 slide is not an image that OpenSlide, tifffile or Pillow can decode; "
        "copy it again from its source or convert it to a pyramidal TIFF"
    )
    assert finding_of(tmp_path / "slide.svs") == (Flag.UNREADABLE, message)


@pytest.mark.parametrize("share", [0.98, 0.7, 0.3, 0.01])
def test_a_truncated_pyramid_is_noticed_on_opening(pyramid, share):
    content = pyramid.read_bytes()
    pyramid.write_bytes(content[: int(len(content) * share)])
    flag, message = finding_of(pyramid)
    assert flag is Flag.UNREADABLE
    size = f"{int(len(content) * share):,}"
    assert message.startswith(f"S07: the Ki-67 slide is incomplete or damaged (the file holds {size} of at least ")
    assert message.endswith(" bytes); copy it again from its source")


@pytest.mark.parametrize("name", ["field.png", "field.jpg", "field.tif"])
def test_a_truncated_picture_is_unreadable(tmp_path, name):
    Image.fromarray(ramp()).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    flag, message = finding_of(tmp_path / name, mpp=0.5)
    assert flag is Flag.UNREADABLE
    assert "copy it again from its source" in message


def test_damage_inside_a_slide_is_an_error_of_the_slide_at_every_later_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    path = write_pyramid(tmp_path / "slide.tif", [noise], compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        start, length = tiff.pages[0].dataoffsets[-1], tiff.pages[0].databytecounts[-1]
    content = bytearray(path.read_bytes())
    content[start : start + length] = bytes(length)
    path.write_bytes(content)
    with opened(path) as slide:
        slide.read(0, 0, 64, 64, 0.5)
        for _ in range(2):
            with pytest.raises(SlideError) as caught:
                slide.read(480, 480, 64, 64, 0.5)
            assert caught.value.finding.flag is Flag.UNREADABLE
            assert caught.value.finding.message == (
                "S07: the Ki-67 slide cannot be decoded near x 0.48 mm, y 0.48 mm, "
                "so the file is damaged or incomplete; copy it again from its source"
            )
        with pytest.raises(SlideError):
            slide.read(0, 0, 64, 64, 0.5)


def test_a_plain_image_that_is_too_large_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "LARGEST_IMAGE_MEGAPIXELS", 3)
    Image.fromarray(np.zeros((2000, 2000, 3), np.uint8)).save(tmp_path / "field.png")
    message = (
        "S07: the Ki-67 slide is a plain image of 4 megapixels, more than the 3 that are held in memory; "
        "convert it to a pyramidal tiled TIFF"
    )
    assert finding_of(tmp_path / "field.png", mpp=0.5) == (Flag.UNREADABLE, message)


def test_a_picture_that_pillow_calls_a_bomb_is_too_large(tmp_path):
    # A PNG that claims 20,000 x 20,000 pixels in its header.
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "field.png")
    content = bytearray((tmp_path / "field.png").read_bytes())
    content[16:24] = (20_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "field.png").write_bytes(content)
    flag, message = finding_of(tmp_path / "field.png", mpp=0.5)
    assert flag is Flag.UNREADABLE
    assert "more than the 150 that are held in memory; convert it to a pyramidal tiled TIFF" in message


def test_a_stack_of_channels_is_no_rgb_image(tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((7, 64, 64), np.uint8))
    flag, message = finding_of(tmp_path / "stack.tif", mpp=0.5)
    assert flag is Flag.UNREADABLE
    assert message.startswith("S07: the Ki-67 slide is not an image that OpenSlide, tifffile or Pillow can decode")


# JPEG tiles that are decoded past OpenSlide


def tissue(width, height):
    """Noise over colours that change slowly, so that tiles differ in length and colour."""
    rng = np.random.default_rng(0)
    shades = cv2.resize(rng.uniform(60, 240, (9, 11, 3)).astype(np.float32), (width, height))
    spread = np.linspace(0, 25, width)[:, None]
    return np.clip(shades + rng.normal(size=shades.shape) * spread, 0, 255).astype(np.uint8)


def write_jpeg_pyramid(path, *, colors="ycbcr", downsamples=(1, 4), size=(1000, 760)):
    """Levels in JPEG tiles that are no whole number across or down; ``colors="rgb"`` as Aperio scanners write it."""
    with tifffile.TiffWriter(path) as tiff:
        for number, downsample in enumerate(downsamples):
            tiff.write(
                tissue(*(round(side / downsample) for side in size)),
                tile=(128, 128),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 85, "outcolorspace": colors},
                subsampling=(1, 1) if colors == "rgb" else (2, 2),
                subfiletype=int(number > 0),
                resolution=(2e4 / downsample, 2e4 / downsample),
                resolutionunit="CENTIMETER",
            )
    return path


@pytest.fixture
def jpeg_pyramid(tmp_path):
    return write_jpeg_pyramid(tmp_path / "slide.tif")


@pytest.fixture
def decoded(monkeypatch):
    """The JPEG tiles that were decoded past OpenSlide so far."""
    tiles, decode = [], simplejpeg.decode_jpeg

    def counted(data, *options, **named):
        tiles.append(data)
        return decode(data, *options, **named)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", counted)
    return tiles


def places(count, seed=0):
    """Windows of many sizes and scales, some over the slide's edges."""
    rng = np.random.default_rng(seed)
    corners, sizes = rng.uniform(-40, 480, (count, 2)), rng.integers(1, 300, (count, 2)).tolist()
    whole = rng.random((count, 1)) < 0.5
    corners = np.where(whole, np.round(corners), corners).tolist()
    return [(*corners[n], *sizes[n], float(rng.choice([0.25, 0.5, 0.61, 1.0, 2.0, 3.7]))) for n in range(count)]


def read_by_openslide(path, windows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slides, "PLAIN_TILE_VENDORS", ())
        with opened(path) as slide:
            return [slide.read(*window) for window in windows]


@pytest.mark.parametrize("colors", ["ycbcr", "rgb"])
def test_jpeg_tiles_are_read_past_openslide(tmp_path, monkeypatch, colors):
    path = write_jpeg_pyramid(tmp_path / "slide.tif", colors=colors)
    expected = read_by_openslide(path, places(40))
    with opened(path) as slide:
        for mpp in (0.5, 2.0):
            slide.read(0, 0, 8, 8, mpp)
        monkeypatch.setattr(openslide.OpenSlide, "read_region", None)
        found = [slide.read(*window) for window in places(40)]
    assert all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("colors", ["ycbcr", "rgb"])
@pytest.mark.parametrize("cache_bytes", [0, 200_000, 2**27])
def test_threads_that_read_jpeg_tiles_get_the_pixels_of_openslide(tmp_path, monkeypatch, decoded, colors, cache_bytes):
    path = write_jpeg_pyramid(tmp_path / "slide.tif", colors=colors)
    expected = read_by_openslide(path, places(200))
    monkeypatch.setattr(slides, "CACHE_BYTES", cache_bytes)
    with opened(path) as slide, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda window: slide.read(*window), places(200)))
    assert all(map(np.array_equal, found, expected))
    assert decoded


def write_bare_tiles(path, colors, *, marker=b""):
    """JPEG tiles as Aperio scanners write them: tables apart, components without names and no colour space.

    The first tile has a marker.
    """
    write_jpeg_pyramid(path, colors=colors, downsamples=(1,))
    with tifffile.TiffFile(path) as tiff:
        page, content = tiff.pages[0], path.read_bytes()
        pieces = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    tiles = [bytearray(content[start : start + length]) for start, length in pieces]
    for tile in tiles:
        frame, scan = tile.index(b"\xff\xc0"), tile.index(b"\xff\xda")
        for number in range(3):
            tile[frame + 10 + 3 * number] = tile[scan + 5 + 2 * number] = number
    tables = [tile[tile.index(b"\xff\xdb") : tile.index(b"\xff\xc0")] for tile in tiles]
    huffman = [tile[tile.index(b"\xff\xc4") : tile.index(b"\xff\xda")] for tile in tiles]
    frames = [tile[tile.index(b"\xff\xc0") : tile.index(b"\xff\xc4")] for tile in tiles]
    scans = [tile[tile.index(b"\xff\xda") :] for tile in tiles]
    markers = [marker, *[b""] * (len(tiles) - 1)]
    bare = [b"\xff\xd8" + marker + frame + scan for marker, frame, scan in zip(markers, frames, scans, strict=True)]
    tifffile.imwrite(
        path,
        iter(bare),
        shape=(760, 1000, 3),
        dtype=np.uint8,
        tile=(128, 128),
        photometric=colors,
        compression="jpeg",
        compressionargs={"outcolorspace": colors},
        subsampling=(1, 1) if colors == "rgb" else (2, 2),
        jpegtables=bytes(b"\xff\xd8" + tables[0] + huffman[0] + b"\xff\xd9"),
        resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER",
    )
    return path


@pytest.mark.parametrize("colors", ["ycbcr", "rgb"])
def test_shared_tables_and_the_colour_space_of_the_tiff_are_used(tmp_path, monkeypatch, colors):
    expected = read_by_openslide(
        write_jpeg_pyramid(tmp_path / "whole.tif", colors=colors, downsamples=(1,)), places(20)
    )
    path = write_bare_tiles(tmp_path / "bare.tif", colors)
    assert all(map(np.array_equal, read_by_openslide(path, places(20)), expected))
    with opened(path) as slide:
        slide.read(0, 0, 8, 8, 0.5)
        monkeypatch.setattr(openslide.OpenSlide, "read_region", None)
        assert all(map(np.array_equal, [slide.read(*window) for window in places(20)], expected))


def test_a_tile_that_names_another_colour_space_than_the_tiff_is_read_by_openslide(tmp_path, decoded):
    jfif = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    path = write_bare_tiles(tmp_path / "slide.tif", "rgb", marker=jfif)
    expected = read_by_openslide(path, places(20))
    with opened(path) as slide:
        assert all(map(np.array_equal, [slide.read(*window) for window in places(20)], expected))
    assert decoded


def test_a_tile_is_decoded_once_for_the_windows_that_share_it(jpeg_pyramid, monkeypatch, decoded):
    with opened(jpeg_pyramid) as slide:
        slide.read(0, 0, 1000, 760, 0.5)
        assert len(decoded) == 8 * 6
        slide.read(50, 50, 300, 300, 0.5)
        assert len(decoded) == 8 * 6
    monkeypatch.setattr(slides, "CACHE_BYTES", 2 * 128 * 128 * 3)
    with opened(jpeg_pyramid) as slide:
        slide.read(0, 0, 1000, 760, 0.5)
        decoded.clear()
        slide.read(0, 0, 1000, 760, 0.5)
        assert len(decoded) >= 8 * 6 - 2


def fitting(tile, length):
    """A JPEG image in the room of a tile."""
    return tile[:length] + bytes(length - len(tile))


def with_height(tile, height):
    """Claims to have more or fewer rows than it has."""
    frame = tile.index(b"\xff\xc0")
    return tile[: frame + 5] + height.to_bytes(2, "big") + tile[frame + 7 :]


DAMAGE = {
    "tile zeroed": lambda tile: bytes(len(tile)),
    "header zeroed": lambda tile: bytes(64) + tile[64:],
    "second half zeroed": lambda tile: fitting(tile[: len(tile) // 2], len(tile)),
    "a third of it random": lambda tile: (
        tile[: len(tile) // 3]
        + np.random.default_rng(1).bytes(len(tile) // 3)
        + tile[len(tile) // 3 + len(tile) // 3 :]
    ),
    "truncated": lambda tile: fitting(tile[:-400], len(tile)),
    "one row too few": lambda tile: with_height(tile, 127),
    "too many rows": lambda tile: with_height(tile, 136),
    "65500 rows": lambda tile: with_height(tile, 65500),
}


def damage_tile(path, index, change):
    with tifffile.TiffFile(path) as tiff:
        start, length = tiff.pages[0].dataoffsets[index], tiff.pages[0].databytecounts[index]
    content = path.read_bytes()
    path.write_bytes(content[:start] + change(content[start : start + length]) + content[start + length :])


@pytest.mark.parametrize("colors", ["ycbcr", "rgb"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_jpeg_tile_is_an_error_of_the_slide(tmp_path, decoded, kind, colors):
    path = write_jpeg_pyramid(tmp_path / "slide.tif", colors=colors)
    expected = read_by_openslide(path, [(0, 0, 128, 128, 0.5)])[0]
    damage_tile(path, 8 * 2 + 3, DAMAGE[kind])
    with opened(path) as slide:
        assert np.array_equal(slide.read(0, 0, 128, 128, 0.5), expected)
        assert decoded
        for _ in range(2):
            with pytest.raises(SlideError) as caught:
                slide.read(200, 140, 64, 64, 0.5)
            assert caught.value.finding.flag is Flag.UNREADABLE
            assert "the Ki-67 slide cannot be decoded near x 0.20 mm, y 0.14 mm" in caught.value.finding.message
        with pytest.raises(SlideError):
            slide.read(0, 0, 128, 128, 0.5)


def test_damage_that_nobody_asks_for_spoils_no_read(jpeg_pyramid):
    """The longest tile, which is compared first, is as harmless as any other."""
    window = (0, 0, 200, 128, 0.5)
    expected = read_by_openslide(jpeg_pyramid, [window])[0]
    with tifffile.TiffFile(jpeg_pyramid) as tiff:
        longest = int(np.argmax(tiff.pages[0].databytecounts))
    assert longest % 8 > 3
    for kind in ("second half zeroed", "tile zeroed"):
        damage_tile(jpeg_pyramid, longest, DAMAGE[kind])
        with opened(jpeg_pyramid) as slide:
            assert np.array_equal(slide.read(*window), expected)


def test_openslide_has_the_last_word_on_a_tile_that_is_refused(jpeg_pyramid, monkeypatch):
    expected = read_by_openslide(jpeg_pyramid, places(5))
    with opened(jpeg_pyramid) as slide:
        slide.read(0, 0, 8, 8, 0.5)
        monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
        assert all(map(np.array_equal, [slide.read(*window) for window in places(5)], expected))


def test_a_level_with_other_pixels_is_read_by_openslide(jpeg_pyramid, monkeypatch):
    expected, decode = read_by_openslide(jpeg_pyramid, places(20)), simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *data, **named: decode(*data, **named) // 2)
    with opened(jpeg_pyramid) as slide:
        assert all(map(np.array_equal, [slide.read(*window) for window in places(20)], expected))


def test_a_closed_slide_cannot_be_read(jpeg_pyramid):
    with opened(jpeg_pyramid) as slide:
        slide.read(0, 0, 64, 64, 0.5)
    with pytest.raises(ctypes.ArgumentError, match="closed"):
        slide.read(0, 0, 64, 64, 0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "lzw"},
        {"compression": "deflate"},
        {"compression": "jpeg2000"},
        {"compression": "jpeg", "planarconfig": "separate"},
        {"compression": "jpeg", "tile": None, "rowsperstrip": 128},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_what_is_no_plain_jpeg_tile_is_left_to_others(tmp_path, decoded, options):
    pixels = tissue(512, 384)
    written = np.moveaxis(pixels, 2, 0) if "planarconfig" in options else pixels
    tifffile.imwrite(tmp_path / "slide.tif", written, photometric="rgb", **{"tile": (128, 128)} | options)
    with opened(tmp_path / "slide.tif", mpp=0.5) as slide:
        read = slide.read(0, 0, 512, 384, 0.5)
    assert np.abs(read.astype(int) - pixels).mean() < 10
    assert decoded == []


def test_a_level_that_is_not_certain_is_left_to_openslide(tmp_path, decoded):
    between = write_jpeg_pyramid(tmp_path / "between.tif", downsamples=(1, 4), size=(1000, 762))
    twice = write_jpeg_pyramid(tmp_path / "twice.tif", downsamples=(1, 1))
    for path, mpp in ((between, 2.0), (twice, 0.5)):
        with opened(path) as slide:
            slide.read(0, 0, 64, 64, mpp)
        assert decoded == []
    with opened(between) as slide:
        slide.read(0, 0, 64, 64, 0.5)
    assert decoded


def test_a_level_with_a_missing_tile_is_left_to_openslide(jpeg_pyramid, decoded):
    with tifffile.TiffFile(jpeg_pyramid, mode="r+b") as tiff:
        counts = tiff.pages[0].tags["TileByteCounts"]
        counts.overwrite([*counts.value[:-1], 0])
    with opened(jpeg_pyramid) as slide, suppress(SlideError):
        slide.read(0, 0, 64, 64, 0.5)
    assert decoded == []


# Slides of many files


def test_an_mrxs_slide_brings_its_folder(tmp_path):
    (tmp_path / "A" / "sub").mkdir(parents=True)
    for name in ("A.mrxs", "B.mrxs", "A/Slidedat.ini", "A/Data0001.dat", "A/sub/Index.dat"):
        (tmp_path / name).touch()
    names = [file.relative_to(tmp_path).as_posix() for file in companion_files(tmp_path / "A.mrxs")]
    assert names == ["A/Data0001.dat", "A/Slidedat.ini", "A/sub/Index.dat"]
    assert companion_files(tmp_path / "B.mrxs") == []


def test_a_vms_slide_brings_the_files_it_lists_and_nothing_outside_its_folder(tmp_path):
    (tmp_path / "A.vms").write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=A.jpg\nImageFile(1,0)=A(1,0).jpg\nMapFile=A_map.jpg\n"
        "OptimisationFile=../../elsewhere.opt\nMacroImage=absent.jpg\n"
    )
    for name in ("A.jpg", "A(1,0).jpg", "A_map.jpg", "other.jpg"):
        (tmp_path / name).touch()
    assert [file.name for file in companion_files(tmp_path / "A.vms")] == ["A(1,0).jpg", "A.jpg", "A_map.jpg"]


def test_a_dicom_slide_brings_the_files_of_its_series(tmp_path):
    for name, series in (("a.dcm", b"1.2.3"), ("b.dcm", b"1.2.3"), ("c.dcm", b"1.2.4")):
        tag = b"\x20\x00\x0e\x00UI" + len(series).to_bytes(2, "little") + series + b"\0"
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" + tag)
    assert [file.name for file in companion_files(tmp_path / "a.dcm")] == ["b.dcm"]


@pytest.mark.parametrize("name", ["slide.svs", "slide.tif", "absent.vms", "absent.dcm", "absent.mrxs"])
def test_a_slide_of_one_file_has_no_companions(tmp_path, name):
    (tmp_path / "slide.svs").touch()
    assert companion_files(tmp_path / name) == []


# Real files


def test_an_aperio_slide_is_read():
    with opened(real("slides/CMU-1-Small-Region.svs"), stain="he") as slide:
        assert (slide.reader, slide.mpp, slide.width_px, slide.height_px) == ("openslide:aperio", 0.499, 2220, 2967)
        assert slide.thumbnail(8.0).shape == (186, 139, 3)
        assert slide.read(400, 600, 256, 256, 0.5).std() > 20


def test_an_aperio_slide_has_the_pixels_of_openslide(decoded):
    path, windows = (
        real("slides/CMU-1-Small-Region.svs"),
        [(x * 1.3, y * 1.7, 300, 200, 0.499) for x, y in np.ndindex(3, 4)],
    )
    expected = read_by_openslide(path, windows)
    with opened(path) as slide:
        assert all(map(np.array_equal, [slide.read(*window) for window in windows], expected))
    assert decoded


def test_a_hamamatsu_slide_is_read_from_its_low_levels():
    with opened(real("slides/test3-DAPI-2-(387).ndpi")) as slide:
        assert slide.reader == "openslide:hamamatsu"
        assert slide.mpp == pytest.approx(0.2282, abs=1e-4)
        assert slide.thumbnail(8.0).mean() < 30


def test_a_plain_tiff_without_mpp_needs_the_sheet():
    path = real("slides/instanseg_HE_example.tif")
    assert finding_of(path, stain="he")[0] is Flag.NO_MPP
    with opened(path, mpp=0.5, stain="he") as slide:
        assert slide.reader == "image:tiff"


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "test3-DAPI-2-(387).ndpi"])
@pytest.mark.parametrize("share", [0.99, 0.9, 0.5, 0.001])
def test_a_truncated_real_slide_is_unreadable(tmp_path, name, share):
    content = real(f"slides/{name}").read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(len(content) * share)])
    flag, message = finding_of(path)
    assert flag is Flag.UNREADABLE
    assert "is incomplete or damaged" in message


# What changes during a run, and what is no file


def checked_slide(path, checked):
    with slides.open_checked_slide(path, checked, slide_id="S07", stain="ki67") as slide:
        return slide.read(0, 0, 8, 8, 0.5)


def record_of(path):
    return {"mpp": 0.5, "file": slides.slide_checksum(path)}


def test_a_slide_that_is_as_the_check_saw_it_is_read(pyramid):
    assert np.array_equal(checked_slide(str(pyramid), record_of(pyramid)), ramp()[:8, :8])


@pytest.mark.parametrize("gone", [True, False])
def test_a_slide_that_is_gone_fails_and_is_no_bad_slide(pyramid, gone):
    record = record_of(pyramid)
    pyramid.unlink()
    with pytest.raises(ChangedSlideError, match="S07: the Ki-67 slide was there when the run began and is gone"):
        checked_slide([] if gone else str(pyramid), record)


def test_a_slide_that_was_replaced_since_the_check_fails(pyramid):
    record = record_of(pyramid)
    write_pyramid(pyramid, [ramp()[::-1], ramp()[::-4, ::4]])
    with pytest.raises(ChangedSlideError, match="is not the file that the stage check saw; nothing is written of it"):
        checked_slide(pyramid, record)


def test_a_slide_that_changes_while_it_is_read_fails(pyramid):
    record = record_of(pyramid)
    opened_slide = slides.open_checked_slide(pyramid, record, slide_id="S07", stain="ki67")
    with pytest.raises(ChangedSlideError, match="changed while it was read"), opened_slide:
        pyramid.write_bytes(pyramid.read_bytes()[:-1])


def test_a_slide_that_is_cut_off_while_it_is_read_is_no_damaged_slide(pyramid):
    record = record_of(pyramid)
    opened_slide = slides.open_checked_slide(pyramid, record, slide_id="S07", stain="ki67")
    slide = opened_slide.__enter__()
    pyramid.write_bytes(b"II*\0")
    error = slides.slide_error(Flag.UNREADABLE, slide.slide_id, slide.stain, "cannot be decoded")
    with pytest.raises(ChangedSlideError, match="changed while it was read"):
        opened_slide.__exit__(type(error), error, None)


def test_a_slide_that_the_check_could_not_read_stays_a_bad_slide(tmp_path):
    for checked in (None, {"mpp": None, "file": None}):
        with pytest.raises(SlideError) as caught:
            checked_slide([], checked)
        assert caught.value.finding.flag == Flag.MISSING_FILE


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.svs")
    assert finding_of(tmp_path / "pipe.svs")[0] == Flag.UNREADABLE
    assert "is a pipe or a device, not a file" in finding_of(Path("/dev/zero"))[1]


def test_links_lead_to_the_slide_or_say_that_they_do_not(tmp_path, pyramid):
    link, circle, lost = (tmp_path / f"{name}.tif" for name in ("link", "circle", "lost"))
    link.symlink_to(pyramid)
    circle.symlink_to(circle)
    lost.symlink_to(tmp_path / "nowhere" / "slide.tif")
    assert np.array_equal(checked_slide(link, record_of(pyramid)), ramp()[:8, :8])
    assert "cannot be opened (Too many levels of symbolic links)" in finding_of(circle)[1]
    assert finding_of(lost)[0] == Flag.MISSING_FILE


def test_a_slide_of_two_metres_is_refused(tmp_path):
    path = huge_tiff(tmp_path / "huge.tif", 4_000_000)
    flag, message = finding_of(path, mpp=0.5)
    assert flag == Flag.UNREADABLE
    assert "is 2000 x 2000 mm, by its pixels of 0.5 microns, and no slide is larger than 300 mm" in message


def test_tables_that_lead_in_a_circle_are_refused(pyramid):
    with tifffile.TiffFile(pyramid) as tiff:
        first, last = (page.offset for page in tiff.pages)
        position = last + 2 + 12 * len(tiff.pages[1].tags)
    content = bytearray(pyramid.read_bytes())
    content[position : position + 4] = struct.pack("<I", first)
    pyramid.write_bytes(content)
    flag, message = finding_of(pyramid, mpp=0.5)
    assert flag == Flag.UNREADABLE
    assert "is damaged (its tables lead in a circle); copy it again" in message


def huge_tiff(path, side):
    """A tiled TIFF that says it has ``side`` squared pixels, in tiles of 65536 px, and holds none of them."""
    tile = 65536
    across = -(-side // tile)
    offsets = np.full(across * across, 8, dtype="<u4").tobytes()
    head, tags = 8, []
    for code, kind, count, value in (
        (256, 4, 1, side),
        (257, 4, 1, side),
        (258, 3, 1, 8),
        (259, 3, 1, 8),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
        (322, 4, 1, tile),
        (323, 4, 1, tile),
        (324, 4, across * across, head + 4096),
        (325, 4, across * across, head + 4096),
    ):
        tags.append(struct.pack("<HHII", code, kind, count, value))
    table = struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)
    content = b"II*\0" + struct.pack("<I", head) + table
    path.write_bytes(content.ljust(head + 4096, b"\0") + offsets)
    return path
