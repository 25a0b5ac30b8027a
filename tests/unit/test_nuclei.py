import time

import cv2
import numpy as np
import pytest
import shapely

from ki67.geometry import Mask
from ki67.nuclei import detect_nuclei, extract_nuclei, outline_nuclei, polygons
from ki67.nucleus_table import COLUMNS, empty_nuclei
from ki67.training.targets import NEGATIVE, POSITIVE, five_class_target
from tests.unit.drawn_networks import COLOURS, PaintedNuclei, slide_of


def drawn(shape, ellipses):
    """Five-class image of ellipses (x, y, half axes, angle, class) in pixels; later ones cover earlier ones."""
    labels = np.zeros(shape, dtype=np.uint16)
    for number, (x, y, axis, other, angle, _) in enumerate(ellipses, start=1):
        cv2.ellipse(labels, ((x, y), (2 * axis, 2 * other), angle), number, -1)
    return five_class_target(labels, {number: entry[5] for number, entry in enumerate(ellipses, start=1)})


def probabilities_of(classes):
    levels = np.stack([(classes == index) * np.uint8(255) for index in range(5)])
    return np.stack([cv2.GaussianBlur(level, (0, 0), 0.8) for level in levels])


def grid(shape, step=40, seed=0, margin=20):
    random = np.random.default_rng(seed)
    return [
        (
            float(x + random.uniform(-8, 8)),
            float(y + random.uniform(-8, 8)),
            float(random.uniform(6, 9)),
            float(random.uniform(8, 12)),
            float(random.uniform(0, 180)),
            POSITIVE if random.random() < 0.3 else NEGATIVE,
        )
        for y in range(margin, shape[0] - margin, step)
        for x in range(margin, shape[1] - margin, step)
    ]


def found_by(nuclei_x, nuclei_y, ellipses, radius=2.0):
    """For each ellipse, the numbers of the nuclei found at its middle."""
    return [np.flatnonzero(np.hypot(nuclei_x - entry[0], nuclei_y - entry[1]) < radius) for entry in ellipses]


def test_discs_are_found_once_each_where_they_are_and_with_their_class():
    ellipses = grid((400, 600))
    nuclei = extract_nuclei(probabilities_of(drawn((400, 600), ellipses)), mpp=0.5)
    assert len(nuclei.x_px) == len(ellipses)
    for entry, which in zip(ellipses, found_by(nuclei.x_px - 0.5, nuclei.y_px - 0.5, ellipses), strict=True):
        (index,) = which
        assert nuclei.positive[index] == (entry[5] == POSITIVE)
        assert nuclei.area_px[index] == pytest.approx(np.pi * entry[2] * entry[3], rel=0.15)
        assert nuclei.probability[index] > 0.8


def test_touching_nuclei_are_two():
    ellipses = [(40.0, 40.0, 10.0, 10.0, 0.0, POSITIVE), (58.0, 40.0, 10.0, 10.0, 0.0, NEGATIVE)]
    nuclei = extract_nuclei(probabilities_of(drawn((80, 100), ellipses)), mpp=0.5)
    assert sorted(nuclei.positive) == [False, True]


def test_interiors_that_run_together_are_parted_at_a_narrow_neck_only():
    def count(distance):
        levels = np.zeros((5, 80, 120), dtype=np.uint8)
        for x in (50.0, 50.0 + distance):
            cv2.circle(levels[1], (round(x), 40), 10, 255, -1)
        return len(extract_nuclei(levels, mpp=0.5).x_px)

    assert count(18) == 2
    assert count(8) == 1


def test_a_long_nucleus_stays_one():
    ellipses = [(60.0, 40.0, 5.0, 22.0, 65.0, NEGATIVE)]
    assert len(extract_nuclei(probabilities_of(drawn((80, 120), ellipses)), mpp=0.5).x_px) == 1


def test_the_class_is_that_of_most_of_the_nucleus():
    levels = np.zeros((5, 40, 40), dtype=np.uint8)
    cv2.circle(levels[1], (20, 20), 8, 150, -1)
    cv2.circle(levels[3], (20, 20), 8, 100, -1)
    nuclei = extract_nuclei(levels, mpp=0.5)
    assert nuclei.positive.tolist() == [True]
    assert nuclei.probability[0] == pytest.approx(150 / 255, abs=1e-3)


def test_specks_and_sheets_are_no_nuclei():
    levels = np.zeros((5, 200, 200), dtype=np.uint8)
    cv2.circle(levels[1], (20, 20), 2, 255, -1)
    cv2.rectangle(levels[3], (60, 60), (180, 180), 255, -1)
    assert len(extract_nuclei(levels, mpp=0.5).x_px) == 0


def test_nothing_gives_no_nuclei():
    nuclei = extract_nuclei(np.zeros((5, 32, 32), dtype=np.uint8), mpp=0.5)
    assert nuclei.labels.shape == (32, 32)
    assert len(nuclei.x_px) == len(nuclei.positive) == 0


def test_outlines_enclose_the_area_of_their_nucleus():
    ellipses = grid((300, 300), seed=2)
    nuclei = extract_nuclei(probabilities_of(drawn((300, 300), ellipses)), mpp=0.5)
    outlines = polygons(outline_nuclei(nuclei))
    assert shapely.is_valid(outlines).all()
    assert (shapely.get_num_coordinates(outlines) > 12).all()
    np.testing.assert_allclose(shapely.area(outlines), nuclei.area_px, rtol=0.08)
    distance = shapely.distance(shapely.centroid(outlines), shapely.points(nuclei.x_px, nuclei.y_px))
    assert distance.max() < 0.5


def test_an_outline_that_crosses_itself_is_made_valid():
    # An hourglass.
    crossing = np.array([[[0, 0], [4, 4], [4, 0], [0, 4]]], dtype=float)
    (outline,) = polygons(crossing)
    assert outline.is_valid
    assert outline.area == pytest.approx(16)


# ---------------------------------------------------------------------------------------------- on a slide


def painted(shape, ellipses):
    return COLOURS[drawn(shape, ellipses)]


def tumor_everywhere(shape, mpp=0.5):
    return Mask(np.ones((-(-shape[0] // 8), -(-shape[1] // 8)), dtype=bool), 8 * mpp, "ki67")


def detect(pixels, tumor=None, *, core_px=128, **options):
    tumor = tumor or tumor_everywhere(pixels.shape)
    return detect_nuclei(slide_of(pixels), tumor, PaintedNuclei(), core_px=core_px, halo_px=32, **options)


def test_a_nucleus_on_a_seam_is_counted_once():
    # Seams lie at every 128 px; nuclei sit on them, on their crossings, and just beside.
    places = [(128.0, 64.0), (64.0, 128.0), (128.0, 128.0), (200.0, 127.0), (300.0, 129.0), (256.0, 256.0)]
    ellipses = [(x, y, 8.0, 11.0, 30.0, POSITIVE) for x, y in places]
    table = detect(painted((400, 400), ellipses)).table
    assert len(table) == len(places)
    for which in found_by(table["x_um"] * 2 - 0.5, table["y_um"] * 2 - 0.5, ellipses):
        assert len(which) == 1


@pytest.mark.parametrize("core_px", [64, 96, 192, 448])
def test_seams_change_no_nucleus(core_px):
    ellipses = grid((700, 500), step=24, seed=5)
    pixels = painted((700, 500), ellipses)
    expected = detect(pixels, core_px=704).table
    table = detect(pixels, core_px=core_px).table
    assert len(expected) > 400
    assert len(table) == len(expected)
    for name in ("x_um", "y_um", "positive", "area_um2", "dab_od"):
        np.testing.assert_array_equal(table[name], expected[name])


def test_rows_without_tiles_between_tumor_leave_nothing_out_and_nothing_twice():
    ellipses = grid((900, 300), seed=7)
    mask = tumor_everywhere((900, 300))
    mask.pixels[30:80] = False  # 240 to 640 px
    table = detect(painted((900, 300), ellipses), mask, core_px=64).table
    inside = [entry for entry in ellipses if not 236 < entry[1] < 644]
    counts = [len(which) for which in found_by(table["x_um"] * 2 - 0.5, table["y_um"] * 2 - 0.5, inside)]
    assert counts == [1] * len(inside)


@pytest.mark.parametrize(("batch_size", "reader_threads"), [(1, 1), (7, 4)])
def test_nuclei_depend_on_neither_batch_size_nor_threads(batch_size, reader_threads):
    pixels = painted((500, 500), grid((500, 500)))
    expected = detect(pixels, batch_size=3, reader_threads=2).table
    table = detect(pixels, batch_size=batch_size, reader_threads=reader_threads).table
    assert table.equals(expected)


def test_coordinates_are_microns_and_outlines_lie_around_them():
    ellipses = [(300.0, 200.0, 8.0, 10.0, 0.0, POSITIVE)]
    pixels = painted((400, 500), ellipses)
    coarse = detect(pixels).table
    fine = detect_nuclei(
        slide_of(np.repeat(np.repeat(pixels, 2, axis=0), 2, axis=1), mpp=0.25),
        tumor_everywhere(pixels.shape),
        PaintedNuclei(),
        core_px=128,
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


def test_fifty_thousand_nuclei_take_seconds():
    shape = (2240, 2240)
    levels = probabilities_of(drawn(shape, grid(shape, step=20, margin=12)))
    started = time.process_time()
    nuclei = extract_nuclei(levels, mpp=0.5)
    polygons(outline_nuclei(nuclei))
    seconds = time.process_time() - started
    assert len(nuclei.x_px) > 8000
    print(f"{seconds * 50_000 / len(nuclei.x_px):.1f} s for 50,000 nuclei")
    assert seconds * 50_000 / len(nuclei.x_px) < 20
