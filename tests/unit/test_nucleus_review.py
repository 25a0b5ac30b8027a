"""The nuclei of a slide beside each other."""

import numpy as np

from ki67.nucleus_review import FEWEST_NUCLEI, review_nuclei


def found(count: int, area: float) -> dict[str, np.ndarray]:
    positive = np.arange(count) % 4 == 0
    return {
        "probability": np.full(count, 0.9),
        "positive": positive,
        "area_um2": np.full(count, area),
        "dab_od": np.where(positive, 0.8, 0.05),
    }


def joined(*parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_specks_among_large_nuclei_are_left_out_and_small_nuclei_among_small_ones_are_not() -> None:
    specks = found(20, 14.0)
    assert not review_nuclei(**joined(found(200, 80.0), specks)).kept[200:].any()
    assert review_nuclei(**joined(found(200, 22.0), specks)).kept.all()


def test_an_unlikely_nucleus_must_be_larger() -> None:
    unlikely = found(2, 45.0) | {"probability": np.array([0.9, 0.4]), "area_um2": np.array([26.0, 26.0])}
    kept = review_nuclei(**joined(found(200, 60.0), unlikely)).kept
    assert kept[200]
    assert not kept[201]


def test_classes_follow_the_dab_of_the_slide_and_not_the_network() -> None:
    nuclei = found(200, 50.0)
    brownish = found(10, 50.0) | {"positive": np.ones(10, dtype=bool), "dab_od": np.full(10, 0.12)}
    review = review_nuclei(**joined(nuclei, brownish))
    assert not review.positive[200:].any()
    np.testing.assert_array_equal(review.positive[:200], nuclei["positive"])
    assert review.uncertainty[200:].min() > review.uncertainty[:200].max()


def test_few_nuclei_are_all_kept_with_the_classes_they_have() -> None:
    nuclei = found(FEWEST_NUCLEI - 1, 50.0)
    nuclei["area_um2"][0] = 5.0
    nuclei["positive"][:] = False
    review = review_nuclei(**nuclei)
    assert review.kept.all()
    assert review.levels is None
    assert not review.positive.any()


def test_nothing_found_is_nothing_reviewed() -> None:
    review = review_nuclei(**found(0, 1.0))
    assert len(review.kept) == len(review.uncertainty) == 0
