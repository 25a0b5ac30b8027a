"""Networks that see a patch and say its log odds: ResNet-18 (He et al. 2016) and ViT-B/16 (Dosovitskiy et al. 2021)."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from ki67.errors import ConfigError
from ki67.networks import IMAGENET_MEAN, IMAGENET_STD, channels_last, choose_device, computes_bfloat16
from ki67.prediction.examples import Answer, Example, Floats, answer_of_patches, labelled_patches
from ki67.prediction.seeded import module_of, one_thread, rounded, seeded, weight_arrays

Architecture = Literal["resnet18", "vit_b16"]
AT_ONCE = 32
"""Always so many patches together, however many there are, so that no answer depends on what else is asked."""
LEARNING_RATES: dict[str, float] = {"resnet18": 5e-4, "vit_b16": 1e-4}
_STEEPEST = 1.0
"""Longer gradients are shortened; a transformer begins with some that are far too long."""
_HEADS = ("fc.", "head.")
_NO_WEIGHTS = (pickle.UnpicklingError, safetensors.SafetensorError)


@dataclass(frozen=True)
class NetworkOptions:
    """How a network of patches learns.

    Attributes
    ----------
    architecture
        Which network.
    input_px
        Side of what it sees; patches are shrunk or enlarged to it.
    steps, batch_size, learning_rate
        Of AdamW; the rate rises over the first tenth of the steps and falls with a cosine. None: ``LEARNING_RATES``.
    weight_decay
        Holds it back.
    weights
        File of first weights, of a network of the same kind; None: random ones.
    device
        ``auto``, ``cpu`` or a name that torch knows.
    """

    architecture: Architecture
    input_px: int = 64
    steps: int = 300
    batch_size: int = 32
    learning_rate: float | None = None
    weight_decay: float = 0.05
    weights: Path | None = None
    device: str = "auto"


@dataclass(frozen=True)
class PatchRegression:
    """A trained network of patches.

    Attributes
    ----------
    module
        Its answer is in deviations from the centre.
    center, spread
        Mean and deviation of the log odds of the training.
    """

    module: nn.Module
    center: float
    spread: float
    device: torch.device

    def answer(self, example: Example) -> Answer:
        """The index of each patch and of the slide; see ``Model``."""
        said = run_patches(self.module, example.inputs, self.device)[:, 0]
        return answer_of_patches(self.center + self.spread * said, example.weight)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See ``Model``."""
        return weight_arrays(self.module) | {"scale": np.array([self.center, self.spread])}


def build_network(architecture: Architecture, input_px: int, outputs: int = 1) -> nn.Module:
    """A network with random weights; ``outputs`` 0 gives its features instead."""
    if architecture == "resnet18":
        from torchvision.models import resnet18

        network = resnet18(weights=None)
        network.fc = nn.Linear(network.fc.in_features, outputs) if outputs else nn.Identity()
        return network
    import timm

    return timm.create_model("vit_base_patch16_224", pretrained=False, img_size=input_px, num_classes=outputs)


def fit_network(examples: Sequence[Example], options: NetworkOptions, *, seed: int) -> PatchRegression:
    """Train a network on the labelled patches of slides, each patient drawn as often as any other.

    Parameters
    ----------
    seed
        Of first weights, of the patches of each step and of how they are turned.
    """
    learned = labelled_patches(examples)
    center = float(np.average(learned.target, weights=learned.weight))
    spread = float(max(np.sqrt(np.average((learned.target - center) ** 2, weights=learned.weight)), 1e-6))
    target = torch.from_numpy(((learned.target - center) / spread).astype(np.float32))
    device = choose_device(options.device)
    with one_thread(), seeded(seed):
        network = channels_last(build_network(options.architecture, options.input_px), device)
        if options.weights is not None:
            load_first_weights(network, options.architecture, options.weights)
        rate = options.learning_rate or LEARNING_RATES[options.architecture]
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=options.weight_decay, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, options.steps))
        drawn = np.random.default_rng([seed, 1])
        network.train()
        for _ in tqdm(range(options.steps), desc=options.architecture, unit="step", leave=False):
            chosen = drawn.choice(len(target), size=options.batch_size, p=learned.weight / learned.weight.sum())
            pixels = np.stack([_changed(learned.inputs[place], drawn) for place in chosen])
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=computes_bfloat16(device)):
                said = network(as_input(pixels, device))[:, 0].float()
            functional.smooth_l1_loss(said, target[chosen].to(device)).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), _STEEPEST)
            optimizer.step()
            schedule.step()
    return PatchRegression(rounded(network), center, spread, device)


def _rate(step: int, steps: int) -> float:
    """Of the highest learning rate: up over the first tenth of the steps, then down with a cosine."""
    return min(1.0, (step + 1) / max(1.0, steps / 10)) * (1 + math.cos(math.pi * step / steps)) / 2


def _changed(patch: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """A patch turned, mirrored and a little paler or darker."""
    turned = np.rot90(patch, int(random.integers(4)))
    turned = turned[:, ::-1] if random.random() < 0.5 else turned
    darker = 255 * (turned / 255.0) ** random.uniform(0.85, 1.15)
    return np.asarray(np.rint(darker), dtype=np.uint8)


def as_input(pixels: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Patches ``(B, size, size, 3)`` as networks take them, ``(B, 3, size, size)``."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    tiles = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2).float() / 255
    return ((tiles - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def run_patches(module: nn.Module, pixels: NDArray[np.uint8], device: torch.device) -> Floats:
    """What a network says of patches uint8 ``(n, size, size, 3)``: float64 ``(n, outputs)``."""
    parts = [np.zeros((0, 1))]
    with one_thread():
        for start in range(0, len(pixels), AT_ONCE):
            part = pixels[start : start + AT_ONCE]
            filled = np.pad(part, ((0, AT_ONCE - len(part)), (0, 0), (0, 0), (0, 0)))
            parts.append(module(as_input(filled, device))[: len(part)].double().cpu().numpy())
    return np.concatenate(parts[1:] or parts)


def network_features(pixels: NDArray[np.uint8], module: nn.Module, device: torch.device) -> NDArray[np.float32]:
    """Features of patches by a network without outputs, float32 ``(n, F)``."""
    return run_patches(module, pixels, device).astype(np.float32)


def load_first_weights(network: nn.Module, architecture: Architecture, path: Path) -> None:
    """Give a network all weights of a file but those of its last layer.

    Raises
    ------
    ConfigError
        If the file cannot be read or is of another network.
    """
    try:
        if path.suffix == ".safetensors":
            weights: Mapping[str, torch.Tensor] = safetensors.torch.load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        if architecture == "vit_b16":
            from timm.models.vision_transformer import checkpoint_filter_fn

            weights = checkpoint_filter_fn(dict(weights), cast(Any, network))  # its places are of another image size
        kept = {name: value for name, value in weights.items() if not name.startswith(_HEADS)}
        missing, unexpected = network.load_state_dict(kept, strict=False)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, AttributeError, *_NO_WEIGHTS) as error:
        raise ConfigError(_unfit(architecture, path, str(error).splitlines()[0])) from error
    wrong = [*unexpected, *(name for name in missing if not name.startswith(_HEADS))]
    if wrong:
        raise ConfigError(_unfit(architecture, path, f"{wrong[0]} is too many or missing"))


def _unfit(architecture: str, path: Path, why: str) -> str:
    return (
        f"predict.weights names {path.name}, which is not readable as weights of {architecture} ({why}); name a "
        "fitting file, or set predict.weights: null for random ones"
    )


def network_from(arrays: Mapping[str, NDArray[Any]], options: NetworkOptions) -> PatchRegression:
    """The network that ``PatchRegression.arrays`` put into a file."""
    device = choose_device(options.device)
    weights = {name: array for name, array in arrays.items() if name != "scale"}
    module = channels_last(module_of(lambda: build_network(options.architecture, options.input_px), weights), device)
    return PatchRegression(module, float(arrays["scale"][0]), float(arrays["scale"][1]), device)
