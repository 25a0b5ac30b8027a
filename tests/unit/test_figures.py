import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

from ki67.cohort import slide_table
from ki67.errors import Finding, Flag
from ki67.figures import (
    FIELD_UM,
    FLAG_WORDS,
    HOT_SPOT,
    MARGIN_PX,
    NEGATIVE,
    OUTLINE,
    PANEL_PX,
    POSITIVE,
    choose_fields,
    cohort_overview,
    field_pictures,
    headline,
    local_index_picture,
    overview_mpp,
    registration_picture,
    round_length_um,
    slide_overlay,
    tumor_picture,
)
from ki67.geometry import Mask, RigidTransform
from ki67.index import ki67_index, slide_record
from ki67.local_index import LocalIndexMap
from ki67.local_shifts import PlaceCheck

SIDE_UM = 1520.0  # two microns a pixel of a panel
SLIDE = np.full((190, 190, 3), 230, dtype=np.uint8)  # at 8 µm/px
LEGEND_AND_GAP_PX = 24 + 8


def nuclei_at(*places: tuple[float, float, bool]) -> gpd.GeoDataFrame:
    """Squares of 8 µm in the tumour."""
    x_um, y_um, positive = zip(*places, strict=True) if places else ((), (), ())
    x_um, y_um = np.array(x_um, dtype=float), np.array(y_um, dtype=float)
    measured = {"area_um2": 64.0, "dab_od": np.where(np.array(positive, dtype=bool), 0.8, 0.1)}
    columns = {"x_um": x_um, "y_um": y_um, "positive": np.array(positive, dtype=bool), "in_tumor": True} | measured
    return gpd.GeoDataFrame(columns, geometry=shapely.box(x_um - 4, y_um - 4, x_um + 4, y_um + 4)).astype(
        {"in_tumor": bool}
    )


def tumor(x_um: float = 0.0) -> Mask:
    """Everything to the right of ``x_um``."""
    pixels = np.zeros((int(SIDE_UM / 2), int(SIDE_UM / 2)), dtype=bool)
    pixels[:, int(x_um / 2) :] = True
    return Mask(pixels, 2.0, "ki67")


def record_of(nuclei: gpd.GeoDataFrame, mask: Mask) -> dict:
    result = ki67_index(nuclei, mask, slide_id="S1")
    return slide_record(result, slide="S1", patient="P1", stages={}, references={})


def pixels_of(image: np.ndarray, color: tuple[int, int, int], tolerance: int = 90) -> np.ndarray:
    """Rows and columns of the pixels of about this colour."""
    return np.argwhere(np.abs(image.astype(int) - color).max(axis=-1) <= tolerance)


def test_a_headline_gives_the_index_in_percent_with_its_interval():
    record = {"slide": "S1", "index": 0.153, "index_low": 0.1412, "index_high": 0.166}
    assert headline(record) == "S1: Ki-67 index 15.3 % (95 % interval 14.1 to 16.6 %)"
    assert headline({"slide": "S1", "index": float("nan")}) == "S1: no Ki-67 index"
    assert headline({"slide": "S1", "index": None, "marker": "ER"}) == "S1: no ER index"


def test_nuclei_are_drawn_where_they_lie_in_the_colour_of_their_class():
    nuclei = nuclei_at((400, 300, True), (1200, 900, False))
    mask = Mask.empty("ki67")
    image = slide_overlay(SLIDE, 8.0, mask, nuclei, record_of(nuclei, mask))
    left, top = image.shape[1] - MARGIN_PX - PANEL_PX, image.shape[0] - MARGIN_PX - LEGEND_AND_GAP_PX - PANEL_PX
    panel = image[top : top + PANEL_PX, left : left + PANEL_PX]
    assert np.allclose(pixels_of(panel, POSITIVE).mean(axis=0), (150, 200), atol=1)
    assert np.allclose(pixels_of(panel, NEGATIVE).mean(axis=0), (450, 600), atol=1)


def test_nuclei_outside_the_tumour_are_not_drawn():
    nuclei = nuclei_at((400, 300, True)).assign(in_tumor=False)
    mask = tumor(700)
    with_nucleus = slide_overlay(SLIDE, 8.0, mask, nuclei, record_of(nuclei, mask))
    assert np.array_equal(with_nucleus, slide_overlay(SLIDE, 8.0, mask, nuclei.iloc[:0], record_of(nuclei, mask)))


def test_the_edge_of_the_tumour_is_drawn_where_it_lies_and_not_along_the_picture():
    mask = tumor(700)
    image = slide_overlay(SLIDE, 8.0, mask, nuclei_at(), record_of(nuclei_at(), mask))
    top = image.shape[0] - MARGIN_PX - LEGEND_AND_GAP_PX - PANEL_PX
    panel = image[top : top + PANEL_PX - 50, MARGIN_PX : MARGIN_PX + PANEL_PX]
    drawn = pixels_of(panel, OUTLINE)
    assert abs(drawn[:, 1].mean() - 350) < 1.5
    assert np.ptp(drawn[:, 1]) <= 4
    assert len(np.unique(drawn[:, 0])) >= len(panel) - 2


@pytest.mark.parametrize("shape", [(40, 400, 3), (400, 40, 3), (1, 1, 3)])
def test_slides_of_any_shape_have_an_overlay(shape):
    mask = Mask.empty("ki67")
    image = slide_overlay(np.full(shape, 200, dtype=np.uint8), 8.0, mask, nuclei_at(), record_of(nuclei_at(), mask))
    assert image.dtype == np.uint8
    assert max(image.shape) < 2 * PANEL_PX + 300


def test_an_unreadable_slide_has_pictures_that_say_why():
    finding = Finding(Flag.UNREADABLE, "S1: the Ki-67 slide ends early; copy it again", "ki67")
    record = record_of(nuclei_at(), Mask.empty("ki67")) | {"findings": []}
    explained = record | {"findings": [finding.to_json()]}
    for draw in (
        lambda told: slide_overlay(None, 1.0, Mask.empty("ki67"), nuclei_at(), told),
        lambda told: field_pictures(None, nuclei_at(), Mask.empty("ki67"), told),
    ):
        assert (draw(explained) < 128).sum() > (draw(record) < 128).sum() > 500


def test_the_overview_of_a_small_field_is_not_blown_up():
    assert overview_mpp(25_000, 20_000) == pytest.approx(25_000 / PANEL_PX)
    assert overview_mpp(100, 80) == 0.25


def block(column: int, row: int, positive: int, total: int) -> pd.DataFrame:
    """``total`` nuclei in one field."""
    offsets = np.linspace(1, FIELD_UM - 1, total)
    columns = {"x_um": column * FIELD_UM + offsets, "y_um": row * FIELD_UM + offsets}
    return pd.DataFrame(columns | {"positive": np.arange(total) < positive})


def test_fields_are_those_of_highest_median_and_lowest_index_among_well_filled_ones():
    counts = {(0, 0): 50, (1, 0): 40, (2, 0): 30, (3, 0): 25, (0, 1): 20, (1, 1): 10, (2, 1): 0}
    blocks = [block(*place, positive, 100) for place, positive in counts.items()]
    nuclei = pd.concat([*blocks, block(5, 5, 3, 3), block(6, 6, 0, 2)])  # nearly empty fields do not count
    fields = choose_fields(nuclei)
    assert [(field.name, field.positive) for field in fields] == [
        *[("highest", 50), ("highest", 40)],
        *[("median", 30), ("median", 25)],
        *[("lowest", 10), ("lowest", 0)],
    ]
    assert (fields[0].x_um, fields[0].y_um, fields[0].total) == (0.0, 0.0, 100)
    assert (fields[-1].x_um, fields[-1].y_um) == (2 * FIELD_UM, FIELD_UM)


@pytest.mark.parametrize(("fields", "shown"), [(0, 0), (1, 1), (2, 2), (3, 3), (5, 3), (6, 6)])
def test_no_field_is_shown_twice(fields, shown):
    nuclei = pd.concat([block(0, 0, 0, 0), *(block(number, 0, number, 20) for number in range(fields))])
    chosen = choose_fields(nuclei)
    assert len({(field.x_um, field.y_um) for field in chosen}) == len(chosen) == shown


def test_a_field_shows_nuclei_outlined_beside_the_plain_stain():
    nuclei = nuclei_at((50, 60, True), (120, 60, False), (500, 60, False))
    asked = []

    def read(x_um: float, y_um: float, width_px: int, height_px: int, mpp: float) -> np.ndarray:
        asked.append((x_um, y_um, width_px * mpp, height_px * mpp))
        return np.full((height_px, width_px, 3), 230, dtype=np.uint8)

    mask = tumor()
    image = field_pictures(read, nuclei, mask, record_of(nuclei, mask))
    assert asked == [(0.0, 0.0, FIELD_UM, FIELD_UM), (400.0, 0.0, FIELD_UM, FIELD_UM)]
    legend_top = image.shape[0] - MARGIN_PX - 24
    red, blue = (pixels_of(image[:legend_top], color) for color in (POSITIVE, NEGATIVE))
    # outlines of 16 px, 70 µm apart, in the right half of the first pair
    first = blue[blue[:, 1] < MARGIN_PX + 804]
    assert np.allclose(first.mean(axis=0) - red.mean(axis=0), (0, 140), atol=1)
    assert red[:, 1].min() > MARGIN_PX + 404
    assert np.allclose(np.ptp(red, axis=0), 16, atol=2)


def test_a_slide_without_nuclei_says_so_instead_of_showing_fields():
    mask = tumor()
    image = field_pictures(lambda *_: pytest.fail("nothing to read"), nuclei_at(), mask, record_of(nuclei_at(), mask))
    assert image.shape[0] < 200
    assert (image < 128).sum() > 500


def blobs(seed: int = 3) -> np.ndarray:
    """A section drawn of a few discs, with glass around it."""
    image = np.full((300, 320, 3), 255, dtype=np.uint8)
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:300, :320]
    for row, column, radius in zip(
        rng.uniform(90, 210, 6), rng.uniform(100, 220, 6), (40, 30, 25, 20, 15, 10), strict=True
    ):
        image[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = rng.integers(40, 200, 3)
    return image


def colourfulness(image: np.ndarray) -> float:
    """How far the lower part of a picture, without text, is from gray."""
    panels = image[150:].astype(int)
    return float(np.abs(panels[..., 0] - panels[..., 1]).mean())


def test_a_registration_picture_carries_the_section_over():
    import cv2

    he, mpp = blobs(), 8.0
    truth = RigidTransform.from_parameters(angle_deg=30, shift_um=(2990, 800), mirror=True, source="he", target="ki67")
    half = 0.5 * mpp
    points = np.array([[0.0, 0.0], [300.0, 0.0], [0.0, 300.0]])
    carried = (truth.apply(points * mpp + half) - half) / mpp
    matrix = cv2.getAffineTransform(points.astype(np.float32), carried.astype(np.float32))
    ki67 = cv2.warpAffine(he, matrix, (320, 300), borderValue=(255, 255, 255))
    assert (ki67 < 255).any(axis=-1).sum() > 5000
    expected = truth.apply(points + 500)
    check = PlaceCheck(points + 500, expected, expected + np.array([[20, 5], [0, 9], [300, 0]]))
    alone = registration_picture(he, ki67, None, mpp)
    both = registration_picture(he, ki67, truth, mpp, check=check)
    before, after = both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]
    assert colourfulness(before) > 5 * colourfulness(after)
    assert colourfulness(alone) > 5 * colourfulness(after)
    assert both.shape[0] > registration_picture(he, ki67, truth, mpp).shape[0]  # a line about the arrows
    assert (both[-1400:] != registration_picture(he, ki67, truth, mpp)[-1400:]).any()


def test_a_single_stain_has_a_registration_picture_too():
    for he, ki67 in ((blobs(), None), (None, blobs()), (None, None)):
        image = registration_picture(he, ki67, None, 8.0, title="S1", lines=["there is only one slide"])
        assert image.dtype == np.uint8
        assert (image < 128).any()


@pytest.mark.parametrize(("at_most", "length"), [(1, 1), (9.9, 5), (10, 10), (26, 20), (4999, 2000), (6250, 5000)])
def test_scale_bars_have_round_lengths(at_most, length):
    assert round_length_um(at_most) == length


def local_maps(index: np.ndarray, per_mm2: np.ndarray) -> LocalIndexMap:
    return LocalIndexMap(index.astype(np.float32), per_mm2.astype(np.float32), 40.0, "ki67")


def test_the_local_index_is_drawn_where_the_tumour_is_with_its_hot_spots():
    mask, nuclei = tumor(760), nuclei_at((400, 300, True))
    index = np.tile(np.linspace(0, 0.38, 38), (38, 1))
    record = record_of(nuclei, mask) | {"hot_spots": [{"x_um": 1000.0, "y_um": 600.0, "side_um": 200.0}]}
    image = local_index_picture(SLIDE, 8.0, local_maps(index, np.full((38, 38), 3000.0)), mask, record)
    top = image.shape[0] - MARGIN_PX - LEGEND_AND_GAP_PX - PANEL_PX
    panel = image[top : top + PANEL_PX, MARGIN_PX : MARGIN_PX + PANEL_PX].astype(int)
    gray = np.ptp(panel, axis=-1) <= 2
    assert gray[:600, :370].all()  # no tumour, and away from the scale bar
    assert not gray[50:250, 390:740].any()
    assert panel[200, 740, 2] < panel[200, 390, 2]  # from violet to yellow
    corners = pixels_of(panel, HOT_SPOT, tolerance=10)
    drawn = corners[corners[:, 1] <= 602]
    assert np.abs(drawn.min(axis=0) - (300, 500)).max() <= 2
    assert np.abs(drawn.max(axis=0) - (400, 600)).max() <= 2


def test_a_slide_without_local_index_says_why():
    mask = Mask.empty("ki67")
    nothing = local_maps(np.full((2, 2), np.nan), np.full((2, 2), np.nan))
    for thumbnail in (SLIDE, None):
        image = local_index_picture(thumbnail, 8.0, nothing, mask, record_of(nuclei_at(), mask))
        assert image.shape[0] < 200
        assert (image < 128).any()


def test_every_flag_has_words_for_people():
    assert set(FLAG_WORDS) == set(Flag)


def scored(slide: str, index: float | None, *flags: Flag, reference: float | None = None) -> dict:
    spread = [index - 0.01, index + 0.01] if index is not None else [None, None]
    return {
        "slide": slide,
        "patient": slide,
        "index": index,
        "index_low": spread[0],
        "index_high": spread[1],
        "positive": 10,
        "total": 100,
        "findings": [{"flag": flag.value, "message": f"{slide}: why"} for flag in flags],
        "reference_index": reference,
    }


@pytest.mark.parametrize(
    "records",
    [
        [],
        [scored("S1", None, Flag.MISSING_FILE)],
        [scored("S1", 0.15), scored("S2", 0.3, Flag.PEN_MARK, reference=0.25), scored("S3", None, Flag.NO_KI67)],
        [scored(f"S{number}", number / 200) for number in range(1, 100)],
    ],
)
def test_a_cohort_of_any_size_has_an_overview(records):
    image = cohort_overview(slide_table(records), (0.1, 0.2))
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert (image < 128).any()


def test_slides_to_look_at_are_listed_and_information_is_not():
    plain, informed, flagged = (
        cohort_overview(slide_table([scored("S1", 0.15, *flags)]))
        for flags in ((), (Flag.NO_HE,), (Flag.NO_HE, Flag.TUMOR_FROM_KI67))
    )
    assert np.array_equal(plain, informed)
    assert flagged.shape[0] > plain.shape[0]


def tissue_left_half() -> Mask:
    pixels = np.zeros((190, 190), dtype=bool)
    pixels[:, :95] = True
    return Mask(pixels, 8.0, "ki67")


def heatmap_panel(image: np.ndarray, side: int) -> np.ndarray:
    bottom = image.shape[0] - MARGIN_PX - LEGEND_AND_GAP_PX
    return image[bottom - side : bottom, image.shape[1] - MARGIN_PX - side : image.shape[1] - MARGIN_PX]


def test_a_heatmap_colours_tissue_by_its_probability_and_leaves_glass() -> None:
    mask = tumor(1000)
    probability = np.zeros(mask.pixels.shape, dtype=np.uint8)
    probability[: probability.shape[0] // 2] = 255
    image = tumor_picture(SLIDE, tissue_left_half(), mask, probability=probability, title="S1", lines=["words"])
    side = 3 * len(SLIDE)
    panel = heatmap_panel(image, side).astype(int)
    yellow, violet, glass = panel[100, 100], panel[side // 2 + 80, 100], panel[80, -60]
    assert yellow[1] > yellow[2] + 80
    assert violet[2] > violet[1] + 30
    assert np.ptp(glass) == 0
    assert image.shape[1] == 2 * side + 3 * MARGIN_PX


def test_a_mask_without_probability_is_an_outline_and_no_tissue_is_words_alone() -> None:
    mask = tumor(760)
    image = tumor_picture(SLIDE, tissue_left_half(), mask, probability=None, title="S1")
    side = 3 * len(SLIDE)
    assert image.shape[1] == side + 2 * MARGIN_PX
    panel = heatmap_panel(image, side)
    assert np.allclose(pixels_of(panel[:400], OUTLINE, 60)[:, 1].mean(), side / 2, atol=2)
    empty = tumor_picture(SLIDE[:1, :1], Mask.empty("ki67"), Mask.empty("ki67"), probability=None, title="S1")
    assert empty.shape[0] < 100
