import math

import numpy as np
import pytest

from ki67.errors import Flag
from ki67.geometry import Mask
from ki67.index import flags_of, ki67_index, slide_findings
from ki67.local_index import local_index_map
from ki67.nucleus_squares import TumorNuclei
from ki67.tumor_agreement import share_with_nuclei, tumor_area_findings
from tests.unit.drawn_tables import table_of


def test_the_share_of_tumour_that_holds_nuclei_by_hand():
    # half of the nuclei lie in cells of 2000 or denser, a fifth of which is 400
    density = np.array([[2000.0, 2000.0, 3000.0, 1000.0], [401.0, 399.0, 0.0, np.nan]], dtype=np.float32)
    assert share_with_nuclei(density) == pytest.approx(5 / 7)
    assert share_with_nuclei(np.zeros((2, 2), dtype=np.float32)) == 0.0
    assert math.isnan(share_with_nuclei(np.full((2, 2), np.nan, dtype=np.float32)))


def test_the_share_of_a_drawn_tumour_is_the_part_that_has_nuclei():
    random = np.random.default_rng(0)
    nuclei = TumorNuclei(random.uniform(0, 1, (20_000, 2)) * [1000, 4000], random.random(20_000) < 0.2)
    tumor = Mask(np.ones((400, 400), dtype=bool), 10.0, "ki67")
    assert share_with_nuclei(local_index_map(nuclei, tumor).nuclei_per_mm2) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(("on_he", "on_ki67", "flagged"), [(10.0, 10.0, False), (10.0, 6.1, False), (10.0, 5.9, True)])
def test_tumour_that_is_lost_between_the_sections_is_flagged_with_both_areas(on_he, on_ki67, flagged):
    findings = list(tumor_area_findings("S1", on_he, on_ki67, np.full((3, 3), 4000.0, dtype=np.float32)))
    assert [finding.flag for finding in findings] == [Flag.TUMOR_AREA_DIFFERS] * flagged
    if flagged:
        assert findings[0].message.startswith(
            "S1: the H&E has 10.00 mm² of tumour, the Ki-67 slide has tumour nuclei in 5.90 mm²"
        )


@pytest.mark.parametrize(
    ("transfer", "width_um", "flagged"),
    [
        ({"tumor_source": "he"}, 1000.0, True),
        ({"tumor_source": "he"}, 3500.0, False),
        ({"tumor_source": "he", "limited": True}, 1000.0, False),
        ({"tumor_source": "ki67"}, 1000.0, False),
    ],
)
def test_only_a_mask_of_the_he_that_nobody_limited_is_compared(transfer, width_um, flagged):
    random = np.random.default_rng(0)
    points = random.uniform(0, 1, (9000, 2)) * [width_um, 4000.0]
    result = ki67_index(
        table_of(points, random.random(9000) < 0.2), Mask(np.ones((400, 400), dtype=bool), 10.0, "ki67"), slide_id="S1"
    )
    stages = {"transfer": transfer, "tumor": {"tumor_mm2": 16.2}}
    assert (Flag.TUMOR_AREA_DIFFERS in flags_of(slide_findings(result, stages))) == flagged
