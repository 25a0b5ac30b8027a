"""One-to-one matching of points."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from ki67.matching import match_points


def test_a_greedy_matching_would_miss_a_pair() -> None:
    # The nearest pair is (1, 0), but taking it leaves the other two without a partner.
    found, known = np.array([[0.0, 0.0], [4.0, 0.0]]), np.array([[3.0, 0.0], [7.5, 0.0]])
    ours, theirs = match_points(found, known, 4.0)
    np.testing.assert_array_equal(ours, [0, 1])
    np.testing.assert_array_equal(theirs, [0, 1])


@pytest.mark.parametrize("seed", range(5))
def test_groups_by_themselves_give_what_one_assignment_of_all_gives(seed: int) -> None:
    random = np.random.default_rng(seed)
    found, known = random.uniform(0, 60, (80, 2)), random.uniform(0, 60, (70, 2))
    ours, theirs = match_points(found, known, 4.0)
    distance = cdist(found, known)
    cost = np.where(distance <= 4.0, distance, 1e6)
    rows, columns = linear_sum_assignment(cost)
    near = distance[rows, columns] <= 4.0
    assert len(ours) == near.sum()
    assert distance[ours, theirs].sum() == pytest.approx(distance[rows[near], columns[near]].sum())
    assert len(set(theirs)) == len(theirs)


def test_points_at_the_same_place_and_at_the_radius_match_and_beyond_do_not() -> None:
    known = np.array([[0.0, 0.0], [20.0, 0.0], [40.0, 0.0]])
    found = np.array([[0.0, 0.0], [24.0, 0.0], [44.1, 0.0]])
    np.testing.assert_array_equal(match_points(found, known, 4.0), [[0, 1], [0, 1]])


def test_nothing_matches_nothing() -> None:
    for found, known in [((0, 2), (3, 2)), ((3, 2), (0, 2)), ((0, 2), (0, 2))]:
        assert len(match_points(np.zeros(found), np.ones(known), 4.0)[0]) == 0
