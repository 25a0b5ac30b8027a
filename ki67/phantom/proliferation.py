"""H&E whose look tells how much a tumour proliferates: larger and more varied nuclei, closer together, more mitoses.

That nuclear size, pleomorphism and mitoses go with the Ki-67 index is what grading rests on (Elston & Ellis 1991); how
far they go here is made up, so that what a model may find is known.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ki67.phantom.look import Look


def proliferating(look: Look, factor: float) -> Look:
    """The same look with the morphology of a tumour that proliferates by this factor.

    Parameters
    ----------
    look
        What it has of its own in size and density remains to a quarter, as scatter that the factor does not explain.
    factor
        0 for the average tumour, in standard deviations between tumours.
    """
    return replace(
        look,
        nucleus_um=float(np.clip(10.0 + 1.1 * factor + 0.25 * (look.nucleus_um - 10.7), 7.4, 13.6)),
        size_spread=float(np.clip(0.16 + 0.035 * factor + 0.25 * (look.size_spread - 0.16), 0.06, 0.28)),
        density=float(np.clip(0.86 + 0.06 * factor + 0.25 * (look.density - 0.87), 0.6, 1.0)),
        cell_um=float(np.clip(4.2 - 0.5 * factor + 0.25 * (look.cell_um - 4.25), 2.2, 6.4)),
        mitoses=float(np.clip(0.012 * np.exp(0.9 * factor), 0.0, 0.08)),
    )
