"""Networks in 8-bit integers: half the time of bfloat16 on processors that multiply such, at nearly its accuracy.

Weights and activations become integers with a scale and an offset for every channel (post-training quantization; Jacob
et al., Quantization and training of neural networks for efficient integer-arithmetic-only inference, 2018). The scale
of a channel goes into the weights of the convolution that reads it, so it costs nothing; ranges of activations come
from images that the network was shown before (``activation_ranges``). Convolutions are those of oneDNN.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn import functional

from ki67.compiled import compiled
from ki67.errors import Ki67Error

HEADROOM = 1.1
"""Ranges are so much wider than what was seen."""
_LEVELS = 255
_SIGNED_LEVELS = 127
# A channel hardly ever active in the images of the ranges still gets this share of the widest channel's range.
_NARROWEST = 0.01
_FRACTION_BITS = 12
# The integer that stands for 0 in terms of a sum that may be negative.
_ZERO_OF_SIGNED = 96

Ranges = Mapping[str, NDArray[np.float32]]


def computes_int8() -> bool:
    """Whether this processor multiplies and adds 8-bit integers in one instruction: AVX512-VNNI or AMX."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_vnni") or capabilities.get("amx_int8"))


# ---------------------------------------------------------------------------------------------- graph and ranges


def traced(module: nn.Module) -> fx.GraphModule:
    """The graph of a U-Net in evaluation: layers that do nothing left out, sizes of upsampling fixed to 2."""
    graph = fx.symbolic_trace(module)
    for node in list(graph.graph.nodes):
        if isinstance(_layer(graph, node), nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif node.target is functional.interpolate:
            node.args, node.kwargs = node.args[:1], {"scale_factor": 2.0, "mode": "nearest"}
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _layer(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


class _RangeRecorder(fx.Interpreter):
    """Runs a network and keeps the least and largest value of every channel after each layer."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.ranges: dict[str, NDArray[np.float32]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(_layer(self.module, n), nn.Conv2d | nn.ReLU | nn.AvgPool2d):  # type: ignore[arg-type]
            found = torch.stack([result.amin((0, 2, 3)), result.amax((0, 2, 3))]).numpy()
            known = self.ranges.setdefault(n.name, found)
            self.ranges[n.name] = np.stack([np.minimum(known[0], found[0]), np.maximum(known[1], found[1])])
        return result


@torch.inference_mode()
def activation_ranges(module: nn.Module, batches: Iterable[torch.Tensor]) -> dict[str, NDArray[np.float32]]:
    """Least and largest activation of every channel after each layer, by the layer's name in the graph.

    Parameters
    ----------
    module
        In evaluation and float32, batch normalization folded where it follows a convolution.
    batches
        Normalized images float32 ``(N, 3, H, W)``.

    Returns
    -------
    float32 ``(2, C)`` for each convolution, rectifier and mean pooling.
    """
    recorder = _RangeRecorder(traced(module))
    for batch in batches:
        recorder.run(batch)
    return recorder.ranges


# ---------------------------------------------------------------------------------------------- steps


@dataclass(frozen=True)
class _Affine:
    """What integers of a tensor stand for: ``scale * q + offset``, each ``(C,)``."""

    scale: torch.Tensor
    offset: torch.Tensor

    @staticmethod
    def joined(parts: list[_Affine]) -> _Affine:
        return _Affine(torch.cat([part.scale for part in parts]), torch.cat([part.offset for part in parts]))


@dataclass(frozen=True)
class _Kernel:
    """A convolution as oneDNN takes it: ``result = scale * (weight ∗ q) + bias``."""

    packed: torch.Tensor
    scale: torch.Tensor
    zero_points: torch.Tensor
    bias: torch.Tensor
    stride: list[int]
    padding: list[int]
    frame: torch.Tensor | None

    @classmethod
    def of(cls, layer: nn.Conv2d, source: _Affine, result_scale: torch.Tensor, result_offset: torch.Tensor) -> _Kernel:
        """From inputs that stand for ``source`` to results ``(y - result_offset) / result_scale``."""
        assert not isinstance(layer.padding, str)
        weight = layer.weight.detach().float()
        bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
        bias = bias + (weight.sum((2, 3)) * source.offset).sum(1) - result_offset
        weight = weight * source.scale.view(1, -1, 1, 1)
        scale = weight.abs().amax((1, 2, 3)).clamp_min(1e-12) / _SIGNED_LEVELS
        levels = (weight / scale.view(-1, 1, 1, 1)).round().to(torch.int8)
        scale = (scale / result_scale).contiguous()
        padding, frame = list(layer.padding), None
        if source.offset.any() and any(padding):
            # What stands for 0 differs between channels: it is laid around the image by hand.
            frame = (-source.offset / source.scale).round().clamp(0, _LEVELS).to(torch.uint8)
            padding = [0, 0]
        stride, dilation = list(layer.stride), list(layer.dilation)
        packed = torch.ops.onednn.qconv_prepack(levels, scale, 1.0, 0, stride, padding, dilation, layer.groups, None)
        return cls(
            packed, scale, torch.zeros(len(scale), dtype=torch.int8), bias / result_scale, stride, padding, frame
        )

    def framed(self, image: torch.Tensor, width: int) -> torch.Tensor:
        """The image ``(N, C, H, W)`` with what stands for 0 around it, where zeros would not."""
        if self.frame is None:
            return image
        count, channels, height, columns = image.shape
        wide = self.frame.expand(count, height + 2 * width, columns + 2 * width, channels).clone()
        wide[:, width : width + height, width : width + columns] = image.permute(0, 2, 3, 1)
        return wide.permute(0, 3, 1, 2)


Values = dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Step:
    """Makes one value from others; ``sources`` are names."""

    name: str
    sources: tuple[str, ...]

    def run(self, values: Values) -> torch.Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class _Convolve(_Step):
    kernel: _Kernel
    margin: int
    rectified: bool
    dtype: torch.dtype

    def run(self, values: Values) -> torch.Tensor:
        kernel = self.kernel
        image = kernel.framed(values[self.sources[0]], self.margin)
        return torch.ops.onednn.qconv2d_pointwise(
            image, 1.0, 0, kernel.packed, kernel.scale, kernel.zero_points, kernel.bias, kernel.stride, kernel.padding,
            [1, 1], 1, 1.0, 0, self.dtype, "relu" if self.rectified else "none", [], "",
        )  # fmt: skip


@dataclass(frozen=True)
class _ConvolveOnto(_Step):
    """Adds a convolution of the first source to the second, and rectifies."""

    kernel: _Kernel
    other_zero: int
    other_is_used_again: bool

    def run(self, values: Values) -> torch.Tensor:
        kernel, other = self.kernel, values[self.sources[1]]
        return torch.ops.onednn.qconv2d_pointwise.binary(
            values[self.sources[0]], 1.0, 0, kernel.packed, kernel.scale, kernel.zero_points,
            other.clone() if self.other_is_used_again else other, kernel.bias, kernel.stride, kernel.padding, [1, 1], 1,
            1.0, 0, torch.uint8, 1.0, self.other_zero, "sum", 1.0, "relu", [], "",
        )  # fmt: skip


@dataclass(frozen=True)
class _MaxPool(_Step):
    """3 x 3 pixels, every second; integers that stand for values of at least 0."""

    def run(self, values: Values) -> torch.Tensor:
        image = functional.pad(values[self.sources[0]], (1, 1, 1, 1))
        rows = torch.maximum(torch.maximum(image[:, :, :-2:2], image[:, :, 1:-1:2]), image[:, :, 2::2])
        both = torch.maximum(torch.maximum(rows[..., :-2:2], rows[..., 1:-1:2]), rows[..., 2::2])
        return both.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class _Upsample(_Step):
    def run(self, values: Values) -> torch.Tensor:
        return functional.interpolate(values[self.sources[0]], scale_factor=2.0, mode="nearest")


@dataclass(frozen=True)
class _Concatenate(_Step):
    def run(self, values: Values) -> torch.Tensor:
        return torch.cat([values[source] for source in self.sources], 1)


@dataclass(frozen=True)
class _AveragePool(_Step):
    """2 x 2 pixels."""

    def run(self, values: Values) -> torch.Tensor:
        image = values[self.sources[0]].permute(0, 2, 3, 1).numpy()
        count, height, width, channels = image.shape
        result = np.empty((count, height // 2, width // 2, channels), dtype=np.uint8)
        for one, pooled in zip(image, result, strict=True):
            _average_squares(one, pooled)
        return torch.from_numpy(result).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Collect(_Step):
    """Puts a part into its channels of a buffer, which the first part makes; the buffer is the second source."""

    first_channel: int
    channels: int

    def run(self, values: Values) -> torch.Tensor:
        part = values[self.sources[0]].permute(0, 2, 3, 1)
        if self.first_channel:
            buffer = values[self.sources[1]]
        else:
            buffer = torch.empty((*part.shape[:3], self.channels), dtype=torch.uint8)
        buffer[..., self.first_channel : self.first_channel + part.shape[3]] = part
        return buffer


@dataclass(frozen=True)
class _Normalize(_Step):
    """Batch normalization and rectifier on the first channels of a buffer ``(N, H, W, C)``."""

    factor: NDArray[np.int32]
    summand: NDArray[np.int32]

    def run(self, values: Values) -> torch.Tensor:
        buffer = values[self.sources[0]]
        result = np.empty((*buffer.shape[:3], len(self.factor)), dtype=np.uint8)
        _normalize(
            buffer.numpy().reshape(-1, buffer.shape[3]), self.factor, self.summand, result.reshape(-1, len(self.factor))
        )
        return torch.from_numpy(result).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _AsImage(_Step):
    """A buffer seen as ``(N, C, H, W)``."""

    def run(self, values: Values) -> torch.Tensor:
        return values[self.sources[0]].permute(0, 3, 1, 2)


@compiled
def _normalize(
    pixels: NDArray[np.uint8], factor: NDArray[np.int32], summand: NDArray[np.int32], result: NDArray[np.uint8]
) -> None:
    """Fixed-point ``factor * q + summand`` of each pixel's first channels, cut off to 8 bits."""
    channels = len(factor)
    for pixel in range(len(pixels)):
        for channel in range(channels):
            value = (np.int32(pixels[pixel, channel]) * factor[channel] + summand[channel]) >> np.int32(_FRACTION_BITS)
            result[pixel, channel] = np.uint8(min(max(value, np.int32(0)), np.int32(_LEVELS)))


@compiled
def _average_squares(image: NDArray[np.uint8], result: NDArray[np.uint8]) -> None:
    height, width, channels = result.shape
    for row in range(height):
        for column in range(width):
            for channel in range(channels):
                total = (
                    np.int32(image[2 * row, 2 * column, channel])
                    + image[2 * row, 2 * column + 1, channel]
                    + image[2 * row + 1, 2 * column, channel]
                    + image[2 * row + 1, 2 * column + 1, channel]
                )
                result[row, column, channel] = np.uint8((total + np.int32(2)) >> np.int32(2))


# ---------------------------------------------------------------------------------------------- network


class QuantizedNetwork:
    """A U-Net of this workflow that takes RGB pixels as they are, and computes in 8-bit integers.

    Parameters
    ----------
    module
        In evaluation and float32, batch normalization folded where it follows a convolution.
    ranges
        Of its activations, as ``activation_ranges`` gives them.
    mean, std
        Of RGB values 0-1, by which its input is normalized.

    Raises
    ------
    Ki67Error
        If the ranges are not those of this network, or it has layers that are not known here.
    """

    def __init__(self, module: nn.Module, ranges: Ranges, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self._graph = traced(module)
        self._ranges = ranges
        self._nodes: list[fx.Node] = list(self._graph.graph.nodes)
        self._order = {node: index for index, node in enumerate(self._nodes)}
        self._sums = self._scales_of_sums()
        self._buffers = self._dense_buffers()
        self._affine: dict[fx.Node, _Affine] = {}
        self._steps: list[_Step] = []
        self._input = self._nodes[0].name
        # Levels of an image stand for normalized values.
        self._affine[self._nodes[0]] = _Affine(
            1 / (_LEVELS * torch.tensor(std)), -torch.tensor(mean) / torch.tensor(std)
        )
        for node in self._nodes[1:-1]:
            self._add(node)
        self._output = self._steps[-1].name
        last_use = {source: index for index, step in enumerate(self._steps) for source in step.sources}
        self._done_with = [
            [source for source in set(step.sources) if last_use[source] == index and source != step.name]
            for index, step in enumerate(self._steps)
        ]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits float32 ``(N, classes, H, W)`` of RGB pixels uint8 ``(N, 3, H, W)`` in channels_last order."""
        values: Values = {self._input: pixels}
        for step, done_with in zip(self._steps, self._done_with, strict=True):
            values[step.name] = step.run(values)
            for name in done_with:
                del values[name]
        return values[self._output]

    # ------------------------------------------------------------------------------------------ nodes

    def _add(self, node: fx.Node) -> None:
        layer = _layer(self._graph, node)
        if isinstance(layer, nn.Conv2d):
            self._add_convolution(node, layer)
        elif isinstance(layer, nn.BatchNorm2d):
            self._add_normalization(node, layer)
        elif isinstance(layer, nn.MaxPool2d):
            self._add_like_source(_MaxPool(node.name, (self._source(node).name,)), node)
        elif node.target is functional.interpolate:
            self._add_like_source(_Upsample(node.name, (self._source(node).name,)), node)
        elif node.target is torch.cat:
            self._add_concatenation(node)
        elif not (isinstance(layer, nn.ReLU | nn.AvgPool2d) or node.target is operator.add):  # part of other steps
            raise Ki67Error(f"a network with {node.target} cannot be computed in 8-bit integers; set precision to auto")

    def _source(self, node: fx.Node) -> fx.Node:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return source

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def _add_like_source(self, step: _Step, node: fx.Node) -> None:
        self._affine[node] = self._affine[self._source(node)]
        self._append(step, node)

    def _append(self, step: _Step, node: fx.Node) -> None:
        self._steps.append(step)
        if node in self._buffers:
            name, first_channel, channels = self._buffers[node]
            self._steps.append(_Collect(name, (step.name, name)[: 2 if first_channel else 1], first_channel, channels))

    def _add_convolution(self, node: fx.Node, layer: nn.Conv2d) -> None:
        source, user = self._source(node), self._only_user(node)
        assert user is not None or node in self._buffers
        following = _layer(self._graph, user) if user is not None else None
        margin = int(layer.padding[0])
        if user is not None and user.op == "output":
            affine = _Affine(torch.ones(layer.out_channels), torch.zeros(layer.out_channels))
            kernel = _Kernel.of(layer, self._affine[source], affine.scale, affine.offset)
            self._append(_Convolve(node.name, (source.name,), kernel, margin, False, torch.float32), node)
            return
        if user is not None and user.target is operator.add and self._is_last_of(node, user):
            self._add_residual(node, layer, user)
            return
        result, name = node, source.name
        if isinstance(following, nn.ReLU):
            result = user or node
        elif isinstance(following, nn.AvgPool2d):
            # The mean of convolved pixels is the convolution of mean pixels, which are fewer.
            result, name = user or node, f"{node.name}_pooled"
            self._steps.append(_AveragePool(name, (source.name,)))
        affine = self._result(result, rectified=isinstance(following, nn.ReLU))
        self._affine[result] = affine
        kernel = _Kernel.of(layer, self._affine[source], affine.scale, affine.offset)
        self._append(
            _Convolve(result.name, (name,), kernel, margin, isinstance(following, nn.ReLU), torch.uint8), result
        )

    def _is_last_of(self, node: fx.Node, addition: fx.Node) -> bool:
        return all(self._order[other] <= self._order[node] for other in addition.all_input_nodes)

    def _add_residual(self, node: fx.Node, layer: nn.Conv2d, addition: fx.Node) -> None:
        other = next(one for one in addition.all_input_nodes if one is not node)
        result = self._only_user(addition)
        assert result is not None
        affine = self._result(result, rectified=True)
        self._affine[result] = affine
        kernel = _Kernel.of(layer, self._affine[self._source(node)], affine.scale, affine.offset)
        used_again = any(self._order[user] > self._order[result] for user in other.users)
        self._append(
            _ConvolveOnto(
                result.name,
                (self._source(node).name, other.name),
                kernel,
                _ZERO_OF_SIGNED if isinstance(_layer(self._graph, other), nn.Conv2d) else 0,
                used_again,
            ),
            result,
        )

    def _add_concatenation(self, node: fx.Node) -> None:
        parts = node.all_input_nodes
        self._affine[node] = _Affine.joined([self._affine[part] for part in parts])
        if parts[0] not in self._buffers:
            self._append(_Concatenate(node.name, tuple(part.name for part in parts)), node)

    def _add_normalization(self, node: fx.Node, layer: nn.BatchNorm2d) -> None:
        assert layer.running_var is not None
        assert layer.running_mean is not None
        source, user = self._source(node), self._only_user(node)
        factor = layer.weight.detach() / torch.sqrt(layer.running_var + layer.eps)
        summand = layer.bias.detach() - layer.running_mean * factor
        before = self._affine[source]
        buffer = self._buffers[source.all_input_nodes[0]][0]
        if user is None or not isinstance(_layer(self._graph, user), nn.ReLU):
            # Only what the integers stand for changes; a factor below 0 turns the scale round, which does no harm.
            self._affine[node] = _Affine(before.scale * factor, before.offset * factor + summand)
            self._append(_AsImage(node.name, (buffer,)), node)
            return
        after = self._result(user, rectified=True)
        self._affine[user] = after
        unit = float(2**_FRACTION_BITS)
        multiplier = (before.scale * factor / after.scale * unit).round()
        shift = ((before.offset * factor + summand) / after.scale * unit).round() + unit / 2
        self._append(
            _Normalize(user.name, (buffer,), multiplier.to(torch.int32).numpy(), shift.to(torch.int32).numpy()), user
        )

    def _result(self, node: fx.Node, *, rectified: bool) -> _Affine:
        """What the integers of a node stand for, by the range of each channel."""
        if node in self._sums:
            scale = self._sums[node]
            return _Affine(scale, torch.zeros_like(scale) if rectified else -_ZERO_OF_SIGNED * scale)
        lowest, highest = self._range(node)
        lowest = torch.zeros_like(lowest) if rectified else lowest
        return _Affine(_widened((highest - lowest) / _LEVELS), lowest)

    def _range(self, node: fx.Node) -> tuple[torch.Tensor, torch.Tensor]:
        """Least and largest value of each channel, with room to spare, 0 among them."""
        if node.name not in self._ranges:
            raise Ki67Error("the activation ranges of the network are those of another; calibrate it again")
        lowest, highest = (torch.tensor(part, dtype=torch.float32) for part in self._ranges[node.name])
        return lowest.clamp_max(0) * HEADROOM, highest.clamp_min(0) * HEADROOM

    # ------------------------------------------------------------------------------------------ before the steps

    def _scales_of_sums(self) -> dict[fx.Node, torch.Tensor]:
        """Scales ``(C,)`` of the terms and results of sums: one for all that are added up one after the other.

        oneDNN adds integers to what is there with one factor for all channels, so both must have the same scales.
        """
        chains: list[set[fx.Node]] = []
        for node in self._nodes:
            if node.target is operator.add:
                chain = {*node.users, *node.all_input_nodes}
                chain |= {self._source(one) for one in chain if isinstance(_layer(self._graph, one), nn.MaxPool2d)}
                meeting = [other for other in chains if other & chain]
                chains = [other for other in chains if not other & chain] + [chain.union(*meeting)]
        return {node: scale for chain in chains for scale in [self._scale_of(chain)] for node in chain}

    def _scale_of(self, chain: set[fx.Node]) -> torch.Tensor:
        needed = []
        for node in chain:
            layer = _layer(self._graph, node)
            if isinstance(layer, nn.ReLU):
                needed.append(self._range(node)[1] / _LEVELS)
            elif isinstance(layer, nn.Conv2d) and not self._is_last_of(node, next(iter(node.users))):
                lowest, highest = self._range(node)
                needed.append(torch.maximum(highest / (_LEVELS - _ZERO_OF_SIGNED), -lowest / _ZERO_OF_SIGNED))
        return _widened(torch.stack(needed).amax(0))

    def _dense_buffers(self) -> dict[fx.Node, tuple[str, int, int]]:
        """For each part of a dense block its buffer, the first of its channels there, and how many these are in all."""
        longest: dict[fx.Node, list[fx.Node]] = {}
        for node in self._nodes:
            if node.target is torch.cat and isinstance(_layer(self._graph, next(iter(node.users))), nn.BatchNorm2d):
                parts = node.all_input_nodes
                longest[parts[0]] = max(longest.get(parts[0], []), parts, key=len)
        found = {}
        for parts in longest.values():
            channels = [self._channels(part) for part in parts]
            for part, first in zip(parts, np.cumsum([0, *channels[:-1]]).tolist(), strict=True):
                found[part] = (f"{parts[0].name}_block", first, sum(channels))
        return found

    def _channels(self, node: fx.Node) -> int:
        while not isinstance(layer := _layer(self._graph, node), nn.Conv2d):
            node = self._source(node)
        return layer.out_channels


def _widened(scale: torch.Tensor) -> torch.Tensor:
    """Scales of which none is much below the largest."""
    return torch.maximum(scale, scale.max() * _NARROWEST).clamp_min(1e-8).contiguous()
