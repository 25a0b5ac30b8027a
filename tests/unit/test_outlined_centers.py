import numpy as np
import pytest

from ki67.extraction import Nuclei
from ki67.networks import NUCLEUS_CLASSES, WHOLE_NUCLEUS_CLASSES, nuclei_spec
from ki67.training import outlined_centers
from ki67.training.augmentation import NO_AUGMENTATION
from ki67.training.datasets import NUCLEUS_RADIUS_UM, AnnotatedImage
from ki67.training.outlined_centers import outline_centers, outlined_labels
from ki67.training.targets import IGNORED, NEGATIVE, OTHER, POSITIVE


def seen_as(labels: np.ndarray) -> Nuclei:
    """What a network found: numbers from 1, each a nucleus."""
    numbers = range(1, labels.max(initial=0) + 1)
    middles = np.array([np.mean(np.argwhere(labels == number), axis=0) + 0.5 for number in numbers]).reshape(-1, 2)
    area = np.array([np.sum(labels == number) for number in numbers], dtype=np.int64)
    count = len(area)
    return Nuclei(
        labels.astype(np.int32), middles[:, 1], middles[:, 0], area, np.zeros(count, bool), np.ones(count, np.float32)
    )


@pytest.fixture
def picture() -> np.ndarray:
    labels = np.zeros((80, 80), dtype=np.int32)
    labels[10:20, 10:24] = 1
    labels[40:50, 40:60] = 2
    labels[60:70, 5:15] = 3
    return labels


def test_a_mark_takes_the_outline_that_is_seen_around_it(picture):
    labels, doubtful = outlined_labels(seen_as(picture), np.array([[12.5, 11.5]]), 0.5)
    assert np.array_equal(labels == 1, picture == 1)
    assert not doubtful.any(), "what is seen where nobody marked anything is background"


def test_a_mark_just_outside_takes_the_nucleus_beside_it(picture):
    labels, _ = outlined_labels(seen_as(picture), np.array([[15.0, 8.5]]), 1.5)
    assert 0 < np.sum(labels == 1) < 30, "10 µm from the middle of another nucleus it is one of its own"
    labels, _ = outlined_labels(seen_as(picture), np.array([[15.0, 8.5]]), 0.25)
    assert np.array_equal(labels == 1, picture == 1)


def test_two_marks_in_what_is_seen_as_one_share_it_by_nearness(picture):
    labels, doubtful = outlined_labels(seen_as(picture), np.array([[43.0, 45.0], [57.0, 45.0]]), 0.5)
    assert np.array_equal(labels[40:50, 40:50], np.full((10, 10), 1))
    assert np.array_equal(labels[40:50, 50:60], np.full((10, 10), 2))
    assert not doubtful.any()


def test_a_mark_where_nothing_is_seen_gets_a_disc_with_a_doubtful_rim(picture):
    labels, doubtful = outlined_labels(seen_as(picture), np.array([[65.0, 20.0]]), 0.5)
    radius_px = NUCLEUS_RADIUS_UM / 0.5
    assert np.sum(labels == 1) == pytest.approx(np.pi * radius_px**2, rel=0.1)
    assert np.sum(doubtful) == pytest.approx(np.pi * radius_px**2 * (1.4**2 - 1), rel=0.15)
    assert not doubtful[labels > 0].any()


def test_discs_are_as_large_as_the_nuclei_that_are_seen():
    picture = np.zeros((200, 200), dtype=np.int32)
    corners = [(row, column) for row in range(0, 180, 20) for column in (0, 20)]
    for number, (row, column) in enumerate(corners):
        picture[row : row + 6, column : column + 6] = number + 1
    marks = np.array([*[(column + 3.0, row + 3.0) for row, column in corners], (150.0, 100.0)])
    labels, _ = outlined_labels(seen_as(picture), marks, 0.5)
    assert np.sum(labels == len(marks)) == pytest.approx(36, abs=4)


def test_a_piece_beside_a_mark_that_has_its_nucleus_is_doubtful(picture):
    picture[10:20, 26:28] = 4
    labels, doubtful = outlined_labels(seen_as(picture), np.array([[23.5, 15.0]]), 0.5)
    assert np.array_equal(labels == 1, picture == 1)
    assert np.array_equal(doubtful, picture == 4)


def test_nothing_marked_and_nothing_seen_are_both_fine(picture):
    labels, doubtful = outlined_labels(seen_as(picture), np.zeros((0, 2)), 0.5)
    assert not labels.any()
    assert not doubtful.any()
    labels, _ = outlined_labels(seen_as(np.zeros((80, 80), np.int32)), np.array([[40.0, 40.0]]), 0.5)
    assert labels[40, 40] == 1


@pytest.mark.parametrize(("classes", "positive", "negative"), [(NUCLEUS_CLASSES, 1, 3), (WHOLE_NUCLEUS_CLASSES, 1, 2)])
def test_targets_have_the_marked_classes_and_stay_ignored_outside(monkeypatch, picture, classes, positive, negative):
    class Seeing:
        spec = nuclei_spec()

    monkeypatch.setattr(outlined_centers, "predict_image", lambda network, rgb: np.zeros((5, *rgb.shape[:2]), np.uint8))
    monkeypatch.setattr(outlined_centers, "extract_nuclei", lambda probabilities, mpp: seen_as(picture))
    target = np.zeros((80, 80), dtype=np.uint8)
    target[:, 70:] = IGNORED
    marks = np.array([[17.0, 15.0, POSITIVE], [50.0, 45.0, NEGATIVE], [10.0, 65.0, OTHER]])
    image = AnnotatedImage("d", "n", "d/n", np.zeros((80, 80, 3), np.uint8), target, marks)
    outlined = outline_centers(image, Seeing(), classes)
    assert outlined.target[15, 17] == positive
    assert outlined.target[45, 50] == negative
    assert (outlined.target[60:70, 5:15] == IGNORED).all()
    assert (outlined.target[:, 70:] == IGNORED).all()
    assert outlined.target[30, 30] == 0
    assert np.array_equal(outlined.nuclei, image.nuclei)


def test_tiles_lie_where_something_is_known():
    target = np.full((600, 600), IGNORED, dtype=np.uint8)
    target[100:200, 400:500] = 0
    rgb = np.zeros((600, 600, 3), dtype=np.uint8)
    shares = [
        np.mean(NO_AUGMENTATION.apply(rgb, target, 64, np.random.default_rng(seed))[1] != IGNORED)
        for seed in range(200)
    ]
    assert np.mean(np.array(shares) >= 0.25) > 0.2, "one place in thirty has as much"
