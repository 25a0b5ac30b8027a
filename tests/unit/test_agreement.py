"""Agreement: published worked examples to the decimals printed there, properties, and what is undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from ki67.agreement import (
    Estimate,
    bland_altman,
    concordance,
    confusion_matrix,
    group_agreement,
    index_errors,
    intraclass_correlations,
    krippendorff_alpha,
    pair_agreement,
    pearson,
    same_category,
    share_within,
    spearman,
    weighted_kappa,
)

# Shrout & Fleiss (1979), table 2: six targets, four judges.
JUDGES = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float)

# Bland & Altman (1986), table 1: peak expiratory flow rate in l/min, first readings of the large and the mini meter.
LARGE = np.array([494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427], dtype=float)
MINI = np.array([512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451], dtype=float)

# Zou (2013), doi:10.1177/0962280211402548: the pairs of the data set `reps` of the R package SimplyAgree.
REPS = np.array(
    [
        *[(7.83, 6.57), (7.42, 5.62), (7.89, 6.9), (7.12, 6.57), (6.16, 4.06), (7.26, 4.29), (6.71, 4.26)],
        *[(4.75, 4.71), (5.24, 5.5), (4.86, 5.08), (4.78, 5.02), (6.05, 6.01), (5.42, 5.67)],
        *[(4.21, 4.14), (3.61, 4.2), (3.72, 4.61), (3.87, 4.68), (3.92, 5.04)],
    ]
)

# Krippendorff (2011), section C: four observers, twelve units, with missing values.
NAN = math.nan
OBSERVERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
).T


# Published worked examples


def test_icc_of_shrout_and_fleiss():
    """Values from table 4 of the paper; intervals as printed by ICC of the R package psych for these data."""
    found = intraclass_correlations(JUDGES)
    assert [f"{found[name].value:.2f}" for name in ("icc_2_1", "icc_3_1")] == ["0.29", "0.71"]
    absolute, consistent = found["icc_2_1"], found["icc_3_1"]
    assert (f"{absolute.low:.3f}", f"{absolute.high:.2f}") == ("0.019", "0.76")
    assert (f"{consistent.low:.3f}", f"{consistent.high:.2f}") == ("0.342", "0.95")


def test_bias_and_limits_of_bland_and_altman():
    """The paper takes 2 standard deviations, and computes limits from the bias and deviation as printed."""
    found = bland_altman(LARGE, MINI)
    bias = found["bias"]
    deviation = (found["limit_high"].value - found["limit_low"].value) / (2 * stats.norm.ppf(0.975))
    assert (f"{bias.value:.1f}", f"{deviation:.1f}") == ("-2.1", "38.8")
    limits = [round(bias.value, 1) + sign * 2 * round(deviation, 1) for sign in (-1, 1)]
    assert [f"{limit:.1f}" for limit in limits] == ["-79.7", "75.5"]
    assert (f"{bias.low:.1f}", f"{bias.high:.1f}") == ("-22.0", "17.8")
    assert (f"{found['limit_low'].value:.1f}", f"{found['limit_high'].value:.1f}") == ("-78.1", "73.9")


def test_intervals_of_limits_as_simplyagree_prints_them():
    """Vignette "Agreement tests" of the R package SimplyAgree: 80 % limits with 90 % intervals, bias with 95 %."""
    limits = bland_altman(*REPS.T, share=0.8, confidence=0.9)
    printed = {"limit_low": (-1.1214, -1.8037, -0.4391), "limit_high": (1.9980, 1.3157, 2.6803)}
    for name, numbers in printed.items():
        found = limits[name]
        assert tuple(round(number, 4) for number in (found.value, found.low, found.high)) == numbers
    bias = bland_altman(*REPS.T)["bias"]
    assert tuple(round(number, 4) for number in (bias.value, bias.low, bias.high)) == (0.4383, -0.1669, 1.0436)


def test_concordance_as_simplyagree_prints_it():
    """Vignette "Agreement tests" of the R package SimplyAgree: CCC 0.4791, 95 % interval 0.1276 to 0.7237."""
    found = concordance(*REPS.T)
    assert tuple(round(number, 4) for number in (found.value, found.low, found.high)) == (0.4791, 0.1276, 0.7237)


def test_concordance_by_the_definition_of_lin():
    """Lin (1989), equation 1: one less the mean squared difference over what it would be without correlation."""
    spread = np.var(LARGE) + np.var(MINI) + (LARGE.mean() - MINI.mean()) ** 2
    expected = 1 - np.mean((LARGE - MINI) ** 2) / spread
    assert concordance(LARGE, MINI).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("table", "weights", "printed"),
    [
        # Two radiologists on 85 mammograms, Stata manual, kap, wgt(w): 0.5684.
        ([[21, 12, 0, 0], [4, 17, 1, 0], [3, 9, 15, 2], [0, 0, 0, 1]], "linear", "0.5684"),
        # Agresti (1990), sexual fun of 91 couples, as Kappa of the R package vcd prints it: 0.2374.
        ([[7, 7, 2, 3], [2, 8, 3, 7], [1, 5, 4, 9], [2, 8, 9, 14]], "linear", "0.2374"),
        # anxiety[, 2:3] with weight "equal" and "squared" of kappa2 in the R package irr: 0.1459075 and 0.2520325.
        ("anxiety", "linear", "0.1459075"),
        ("anxiety", "quadratic", "0.2520325"),
    ],
)
def test_weighted_kappa_of_published_tables(table, weights, printed):
    if table == "anxiety":
        second = [1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 6, 6]
        third = [3, 1, 1, 1, 1, 3, 1, 1, 2, 2, 2, 3, 3, 3, 2, 2, 4, 6, 1, 4]
        levels = [1, 2, 3, 4, 6]  # irr leaves out level 5, which nobody used
        table = np.zeros((5, 5), dtype=int)
        np.add.at(table, ([levels.index(level) for level in second], [levels.index(level) for level in third]), 1)
    found = weighted_kappa(np.array(table), weights)
    assert f"{found.value:.{len(printed) - 2}f}" == printed


def test_interval_of_weighted_kappa_as_sas_prints_it():
    """Example of PROC FREQ that the tests of statsmodels quote: 0.4701, 95 % limits 0.1845 and 0.7558."""
    found = weighted_kappa(np.array([[0, 4, 1], [0, 8, 0], [0, 1, 5]]), "linear")
    assert tuple(round(number, 4) for number in (found.value, found.low, found.high)) == (0.4701, 0.1845, 0.7558)


def test_alpha_of_krippendorff():
    """Section E of the paper: 0.849 for interval data; units with one value do not count."""
    found = krippendorff_alpha(OBSERVERS)
    assert f"{found.value:.3f}" == "0.849"
    assert found.n == 11
    assert found.low < found.value <= found.high


def test_pearson_is_that_of_scipy_with_its_interval():
    expected = stats.pearsonr(LARGE, MINI)
    found, limits = pearson(LARGE, MINI), expected.confidence_interval()
    assert (found.value, found.low, found.high) == pytest.approx((expected.statistic, limits.low, limits.high))


def test_interval_of_spearman_is_that_of_bonett_and_wright():
    """Bonett & Wright (2000): the standard error of Fisher's z is the root of (1 + r²/2) / (n - 3)."""
    found = spearman(LARGE, MINI)
    half = stats.norm.ppf(0.975) * math.sqrt((1 + found.value**2 / 2) / (17 - 3))
    assert (math.atanh(found.low), math.atanh(found.high)) == pytest.approx(
        (math.atanh(found.value) - half, math.atanh(found.value) + half)
    )


def test_interval_of_spearman_holds_in_95_of_100_samples():
    random = np.random.default_rng(3)
    truth = 6 / math.pi * math.asin(0.8 / 2)  # of a normal pair with a correlation of 0.8
    samples = [random.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], size=60).T for _ in range(500)]
    found = [spearman(*sample) for sample in samples]
    assert 0.92 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.98


def test_intervals_of_icc_and_limits_hold_in_95_of_100_samples():
    random = np.random.default_rng(5)
    hits = {"icc_2_1": 0, "icc_3_1": 0, "limit_high": 0, "concordance": 0}
    for _ in range(500):
        # Slides of variance 4, three raters of variance 0.25, errors of variance 1.
        raters = random.normal(0, 0.5, 3)
        ratings = random.normal(0, 2, (40, 1)) + raters + random.normal(0, 1, (40, 3))
        found = intraclass_correlations(ratings)
        hits["icc_2_1"] += found["icc_2_1"].low <= 4 / 5.25 <= found["icc_2_1"].high
        hits["icc_3_1"] += found["icc_3_1"].low <= 4 / 5 <= found["icc_3_1"].high
        first, second = random.multivariate_normal([0, 0.5], [[1, 0.8], [0.8, 1]], size=40).T
        limit, lin = bland_altman(first, second)["limit_high"], concordance(first, second)
        hits["limit_high"] += limit.low <= -0.5 + stats.norm.ppf(0.975) * math.sqrt(0.4) <= limit.high
        hits["concordance"] += lin.low <= 1.6 / 2.25 <= lin.high
    assert all(460 <= count <= 489 for count in hits.values()), hits


# Errors and categories, by hand


def test_errors_by_hand():
    first, second = np.array([0.10, 0.20, 0.30, 0.40]), np.array([0.13, 0.16, 0.30, 0.40])
    found = index_errors(first, second)
    assert found["mae"].value == pytest.approx(0.07 / 4)
    assert found["rmse"].value == pytest.approx(0.05 / 2)
    assert 0 <= found["mae"].low <= found["mae"].value <= found["mae"].high <= 0.04


def test_a_difference_of_exactly_a_point_is_within_it():
    first = np.array([0.07, 0.15, 0.30, 0.12])
    second = np.array([0.06, 0.20, 0.36, 0.10])
    assert share_within(first, second, 0.01).value == 0.25
    assert share_within(first, second, 0.05).value == 0.75


def test_the_confusion_matrix_has_the_first_rater_in_rows_and_cut_offs_in_the_middle():
    first = np.array([0.05, 0.10, 0.20, 0.21, 0.50, NAN])
    second = np.array([0.09, 0.05, 0.15, 0.20, 0.99, 0.5])
    table = confusion_matrix(first, second, (0.10, 0.20))
    assert table.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert same_category(table).value == 0.6
    assert confusion_matrix(first, second, (0.03, 0.20)).tolist() == [[0, 0, 0], [0, 3, 0], [0, 1, 1]]


# Properties

INDICES = st.floats(0, 1, width=32).map(lambda value: round(value, 4))
SLIDES = st.integers(0, 25)
QUICK = settings(derandomize=True, database=None, deadline=None, max_examples=30)
BOUNDS = {
    **dict.fromkeys(("concordance", "pearson", "spearman", "kappa_quadratic", "kappa_linear"), (-1, 1)),
    **dict.fromkeys(("rmse", "mae", "within_1_point", "within_5_points", "same_category"), (0, 1)),
    **dict.fromkeys(("icc_2_1", "icc_3_1"), (-math.inf, 1)),
}


@st.composite
def ratings(draw, raters=2, missing=False):
    rows = draw(SLIDES)
    elements = INDICES | st.just(NAN) if missing else INDICES
    # Few different values, so that ties, constants and agreement are met as well.
    values = draw(st.lists(elements, min_size=1, max_size=6)) if draw(st.booleans()) else None
    chosen = st.sampled_from(values) if values else elements
    return draw(arrays.arrays(np.float64, (rows, raters), elements=chosen))


def assert_same(one: Estimate, other: Estimate) -> None:
    assert (one.n, one.reason) == (other.n, other.reason)
    expected = (other.value, other.low, other.high)
    assert (one.value, one.low, one.high) == pytest.approx(expected, abs=1e-9, nan_ok=True)


@QUICK
@given(ratings(missing=True))
def test_every_measure_lies_within_its_bounds_and_its_interval(table):
    complete = int((~np.isnan(table)).all(axis=1).sum())
    for name, found in pair_agreement(*table.T).items():
        assert found.n == complete
        assert math.isnan(found.value) <= bool(found.reason)
        assert math.isnan(found.low) == math.isnan(found.high) == bool(found.reason)
        low, high = BOUNDS.get(name, (-math.inf, math.inf))
        if not math.isnan(found.value):
            assert low - 1e-9 <= found.value <= high + 1e-9, name
        if not math.isnan(found.low):
            assert found.low - 1e-9 <= found.value <= found.high + 1e-9, name


@QUICK
@given(ratings(missing=True), st.randoms(use_true_random=False))
def test_the_order_of_the_slides_does_not_matter(table, random):
    order = list(range(len(table)))
    random.shuffle(order)
    first = pair_agreement(*table.T)
    assert {name: repr(found) for name, found in first.items()} == {
        name: repr(found) for name, found in pair_agreement(*table[order].T).items()
    }


@QUICK
@given(ratings())
def test_raters_can_be_exchanged(table):
    ours, theirs = pair_agreement(*table.T), pair_agreement(*table.T[::-1])
    for name in set(ours) - {"bias", "limit_low", "limit_high"}:
        assert_same(ours[name], theirs[name])
    for name, turned in (("bias", "bias"), ("limit_low", "limit_high"), ("limit_high", "limit_low")):
        other = theirs[turned]
        assert_same(ours[name], Estimate(-other.value, -other.high, -other.low, other.n, other.reason))


@QUICK
@given(ratings(raters=1))
def test_raters_that_agree_wholly(table):
    index = table[:, 0]
    found = pair_agreement(index, index)
    if len(index) < 3:
        assert all(math.isnan(one.value) and "at least 3 slides" in one.reason for one in found.values())
        return
    for name in ("bias", "limit_low", "limit_high", "rmse", "mae"):
        assert found[name].value == 0
    for name in ("within_1_point", "within_5_points", "same_category"):
        assert found[name].value == 1
    for name in ("icc_2_1", "icc_3_1", "concordance", "pearson", "spearman"):
        if np.ptp(index):
            assert found[name].value == pytest.approx(1), name
        else:
            assert math.isnan(found[name].value), name
            assert found[name].reason
    for name in ("kappa_linear", "kappa_quadratic"):
        several = np.count_nonzero(np.diag(confusion_matrix(index, index))) > 1
        assert found[name].value == pytest.approx(1) if several else found[name].reason


@QUICK
@given(ratings(raters=3, missing=True), st.randoms(use_true_random=False))
def test_alpha_has_no_order_of_slides_or_raters_and_is_one_at_most(table, random):
    found = krippendorff_alpha(table)
    shuffled = table[random.sample(range(len(table)), len(table))]
    assert repr(krippendorff_alpha(shuffled)) == repr(found)
    exchanged = krippendorff_alpha(table[:, ::-1])
    assert exchanged.value == pytest.approx(found.value, nan_ok=True)
    if not math.isnan(found.value):
        assert found.low - 1e-9 <= found.value <= found.high + 1e-9
        assert found.value <= 1 + 1e-9
    else:
        assert found.reason


@QUICK
@given(ratings(), st.sampled_from([0.5, 2.0, 4.0]), st.sampled_from([-0.25, 0.0, 0.5]))
def test_correlations_do_not_depend_on_the_scale(table, factor, shift):
    ours = group_agreement(table) | {"concordance": concordance(*table.T), "pearson": pearson(*table.T)}
    moved = table * factor + shift
    theirs = group_agreement(moved) | {"concordance": concordance(*moved.T), "pearson": pearson(*moved.T)}
    for name, found in ours.items():
        assert theirs[name].value == pytest.approx(found.value, abs=1e-6, nan_ok=True), name


@pytest.mark.parametrize("slides", [0, 1, 2])
def test_too_few_slides_say_so(slides):
    table = np.linspace(0.1, 0.3, 3 * slides).reshape(slides, 3)
    found = pair_agreement(table[:, 0], table[:, 1]) | group_agreement(table)
    for one in found.values():
        assert math.isnan(one.value)
        assert one.n == slides
        assert f"there are {slides}" in one.reason


def test_a_rater_who_gives_one_value_has_no_correlation():
    first, second = np.array([0.1, 0.2, 0.3, 0.4]), np.full(4, 0.2)
    found = pair_agreement(first, second)
    for name in ("pearson", "spearman"):
        assert math.isnan(found[name].value)
        assert found[name].reason == "a rater gives all slides the same index"
    assert found["concordance"].value == 0
    assert found["kappa_linear"].value == 0
    assert math.isnan(found["kappa_linear"].low)
    assert found["bias"].value == pytest.approx(0.05)


def test_a_constant_difference_is_consistent_and_not_agreement():
    first = np.array([0.1, 0.2, 0.3, 0.45])
    found = pair_agreement(first + 0.1, first)
    assert found["icc_3_1"].value == pytest.approx(1)
    assert found["icc_2_1"].value < 0.9
    assert found["limit_low"].value == pytest.approx(0.1)


def test_two_constants_that_differ_have_no_consistency():
    found = pair_agreement(np.full(5, 0.1), np.full(5, 0.3))
    assert found["icc_2_1"].value == 0
    assert math.isnan(found["icc_3_1"].value)
    assert found["icc_3_1"].reason
