"""The ways to predict the index from H&E, behind one interface: what ``predict.method`` may be.

Each takes slides as ``Example``, is fitted to some of them, and then says of any slide what its index may be; those of
the level ``patch`` say it of every patch as well. What they learn are arrays, and a file of arrays runs no code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ki67.devices import gpu_names
from ki67.errors import ConfigError
from ki67.prediction.examples import Example, Model, common_pixels, example_of
from ki67.prediction.nuclear_features import NUCLEAR_FEATURES, nuclear_features
from ki67.prediction.patch_features import FEATURES, patch_features
from ki67.prediction.patch_pairs import PatchPairs

if TYPE_CHECKING:
    from ki67.prediction.cyclegan import Counts, CycleOptions
    from ki67.prediction.patch_networks import NetworkOptions

Method = Literal["forest", "resnet18", "vit_b16", "cyclegan", "mean_pooling", "attention"]
LEVELS: dict[Method, Literal["patch", "slide"]] = {
    "forest": "patch",
    "resnet18": "patch",
    "vit_b16": "patch",
    "cyclegan": "patch",
    "mean_pooling": "slide",
    "attention": "slide",
}
"""Whether a method learns from the labels of patches, or from the indices of slides alone."""
VIT_PATCH_PX = 16
_GROUPS = (len(FEATURES), len(NUCLEAR_FEATURES))
_TIMES = np.repeat([max(_GROUPS) // size for size in _GROUPS], _GROUPS)
"""How often each feature counts, so that the few of nuclei are not drowned by the many of pixels."""


@dataclass(frozen=True)
class PredictOptions:
    """How a model is fitted; of what a method does not need, nothing matters.

    Attributes
    ----------
    method
        One of ``LEVELS``.
    trees
        Of a forest.
    features
        What ``mean_pooling`` and ``attention`` see of a patch: ``pixels`` (``ki67.prediction.patch_features`` and, of
        its nuclei, ``ki67.prediction.nuclear_features``, both groups alike) or ``network``, the features of a ResNet-18
        with the weights of ``weights``.
    weights
        File of first weights of a network; None: random ones.
    input_px
        Side of the patches that networks see.
    steps, batch_size, learning_rate
        Of networks; None is what is usual for the method.
    channels, blocks
        Of a CycleGAN.
    nuclei_method, nuclei_model
        Who counts on what a CycleGAN draws, as ``nuclei.method``; the folder of its model, None: the one that ships.
    device
        ``auto``, ``cpu`` or a name that torch knows.
    """

    method: Method
    trees: int = 200
    features: Literal["pixels", "network"] = "pixels"
    weights: Path | None = None
    input_px: int = 64
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    channels: int = 64
    blocks: int = 6
    nuclei_method: str = "unet_resnet34"
    nuclei_model: Path | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError(f"predict.method is {self.method!r}; write {', '.join(LEVELS)} or null")
        if self.method == "vit_b16" and self.input_px % VIT_PATCH_PX:
            raise ConfigError(f"predict.input_px is {self.input_px}; vit_b16 needs a multiple of {VIT_PATCH_PX}")
        if self.needs_network and self.weights is None:
            raise ConfigError(
                "predict.features is network and predict.weights names no file; name the weights of a ResNet-18, or "
                "set predict.features: pixels"
            )

    @property
    def level(self) -> Literal["patch", "slide"]:
        """``LEVELS`` of the method."""
        return LEVELS[self.method]

    @property
    def needs_network(self) -> bool:
        """Whether patches become features by a network."""
        return self.level == "slide" and self.features == "network"

    @property
    def on_gpu(self) -> bool:
        """Whether it trains on a GPU, if it trains."""
        network = self.method in ("resnet18", "vit_b16", "cyclegan")
        return network and self.device != "cpu" and bool(gpu_names())

    def to_json(self) -> dict[str, Any]:
        """What decides how a trained model answers, without the paths of this machine."""
        names = (
            "method",
            "trees",
            "features",
            "input_px",
            "steps",
            "batch_size",
            "learning_rate",
            "channels",
            "blocks",
        )
        return {name: getattr(self, name) for name in (*names, "nuclei_method")}


def predict_options(
    settings: Mapping[str, Any], *, weights: Path | None = None, nuclei_model: Path | None = None
) -> PredictOptions:
    """Options from the section ``predict`` of the settings, with ``device`` and ``nuclei_method``; no others matter.

    Parameters
    ----------
    weights, nuclei_model
        See ``PredictOptions``.
    """
    names = {field.name for field in fields(PredictOptions)} - {"weights", "nuclei_model"}
    known = {name: value for name, value in settings.items() if name in names}
    return PredictOptions(**known, weights=weights, nuclei_model=nuclei_model)


def prepare(pairs: PatchPairs, options: PredictOptions, ki67: NDArray[np.uint8] | None = None) -> Example:
    """A slide as the method sees it.

    Parameters
    ----------
    ki67
        Patches of its Ki-67 slide, which ``cyclegan`` learns from.
    """
    if options.method == "cyclegan":
        return example_of(pairs, common_pixels(pairs), ki67)
    if options.method in ("resnet18", "vit_b16"):
        return example_of(pairs, common_pixels(pairs, options.input_px))
    if options.needs_network:
        from ki67.prediction.patch_networks import network_features

        return example_of(pairs, network_features(common_pixels(pairs, options.input_px), *_encoder(options)))
    both = patch_features(pairs.he, pairs.mpp), nuclear_features(pairs.he, pairs.mpp)
    return example_of(pairs, np.concatenate(both, axis=1))


@cache
def _encoder(options: PredictOptions) -> tuple[Any, Any]:
    """The network that makes features, and its device."""
    from ki67.networks import choose_device
    from ki67.prediction.patch_networks import build_network, load_first_weights

    device = choose_device(options.device)
    network = build_network("resnet18", options.input_px, outputs=0).to(device)
    load_first_weights(network, "resnet18", cast(Path, options.weights))
    return network.eval(), device


def fit(examples: Sequence[Example], options: PredictOptions, *, seed: int) -> Model:
    """A model of the method, fitted to slides with an index.

    Parameters
    ----------
    seed
        Of everything that is drawn. The same slides and seed give the same model.
    """
    times = None if options.needs_network else _TIMES
    if options.method == "forest":
        from ki67.prediction.forest import fit_forest

        return fit_forest(examples, times, trees=options.trees, seed=seed)
    if options.method == "mean_pooling":
        from ki67.prediction.pooling import fit_mean_pooling

        return fit_mean_pooling(examples, times)
    if options.method == "attention":
        from ki67.prediction.pooling import fit_attention

        return fit_attention(examples, times, seed=seed)
    if options.method == "cyclegan":
        from ki67.prediction.cyclegan import fit_translation

        return fit_translation(examples, counter(options), _cycle_options(options), seed=seed)
    from ki67.prediction.patch_networks import fit_network

    return fit_network(examples, _network_options(options), seed=seed)


def restore(arrays: dict[str, NDArray[Any]], options: PredictOptions) -> Model:
    """The model of which ``Model.arrays`` gave these.

    Raises
    ------
    ConfigError, KeyError, RuntimeError, TypeError, ValueError
        If they are of another model.
    """
    if options.method == "forest":
        from ki67.prediction.forest import forest_of

        return forest_of(arrays, sum(_GROUPS))
    if options.method == "mean_pooling":
        from ki67.prediction.pooling import mean_pooling_of

        return mean_pooling_of(arrays)
    if options.method == "attention":
        from ki67.prediction.pooling import attention_of

        return attention_of(arrays)
    if options.method == "cyclegan":
        from ki67.prediction.cyclegan import translation_from

        return translation_from(arrays, _cycle_options(options), counter(options))
    from ki67.prediction.patch_networks import network_from

    return network_from(arrays, _network_options(options))


@cache
def counter(options: PredictOptions) -> Counts:
    """Who counts nuclei on what a CycleGAN draws."""
    from ki67.detectors import load_detector

    return load_detector(options.nuclei_method, options.nuclei_model, device=options.device)


def _network_options(options: PredictOptions) -> NetworkOptions:
    from ki67.prediction.patch_networks import NetworkOptions

    return NetworkOptions(
        "resnet18" if options.method == "resnet18" else "vit_b16",
        input_px=options.input_px,
        weights=options.weights,
        device=options.device,
        **_given(options, "steps", "batch_size", "learning_rate"),
    )


def _cycle_options(options: PredictOptions) -> CycleOptions:
    from ki67.prediction.cyclegan import CycleOptions

    return CycleOptions(
        channels=options.channels,
        blocks=options.blocks,
        device=options.device,
        **_given(options, "steps", "batch_size", "learning_rate"),
    )


def _given(options: PredictOptions, *names: str) -> dict[str, Any]:
    """Those that are set; for the others the method's own hold."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}
