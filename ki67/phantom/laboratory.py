"""Laboratories, each of which stains and scans H&E in its own way, whatever the tissue."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ki67.phantom.look import Look, random_look

_AMOUNTS = ("stroma_amounts", "cytoplasm_amounts", "ground_amounts")
_OTHERS = ("hematoxylin_vector", "eosin_vector", "white", "blur_um", "noise", "sharpening")


def stained_by(look: Look, laboratory: int, strength: float = 1.0, *, seed: int = 0) -> Look:
    """The same tissue in the stains and on the scanner of a laboratory.

    Parameters
    ----------
    look
        Of H&E; what is its own in size, shape and structure of nuclei and in density stays.
    laboratory
        Its number; the same number is the same laboratory.
    strength
        How much stronger than usual in this laboratory the slide is stained.
    seed
        Another seed is another set of laboratories.
    """
    house = random_look(np.random.default_rng([seed, 14, laboratory]), look.stain)
    amounts = {name: tuple(strength * amount for amount in getattr(house, name)) for name in _AMOUNTS}
    others = {name: getattr(house, name) for name in _OTHERS}
    return replace(look, nucleus_strength=strength * house.nucleus_strength, **amounts, **others)  # type: ignore[arg-type]
