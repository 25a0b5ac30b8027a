import time

import cv2
import numpy as np
import pytest

from ki67.extraction import ExtractionOptions, extract_nuclei
from ki67.outlines import outline_nuclei, polygons
from ki67.training.targets import NEGATIVE, POSITIVE
from tests.unit.drawn_nuclei import drawn, found_by, grid, probabilities_of


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


def test_a_chain_of_touching_nuclei_is_parted_at_every_neck():
    levels = np.zeros((5, 60, 700), dtype=np.uint8)
    for x in range(30, 680, 18):
        cv2.circle(levels[3], (x, 30), 10, 255, -1)
    nuclei = extract_nuclei(levels, mpp=0.5)
    np.testing.assert_allclose(nuclei.x_px - 0.5, np.arange(30, 680, 18), atol=1.0)


def test_a_membrane_between_two_nuclei_goes_to_the_nearer_one():
    levels = np.zeros((5, 40, 60), dtype=np.uint8)
    levels[1, 12:28, 10:25], levels[3, 12:28, 29:44], levels[2, 12:28, 25:29] = 255, 255, 255
    nuclei = extract_nuclei(levels, mpp=0.5)
    left, right = nuclei.labels[20, 24:26], nuclei.labels[20, 28:30]
    assert nuclei.labels[20].tolist()[9:45] == [0] + [int(left[0])] * 17 + [int(right[0])] * 17 + [0]


@pytest.mark.parametrize("reach_um", [0.4, 1.5, 2.5])
def test_a_nucleus_grows_no_farther_than_the_membrane_reaches(reach_um):
    levels = np.zeros((5, 80, 80), dtype=np.uint8)
    levels[4] = 255
    levels[4, 30:50, 30:50], levels[3, 30:50, 30:50] = 0, 255
    options = ExtractionOptions(membrane_um=reach_um, smoothing_um=0.05)
    found = extract_nuclei(levels, mpp=0.5, options=options).labels > 0
    distance = cv2.distanceTransform((levels[3] == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    np.testing.assert_array_equal(found, distance <= reach_um / 0.5)


def test_nuclei_at_the_edge_of_an_image_are_found():
    levels = np.zeros((5, 60, 60), dtype=np.uint8)
    for place in [(0, 0), (30, 0), (59, 30), (30, 59)]:
        cv2.circle(levels[1], place, 10, 255, -1)
    assert len(extract_nuclei(levels, mpp=0.5).x_px) == 4


def test_chosen_nuclei_are_numbered_anew():
    nuclei = extract_nuclei(probabilities_of(drawn((200, 300), grid((200, 300)))), mpp=0.5)
    which = np.arange(len(nuclei.x_px)) % 3 == 1
    chosen = nuclei.chosen(which)
    assert np.bincount(chosen.labels.ravel())[1:].tolist() == nuclei.area_px[which].tolist()
    np.testing.assert_array_equal(chosen.labels > 0, np.isin(nuclei.labels, 1 + np.flatnonzero(which)))


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
