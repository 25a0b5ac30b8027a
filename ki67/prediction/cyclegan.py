"""The Ki-67 slide that an H&E might have had, drawn by a CycleGAN, and the nuclei counted on it.

Zhu J-Y et al. (2017) Unpaired image-to-image translation using cycle-consistent adversarial networks, ICCV,
arXiv:1703.10593: two generators of residual blocks, two discriminators of patches, least-squares adversarial loss,
cycle and identity loss, and a buffer of past pictures. Nothing tells the generator which nuclei are positive but what
brown tissue looks like, so a picture may be convincing and wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from ki67.errors import ConfigError
from ki67.extraction import Nuclei
from ki67.networks import choose_device
from ki67.prediction.examples import Answer, Example, log_odds, slide_share
from ki67.prediction.seeded import module_of, one_thread, rounded, seeded, weight_arrays

CYCLE, IDENTITY = 10.0, 5.0
"""Weights of the losses beside the adversarial one."""
BUFFER = 50
_MOST_CHANNELS = 8
"""Times the first ones, in the discriminator."""


class Counts(Protocol):
    """Finds the nuclei of an image uint8 ``(H, W, 3)`` at its microns per pixel; ``ki67.detectors.Detector`` is one."""

    @property
    def mpp(self) -> float:
        """Microns per pixel of the images it takes."""
        ...

    def __call__(self, rgb: NDArray[np.uint8]) -> Nuclei:
        """The nuclei of an image."""
        ...


@dataclass(frozen=True)
class CycleOptions:
    """How a CycleGAN learns.

    Attributes
    ----------
    channels
        Of the first layer of generators and discriminators; the paper has 64.
    blocks
        Residual blocks of a generator; the paper has 6 for 128 px and 9 for 256 px.
    steps, batch_size, learning_rate
        Of Adam; the rate falls to 0 over the second half.
    device
        ``auto``, ``cpu`` or a name that torch knows.
    """

    channels: int = 64
    blocks: int = 6
    steps: int = 2000
    batch_size: int = 1
    learning_rate: float = 2e-4
    device: str = "auto"


class Residual(nn.Module):
    """Two convolutions whose answer is added to what they are given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolved(channels, channels, 3, padding=1), nn.ReLU(), *_convolved(channels, channels, 3, padding=1)
        )

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Same shape as what is given."""
        return tiles + self.layers(tiles)


def generator(channels: int, blocks: int) -> nn.Sequential:
    """Pictures ``(B, 3, H, W)``, -1 to 1, in the other stain; sides multiples of 4."""
    return nn.Sequential(
        *_convolved(3, channels, 7, padding=3),
        nn.ReLU(),
        *_convolved(channels, 2 * channels, 3, stride=2, padding=1, padding_mode="zeros"),
        nn.ReLU(),
        *_convolved(2 * channels, 4 * channels, 3, stride=2, padding=1, padding_mode="zeros"),
        nn.ReLU(),
        *(Residual(4 * channels) for _ in range(blocks)),
        nn.ConvTranspose2d(4 * channels, 2 * channels, 3, stride=2, padding=1, output_padding=1),
        nn.InstanceNorm2d(2 * channels),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * channels, channels, 3, stride=2, padding=1, output_padding=1),
        nn.InstanceNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 3, 7, padding=3, padding_mode="reflect"),
        nn.Tanh(),
    )


def _convolved(before: int, after: int, side: int, *, padding_mode: str = "reflect", **how: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, side, padding_mode=padding_mode, **how), nn.InstanceNorm2d(after)]  # type: ignore[arg-type]


def discriminator(channels: int) -> nn.Sequential:
    """How real each part of pictures ``(B, 3, H, W)`` looks, ``(B, 1, h, w)``: the PatchGAN that sees 70 px."""
    widths = [channels * min(2**step, _MOST_CHANNELS) for step in range(4)]
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for before, after, stride in zip(widths, widths[1:], (2, 2, 1), strict=False):
        layers += _convolved(before, after, 4, stride=stride, padding=1, padding_mode="zeros")
        layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))


@dataclass(frozen=True)
class Translation:
    """The generator from H&E to Ki-67, and who counts on what it draws.

    Attributes
    ----------
    generator
        Trained.
    counts
        Finds the nuclei.
    device
        Where the generator runs.
    """

    generator: nn.Module
    counts: Counts
    device: torch.device

    def answer(self, example: Example) -> Answer:
        """The share of positive nuclei on the picture of each patch, and of the slide; see ``Model``."""
        shares = np.array(
            [self._share(patch, example.mpp) for patch in self.pictures(example.inputs)], dtype=np.float64
        )
        return Answer(float(log_odds(slide_share(shares, example.weight))), shares)

    @torch.inference_mode()
    def pictures(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """Patches uint8 ``(n, size, size, 3)`` as Ki-67, one at a time."""
        with one_thread():
            drawn = (self.generator(_as_input(patch[None], self.device))[0] for patch in pixels)
            return [_as_pixels(one)[: pixels.shape[1], : pixels.shape[2]] for one in drawn]

    def _share(self, picture: NDArray[np.uint8], mpp: float) -> float:
        factor = mpp / self.counts.mpp
        enlarged = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        positive = self.counts(np.ascontiguousarray(enlarged, dtype=np.uint8)).positive
        return float(np.mean(positive)) if len(positive) else float("nan")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See ``Model``; the way back and the discriminators have done their part."""
        return weight_arrays(self.generator)


def fit_translation(examples: Sequence[Example], counts: Counts, options: CycleOptions, *, seed: int) -> Translation:
    """Train a CycleGAN on the H&E and Ki-67 patches of slides, which need not show the same places.

    Parameters
    ----------
    counts
        Finds the nuclei on what is drawn.
    seed
        Of first weights, of the patches of each step and of the buffer.

    Raises
    ------
    ConfigError
        If the pairs hold no patches of Ki-67 slides.
    """
    he = [patch for one in examples for patch in one.inputs]
    ki67 = [patch for one in examples if one.ki67 is not None for patch in one.ki67]
    if not he or not ki67:
        raise ConfigError(
            "predict.method cyclegan learns from patches of both stains, and the pairs hold none of the Ki-67 slides; "
            "make them anew with predict_pairs, or choose another method"
        )
    device = choose_device(options.device)
    with one_thread(), seeded(seed):
        trained = _Training(options, device, np.random.default_rng([seed, 2]))
        for step in tqdm(range(options.steps), desc="cyclegan", unit="step", leave=False):
            trained.step(he, ki67, step)
    return Translation(rounded(trained.to_ki67), counts, device)


class _Training:
    """Generators and discriminators of both ways, with their optimizers."""

    def __init__(self, options: CycleOptions, device: torch.device, random: np.random.Generator) -> None:
        self._options, self._device, self._random = options, device, random
        self.to_ki67, self.to_he = (_first(generator(options.channels, options.blocks)).to(device) for _ in range(2))
        self._is_ki67, self._is_he = (_first(discriminator(options.channels)).to(device) for _ in range(2))
        of_generators = chain(self.to_ki67.parameters(), self.to_he.parameters())
        of_discriminators = chain(self._is_ki67.parameters(), self._is_he.parameters())
        self._optimizers = [
            torch.optim.Adam(list(weights), lr=options.learning_rate, betas=(0.5, 0.999))
            for weights in (of_generators, of_discriminators)
        ]
        self._buffers: dict[str, list[torch.Tensor]] = {"he": [], "ki67": []}

    def step(self, he: Sequence[NDArray[np.uint8]], ki67: Sequence[NDArray[np.uint8]], number: int) -> None:
        """One step of both generators and then of both discriminators."""
        half = self._options.steps / 2
        for optimizer in self._optimizers:
            optimizer.param_groups[0]["lr"] = self._options.learning_rate * min(1.0, (2 * half - number) / max(half, 1))
        real_he, real_ki67 = self._drawn(he), self._drawn(ki67)
        made_ki67, made_he = self.to_ki67(real_he), self.to_he(real_ki67)
        self._improve(0, self._generator_loss(real_he, real_ki67, made_he, made_ki67))
        seen_he, seen_ki67 = (
            self._buffered("he", made_he.detach()),
            self._buffered("ki67", made_ki67.detach()),
        )
        told = _real_loss(self._is_he(real_he), 1.0) + _real_loss(self._is_he(seen_he), 0.0)
        told = told + _real_loss(self._is_ki67(real_ki67), 1.0) + _real_loss(self._is_ki67(seen_ki67), 0.0)
        self._improve(1, 0.5 * told)

    def _generator_loss(
        self, real_he: torch.Tensor, real_ki67: torch.Tensor, made_he: torch.Tensor, made_ki67: torch.Tensor
    ) -> torch.Tensor:
        fooled = _real_loss(self._is_ki67(made_ki67), 1.0) + _real_loss(self._is_he(made_he), 1.0)
        back = functional.l1_loss(self.to_he(made_ki67), real_he) + functional.l1_loss(self.to_ki67(made_he), real_ki67)
        same = functional.l1_loss(self.to_ki67(real_ki67), real_ki67) + functional.l1_loss(self.to_he(real_he), real_he)
        return fooled + CYCLE * back + IDENTITY * same

    def _improve(self, which: int, loss: torch.Tensor) -> None:
        self._optimizers[which].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizers[which].step()

    def _drawn(self, patches: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        chosen = self._random.integers(len(patches), size=self._options.batch_size)
        turned = [np.rot90(patches[place], int(self._random.integers(4))) for place in chosen]
        return _as_input(np.stack(turned), self._device)

    def _buffered(self, stain: str, made: torch.Tensor) -> torch.Tensor:
        """Pictures of now or, every other time, of before, so that discriminators do not forget (Shrivastava 2017)."""
        buffer, shown = self._buffers[stain], []
        for one in made:
            if len(buffer) < BUFFER:
                buffer.append(one)
                shown.append(one)
            elif self._random.random() < 0.5:
                place = int(self._random.integers(BUFFER))
                shown.append(buffer[place])
                buffer[place] = one
            else:
                shown.append(one)
        return torch.stack(shown)


def _first(module: nn.Module) -> nn.Module:
    """A module with first weights of deviation 0.02, as the paper has them."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(part.weight, 0.0, 0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module


def _real_loss(said: torch.Tensor, wanted: float) -> torch.Tensor:
    return functional.mse_loss(said, torch.full_like(said, wanted))


def _as_input(pixels: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Patches ``(B, H, W, 3)`` as -1 to 1 ``(B, 3, H, W)``, mirrored to sides that are multiples of 4."""
    lacking = [-side % 4 for side in pixels.shape[1:3]]
    framed = np.pad(pixels, ((0, 0), (0, lacking[0]), (0, lacking[1]), (0, 0)), mode="symmetric")
    return torch.from_numpy(framed).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def _as_pixels(tile: torch.Tensor) -> NDArray[np.uint8]:
    return ((tile.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def translation_from(arrays: Mapping[str, NDArray[Any]], options: CycleOptions, counts: Counts) -> Translation:
    """The model that ``Translation.arrays`` put into a file."""
    device = choose_device(options.device)
    module = module_of(lambda: generator(options.channels, options.blocks), arrays).to(device)
    return Translation(module, counts, device)
