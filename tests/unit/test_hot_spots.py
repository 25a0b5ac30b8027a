import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki67.hot_spots import HotSpot, find_hot_spots, is_hot_spot_driven, share_in_hottest
from ki67.nucleus_squares import TumorNuclei
from tests.unit.drawn_tables import counted


def cells(*given: tuple[int, int, int, int]) -> TumorNuclei:
    """Positive and all nuclei in the middle of cells of 50 µm: row, column, positive, total."""
    points = np.concatenate([np.tile([[50.0 * column + 25, 50.0 * row + 25]], (n, 1)) for row, column, _, n in given])
    return TumorNuclei(points, np.concatenate([np.arange(n) < positive for _, _, positive, n in given]))


def test_the_hottest_window_and_the_next_that_does_not_overlap_by_hand():
    nuclei = cells((10, 10, 300, 500), (10, 11, 100, 500), (30, 30, 150, 250), (30, 31, 50, 250), (75, 75, 400, 499))
    spots = find_hot_spots(nuclei)
    assert spots == (
        HotSpot(x_um=500.0, y_um=500.0, side_um=50.0, positive=300, total=500),
        # one cell holds 250, so the window is of 3 x 3 cells, around the first that both see
        HotSpot(x_um=1450.0, y_um=1450.0, side_um=150.0, positive=200, total=500),
        HotSpot(x_um=550.0, y_um=500.0, side_um=50.0, positive=100, total=500),
    )
    assert spots[0].index == 0.6
    assert spots[0].outline.bounds == (500.0, 500.0, 550.0, 550.0)
    assert find_hot_spots(nuclei, most=1) == spots[:1]


def test_499_nuclei_have_no_hot_spot_and_500_have_one():
    assert find_hot_spots(cells((0, 0, 100, 499))) == ()
    assert find_hot_spots(cells((0, 0, 100, 500)))[0].total == 500
    assert find_hot_spots(TumorNuclei(np.zeros((0, 2)), np.zeros(0, dtype=bool))) == ()


def test_nuclei_too_far_apart_are_no_spot():
    assert find_hot_spots(cells((0, 0, 100, 250), (0, 20, 100, 250)))[0].side_um == 2050.0
    assert find_hot_spots(cells((0, 0, 100, 250), (0, 21, 100, 250))) == ()


@settings(max_examples=40, deadline=None)
@given(st.integers(500, 3000), st.integers(0, 10_000), st.floats(0, 1))
def test_hot_spots_hold_500_are_ranked_apart_and_do_not_depend_on_the_order(total, seed, share):
    random = np.random.default_rng(seed)
    nuclei = TumorNuclei(random.uniform(0, 1500, (total, 2)), random.random(total) < share)
    spots = find_hot_spots(nuclei)
    assert all(spot.total >= 500 and 0 <= spot.index <= 1 for spot in spots)
    assert [spot.index for spot in spots] == sorted((spot.index for spot in spots), reverse=True)
    for number, spot in enumerate(spots):
        held = np.all(
            (nuclei.points_um >= (spot.x_um, spot.y_um))
            & (nuclei.points_um < np.add((spot.x_um, spot.y_um), spot.side_um)),
            axis=1,
        )
        assert (int(nuclei.positive[held].sum()), int(held.sum())) == (spot.positive, spot.total)
        assert all(spot.outline.intersection(other.outline).area == 0 for other in spots[:number])
    order = random.permutation(total)
    assert find_hot_spots(TumorNuclei(nuclei.points_um[order], nuclei.positive[order])) == spots


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_one_more_positive_nucleus_never_lowers_the_hot_spot(seed):
    random = np.random.default_rng(seed)
    positive = random.random(1500) < 0.2
    points = random.uniform(0, 1000, (1500, 2))
    more = positive | (np.arange(1500) == random.integers(1500))
    before, after = (find_hot_spots(TumorNuclei(points, classes))[0].index for classes in (positive, more))
    assert after >= before


def test_the_share_in_the_hottest_tenth_by_hand():
    # ten squares of 500: one holds 300 of the 500 positive nuclei
    even = [(0, 10 * at, 50, 500) for at in range(10)]
    assert share_in_hottest(cells(*even)) == pytest.approx(0.1)
    driven = [(0, 0, 320, 500), *((0, 10 * at, 20, 500) for at in range(1, 10))]
    assert share_in_hottest(cells(*driven)) == pytest.approx(320 / 500)
    # twenty squares: the two hottest
    twenty = [(0, 0, 100, 500), (0, 10, 80, 500), *((0, 10 * at, 10, 500) for at in range(2, 20))]
    assert share_in_hottest(cells(*twenty)) == pytest.approx(180 / 360)


def test_few_positive_nuclei_by_chance_drive_nothing():
    share = share_in_hottest(counted(200, 19_800, side_um=2000.0))
    assert 0.1 < share < 0.3
    assert math.isnan(share_in_hottest(counted(100, 300)))
    assert math.isnan(share_in_hottest(counted(0, 2000)))


@pytest.mark.parametrize(
    ("share", "gap", "driven"), [(0.6, 0.05, True), (0.5, 0.2, False), (0.6, 0.04, False), (math.nan, math.nan, False)]
)
def test_an_index_rests_on_hot_spots_where_half_of_the_positive_nuclei_lie_in_a_tenth(share, gap, driven):
    assert is_hot_spot_driven(share, gap) == driven
