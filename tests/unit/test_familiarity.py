"""Nuclei like those of the training, and unlike them."""

import numpy as np
import pandas
import pytest

from ki67.errors import Flag
from ki67.familiarity import familiar_ranges, familiarity, measured, square_measures, unlike_training_finding


def nuclei(count: int, *, area: float = 50.0, seed: int = 0, left: float = 0.0) -> pandas.DataFrame:
    random = np.random.default_rng(seed)
    positive = np.arange(count) % 3 == 0
    return pandas.DataFrame(
        {
            "x_um": left + random.uniform(0, 256, count),
            "y_um": random.uniform(0, 256, count),
            "area_um2": random.normal(area, 3, count),
            "hematoxylin_od": random.normal(0.3, 0.03, count),
            "dab_od": np.where(positive, 0.6, 0.05) + random.normal(0, 0.02, count),
            "positive": positive,
        }
    )


RANGES = {
    "area_um2": (30.0, 90.0),
    "negative_hematoxylin_od": (0.2, 0.4),
    "negative_dab_od": (-0.1, 0.2),
    "positive_dab_od": (0.3, 1.5),
}


def test_ranges_hold_nearly_all_training_fields() -> None:
    fields = pandas.DataFrame([measured(nuclei(100, area=area)) for area in np.linspace(30, 90, 101)])
    low, high = familiar_ranges(fields)["area_um2"]
    assert 29 < low < 33
    assert 87 < high < 91
    never_positive = familiar_ranges(fields.assign(positive_dab_od=np.nan))
    assert "positive_dab_od" not in never_positive


def test_slides_like_the_training_raise_nothing() -> None:
    told = familiarity(nuclei(200, seed=5), RANGES)
    assert told.unlike_share == 0
    assert unlike_training_finding("S1", told) is None


def test_nuclei_of_a_wrong_scale_are_told_with_value_and_range() -> None:
    told = familiarity(nuclei(200, area=200.0), RANGES)
    assert told.unlike_share == 1
    finding = unlike_training_finding("S1", told)
    assert finding is not None
    assert finding.flag is Flag.UNLIKE_TRAINING
    assert finding.message.startswith("S1: 100% of the nuclei lie where the median area of nuclei in µm² is 200")


def test_a_corner_of_the_slide_is_not_enough_for_a_flag() -> None:
    slide = pandas.concat([nuclei(400), nuclei(60, area=200.0, left=256.0)])
    told = familiarity(slide, RANGES)
    assert told.unlike_share == pytest.approx(60 / 460)
    assert unlike_training_finding("S1", told) is None


def test_squares_with_few_nuclei_and_slides_without_any_say_nothing() -> None:
    assert len(square_measures(nuclei(10))) == 0
    for count in (0, 10):
        told = familiarity(nuclei(count, area=500.0), RANGES)
        assert np.isnan(told.unlike_share)
        assert unlike_training_finding("S1", told) is None
