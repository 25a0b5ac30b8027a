"""A classifier of square patches as a network that answers for every pixel: which patches, and what lies between them.

All sizes are in pixels at the network's resolution. A window without its halo is divided into square cells of
``stride_px``, from its top-left corner on. A cell takes the answer to the patch of ``patch_px`` that has the cell's
centre as its own, and a pixel what lies between the centres of the four cells around it (bilinear). Windows begin at
multiples of the stride (``ki67.tiles``), so that a pixel has the same answer in any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torchvision.models import GoogLeNet


class InceptionV1(GoogLeNet):
    """The features of an image, as Inception V1 makes them: ``(N, 3, H, W)`` to ``(N, FEATURES)``.

    Szegedy et al. 2015 (Going deeper with convolutions), with batch normalization, from torchvision. The auxiliary
    classifiers of the paper, with which so deep a network could be trained without batch normalization, are left out.
    """

    FEATURES = 1024

    def __init__(self) -> None:
        super().__init__(aux_logits=False, init_weights=False)
        self.fc = nn.Identity()  # type: ignore[assignment]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take weights; those of classifiers, which files from elsewhere carry, are left."""
        own = {name: value for name, value in state_dict.items() if not name.startswith(("fc.", "aux1.", "aux2."))}
        return super().load_state_dict(own, strict=strict, assign=assign)


class PatchClassifier(nn.Module):
    """One answer a patch: ``(N, 3, H, W)`` to logits ``(N, classes)``, the latter computed in float32."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = InceptionV1()
        self.classifier = nn.Linear(InceptionV1.FEATURES, classes)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Logits of normalized patches."""
        return self.classifier(self.encoder(patches).float())


def patch_halo_px(patch_px: int, stride_px: int) -> int:
    """How far beyond a window the patches reach that its answers need: those of its cells and of one more around."""
    return (patch_px + stride_px) // 2


def cut_patches(
    pixels: NDArray[np.uint8], halo_px: int, patch_px: int, stride_px: int
) -> tuple[NDArray[np.uint8], tuple[int, int, int]]:
    """The patches around all cells of windows, and around one more cell on every side.

    Parameters
    ----------
    pixels
        uint8 ``(N, H, W, 3)``: windows with their halo.
    halo_px
        Where it is less than ``patch_halo_px``, the image is mirrored.

    Returns
    -------
    patches
        uint8 ``(N * rows * columns, patch_px, patch_px, 3)``.
    grid
        N, and the rows and columns of cells in each, with those around.
    """
    reach = patch_halo_px(patch_px, stride_px)
    height, width = pixels.shape[1] - 2 * halo_px, pixels.shape[2] - 2 * halo_px
    lacking = [(reach - halo_px, reach - halo_px + -length % stride_px) for length in (height, width)]
    framed = np.pad(pixels, ((0, 0), *((max(0, first), max(0, last)) for first, last in lacking), (0, 0)), "symmetric")
    rows, columns = (slice(max(0, -first), min(0, last) or None) for first, last in lacking)
    views = torch.from_numpy(framed[:, rows, columns]).unfold(1, patch_px, stride_px).unfold(2, patch_px, stride_px)
    patches = views.permute(0, 1, 2, 4, 5, 3).reshape(-1, patch_px, patch_px, 3)
    return patches.numpy(), (views.shape[0], views.shape[1], views.shape[2])


def between_cells(cells: torch.Tensor, stride_px: int, height_px: int, width_px: int) -> torch.Tensor:
    """What every pixel of a window takes from the cells around it.

    Parameters
    ----------
    cells
        float32 ``(N, C, rows, columns)``, one more cell on every side than the window has.

    Returns
    -------
    float32 ``(N, C, height_px, width_px)``, its own memory.
    """
    pixels = functional.interpolate(cells, scale_factor=float(stride_px), mode="bilinear", align_corners=False)
    return pixels[:, :, stride_px : stride_px + height_px, stride_px : stride_px + width_px].contiguous()
