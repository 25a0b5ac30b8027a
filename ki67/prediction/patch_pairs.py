"""Patches of H&E with what the registered Ki-67 slide shows at the same place, of one slide.

Slide-level models read all patches of a slide, patch-level models learn from those whose label can be trusted
(``labelled``). A slide whose index is to be predicted has the same patches without labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ki67.errors import ConfigError
from ki67.storage import to_plain, whole

_COLUMNS = ("center_um", "positive", "negative", "label", "nuclei_he")


@dataclass(frozen=True)
class PatchPairs:
    """All patches of one slide.

    Attributes
    ----------
    slide
        Id of the slide, a row of the sample sheet.
    patient
        Whose slide it is; empty where the sheet does not say.
    marker
        Of which nuclei ``positive`` tells, as "Ki-67".
    mpp
        Resolution of the patches in µm/px.
    he
        H&E, uint8 ``(n, size, size, 3)``.
    center_um
        Centres in the frame ``he``, float64 ``(n, 2)``, x and y in microns.
    positive, negative
        Nuclei that the Ki-67 slide shows in the patch, int32 ``(n,)``; zero without a label.
    label
        Share of the marker, 0 to 1, float32 ``(n,)``; NaN where the patch has no label it may be learned from.
    nuclei_he
        About how many nuclei the H&E shows in the patch, float32 ``(n,)``: the weight of a patch in its slide.
    slide_index
        Index of the whole slide, 0 to 1; None where it is not known.
    rejected
        How many patches were left out or not labelled, by reason.
    settings
        The settings that the patches were chosen with.
    """

    slide: str
    patient: str
    marker: str
    mpp: float
    he: NDArray[np.uint8]
    center_um: NDArray[np.float64]
    positive: NDArray[np.int32]
    negative: NDArray[np.int32]
    label: NDArray[np.float32]
    nuclei_he: NDArray[np.float32]
    slide_index: float | None = None
    rejected: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.he.ndim != 4 or self.he.shape[1] != self.he.shape[2] or self.he.shape[3] != 3:
            raise ValueError(f"Patches must be (n, size, size, 3), not {self.he.shape}")
        for name in _COLUMNS:
            if len(getattr(self, name)) != len(self.he):
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {len(self.he)} patches")

    def __len__(self) -> int:
        return len(self.he)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which patches may be learned from, ``(n,)``."""
        return np.isfinite(self.label)


def write_patch_pairs(path: str | Path, pairs: PatchPairs, ki67: NDArray[np.uint8] | None = None) -> None:
    """Write the patches of a slide as zarr: an array a column, the rest in the attributes.

    Parameters
    ----------
    ki67
        The same patches of the Ki-67 slide, moved onto the H&E, uint8 as ``pairs.he``.
    """
    with whole(path) as partial:
        group = zarr.open_group(partial, mode="w", zarr_format=3)
        images = {"he": pairs.he} | ({} if ki67 is None else {"ki67": ki67})
        for name, patches in images.items():
            chunk = (min(32, max(1, len(patches))), *patches.shape[1:])
            group.create_array(name, data=patches, chunks=chunk)
        for name in _COLUMNS:
            group.create_array(name, data=getattr(pairs, name))
        names = ("slide", "patient", "marker", "mpp", "slide_index", "rejected", "settings")
        group.attrs.update({name: to_plain(getattr(pairs, name)) for name in names})


def read_patch_pairs(path: str | Path) -> PatchPairs:
    """Read what ``write_patch_pairs`` wrote; the patches of the Ki-67 slide stay on the disk.

    Raises
    ------
    ConfigError
        If the folder holds no patch pairs.
    """
    try:
        group = zarr.open_group(path, mode="r")
        arrays = {name: np.asarray(group[name]) for name in ("he", *_COLUMNS)}
        attributes = dict(group.attrs)
        names = ("slide", "patient", "marker", "mpp", "slide_index", "rejected", "settings")
        return PatchPairs(**arrays, **{name: attributes[name] for name in names})  # type: ignore[arg-type]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{Path(path).name} holds no patch pairs ({error}): make it anew with `predict_pairs`"
        ) from error


def read_ki67_patches(path: str | Path) -> NDArray[np.uint8] | None:
    """Patches of the Ki-67 slide, uint8 ``(n, size, size, 3)``; None where they were not kept.

    Raises
    ------
    ConfigError
        If the folder holds no patch pairs.
    """
    try:
        group = zarr.open_group(path, mode="r")
        return np.asarray(group["ki67"]) if "ki67" in group else None
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{Path(path).name} holds no patch pairs ({error}): make it anew with `predict_pairs`"
        ) from error
