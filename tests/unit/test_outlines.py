import cv2
import numpy as np
import pytest
import shapely

from ki67.extraction import Nuclei, extract_nuclei
from ki67.outlines import OUTLINE_VERTICES, outline_nuclei, polygons
from tests.unit.drawn_nuclei import drawn, grid, probabilities_of


def nuclei_of(labels):
    """Only what an outline needs to know."""
    count = labels.max()
    area = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    rows, columns = np.indices(labels.shape)
    y, x = (np.bincount(labels.ravel(), axis.ravel())[1:] / area + 0.5 for axis in (rows, columns))
    return Nuclei(labels.astype(np.int32), x, y, area, np.ones(count, bool), np.ones(count, np.float32))


def test_outlines_enclose_the_area_of_their_nucleus():
    ellipses = grid((300, 300), seed=2)
    nuclei = extract_nuclei(probabilities_of(drawn((300, 300), ellipses)), mpp=0.5)
    outlines = polygons(outline_nuclei(nuclei))
    assert shapely.is_valid(outlines).all()
    assert (shapely.get_num_coordinates(outlines) > 12).all()
    np.testing.assert_allclose(shapely.area(outlines), nuclei.area_px, rtol=0.08)
    distance = shapely.distance(shapely.centroid(outlines), shapely.points(nuclei.x_px, nuclei.y_px))
    assert distance.max() < 0.5


def test_an_outline_that_crosses_itself_is_made_valid():
    # An hourglass.
    crossing = np.array([[[0, 0], [4, 4], [4, 0], [0, 4]]], dtype=float)
    (outline,) = polygons(crossing)
    assert outline.is_valid
    assert outline.area == pytest.approx(16)


def shapes():
    random = np.random.default_rng(3)
    blobs = [cv2.GaussianBlur(random.random((60, 60)), (0, 0), sigma) > 0.5 for sigma in (0.6, 1, 2, 4)]
    ring = np.zeros((60, 60), dtype=bool)
    ring[10:50, 10:50], ring[20:40, 20:40] = True, False
    line, dot = np.zeros((60, 60), dtype=bool), np.zeros((60, 60), dtype=bool)
    line[np.arange(5, 50), np.arange(5, 50)] = True
    dot[59, 0] = True
    return [*blobs, ring, line, dot, np.ones((60, 60), dtype=bool)]


@pytest.mark.parametrize("shape", shapes())
def test_vertices_lie_at_even_distances_on_the_longest_border(shape):
    nuclei = nuclei_of(shape.astype(int))
    contours, _ = cv2.findContours(shape.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    lengths = [len(contour) for contour in contours]
    middle = np.array([nuclei.x_px[0], nuclei.y_px[0]])
    outline = outline_nuclei(nuclei)[0]
    candidates = [contour[:, 0] + 0.5 for contour in contours if len(contour) == max(lengths)]
    evenly = np.arange(OUTLINE_VERTICES) * max(lengths) // OUTLINE_VERTICES
    distances = [np.linalg.norm(border[evenly] - outline, axis=1).max() for border in candidates]
    assert min(distances) < 0.5 + 1e-9
    border = candidates[int(np.argmin(distances))][evenly]
    assert (np.linalg.norm(outline - middle, axis=1) >= np.linalg.norm(border - middle, axis=1)).all()


def test_coordinates_are_multiples_of_a_64th_of_a_micron():
    nuclei = extract_nuclei(probabilities_of(drawn((300, 300), grid((300, 300)))), mpp=0.5)
    coordinates = shapely.get_coordinates(polygons(outline_nuclei(nuclei) * 0.5))
    np.testing.assert_array_equal(coordinates * 64, np.rint(coordinates * 64))
