import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki67.nucleus_squares import TumorNuclei
from ki67.scoring_protocols import global_score
from tests.unit.drawn_tables import counted


def fields(indices: list[list[float]], each: int = 100) -> TumorNuclei:
    """Fields of 25 µm, the finest there are, with so many nuclei in their middle."""
    table = np.array(indices)
    rows, columns = np.divmod(np.repeat(np.arange(table.size), each), table.shape[1])
    positive = np.arange(each)[None] < np.rint(table.ravel()[:, None] * each)
    return TumorNuclei((np.column_stack([columns, rows]) + 0.5) * 25.0, positive.ravel())


def test_both_global_scores_by_hand():
    """Three quarters of the tumour are low and one quarter is high: 0.05 and 0.5."""
    score = global_score(fields([[0.05] * 30 + [0.5] * 10] * 3))
    # the column of fields at the border sees 2 columns of the other kind or 1: (2 · 0.05 + 0.5) / 3 = 0.2 is medium,
    # (0.05 + 2 · 0.5) / 3 = 0.35 is high
    assert score.shares == pytest.approx((0.0, 29 / 40, 1 / 40, 10 / 40))
    assert score.fields == (0, 4, 3, 4)
    assert score.unweighted == pytest.approx((4 * 0.05 + 3 * 0.05 + 4 * 0.5) / 11)
    assert score.weighted == pytest.approx(30 / 40 * 0.05 + 10 / 40 * 0.5)


@pytest.mark.parametrize(("index", "area"), [(0.0, 0), (0.01, 1), (0.09, 1), (0.1, 2), (0.29, 2), (0.3, 3), (1.0, 3)])
def test_an_even_tumour_is_one_area_and_has_its_own_index(index, area):
    score = global_score(fields([[index] * 6] * 6))
    assert score.shares[area] == 1.0
    assert score.fields[area] == 4
    assert (score.unweighted, score.weighted) == pytest.approx((index, index))


def test_too_few_nuclei_have_no_global_score():
    for nuclei in (counted(0, 0), counted(20, 79), counted(50, 150, side_um=50_000.0)):
        score = global_score(nuclei)
        assert math.isnan(score.unweighted)
        assert math.isnan(score.weighted)
    assert global_score(fields([[0.3]])).unweighted == 0.3


def test_with_every_field_scored_the_weighted_score_is_the_index_of_all_nuclei():
    random = np.random.default_rng(5)
    points = random.uniform(0, 4000, (40_000, 2))
    nuclei = TumorNuclei(points, random.random(40_000) < 0.05 + 0.5 * (points[:, 0] / 4000) ** 2)
    assert global_score(nuclei, each=10**6).weighted == pytest.approx(nuclei.positive.mean(), abs=0.005)
    assert global_score(nuclei).weighted == pytest.approx(nuclei.positive.mean(), abs=0.06)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_global_scores_are_fractions_and_do_not_depend_on_the_order(seed, share):
    random = np.random.default_rng(seed)
    nuclei = TumorNuclei(random.uniform(0, 1500, (2000, 2)), random.random(2000) < share)
    order = random.permutation(2000)
    score = global_score(nuclei)
    assert score == global_score(TumorNuclei(nuclei.points_um[order], nuclei.positive[order]))
    assert 0 <= score.unweighted <= 1
    assert 0 <= score.weighted <= 1
    assert math.fsum(score.shares) == pytest.approx(1)
