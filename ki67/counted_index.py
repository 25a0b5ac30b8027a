"""The index of a table of nuclei by count and by area, without anything that needs to know the tumour."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class CountedIndex:
    """What is counted in the tumour.

    Attributes
    ----------
    index
        Fraction of positive nuclei among all; NaN without nuclei.
    index_area
        Area of the positive over the area of all nuclei; NaN without nuclei.
    positive, total
        Nuclei.
    """

    index: float
    index_area: float
    positive: int
    total: int

    def to_json(self) -> dict[str, float | int]:
        """The counts as plain JSON values."""
        return asdict(self)


def counted_index(nuclei: pandas.DataFrame) -> CountedIndex:
    """Count the nuclei of a table (``ki67.nucleus_table``) that lie in the tumour, in any order."""
    inside = nuclei["in_tumor"].to_numpy(dtype=bool)
    positive = nuclei["positive"].to_numpy(dtype=bool)[inside]
    count, total = int(positive.sum()), len(positive)
    area_um2 = nuclei["area_um2"].to_numpy(dtype=np.float64)[inside]
    return CountedIndex(count / total if total else math.nan, area_index(area_um2, positive), count, total)


def area_index(area_um2: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Area of positive nuclei over the area of all, added up exactly so that the order of nuclei does not matter.

    Examples
    --------
    >>> area_index(np.array([30.0, 50.0, 20.0]), np.array([True, False, False]))
    0.3
    """
    of_positive, of_negative = math.fsum(area_um2[positive]), math.fsum(area_um2[~positive])
    return of_positive / (of_positive + of_negative) if of_positive + of_negative > 0 else math.nan
