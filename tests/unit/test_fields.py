import itertools

import numpy as np
import pytest

from ki67.fields import OWN_COLUMNS_PX, OWN_ROWS_PX, Band, FieldAssembly, Progress, fields_of_bands


def drawn(height, width, seed=0):
    random = np.random.default_rng(seed)
    probabilities = random.integers(0, 256, (2, height, width), dtype=np.uint8)
    return probabilities, random.integers(0, 256, (height, width, 3), dtype=np.uint8)


def piece(probabilities, rgb, rows, columns):
    return Band(rows.start, columns.start, probabilities[:, rows, columns], rgb[rows, columns])


def content(fields):
    return sorted(((f.first_row_px, f.first_column_px, *f.arrays()) for f in fields), key=lambda field: field[:2])


def assert_same(found, expected):
    assert [field[:2] for field in found] == [field[:2] for field in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one[2], other[2])
        np.testing.assert_array_equal(one[3], other[3])


def test_fields_hold_their_own_pixels_and_a_margin_and_nothing_beyond_the_answers():
    probabilities, rgb = drawn(1100, 1500)
    fields = content(fields_of_bands([Band(100, 200, probabilities, rgb)], margin_px=10))
    assert [field[:2] for field in fields] == list(itertools.product([-10, 502, 1014], [-10, 758, 1526]))
    # On a canvas with the slide's corner at 20, 20.
    canvas = np.zeros((2, 2100, 2600), dtype=np.uint8)
    white = np.full((2100, 2600, 3), 255, dtype=np.uint8)
    canvas[:, 120:1220, 220:1720], white[120:1220, 220:1720] = probabilities, rgb
    for row, column, levels, pixels in fields:
        rows = slice(row + 10, row + 30 + OWN_ROWS_PX)
        columns = slice(column + 10, column + 30 + OWN_COLUMNS_PX)
        np.testing.assert_array_equal(levels, canvas[:, rows, columns])
        np.testing.assert_array_equal(pixels, white[rows, columns])


@pytest.mark.parametrize("rows", [1, 37, 64, 448, 512, 900])
def test_fields_do_not_depend_on_the_height_of_bands(rows):
    probabilities, rgb = drawn(1300, 60)
    bands = [piece(probabilities, rgb, slice(top, top + rows), slice(0, 60)) for top in range(0, 1300, rows)]
    expected = content(fields_of_bands([Band(0, 0, probabilities, rgb)], margin_px=48))
    assert_same(content(fields_of_bands(bands, margin_px=48)), expected)


@pytest.mark.parametrize(("height", "width"), [(300, 200), (1024, 1536), (700, 900)])
def test_fields_do_not_depend_on_the_blocks_that_come_one_after_the_other(height, width):
    probabilities, rgb = drawn(1300, 2700)
    assembly, fields = FieldAssembly(48), []
    for top in range(0, 1300, height):
        for left in range(0, 2700, width):
            fields += content(assembly.fields(Progress(top, top + height, left)))
            assembly.add(piece(probabilities, rgb, slice(top, top + height), slice(left, left + width)))
    fields += content(assembly.fields())
    places = [field[:2] for field in fields]
    assert len(set(places)) == len(places)
    expected = content(fields_of_bands([Band(0, 0, probabilities, rgb)], margin_px=48))
    assert_same(sorted(fields, key=lambda field: field[:2]), expected)


def test_a_field_comes_as_soon_as_its_margin_is_there():
    probabilities, rgb = drawn(600, 900)
    assembly = FieldAssembly(40)
    assembly.add(Band(0, 0, probabilities, rgb))
    # Own pixels end at 472 and 728, the margin at 512 and 768.
    assert list(assembly.fields(Progress(0, 511, 900))) == []
    assert list(assembly.fields(Progress(0, 512, 767))) == []
    (field,) = assembly.fields(Progress(0, 512, 768))
    assert (field.first_row_px, field.first_column_px) == (-40, -40)
    (field,) = assembly.fields(Progress(512, 600, 0))
    assert (field.first_row_px, field.first_column_px) == (-40, 728)


def test_negative_places_are_places_too():
    probabilities, rgb = drawn(100, 100)
    fields = content(fields_of_bands([Band(-50, -50, probabilities, rgb)], margin_px=8))
    assert [field[:2] for field in fields] == [(-520, -776), (-520, -8), (-8, -776), (-8, -8)]


def test_what_is_held_does_not_grow_with_the_slide():
    def most_held(rows_of_blocks, blocks):
        assembly, most = FieldAssembly(40), 0
        for top, left in itertools.product(range(0, rows_of_blocks * 1024, 1024), range(0, blocks * 1536, 1536)):
            list(assembly.fields(Progress(top, top + 1024, left)))
            levels, rgb = np.zeros((2, 1024, 1536), dtype=np.uint8), np.zeros((1024, 1536, 3), dtype=np.uint8)
            assembly.add(Band(top, left, levels, rgb))
            most = max(most, sum((b.rgb if b.rgb.base is None else b.rgb.base).nbytes for b in assembly._bands))
        return most / (1024 * 1536 * 3)

    assert most_held(9, 2) == most_held(3, 2)
    # Of blocks above only the rows of the margins are kept.
    assert most_held(3, 12) < 3.5
