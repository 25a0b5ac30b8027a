import cv2
import numpy as np
import pytest
import shapely
import zarr

from ki67.extraction import ExtractionOptions, extract_nuclei
from ki67.fields import Band, fields_of_bands
from ki67.geometry import Mask
from ki67.inference import Running
from ki67.nuclei import detect_nuclei, field_margin_px, nuclei_of_bands, nuclei_of_field, nuclei_table
from ki67.nucleus_table import COLUMNS, empty_nuclei
from ki67.stain import separate_hed
from ki67.training.targets import NEGATIVE, POSITIVE
from tests.unit.drawn_networks import COLOURS, PaintedNuclei, slide_of
from tests.unit.drawn_nuclei import drawn, found_by, grid, probabilities_of

# ---------------------------------------------------------------------------------------------- in bands


def everywhere():
    return Mask(np.ones((400, 400), dtype=bool), 8.0, "ki67")


def table_of(bands):
    return nuclei_table(nuclei_of_bands(bands, mpp=0.5, options=ExtractionOptions()), everywhere())


def extracted(probabilities, mpp):
    return extract_nuclei(probabilities, mpp=mpp)


def answers(shape, seed=0):
    """What no network would answer: nuclei of all shapes and sizes, in chains and sheets, and of both classes."""
    random = np.random.default_rng(seed)
    kinds = [cv2.GaussianBlur(random.random(shape), (0, 0), 4.0) for _ in range(2)]
    share = cv2.GaussianBlur(random.random(shape), (0, 0), 60.0)
    nucleus = np.clip(127 + 4000 * (kinds[0] - 0.5) + 8000 * (share - 0.5), 0, 255)
    membrane = np.clip(2 * np.minimum(nucleus, 255 - nucleus), 0, 255 - nucleus)
    positive = kinds[1] > 0.5
    levels = [
        255 - nucleus - membrane,
        nucleus * positive,
        membrane * positive,
        nucleus * ~positive,
        membrane * ~positive,
    ]
    rgb = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
    return np.stack(levels).astype(np.uint8), rgb


def bands_of(probabilities, rgb, rows, first_row_px=0, first_column_px=0):
    for top in range(0, rgb.shape[0], rows):
        part = slice(top, top + rows)
        yield Band(first_row_px + top, first_column_px, probabilities[:, part].copy(), rgb[part].copy())


def assert_same(table, expected):
    assert table.drop(columns="geometry").equals(expected.drop(columns="geometry"))
    assert (shapely.to_wkb(table.geometry.to_numpy()) == shapely.to_wkb(expected.geometry.to_numpy())).all()


@pytest.fixture(scope="module")
def wild():
    probabilities, rgb = answers((2300, 1500))
    return probabilities, rgb, table_of(bands_of(probabilities, rgb, 2300))


@pytest.mark.parametrize("rows", [64, 100, 448, 511, 512, 1000, 2048])
def test_no_nucleus_depends_on_the_height_of_the_bands(rows, wild):
    probabilities, rgb, expected = wild
    assert len(expected) > 2000
    assert_same(table_of(bands_of(probabilities, rgb, rows)), expected)


def test_fields_can_be_worked_through_in_any_order(wild):
    probabilities, rgb, expected = wild
    fields = list(fields_of_bands(bands_of(probabilities, rgb, 300), margin_px=field_margin_px(0.5)))
    found = [nuclei_of_field(field, mpp=0.5, extract=extracted) for field in reversed(fields)]
    assert_same(nuclei_table(reversed(found), everywhere()), expected)


def test_fields_find_what_is_found_in_the_whole_image():
    shape = (1400, 2200)
    probabilities = probabilities_of(drawn(shape, grid(shape, step=18, seed=3)))
    rgb = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    table = table_of(bands_of(probabilities, rgb, 448))
    whole = extract_nuclei(probabilities, mpp=0.5)
    order = np.lexsort((whole.x_px, whole.y_px))
    assert len(table) > 5000
    np.testing.assert_array_equal(table["y_um"], whole.y_px[order] * 0.5)
    np.testing.assert_array_equal(table["x_um"], whole.x_px[order] * 0.5)
    np.testing.assert_array_equal(table["positive"], whole.positive[order])
    np.testing.assert_array_equal(table["area_um2"], (whole.area_px[order] * 0.25).astype(np.float32))


@pytest.mark.parametrize("angle", [0, 30, 45, 90])
def test_chains_of_touching_nuclei_across_seams_are_counted_once(angle):
    levels = np.zeros((5, 1100, 2100), dtype=np.uint8)
    steps = np.arange(-9 * 25, 9 * 25 + 1, 20)
    direction = np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    places = np.rint([1024, 512] + steps[:, None] * direction).astype(int)
    for place in places.tolist():
        cv2.circle(levels[1], place, 10, 255, -1)
    table = table_of(bands_of(levels, np.zeros((1100, 2100, 3), dtype=np.uint8), 448))
    found = found_by(table["x_um"] * 2 - 0.5, table["y_um"] * 2 - 0.5, places.tolist())
    assert [len(which) for which in found] == [1] * len(places)
    assert len(table) == len(places)


def test_rows_that_are_left_out_are_like_rows_of_zeros():
    probabilities, rgb = answers((1500, 600), seed=4)
    probabilities[:, 700:900], rgb[700:900] = 0, 255
    upper = bands_of(probabilities[:, :700], rgb[:700], 100)
    lower = bands_of(probabilities[:, 900:], rgb[900:], 200, first_row_px=900)
    assert_same(table_of([*upper, *lower]), table_of(bands_of(probabilities, rgb, 333)))


def teststain_amounts_are_the_means_over_the_nucleus():
    shape = (200, 200)
    probabilities = probabilities_of(drawn(shape, grid(shape, seed=1)))
    rgb = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    table, whole = table_of([Band(0, 0, probabilities, rgb)]), extract_nuclei(probabilities, mpp=0.5)
    amounts = separate_hed(rgb)
    for index, number in enumerate(np.lexsort((whole.x_px, whole.y_px)) + 1):
        hematoxylin, _, dab = amounts[whole.labels == number].mean(axis=0)
        assert table["dab_od"][index] == pytest.approx(dab, abs=1e-5)
        assert table["hematoxylin_od"][index] == pytest.approx(hematoxylin, abs=1e-5)


# ---------------------------------------------------------------------------------------------- on a slide


def painted(shape, ellipses):
    return COLOURS[drawn(shape, ellipses)]


def tumor_everywhere(shape, mpp=0.5):
    return Mask(np.ones((-(-shape[0] // 8), -(-shape[1] // 8)), dtype=bool), 8 * mpp, "ki67")


def detect(pixels, tumor=None, *, cell_px=128, **options):
    tumor = tumor or tumor_everywhere(pixels.shape)
    return detect_nuclei(slide_of(pixels), tumor, PaintedNuclei(), cell_px=cell_px, **options)


def test_a_nucleus_on_a_seam_is_counted_once():
    # Seams lie at every 128 px; nuclei sit on them, on their crossings, and just beside.
    places = [(128.0, 64.0), (64.0, 128.0), (128.0, 128.0), (200.0, 127.0), (300.0, 129.0), (256.0, 256.0)]
    ellipses = [(x, y, 8.0, 11.0, 30.0, POSITIVE) for x, y in places]
    table = detect(painted((400, 400), ellipses)).table
    assert len(table) == len(places)
    for which in found_by(table["x_um"] * 2 - 0.5, table["y_um"] * 2 - 0.5, ellipses):
        assert len(which) == 1


@pytest.mark.parametrize("cell_px", [64, 96, 192, 448])
def test_seams_change_no_nucleus(cell_px):
    ellipses = grid((700, 500), step=24, seed=5)
    pixels = painted((700, 500), ellipses)
    expected = detect(pixels, cell_px=704).table
    table = detect(pixels, cell_px=cell_px).table
    assert len(expected) > 400
    assert len(table) == len(expected)
    for name in ("x_um", "y_um", "positive", "area_um2", "dab_od"):
        np.testing.assert_array_equal(table[name], expected[name])


def test_rows_without_tiles_between_tumor_leave_nothing_out_and_nothing_twice():
    ellipses = grid((900, 300), seed=7)
    mask = tumor_everywhere((900, 300))
    mask.pixels[30:80] = False  # 240 to 640 px
    table = detect(painted((900, 300), ellipses), mask, cell_px=64).table
    inside = [entry for entry in ellipses if not 236 < entry[1] < 644]
    counts = [len(which) for which in found_by(table["x_um"] * 2 - 0.5, table["y_um"] * 2 - 0.5, inside)]
    assert counts == [1] * len(inside)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("offset_px", [(0, 0), (64, 32), (17, 90)])
def test_nuclei_depend_on_neither_the_number_of_threads_nor_where_the_grid_begins(threads, offset_px):
    pixels = painted((900, 1700), grid((900, 1700)))
    expected = detect(pixels, cell_px=256, running=Running(threads=1)).table
    table = detect(pixels, cell_px=256, offset_px=offset_px, running=Running(threads=threads)).table
    assert len(expected) > 700
    assert_same(table, expected)


def test_probabilities_are_written_while_nuclei_are_found(tmp_path):
    pixels = painted((900, 1700), grid((900, 1700)))
    expected = detect(pixels, cell_px=256).table
    assert_same(detect(pixels, cell_px=256, probabilities=tmp_path / "p.ome.zarr").table, expected)
    written = zarr.open_group(tmp_path / "p.ome.zarr", mode="r")["s0"][:]
    np.testing.assert_array_equal(written, PaintedNuclei().predict_levels(pixels[None], 0)[0])


def test_coordinates_are_microns_and_outlines_lie_around_them():
    ellipses = [(300.0, 200.0, 8.0, 10.0, 0.0, POSITIVE)]
    pixels = painted((400, 500), ellipses)
    coarse = detect(pixels).table
    fine = detect_nuclei(
        slide_of(np.repeat(np.repeat(pixels, 2, axis=0), 2, axis=1), mpp=0.25),
        tumor_everywhere(pixels.shape),
        PaintedNuclei(),
        cell_px=128,
    ).table
    area_um2 = np.count_nonzero(drawn((400, 500), ellipses)) * 0.25
    for table in (coarse, fine):
        (nucleus,) = table.itertuples()
        assert (nucleus.x_um, nucleus.y_um) == pytest.approx((150.25, 100.25), abs=0.1)
        assert nucleus.area_um2 == pytest.approx(area_um2, rel=0.02)
        assert nucleus.geometry.contains(shapely.Point(nucleus.x_um, nucleus.y_um))
        assert nucleus.geometry.area == pytest.approx(nucleus.area_um2, rel=0.1)


def test_nuclei_outside_the_tumor_are_kept_and_marked():
    ellipses = [(60.0, 60.0, 8.0, 10.0, 0.0, POSITIVE), (100.0, 60.0, 8.0, 10.0, 0.0, POSITIVE)]
    mask = Mask(np.zeros((50, 50), dtype=bool), 2.0, "ki67")
    mask.pixels[:, :20] = True  # up to 40 µm, which is 80 px
    table = detect(painted((200, 200), ellipses), mask).table
    assert table["in_tumor"].tolist() == [True, False]


def test_positive_nuclei_have_more_dab_and_negative_ones_more_hematoxylin():
    ellipses = [(60.0, 60.0, 8.0, 10.0, 0.0, POSITIVE), (100.0, 60.0, 8.0, 10.0, 0.0, NEGATIVE)]
    positive, negative = detect(painted((200, 200), ellipses)).table.itertuples()
    assert positive.dab_od > 0.2 > negative.dab_od
    assert negative.hematoxylin_od > positive.hematoxylin_od


def test_the_table_has_its_columns_in_order_sorted_and_numbered():
    table = detect(painted((400, 400), grid((400, 400)))).table
    assert list(table.columns) == [*COLUMNS, "geometry"]
    assert {name: str(kind) for name, kind in table.dtypes.items() if name != "geometry"} == COLUMNS
    assert table["nucleus_id"].tolist() == list(range(1, len(table) + 1))
    assert table["y_um"].is_monotonic_increasing


def test_without_tumor_the_table_is_empty_with_the_same_columns():
    found = detect(painted((200, 200), []), Mask.empty("ki67"))
    full = detect(painted((200, 200), grid((200, 200)))).table
    assert len(found.table) == 0
    assert found.statistics.tiles == 0
    assert found.table.dtypes.equals(full.dtypes)
    assert empty_nuclei().dtypes.equals(full.dtypes)


def test_tumor_without_nuclei_gives_an_empty_table():
    assert len(detect(painted((200, 200), [])).table) == 0
