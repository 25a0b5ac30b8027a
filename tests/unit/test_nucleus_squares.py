import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ki67.nucleus_squares import TumorNuclei, coarser, count_squares, with_touching


def nuclei(*places: tuple[float, float, bool]) -> TumorNuclei:
    x_um, y_um, positive = (np.array(values) for values in zip(*places, strict=True))
    return TumorNuclei(np.column_stack([x_um, y_um]).astype(float), positive.astype(bool))


def test_nuclei_are_counted_in_the_square_that_holds_their_centre():
    counts = count_squares(nuclei((10, 0, True), (19.9, 9.9, False), (20, 9, False), (35, 25, True)), 10.0)
    assert counts.total.tolist() == [[2, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert counts.positive.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert (counts.first, counts.side_um) == ((0, 1), 10.0)


def test_no_nuclei_are_one_empty_square():
    counts = count_squares(TumorNuclei(np.zeros((0, 2)), np.zeros(0, dtype=bool)), 10.0)
    assert (counts.total.tolist(), counts.positive.tolist()) == ([[0]], [[0]])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 7), st.integers(0, 1000))
def test_coarser_squares_are_those_that_are_counted_at_once(total, factor, seed):
    random = np.random.default_rng(seed)
    drawn = TumorNuclei(random.uniform(0, 500, (total, 2)), random.random(total) < 0.3)
    joined, direct = coarser(count_squares(drawn, 10.0), factor), count_squares(drawn, 10.0 * factor)
    assert joined.first == direct.first
    assert np.array_equal(joined.total, direct.total)
    assert np.array_equal(joined.positive, direct.positive)


def test_touching_squares_are_the_eight_around():
    image = np.arange(12).reshape(3, 4)
    assert with_touching(image)[1, 1] == image[:3, :3].sum()
    assert with_touching(image)[0, 3] == image[:2, 2:].sum()
