import json

import numpy as np
import pytest

from ki67.ring_texts import ring_texts


def read(texts):
    return [json.loads(f"[{text}]") for text in texts.to_pylist()]


def test_numbers_come_back_to_a_tenth_whatever_their_size_and_sign():
    random = np.random.default_rng(0)
    points = random.normal(size=(4000, 2)) * 10.0 ** random.integers(-3, 8, (4000, 1))
    ends = np.arange(20, 4001, 20)
    back = np.array(read(ring_texts(points, ends))).reshape(-1, 2)
    np.testing.assert_array_equal(back, np.rint(points * 10) / 10)


def test_rings_may_differ_in_length():
    points = np.arange(12.0).reshape(6, 2)
    assert read(ring_texts(points, np.array([1, 4, 4, 6]))) == [
        [[0, 1]],
        [[2, 3], [4, 5], [6, 7]],
        [],
        [[8, 9], [10, 11]],
    ]


@pytest.mark.parametrize("value", [0.0, -0.04, 0.04])
def test_zero_has_no_sign(value):
    assert ring_texts(np.array([[value, value]]), np.array([1])).to_pylist() == ["[0.0,0.0]"]


def test_no_rings_are_no_texts():
    assert ring_texts(np.zeros((0, 2)), np.zeros(0, dtype=np.int64)).to_pylist() == []
