"""A small drawn pair of slides in memory, with the truth in the layout's own plane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ki67.geometry import Mask, RigidTransform
from ki67.phantom.nuclei import TUMOR, Nuclei
from ki67.phantom.paint import Painting, paint
from ki67.phantom.pair import PhantomOptions, SlidePlan, plan_pair
from ki67.prediction.pair_making import Ki67Side
from ki67.slides import ImageReader

MPP = 1.0


@dataclass(frozen=True)
class DrawnPair:
    """Both slides, the tumour and the true transform; and where the Ki-67 nuclei lie on the H&E, ``(N, 2)``."""

    he: ImageReader
    ki67: Ki67Side
    tumor: Mask
    nuclei_on_he_um: NDArray[np.float64]


def draw_pair(options: PhantomOptions) -> DrawnPair:
    """Paint a pair; positions on the H&E go through the layout's plane and not through the transform."""
    plan = plan_pair(options)
    he, ki67 = (_painted(plan.slides[stain]) for stain in ("he", "ki67"))
    nuclei = _table(ki67)
    points = nuclei[["x_um", "y_um"]].to_numpy()
    sections = {stain: plan.slides[stain].section for stain in ("he", "ki67")}
    in_layout = np.column_stack(sections["ki67"].layout_points(points[:, 0], points[:, 1]))
    back = np.linalg.inv(sections["he"].to_layout)
    return DrawnPair(
        he=ImageReader(he.rgb, "png", mpp=MPP, slide_id="S01", stain="he"),
        ki67=Ki67Side(ImageReader(ki67.rgb, "png", mpp=MPP, slide_id="S01", stain="ki67"), nuclei, plan.transform),
        tumor=Mask(he.tumor_um > 0, MPP, "he"),
        nuclei_on_he_um=in_layout @ back[:2, :2].T + back[:2, 2],
    )


def moved(pair: DrawnPair, shift_um: tuple[float, float]) -> Ki67Side:
    """The Ki-67 side, registered wrongly by this much."""
    transform = pair.ki67.transform
    assert isinstance(transform, RigidTransform)
    matrix = transform.matrix.copy()
    matrix[:2, 2] += shift_um
    return Ki67Side(pair.ki67.slide, pair.ki67.nuclei, RigidTransform(matrix, "he", "ki67"))


def _painted(plan: SlidePlan) -> Painting:
    return paint(plan.section, 0.0, 0.0, round(plan.width_px * plan.mpp), round(plan.height_px * plan.mpp), MPP)


def _table(painting: Painting) -> pd.DataFrame:
    nuclei: Nuclei = painting.nuclei
    return pd.DataFrame(
        {
            "x_um": nuclei.x_um,
            "y_um": nuclei.y_um,
            "positive": nuclei.positive,
            "area_um2": nuclei.area_um2,
            "in_tumor": nuclei.kind == TUMOR,
        }
    )
