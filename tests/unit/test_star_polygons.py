"""Polygons of two stains in an answer, and the nuclei that they are."""

import cv2
import numpy as np
import pytest
import shapely

from ki67.fields import Band, fields_of_bands
from ki67.geometry import Mask
from ki67.nuclei import field_margin_px, nuclei_of_field, nuclei_table
from ki67.star_polygons import (
    StarOptions,
    answer_channels,
    candidates,
    joined,
    labels_of,
    packed,
    probabilities_of,
    star_nuclei,
    suppressed,
)

pytest.importorskip("stardist", reason="StarDist is not installed; install requirements-test.lock")

RAYS = 32


def answer_of(shape, discs, *, grid_px=2, rays=RAYS):
    """What a perfect network answers to discs ``(x, y, radius, stains, depth)``; later ones cover earlier ones."""
    height, width = (-(-length // grid_px) for length in shape)
    probability, distances = np.zeros((2, height, width)), np.ones((2, height, width, rays), dtype=np.float32)
    angles = np.linspace(0, 2 * np.pi, rays, endpoint=False)
    for x, y, radius, stains, depth in discs:
        top, left = (max(0, int((middle - radius) // grid_px)) for middle in (y, x))
        bottom, right = (int((middle + radius) // grid_px) + 2 for middle in (y, x))
        box = np.s_[top:bottom, left:right]
        rows, columns = (part[: height - top, : width - left] * grid_px for part in np.mgrid[box])
        down, across = rows - y, columns - x
        inside = np.hypot(down, across) < radius
        # From a point inside a disc to its border along a ray.
        along = down[..., None] * np.sin(angles) + across[..., None] * np.cos(angles)
        square = radius**2 - (down**2 + across**2)[..., None] + along**2
        reach = np.sqrt(np.maximum(square, 0)) - along
        for stain in stains:
            probability[stain][box][inside] = depth * (1 - np.hypot(down, across)[inside] / radius)
            distances[stain][box][inside] = reach[inside]
    return packed(probability, distances, grid_px)


def nuclei_in(answer, *, grid_px=2, options=None):
    return star_nuclei(answer, 0.5, rays=RAYS, grid_px=grid_px, options=options)


@pytest.mark.parametrize(("grid_px", "channels"), [(1, 68), (2, 17), (4, 5)])
def test_an_answer_gives_back_what_was_put_into_it(grid_px, channels):
    random = np.random.default_rng(0)
    probability, distances = random.random((2, 6, 8)), random.uniform(1, 60, (2, 6, 8, RAYS))
    answer = packed(probability, distances, grid_px)
    assert answer.shape == (channels, 6 * grid_px, 8 * grid_px) == (answer_channels(RAYS, grid_px), *answer.shape[1:])
    for stain in (0, 1):
        stars = candidates(answer, stain, RAYS, grid_px, 0.0)
        rows, columns = (stars.centers // grid_px).T
        assert len(stars.probability) == 48
        assert (np.diff(stars.probability) <= 0).all()
        np.testing.assert_allclose(stars.probability, probability[stain, rows, columns], atol=1e-5)
        np.testing.assert_allclose(stars.distances, distances[stain, rows, columns], atol=0.125)
    maps = probabilities_of(answer, RAYS, grid_px)
    assert maps.shape == (2, 6 * grid_px, 8 * grid_px)
    np.testing.assert_allclose(maps[:, ::grid_px, ::grid_px] / 255, probability, atol=1 / 128)


def test_nothing_is_found_where_nothing_was_asked():
    assert len(candidates(np.zeros((17, 64, 64), dtype=np.uint8), 0, RAYS, 2, 0.0).probability) == 0
    nuclei = nuclei_in(np.zeros((17, 64, 64), dtype=np.uint8))
    assert (len(nuclei.area_px), nuclei.labels.any()) == (0, False)


def test_discs_are_found_whole_and_where_they_are():
    discs = [(40.0, 50.0, 10.0, (0,), 0.9), (90.0, 30.0, 7.0, (0,), 0.8), (70.0, 90.0, 12.0, (0,), 0.95)]
    nuclei = nuclei_in(answer_of((128, 128), discs))
    order = np.argsort(nuclei.y_px)
    expected = sorted(discs, key=lambda disc: disc[1])
    np.testing.assert_allclose(nuclei.x_px[order], [disc[0] + 0.5 for disc in expected], atol=0.3)
    np.testing.assert_allclose(nuclei.y_px[order], [disc[1] + 0.5 for disc in expected], atol=0.3)
    np.testing.assert_allclose(nuclei.area_px[order], [np.pi * disc[2] ** 2 for disc in expected], rtol=0.07)
    assert not nuclei.positive.any()


@pytest.mark.parametrize(
    ("stains", "positive"), [((0,), False), ((1,), True), ((0, 1), True)], ids=["blue", "brown", "both"]
)
def test_a_nucleus_is_positive_where_the_dab_channel_has_one(stains, positive):
    nuclei = nuclei_in(answer_of((64, 64), [(32.0, 30.0, 9.0, stains, 0.9)]))
    assert list(nuclei.positive) == [positive]


def test_a_nucleus_that_brown_hardly_touches_stays_negative():
    blue, brown = (30.0, 30.0, 10.0, (0,), 0.95), (42.0, 30.0, 7.0, (1,), 0.9)
    nuclei = nuclei_in(answer_of((64, 80), [blue, brown]))
    assert list(nuclei.positive[np.argsort(nuclei.x_px)]) == [False, True]
    covered = nuclei_in(answer_of((64, 80), [blue, (30.0, 30.0, 8.0, (1,), 0.9)]))
    assert list(covered.positive) == [True]
    small = nuclei_in(answer_of((64, 80), [blue, (30.0, 30.0, 6.0, (1,), 0.9)]))
    assert list(small.positive) == [False], "36 % of it is covered"


def test_each_nucleus_has_the_most_probable_outline_of_either_stain():
    for blue, brown, radius in ((0.95, 0.7, 10.0), (0.7, 0.95, 8.0)):
        discs = [(30.0, 30.0, 10.0, (0,), blue), (31.0, 30.0, 8.0, (1,), brown)]
        nuclei = nuclei_in(answer_of((64, 64), discs))
        assert len(nuclei.area_px) == 1
        assert nuclei.area_px[0] == pytest.approx(np.pi * radius**2, rel=0.08)


def test_specks_and_monsters_are_left_out():
    discs = [(20.0, 20.0, 3.0, (0,), 0.9), (100.0, 100.0, 40.0, (0,), 0.9), (30.0, 100.0, 9.0, (0,), 0.9)]
    nuclei = nuclei_in(answer_of((160, 160), discs), options=StarOptions(smallest_um2=12, largest_um2=500))
    assert nuclei.x_px == pytest.approx([30.5], abs=0.3)
    assert set(np.unique(nuclei.labels)) == {0, 1}


def test_of_two_that_overlap_the_more_probable_stays():
    stars = joined(
        *(
            candidates(answer_of((64, 64), [disc]), 0, RAYS, 2, 0.5)
            for disc in (
                (30.0, 30.0, 9.0, (0,), 0.7),
                (34.0, 30.0, 9.0, (0,), 0.9),
            )
        )
    )
    kept = suppressed(stars, 0.4)
    assert len(kept.probability) == 1
    assert kept.probability[0] == stars.probability.max()
    labels = labels_of(
        joined(kept, suppressed(candidates(answer_of((64, 64), [(12.0, 30.0, 9.0, (0,), 0.7)]), 0, RAYS, 2, 0.5), 0.4)),
        (64, 64),
    )
    assert (labels[30, 34], labels[30, 12]) == (1, 2)


# ---------------------------------------------------------------------------------------------- seams


def crowded(shape, seed=0):
    """Discs in rows and columns that touch and overlap, of either or both stains."""
    random = np.random.default_rng(seed)
    return [
        (
            float(x + random.uniform(-3, 3)),
            float(y + random.uniform(-3, 3)),
            float(random.uniform(6, 11)),
            ((0,), (1,), (0, 1))[int(random.integers(3))],
            float(random.uniform(0.6, 1.0)),
        )
        for y in range(10, shape[0] - 10, 15)
        for x in range(10, shape[1] - 10, 15)
    ]


def table_of(bands, *, backwards=False, grid_px=2):
    def extract(answer, mpp):
        return star_nuclei(answer, mpp, rays=RAYS, grid_px=grid_px)

    fields = list(fields_of_bands(bands, margin_px=field_margin_px(0.5)))
    found = [nuclei_of_field(field, mpp=0.5, extract=extract) for field in (reversed(fields) if backwards else fields)]
    return nuclei_table(found, Mask(np.ones((400, 400), dtype=bool), 8.0, "ki67"))


def bands_of(answer, rgb, rows):
    for top in range(0, rgb.shape[0], rows):
        yield Band(top, 0, answer[:, top : top + rows].copy(), rgb[top : top + rows].copy())


def assert_same(table, expected):
    assert table.drop(columns="geometry").equals(expected.drop(columns="geometry"))
    assert (shapely.to_wkb(table.geometry.to_numpy()) == shapely.to_wkb(expected.geometry.to_numpy())).all()


@pytest.mark.parametrize("grid_px", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_no_nucleus_depends_on_how_the_answers_came(grid_px):
    shape = (620, 900)
    answer = answer_of(shape, crowded(shape), grid_px=grid_px)
    rgb = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = table_of(bands_of(answer, rgb, 620), grid_px=grid_px)
    assert len(expected) > 1500
    for rows in (64, 448):
        assert_same(table_of(bands_of(answer, rgb, rows), grid_px=grid_px), expected)
    assert_same(table_of(bands_of(answer, rgb, 620), backwards=True, grid_px=grid_px), expected)


def test_fields_find_what_is_found_in_the_whole_image():
    shape = (620, 900)
    discs = [disc for disc in crowded(shape, seed=1) if disc[2] < 8]  # without long chains of overlaps
    answer = answer_of(shape, discs)
    rgb = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    table, whole = table_of(bands_of(answer, rgb, 512)), nuclei_in(answer)
    order = np.lexsort((whole.x_px, whole.y_px))
    assert len(table) > 500
    np.testing.assert_array_equal(table["y_um"], whole.y_px[order] * 0.5)
    np.testing.assert_array_equal(table["x_um"], whole.x_px[order] * 0.5)
    np.testing.assert_array_equal(table["positive"], whole.positive[order])


def test_an_answer_that_the_edge_of_an_image_cuts_is_read():
    discs = [(30.0, 30.0, 9.0, (0,), 0.9)]
    answer = answer_of((64, 64), discs)[:, :61, :47]
    nuclei = nuclei_in(answer)
    assert nuclei.labels.shape == (61, 47)
    assert nuclei.x_px == pytest.approx([30.5], abs=0.3)


def test_labels_are_those_of_the_polygons():
    answer = answer_of((64, 64), [(30.0, 34.0, 10.0, (0,), 0.9)])
    labels = labels_of(suppressed(candidates(answer, 0, RAYS, 2, 0.5), 0.4), (64, 64))
    disc = cv2.circle(np.zeros((64, 64), dtype=np.uint8), (30, 34), 10, 1, -1)
    both, either = ((labels > 0) & (disc > 0)).sum(), ((labels > 0) | (disc > 0)).sum()
    assert both / either > 0.9
