"""Tables of nuclei with all that is scored."""

import numpy as np
import pandas as pd

from ki67.nucleus_squares import TumorNuclei


def table_of(
    points_um: np.ndarray, positive: np.ndarray, *, area_um2: object = 40.0, dab_od: object = None
) -> pd.DataFrame:
    """Nuclei in the tumour; positive ones are brown."""
    positive = np.asarray(positive, dtype=bool)
    points = np.asarray(points_um, dtype=float).reshape(-1, 2)
    return pd.DataFrame(
        {
            "x_um": points[:, 0],
            "y_um": points[:, 1],
            "positive": positive,
            "area_um2": np.broadcast_to(np.asarray(area_um2, dtype=np.float32), positive.shape),
            "dab_od": np.where(positive, 0.8, 0.1).astype(np.float32) if dab_od is None else dab_od,
            "in_tumor": np.ones(len(positive), dtype=bool),
        }
    )


def counted(positive: int, negative: int, side_um: float = 900.0, seed: int = 0) -> TumorNuclei:
    """Nuclei spread evenly over a square."""
    random = np.random.default_rng(seed)
    classes = random.permutation(np.arange(positive + negative) < positive)
    return TumorNuclei(random.uniform(0, side_um, (positive + negative, 2)), classes)
