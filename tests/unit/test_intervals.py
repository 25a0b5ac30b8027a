import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t

from benchmarks.interval_coverage import Tumor, coverage_of_binomials, coverage_of_clusters, exact_coverage
from ki67.intervals import (
    BlockBootstrap,
    block_bootstrap,
    block_counts,
    equal_blocks,
    pooled_interval,
    pooled_probability_above,
    wilson_interval,
    wilson_probability_above,
)
from ki67.nucleus_squares import SquareCounts, TumorNuclei
from tests.unit.drawn_tables import counted


def blocks(indices: np.ndarray, each: int = 100, side_um: float = 1000.0) -> TumorNuclei:
    """So many nuclei in the middle of each block of a square tumour, of which the given fraction is positive."""
    size = indices.shape[0]
    rows, columns = np.divmod(np.repeat(np.arange(size * size), each), size)
    points = (np.column_stack([columns, rows]) + 0.5) * side_um
    positive = np.arange(each)[None] < np.rint(indices.ravel()[:, None] * each)
    return TumorNuclei(points, positive.ravel())


@pytest.mark.parametrize(
    ("positive", "total", "low", "high"),
    [
        # Newcombe (1998) Statistics in Medicine 17:857-872, table I, method 3 (score, no continuity correction)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # by hand: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
        (15, 100, 0.0931, 0.2328),
    ],
)
def test_wilson_interval_equals_published_values(positive, total, low, high):
    assert np.allclose(wilson_interval(positive, total), (low, high), atol=5.1e-5)


def test_wilson_interval_of_nothing_is_missing():
    assert all(math.isnan(bound) for bound in wilson_interval(0, 0))
    assert math.isnan(wilson_probability_above(0, 0, 0.1))


def test_wilson_interval_widens_with_confidence_and_stays_within_bounds():
    low, high = wilson_interval(3, 10, confidence=0.99)
    assert low < wilson_interval(3, 10)[0] < 0.3 < wilson_interval(3, 10)[1] < high
    assert wilson_interval(10, 10)[1] == 1.0


def test_the_probability_above_a_cutoff_by_hand():
    # (0.12 - 0.10) / √(0.1 · 0.9 / 900) = 2
    assert wilson_probability_above(108, 900, 0.10) == pytest.approx(norm.cdf(2.0))
    assert wilson_probability_above(90, 900, 0.10) == 0.5
    assert wilson_probability_above(0, 900, 0.10) == pytest.approx(norm.cdf(-10.0))


@given(st.integers(1, 3000), st.data())
def test_probabilities_fall_from_cutoff_to_cutoff_and_rise_with_the_index(total, data):
    positive = data.draw(st.integers(0, total - 1))
    falling = [wilson_probability_above(positive, total, cutoff) for cutoff in (0.05, 0.1, 0.2, 0.3)]
    assert falling == sorted(falling, reverse=True)
    assert wilson_probability_above(positive + 1, total, 0.1) >= wilson_probability_above(positive, total, 0.1)


def test_a_bootstrap_by_hand_counts_resampled_indices_above_a_cutoff():
    found = BlockBootstrap(0.1, 0.4, np.array([0.1, 0.2, 0.2, 0.4]), 50.0, 1000.0)
    assert [found.probability_above(cutoff) for cutoff in (0.05, 0.2, 0.3, 0.4, 0.5)] == [1.0, 0.5, 0.25, 0.125, 0.0]


def test_blocks_of_unlike_size_count_for_fewer():
    assert equal_blocks(SquareCounts(np.zeros((2, 2), int), np.array([[30, 10], [0, 0]]), 1.0, (0, 0))) == 1.6


@pytest.mark.parametrize(
    ("side_mm", "block_um"), [(0.9, None), (1.3, 250.0), (3.0, 500.0), (5.0, 1000.0), (10.0, 1250.0), (30.0, 3000.0)]
)
def test_the_size_of_blocks_follows_that_of_the_tumour(side_mm, block_um):
    at = (np.arange(round(20 * side_mm)) + 0.5) * 50.0
    points = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)
    found = block_counts(TumorNuclei(points, np.zeros(len(points), dtype=bool)))
    assert (None if found is None else found.side_um) == block_um


def test_the_spread_of_the_bootstrap_is_that_of_independent_blocks_by_hand():
    """A chessboard of 0.1 and 0.3: touching blocks make up for one another, so each block counts alone."""
    size = 20
    indices = np.where(np.add.outer(np.arange(size), np.arange(size)) % 2, 0.1, 0.3)
    found = block_bootstrap(blocks(indices, side_um=3000.0))
    assert found is not None
    assert (found.side_um, found.blocks) == (3000.0, pytest.approx(400.0))
    # standard error of the mean of 400 blocks that are 0.1 off: 0.1 / √400, on the logit over p (1 - p) = 0.16;
    # the mean is one of these blocks' own, which takes from 1 what 3 x 3 of them hold: 58² / 400²
    error = 0.1 / math.sqrt(400) / 0.16 / math.sqrt(1 - 58**2 / 400**2)
    reach = error * t.ppf(0.975, 400**2 / 58**2 - 1)
    wanted = [1 / (1 + math.exp(math.log(4) + sign * reach)) for sign in (1, -1)]
    assert np.allclose((found.low, found.high), wanted, atol=0.0015)


def test_touching_blocks_that_are_alike_widen_the_interval():
    random = np.random.default_rng(3)
    coarse = random.choice([0.1, 0.3], (5, 5))
    alike = block_bootstrap(blocks(np.kron(coarse, np.ones((2, 2))), side_um=1250.0))
    mixed = block_bootstrap(
        blocks(random.permutation(np.kron(coarse, np.ones((2, 2))).ravel()).reshape(10, 10), side_um=1250.0)
    )
    assert alike is not None
    assert mixed is not None
    assert alike.high - alike.low > 1.4 * (mixed.high - mixed.low)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_tumour_without_differences_has_no_bootstrap(share):
    assert block_bootstrap(blocks(np.full((8, 8), share))) is None


def test_too_small_a_tumour_has_no_bootstrap():
    assert block_bootstrap(counted(200, 800, side_um=1000.0)) is None
    assert block_bootstrap(counted(200, 800, side_um=1500.0)) is not None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.02, 0.98))
def test_the_bootstrap_does_not_depend_on_the_order_of_nuclei_and_holds_the_index(seed, share):
    random = np.random.default_rng(seed)
    points = random.uniform(0, 5000, (3000, 2))
    nuclei = TumorNuclei(points, random.random(3000) < share * points[:, 0] / 5000)
    order = random.permutation(3000)
    found, again = block_bootstrap(nuclei), block_bootstrap(TumorNuclei(points[order], nuclei.positive[order]))
    assert found is not None
    assert again is not None
    assert np.array_equal(found.indices, again.indices)
    assert 0 <= found.low <= nuclei.positive.mean() <= found.high <= 1
    assert (found.low, found.high) == (again.low, again.high)


def test_another_seed_gives_nearly_the_same_interval():
    nuclei = counted(2000, 8000, side_um=6000.0)
    one, other = block_bootstrap(nuclei), block_bootstrap(nuclei, seed=1)
    assert one is not None
    assert other is not None
    assert one.low != other.low
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.002)


def test_wilson_covers_independent_nuclei():
    assert 0.94 <= exact_coverage(500, 0.05) <= 0.96
    assert 0.94 <= exact_coverage(1000, 0.2) <= 0.96
    assert coverage_of_binomials(300)["wilson"] == pytest.approx(0.95, abs=0.03)


def test_the_block_bootstrap_covers_clustered_nuclei_where_wilson_does_not():
    """A small part of what ``benchmarks/interval_coverage.py`` measures; the field has a correlation length of 0.5 mm."""
    found = coverage_of_clusters(Tumor(nuclei=5000), 150)
    assert found["blocks_least"] >= 50
    assert found["wilson"] < 0.7
    assert found["block_bootstrap"] >= 0.9
    assert found["block_bootstrap_width"] < 2 * found["ideal_width"]


def test_the_pooled_interval_by_hand():
    # indices 0.1 and 0.3 weigh half each: 0.2; below half of √(0.04² + 0.08²), above half of √(0.08² + 0.1²)
    low, high = pooled_interval(*np.array([[10, 30], [100, 100], [0.06, 0.22], [0.18, 0.40]]))
    assert (low, high) == pytest.approx((0.2 - math.hypot(0.02, 0.04), 0.2 + math.hypot(0.04, 0.05)))


def test_one_slide_keeps_its_interval_and_none_has_none():
    assert pooled_interval(*np.array([[30.0], [200.0], [0.11], [0.2]])) == pytest.approx((0.11, 0.2))
    assert all(math.isnan(limit) for limit in pooled_interval(*np.zeros((4, 0))))


def test_the_probability_of_a_pooled_index_by_hand():
    # the limit above 0.2 is as far from 0.2 on the logit as the upper 2.5 % of the normal distribution
    assert pooled_probability_above(200, 1000, 0.15, 0.26, 0.26) == pytest.approx(0.025)
    assert pooled_probability_above(200, 1000, 0.15, 0.26, 0.15) == pytest.approx(0.975)
    assert pooled_probability_above(200, 1000, 0.15, 0.26, 0.2) == 0.5
    assert pooled_probability_above(0, 1000, 0.0, 0.004, 0.1) == wilson_probability_above(0, 1000, 0.1)
