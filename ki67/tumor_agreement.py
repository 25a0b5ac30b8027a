"""Whether the tumour that was found on the H&E is there on the Ki-67 slide, by the nuclei that were found in it.

The H&E's mask says where the Ki-67 slide was looked at; what was found there says whether the tumour goes on in the
neighbouring section. It costs nothing, needs no second network, and does not depend on how well a network finds tumour
in another stain. It cannot tell of tumour on the Ki-67 slide that the H&E has not, as nobody looked for nuclei there.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ki67.errors import Finding, Flag

SPARSE_SHARE = 0.2
LEAST_SHARE = 0.6


def share_with_nuclei(nuclei_per_mm2: NDArray[np.float32]) -> float:
    """Share of the tumour's cells around which nuclei lie as in a tumour; NaN where there is no tumour.

    A cell is empty of tumour where nuclei are less than a fifth as dense as around the median nucleus of the slide, so
    that stroma, fat and glass count as empty whatever the kind of tumour.

    Parameters
    ----------
    nuclei_per_mm2
        Density in tumour, NaN outside, as ``ki67.local_index.LocalIndexMap`` has it.

    Examples
    --------
    >>> share_with_nuclei(np.array([[4000.0, 3000.0, 5000.0, 700.0, 0.0, np.nan]]))
    0.6
    """
    density = nuclei_per_mm2[np.isfinite(nuclei_per_mm2)].astype(np.float64)
    if not density.any():
        return float("nan") if not len(density) else 0.0
    order = np.sort(density)
    usual = order[np.searchsorted(np.cumsum(order), order.sum() / 2)]
    return float((density >= SPARSE_SHARE * usual).mean())


def tumor_area_findings(
    slide_id: str, tumor_he_mm2: float, tumor_ki67_mm2: float, nuclei_per_mm2: NDArray[np.float32]
) -> Iterable[Finding]:
    """The finding of a slide on which less than ``LEAST_SHARE`` of the H&E's tumour is there.

    What is lost where the Ki-67 slide has no tissue and what holds hardly any nuclei are taken together.

    Parameters
    ----------
    tumor_he_mm2, tumor_ki67_mm2
        Area of the tumour on the H&E, and of its mask on the tissue of the Ki-67 slide.
    nuclei_per_mm2
        Density of the nuclei in the latter, see ``share_with_nuclei``.
    """
    held = share_with_nuclei(nuclei_per_mm2)
    there = tumor_ki67_mm2 * (held if np.isfinite(held) else 0.0)
    if there < LEAST_SHARE * tumor_he_mm2:
        text = (
            f"the H&E has {tumor_he_mm2:.2f} mm² of tumour, the Ki-67 slide has tumour nuclei in {there:.2f} mm² of it"
        )
        remedy = (
            "look at the registration and the overlay; leave the column he empty to find the tumour on Ki-67 itself"
        )
        yield Finding(Flag.TUMOR_AREA_DIFFERS, f"{slide_id}: {text}; {remedy}", "ki67")
