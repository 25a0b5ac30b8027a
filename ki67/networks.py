"""The networks: how they are built, kept on disk with their provenance, and run on tiles."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from torch import nn

from ki67.devices import claim_gpu, gpu_names
from ki67.errors import Ki67Error, Stain
from ki67.patch_classifier import PatchClassifier, between_cells, cut_patches, patch_halo_px
from ki67.predictors import NUCLEUS_CLASSES as NUCLEUS_CLASSES
from ki67.predictors import STRIDE_PX as STRIDE_PX
from ki67.predictors import WHOLE_NUCLEUS_CLASSES as WHOLE_NUCLEUS_CLASSES
from ki67.predictors import Precision as Precision
from ki67.predictors import Predictor as Predictor
from ki67.predictors import predict_image as predict_image
from ki67.quantized import QuantizedNetwork, Ranges, computes_int8
from ki67.tiles import CELL_PX, HALO_PX

log = logging.getLogger(__name__)

Architecture = Literal["unet_densenet121", "unet_resnet34", "unet_resnet50", "patches_googlenet"]

RANGES_FILE = "int8.safetensors"
NO_INT8 = "does not compute in 8-bit integers"
# Multiples of 256. The larger a window, the smaller the share of its halo, and the more memory its layers take.
BLOCK_PX: dict[Precision, tuple[int, int]] = {
    "int8": (1024, 1536),
    "bfloat16": (1024, 1536),
    "float32": (768, 1024),
}

ENCODERS: dict[str, str] = {
    "unet_densenet121": "densenet121",
    "unet_resnet34": "resnet34",
    "unet_resnet50": "resnet50",
    "patches_googlenet": "googlenet",
}
PATCH_ARCHITECTURES: frozenset[Architecture] = frozenset({"patches_googlenet"})
"""Those that give one answer a patch; the others, U-Nets, give one a pixel."""
TUMOR_CLASSES = ("tumor",)
# The colours that ImageNet encoders were trained with; used from scratch too, so that either start fits one spec.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Those of torchvision's GoogLeNet came from another project, which brought colours to -1 to 1.
GOOGLENET_MEAN = GOOGLENET_STD = (0.5, 0.5, 0.5)
_NO_WEIGHTS = (pickle.UnpicklingError, safetensors.SafetensorError)
# Always so many at once, however many there are, so that no answer depends on what else is asked.
_PATCHES_ON_CPU, _PATCHES_ON_GPU = 16, 256
_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True)
class NetworkSpec:
    """What has to be known of a network to run it; ``model.json`` beside the weights holds it.

    Attributes
    ----------
    name
        Name of the network, as its folder is called (``nuclei``, ``tumor_he``, ``tumor_ki67``).
    architecture
        One of ``ENCODERS``: a U-Net with that encoder, or a classifier of patches.
    classes
        One name for each output channel. A single class is a sigmoid, several are a softmax.
    stain
        The stain it was trained on.
    mpp
        Microns per pixel of its input.
    tile_px
        Side of the tiles it was trained on, or of the patches it classifies.
    patch_stride_px
        Of a classifier of patches: pixels from the centre of a patch to the next, where it answers for a slide.
    patch_share
        Of a classifier of patches: a patch is taken for tumour where more than this share of it is.
    mean, std
        Of the RGB values 0-1, in this order.
    threshold
        Probability from which a pixel belongs to the class, where there is only one.
    sha256
        Of the weights file; empty before it is written.
    training
        What it was trained on, how long and how well it does: plain JSON values.
    """

    name: str
    architecture: Architecture
    classes: tuple[str, ...]
    stain: Stain
    mpp: float = 0.5
    tile_px: int = 256
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    threshold: float = 0.5
    patch_stride_px: int = 64
    patch_share: float = 0.5
    sha256: str = ""
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.architecture not in ENCODERS:
            raise Ki67Error(
                f"network {self.name}: unknown architecture {self.architecture!r}; use one of {', '.join(ENCODERS)}"
            )
        if self.classifies_patches and not (
            0 < self.patch_stride_px <= self.tile_px and CELL_PX % self.patch_stride_px == 0
        ):
            raise Ki67Error(
                f"network {self.name}: a patch_stride_px of {self.patch_stride_px} does not fit patches of "
                f"{self.tile_px} px; use 32, 64 or 128"
            )

    @property
    def classifies_patches(self) -> bool:
        """Whether it gives one answer a patch."""
        return self.architecture in PATCH_ARCHITECTURES

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> NetworkSpec:
        """The spec that ``to_json`` wrote.

        Raises
        ------
        Ki67Error
            If a key is missing or unknown.
        """
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(record) - known):
            raise Ki67Error(f"model.json: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        try:
            return cls(**values)
        except TypeError as error:
            raise Ki67Error(f"model.json: {error}; train or fetch the network again") from error


def nuclei_spec(name: str = "nuclei") -> NetworkSpec:
    """The five-class network of positive and negative nuclei and their membranes, on Ki-67 slides."""
    return NetworkSpec(name=name, architecture="unet_resnet34", classes=NUCLEUS_CLASSES, stain="ki67")


def whole_nuclei_spec(name: str = "nuclei_resnet50") -> NetworkSpec:
    """The three-class network of positive and negative nuclei without membranes, on Ki-67 slides."""
    return NetworkSpec(name=name, architecture="unet_resnet50", classes=WHOLE_NUCLEUS_CLASSES, stain="ki67")


def tumor_spec(name: str, stain: Stain, *, mpp: float = 0.5, tile_px: int = 256) -> NetworkSpec:
    """The tumour network of one stain."""
    return NetworkSpec(
        name=name, architecture="unet_densenet121", classes=TUMOR_CLASSES, stain=stain, mpp=mpp, tile_px=tile_px
    )


def tumor_patches_spec(name: str, stain: Stain) -> NetworkSpec:
    """The classifier of tumour patches of one stain: 128 px at 0.5 µm/px, 64 µm."""
    return NetworkSpec(
        name=name,
        architecture="patches_googlenet",
        classes=TUMOR_CLASSES,
        stain=stain,
        tile_px=128,
        mean=GOOGLENET_MEAN,
        std=GOOGLENET_STD,
    )


NETWORK_SPECS: dict[str, NetworkSpec] = {
    "tumor_he": tumor_spec("tumor_he", "he"),
    "tumor_start": tumor_spec("tumor_start", "he"),
    # Sees 5x, where a slide has a sixteenth of the pixels. Tiles of 256 µm, as the smallest annotated images are.
    "tumor_he_coarse": tumor_spec("tumor_he_coarse", "he", mpp=2.0, tile_px=128),
    "tumor_ki67": tumor_spec("tumor_ki67", "ki67"),
    "tumor_he_patches": tumor_patches_spec("tumor_he_patches", "he"),
    "tumor_ki67_patches": tumor_patches_spec("tumor_ki67_patches", "ki67"),
    "nuclei": nuclei_spec(),
    "nuclei_teacher": nuclei_spec("nuclei_teacher"),
    "nuclei_resnet50": whole_nuclei_spec(),
}
"""What this workflow trains, by name."""


def build_network(spec: NetworkSpec) -> nn.Module:
    """The network with random weights, in ``channels_last`` memory format.

    U-Net: Ronneberger et al. 2015; ResNet: He et al. 2016; DenseNet: Huang et al. 2017; all from
    segmentation_models_pytorch. GoogLeNet: Szegedy et al. 2015, from torchvision.
    """
    classes = len(spec.classes)
    if spec.classifies_patches:
        return channels_last(PatchClassifier(classes), torch.device("cpu"))
    module = smp.Unet(ENCODERS[spec.architecture], encoder_weights=None, classes=classes)
    return channels_last(module, torch.device("cpu"))


def channels_last(module: nn.Module, device: torch.device) -> nn.Module:
    """The module on the device, in the memory order in which its bfloat16 convolutions are fastest."""
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


# ---------------------------------------------------------------------------------------------- encoder weights


def initialize_encoder(module: nn.Module, spec: NetworkSpec, source: str) -> str:
    """Give the encoder its first weights, and say in one sentence where they came from.

    Parameters
    ----------
    source
        ``"imagenet"``: from the local cache of the Hugging Face hub, or the hub, or else from scratch (for googlenet
        from torchvision's cache or download.pytorch.org);
        ``"none"``: from scratch; anything else: path of a local file (``.safetensors``, ``.pt`` or ``.pth``).

    Raises
    ------
    Ki67Error
        If a local file was named that cannot be read or does not fit.
    """
    encoder = ENCODERS[spec.architecture]
    if source == "none":
        return f"The {encoder} encoder starts from random weights, as asked for."
    if source != "imagenet":
        _load_encoder(module, Path(source), encoder)
        # All networks' weights are called alike, so that the folder tells whose they are.
        named = "/".join(Path(source).parts[-2:])
        return f"The {encoder} encoder starts from the weights of the file {named}."
    of_torchvision = encoder == "googlenet"
    path = _torchvision_file() if of_torchvision else _imagenet_file(encoder)
    if path is None:
        place = "download.pytorch.org" if of_torchvision else "the Hugging Face hub"
        return (
            f"The {encoder} encoder starts from random weights, as its ImageNet weights are neither in the local cache "
            f"nor could {place} be reached; name a local file in encoder_weights to use one."
        )
    _load_encoder(module, path, encoder)
    origin = "torchvision" if of_torchvision else f"smp-hub/{encoder}.imagenet"
    return f"The {encoder} encoder starts from the ImageNet weights of {origin}."


def initialize_network(module: nn.Module, spec: NetworkSpec, folder: Path) -> str:
    """Give a module all weights of the trained network in a folder, and say so in one sentence.

    Raises
    ------
    Ki67Error
        If it is of another architecture, or its weights cannot be read.
    """
    other = read_spec(folder)
    if (other.architecture, other.classes) != (spec.architecture, spec.classes):
        raise Ki67Error(
            f"network {folder.name}: its {other.architecture} of {len(other.classes)} classes cannot be the start "
            f"of a {spec.architecture} of {len(spec.classes)}; leave start_from out, or name another"
        )
    try:
        module.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise Ki67Error(f"network {folder.name}: weights.safetensors is missing or damaged; fetch it again") from error
    return f"It starts from the weights of the network {other.name} (sha256 {other.sha256[:12]})."


def _load_encoder(module: nn.Module, path: Path, encoder: str) -> None:
    try:
        if path.suffix == ".safetensors":
            weights = safetensors.torch.load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        assert isinstance(module.encoder, nn.Module)
        # The file may be a whole network of this project, whose encoder is one part of it.
        prefix = "encoder."
        weights = {
            key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
        } or weights
        # The encoders of smp drop the classifier that such files carry.
        module.encoder.load_state_dict(weights)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, *_NO_WEIGHTS) as error:
        raise Ki67Error(
            f"encoder weights {path.name}: not readable as weights of {encoder} "
            f"({str(error).splitlines()[0]}); set encoder_weights to imagenet, none or a fitting file"
        ) from error


def _imagenet_file(encoder: str) -> Path | None:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from segmentation_models_pytorch.encoders import encoders

    settings = encoders[encoder]["pretrained_settings"]["imagenet"]
    for local in (True, False):
        # The hub's own client retries for half a minute: ask once whether anybody answers.
        if not local and not _answers(constants.ENDPOINT):
            return None
        try:
            return Path(
                hf_hub_download(
                    settings["repo_id"], "model.safetensors", revision=settings["revision"], local_files_only=local
                )
            )
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
            continue
    return None


def _torchvision_file() -> Path | None:
    """The ImageNet weights of GoogLeNet."""
    from torchvision.models import GoogLeNet_Weights

    url = GoogLeNet_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        if not _answers(url):
            return None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except (OSError, RuntimeError):
            return None
    return path


def _answers(url: str, timeout_s: float = 5.0) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout_s):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


# ---------------------------------------------------------------------------------------------- on disk


def save_network(folder: Path, module: nn.Module, spec: NetworkSpec, card: str) -> NetworkSpec:
    """Write ``weights.safetensors`` (half precision), ``model.json`` and ``card.md`` into the folder.

    Each file appears whole or not at all, and ``model.json``, which holds the hash of the weights, appears last.

    Returns
    -------
    NetworkSpec
        The spec with the hash of the weights as written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: (value.detach().cpu().half() if value.is_floating_point() else value.detach().cpu()).contiguous()
        for name, value in module.state_dict().items()
    }
    content = safetensors.torch.save(state)
    spec = replace(spec, sha256=hashlib.sha256(content).hexdigest())
    write_whole(folder / "weights.safetensors", content)
    write_whole(folder / "card.md", card.encode())
    write_whole(folder / "model.json", (json.dumps(spec.to_json(), indent=2) + "\n").encode())
    return spec


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def read_spec(folder: Path) -> NetworkSpec:
    """The spec of the network in a folder.

    Raises
    ------
    Ki67Error
        If there is no readable ``model.json``.
    """
    try:
        record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Ki67Error(
            f"network {folder.name}: no readable model.json in its folder; point the config at a folder that "
            "training wrote"
        ) from error
    return NetworkSpec.from_json(record)


def save_ranges(folder: Path, ranges: Ranges, spec: NetworkSpec) -> None:
    """Write ``int8.safetensors``: the ranges of activations of the weights beside it, see ``ki67.quantized``."""
    content = safetensors.numpy.save(dict(ranges), metadata={"sha256": spec.sha256})
    write_whole(folder / RANGES_FILE, content)


def read_ranges(folder: Path, spec: NetworkSpec) -> dict[str, NDArray[np.float32]] | None:
    """What ``save_ranges`` wrote, or None where there is nothing.

    Raises
    ------
    Ki67Error
        If the file is damaged or belongs to other weights.
    """
    path = folder / RANGES_FILE
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, "numpy") as file:
            of_weights = (file.metadata() or {}).get("sha256", "")
            ranges = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
    except (OSError, safetensors.SafetensorError) as error:
        raise Ki67Error(f"network {spec.name}: {RANGES_FILE} is damaged; delete it or calibrate again") from error
    if of_weights != spec.sha256:
        raise Ki67Error(
            f"network {spec.name}: {RANGES_FILE} belongs to weights {of_weights[:12]}... and not to those beside it, "
            f"{spec.sha256[:12]}...; delete it or calibrate again"
        )
    return ranges


def load_network(folder: Path, *, device: str = "auto", precision: Precision = "auto") -> Network:
    """The network of a folder, ready to predict.

    Parameters
    ----------
    folder
        As ``save_network`` wrote it, perhaps with ``save_ranges``.
    device
        ``"auto"`` (a GPU where there is one), ``"cpu"`` or a name that torch knows.
    precision
        In which numbers to compute; see ``choose_precision``.

    Raises
    ------
    Ki67Error
        If the weights are missing, are not those that ``model.json`` describes, or do not fit its architecture.
    """
    folder = Path(folder)
    spec = read_spec(folder)
    try:
        content = (folder / "weights.safetensors").read_bytes()
    except OSError as error:
        raise Ki67Error(f"network {spec.name}: weights.safetensors is missing; train or fetch it again") from error
    found = hashlib.sha256(content).hexdigest()
    if found != spec.sha256:
        raise Ki67Error(
            f"network {spec.name}: weights.safetensors has sha256 {found[:12]}... where model.json says "
            f"{spec.sha256[:12]}...; the file was changed or cut off, fetch or train it again"
        )
    module = build_network(spec)
    try:
        module.load_state_dict(safetensors.torch.load(content))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise Ki67Error(
            f"network {spec.name}: its weights do not fit {spec.architecture} with {len(spec.classes)} classes, as "
            "model.json describes it; fetch or train it again"
        ) from error
    if spec.classifies_patches:
        return PatchNetwork(module, spec, device=device, precision=precision)
    return Network(module, spec, device=device, precision=precision, ranges=read_ranges(folder, spec))


def network_of(module: nn.Module, spec: NetworkSpec, *, device: str = "auto") -> Network:
    """A module in memory, ready to predict; see ``load_network``."""
    return (PatchNetwork if spec.classifies_patches else Network)(module, spec, device=device)


# ---------------------------------------------------------------------------------------------- running


class Network:
    """A network ready to predict, in the numbers that the machine computes fastest.

    Parameters
    ----------
    module
        Trained; it is left as it is.
    spec
        Its description.
    device
        ``"auto"``, ``"cpu"`` or a name that torch knows.
    precision
        See ``choose_precision``.
    ranges
        Of its activations, which 8-bit integers need; see ``ki67.quantized``.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: NetworkSpec,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        ranges: Ranges | None = None,
    ) -> None:
        self.spec = spec
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device, ranges, spec.name)
        fused = fuse_batch_normalization(module)
        self._module: Callable[[torch.Tensor], torch.Tensor]
        if self.precision == "int8" and ranges is not None:
            self._module = QuantizedNetwork(fused.float(), ranges, spec.mean, spec.std)
        else:
            self.dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
            self._module = channels_last(with_convolutions_in(fused, self.dtype), self.device)
        self._scale, self._shift = (value.to(self.device) for value in normalization(spec))

    @property
    def block_px(self) -> tuple[int, int]:
        """Height and width of the largest window it should be given: what a thread can hold in some 500 MB."""
        return BLOCK_PX[self.precision]

    @property
    def halo_px(self) -> int:
        """How far beyond a window, on every side, it should be shown what lies around."""
        return HALO_PX

    @property
    def identity(self) -> dict[str, str]:
        """Name, hash of the weights and precision, by which a record says what made a result."""
        return {"name": self.spec.name, "sha256": self.spec.sha256, "precision": self.precision}

    @torch.inference_mode()
    def predict(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities of every pixel.

        Parameters
        ----------
        batch
            uint8 ``(N, H, W, 3)`` RGB at ``spec.mpp``, both sides multiples of 32.

        Returns
        -------
        float32 ``(N, C, H, W)``
            One channel a class of ``spec.classes``.

        Raises
        ------
        Ki67Error
            If a side is no multiple of 32.
        """
        return self._one_by_one(batch, lambda pixels: self._probabilities(pixels, 0).cpu().numpy())

    @torch.inference_mode()
    def predict_levels(self, batch: NDArray[np.uint8], halo_px: int = 0) -> NDArray[np.uint8]:
        """Probabilities in 255 levels of every pixel but those of the halo.

        Parameters
        ----------
        batch
            As ``predict`` takes it.
        halo_px
            Pixels on every side that were only shown to the network.

        Returns
        -------
        uint8 ``(N, C, H - 2 * halo_px, W - 2 * halo_px)``
            255 for 1.

        Raises
        ------
        Ki67Error
            If a side is no multiple of 32.
        """

        def levels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
            return self._probabilities(pixels, halo_px).mul_(255).round_().to(torch.uint8).cpu().numpy()

        return self._one_by_one(batch, levels)

    def random_input(self, batch_size: int, height_px: int, width_px: int) -> torch.Tensor:
        """What the layers of the network are given ``(N, 3, H, W)``, for timing them."""
        random = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (batch_size, height_px, width_px, 3), generator=random, dtype=torch.uint8)
        return self._prepared(pixels.to(self.device))

    @torch.inference_mode()
    def run_bare(self, batch: torch.Tensor) -> None:
        """Run on a ``random_input``, wait until it is done, and forget the answer."""
        self._module(batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _one_by_one(
        self, batch: NDArray[np.uint8], answer: Callable[[NDArray[np.uint8]], NDArray[_Number]]
    ) -> NDArray[_Number]:
        if batch.shape[1] % STRIDE_PX or batch.shape[2] % STRIDE_PX:
            raise Ki67Error(
                f"network {self.spec.name}: tiles of {batch.shape[2]}x{batch.shape[1]} px do not fit; "
                f"both sides must be multiples of {STRIDE_PX}"
            )
        # A processor is no faster on several tiles of 512 px than on one, and one by one a tile's result cannot depend
        # on which tiles it shares a batch with.
        at_once = 1 if self.device.type == "cpu" else len(batch)
        parts = [answer(batch[start : start + at_once]) for start in range(0, len(batch), at_once)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _probabilities(self, batch: NDArray[np.uint8], halo_px: int) -> torch.Tensor:
        """Of every pixel but those of the halo, float32 ``(N, C, H, W)``; its own memory, not that of the logits."""
        end = -halo_px or None
        # Channel by channel in memory, as softmax is fastest that way and all that follows takes it so.
        inner = self._logits(batch)[:, :, halo_px:end, halo_px:end]
        return self._activated(inner.contiguous(memory_format=torch.contiguous_format))

    def _logits(self, batch: NDArray[np.uint8]) -> torch.Tensor:
        return self._module(self._prepared(torch.from_numpy(np.ascontiguousarray(batch)).to(self.device)))

    def _prepared(self, pixels: torch.Tensor) -> torch.Tensor:
        # Pixels (N, H, W, 3) seen as (N, 3, H, W) are already in channels_last order: nothing is copied.
        tiles = pixels.permute(0, 3, 1, 2)
        if self.precision == "int8":
            return tiles
        normalized = torch.addcmul(self._shift, tiles.float(), self._scale).to(self.dtype)
        return normalized.contiguous(memory_format=torch.channels_last)

    def _activated(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.float().sigmoid() if len(self.spec.classes) == 1 else logits.float().softmax(dim=1)


class PatchNetwork(Network):
    """A classifier of patches ready to predict; see ``ki67.patch_classifier`` for what a pixel takes from them.

    Parameters
    ----------
    module, spec, device
        As of ``Network``.
    precision
        ``"auto"``, ``"bfloat16"`` or ``"float32"``.

    Raises
    ------
    Ki67Error
        If 8-bit integers are asked for.
    """

    def __init__(
        self, module: nn.Module, spec: NetworkSpec, *, device: str = "auto", precision: Precision = "auto"
    ) -> None:
        if precision == "int8":
            raise Ki67Error(f"network {spec.name}: a {spec.architecture} {NO_INT8}; set precision to auto")
        super().__init__(module, spec, device=device, precision=precision)
        self._at_once = _PATCHES_ON_CPU if self.device.type == "cpu" else _PATCHES_ON_GPU

    @property
    def halo_px(self) -> int:
        """How far beyond a window, on every side, patches reach."""
        return patch_halo_px(self.spec.tile_px, self.spec.patch_stride_px)

    def random_input(self, batch_size: int, height_px: int, width_px: int) -> torch.Tensor:
        """The patches of so many windows, without those around them, for timing the network."""
        cells = -(-height_px // self.spec.patch_stride_px) * -(-width_px // self.spec.patch_stride_px)
        return super().random_input(batch_size * cells, self.spec.tile_px, self.spec.tile_px)

    @torch.inference_mode()
    def run_bare(self, batch: torch.Tensor) -> None:
        """Run on a ``random_input``, wait until it is done, and forget the answer."""
        for patches in batch.split(self._at_once):
            super().run_bare(patches)

    def _probabilities(self, batch: NDArray[np.uint8], halo_px: int) -> torch.Tensor:
        patches, (count, rows, columns) = cut_patches(batch, halo_px, self.spec.tile_px, self.spec.patch_stride_px)
        starts = range(0, len(patches), self._at_once)
        logits = torch.cat([self._logits_of_patches(patches[start : start + self._at_once]) for start in starts])
        cells = self._activated(logits[:, :, None, None]).view(count, rows, columns, -1).permute(0, 3, 1, 2)
        height, width = batch.shape[1] - 2 * halo_px, batch.shape[2] - 2 * halo_px
        return between_cells(cells.contiguous(), self.spec.patch_stride_px, height, width)

    def _logits_of_patches(self, patches: NDArray[np.uint8]) -> torch.Tensor:
        filled = np.pad(patches, ((0, self._at_once - len(patches)), (0, 0), (0, 0), (0, 0)))
        return self._logits(filled)[: len(patches)]


def normalization(spec: NetworkSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and summand ``(1, 3, 1, 1)`` that bring RGB values 0-255 to the network's mean 0 and deviation 1."""
    mean = torch.tensor(spec.mean).view(1, 3, 1, 1)
    std = torch.tensor(spec.std).view(1, 3, 1, 1)
    return 1 / (255 * std), -mean / std


def choose_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is a GPU where there is one.

    Of several GPUs the process has one of its own (``ki67.devices``).

    Raises
    ------
    Ki67Error
        If there is no such device.
    """
    if name in ("auto", "cuda"):
        claim_gpu(gpu_names())
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise Ki67Error(f"device {name!r} cannot be used on this machine; set device to auto or cpu") from error
    return torch.device(name)


def choose_precision(wanted: Precision, device: torch.device, ranges: Ranges | None, name: str) -> Precision:
    """In which numbers to compute; ``"auto"`` takes the fastest that the machine has instructions for.

    These are 8-bit integers on a processor with AVX512-VNNI or AMX, if the network has ranges of its activations;
    bfloat16 on a GPU from Ampere on and on a processor with AVX512-BF16 or AMX; float32 elsewhere.

    Raises
    ------
    Ki67Error
        If 8-bit integers are insisted on where they cannot be had.
    """
    can_int8 = device.type == "cpu" and computes_int8()
    if wanted == "int8":
        if not can_int8:
            raise Ki67Error("precision int8 needs a processor with AVX512-VNNI or AMX; set precision to auto")
        if ranges is None:
            raise Ki67Error(
                f"network {name}: precision int8 needs {RANGES_FILE} in its folder; write it with: "
                "python -m ki67 calibrate FOLDER DATASET, or set precision to auto"
            )
    if wanted != "auto":
        return wanted
    if can_int8 and ranges is not None:
        return "int8"
    return "bfloat16" if computes_bfloat16(device) else "float32"


def computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is a native type of the device: AMX or AVX512-BF16 on a processor, Ampere or later on a GPU."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def fuse_batch_normalization(module: nn.Module) -> nn.Module:
    """A copy for evaluation in which every batch normalization that directly follows a convolution is folded into it.

    Follows is what the order of a module's children says, which holds for the blocks of ResNet, DenseNet and the U-Net
    decoder; normalizations elsewhere stay.
    """
    module = copy.deepcopy(module).eval()
    for parent in module.modules():
        children = list(parent.named_children())
        for (name, first), (following, second) in itertools.pairwise(children):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(parent, name, nn.utils.fuse_conv_bn_eval(first, second))
                setattr(parent, following, nn.Identity())
    return module


def with_convolutions_in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module with convolutions in ``dtype``; normalizations stay float32, as their statistics need the digits."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.to(dtype)
    return module
