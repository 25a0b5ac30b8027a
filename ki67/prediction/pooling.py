"""Slides from all their patches at once, learned from the index of slides alone: mean pooling and gated attention.

Nothing is learned from the labels of patches, so that slides of which only the index is known serve as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from ki67.prediction.examples import Answer, Example, Floats, line_of_unseen, patient_weights
from ki67.prediction.seeded import one_thread, seeded

PENALTIES = np.append(np.logspace(-1, 4, 21), np.inf)
"""Of the ridge regression, relative to the number of features; the last leaves the mean of the training alone."""
MEMBERS = 5
"""Attention networks of which the mean answer counts; each has not seen its share of the patients."""


@dataclass(frozen=True)
class Standard:
    """Features in standard deviations from their mean over the slides of the training.

    Attributes
    ----------
    mean, deviation
        float64 ``(F,)``.
    times
        How often each feature counts, as if it stood there so often, ``(F,)``.
    """

    mean: Floats
    deviation: Floats
    times: NDArray[np.int64]

    def __call__(self, features: NDArray[Any]) -> Floats:
        """Features ``(..., F)`` in standard form; what is far out of all training is drawn in to 6 deviations."""
        return np.asarray(np.clip((features - self.mean) / self.deviation, -6, 6) * np.sqrt(self.times))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For a file."""
        return {"mean": self.mean, "deviation": self.deviation, "times": self.times}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Standard:
        """What ``arrays`` gave."""
        return cls(arrays["mean"], arrays["deviation"], arrays["times"])


def standard_of(examples: Sequence[Example], times: NDArray[np.int64] | None = None) -> Standard:
    """Mean and deviation over the patches of slides, all patients alike.

    Parameters
    ----------
    times
        See ``Standard``; None: once each.
    """
    weight = np.concatenate(
        [np.full(len(e), w / len(e)) for e, w in zip(examples, patient_weights(examples), strict=True)]
    )
    inputs = np.concatenate([one.inputs for one in examples]).astype(np.float64)
    mean = np.average(inputs, axis=0, weights=weight)
    deviation = np.sqrt(np.average((inputs - mean) ** 2, axis=0, weights=weight))
    times = np.ones(len(mean), dtype=np.int64) if times is None else times
    return Standard(mean, np.where(deviation > 1e-9, deviation, 1.0), times)


# ---------------------------------------------------------------------------------------------- mean pooling


@dataclass(frozen=True)
class MeanPooling:
    """Log odds of a slide as a linear function of the mean of its patches' features.

    Attributes
    ----------
    standard
        How features are brought to one scale.
    coefficients
        float64 ``(F,)``.
    center
        Of the pooled features, float64 ``(F,)``.
    intercept
        Log odds of a slide at the centre.
    """

    standard: Standard
    coefficients: Floats
    center: Floats
    intercept: float

    def answer(self, example: Example) -> Answer:
        """The index of the slide; see ``Model``."""
        if not len(example):
            return Answer(float("nan"))
        return Answer(float(self.intercept + (_pooled(example, self.standard) - self.center) @ self.coefficients))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See ``Model``."""
        found = {"coefficients": self.coefficients, "center": self.center, "intercept": np.array([self.intercept])}
        return self.standard.arrays() | found


def fit_mean_pooling(examples: Sequence[Example], times: NDArray[np.int64] | None = None) -> MeanPooling:
    """Ridge regression (Hoerl & Kennard 1970) of log odds on pooled features.

    The penalty is the one with which each patient is told best from all others.

    Parameters
    ----------
    times
        How often each feature counts; see ``Standard``.
    """
    known = [one for one in examples if np.isfinite(one.slide_target) and len(one)]
    standard, weight = standard_of(known, times), patient_weights(known)
    pooled = np.stack([_pooled(one, standard) for one in known])
    target = np.array([one.slide_target for one in known])
    center, intercept = np.average(pooled, axis=0, weights=weight), float(np.average(target, weights=weight))
    root = np.sqrt(weight)
    # In the space of slides, of which there are fewer than features.
    scaled, aimed = (pooled - center) * root[:, None], (target - intercept) * root
    values, vectors = np.linalg.eigh(scaled @ scaled.T)
    values = np.maximum(values, 0)
    patients = np.unique([one.patient for one in known], return_inverse=True)[1]
    penalties = PENALTIES * standard.times.sum()
    errors = [_left_out_error(values / (values + p), vectors, root, aimed, patients) for p in penalties]
    penalty = float(penalties[int(np.argmin(errors))])
    coefficients = scaled.T @ (vectors @ ((vectors.T @ aimed) / (values + penalty)))
    return MeanPooling(standard, coefficients, center, intercept)


def _left_out_error(shrunk: Floats, vectors: Floats, root: Floats, aimed: Floats, patients: NDArray[np.int64]) -> float:
    """Sum of squares of what each patient differs from the regression on all others."""
    hat = (vectors * shrunk) @ vectors.T + np.outer(root, root) / (root @ root)
    residual = aimed - hat @ aimed
    total = 0.0
    for patient in np.unique(patients):
        own = np.flatnonzero(patients == patient)
        total += float(np.sum(np.linalg.solve(np.eye(len(own)) - hat[np.ix_(own, own)], residual[own]) ** 2))
    return total


def _pooled(example: Example, standard: Standard) -> Floats:
    return np.asarray(np.average(standard(example.inputs), axis=0, weights=example.weight))


def mean_pooling_of(arrays: dict[str, NDArray[Any]]) -> MeanPooling:
    """The model that ``MeanPooling.arrays`` put into a file."""
    return MeanPooling(
        Standard.from_arrays(arrays), arrays["coefficients"], arrays["center"], float(arrays["intercept"][0])
    )


# ---------------------------------------------------------------------------------------------- attention


class GatedAttention(nn.Module):
    """Some networks side by side: each says one number a slide, from the patches it finds to matter.

    References
    ----------
    Ilse M, Tomczak J, Welling M (2018) Attention-based deep multiple instance learning, ICML, arXiv:1802.04712
    """

    def __init__(self, members: int, features: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        sizes = {
            "embed": (features, hidden),
            "content": (hidden, hidden),
            "gate": (hidden, hidden),
            "attend": (hidden, 1),
            "tell": (hidden, 1),
        }
        self.weights = nn.ParameterDict({name: _uniform(members, *size) for name, size in sizes.items()})
        self.biases = nn.ParameterDict({name: _uniform(members, 1, size[1]) for name, size in sizes.items()})

    def forward(self, patches: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """Answers ``(M, B)`` of the members to patches ``(B, n, F)``.

        Parameters
        ----------
        offset
            ``(B, n)``, added to the attention: log of a patch's weight, minus infinity where there is no patch.
        """
        members, slides = len(self.weights["embed"]), len(patches)
        seen = self._left_out(patches.reshape(1, -1, patches.shape[2]).expand(members, -1, -1))
        embedded = self._left_out(torch.tanh(self._linear("embed", seen)))
        gated = torch.tanh(self._linear("content", embedded)) * torch.sigmoid(self._linear("gate", embedded))
        attention = torch.softmax(self._linear("attend", gated).view(members, *offset.shape) + offset, dim=2)
        pooled = torch.einsum("mbn,mbnh->mbh", attention, embedded.view(members, slides, offset.shape[1], -1))
        return self._linear("tell", pooled)[..., 0]

    def _linear(self, name: str, values: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.biases[name], values, self.weights[name])

    def _left_out(self, values: torch.Tensor) -> torch.Tensor:
        return functional.dropout(values, self.dropout, self.training)


def _uniform(members: int, before: int, after: int) -> nn.Parameter:
    return nn.Parameter((2 * torch.rand(members, before, after) - 1) / before**0.5)


@dataclass(frozen=True)
class AttentionOptions:
    """How attention networks learn; so few slides allow no more than a small network that is held back.

    Attributes
    ----------
    components
        Principal components of the features that it sees.
    hidden
        Width of the network.
    dropout
        Share of inputs left out at every step.
    weight_decay, learning_rate, steps
        Of AdamW, all slides at each step.
    """

    components: int = 24
    hidden: int = 16
    dropout: float = 0.3
    weight_decay: float = 0.3
    learning_rate: float = 4e-3
    steps: int = 200


@dataclass(frozen=True)
class AttentionPooling:
    """The mean answer of some attention networks, brought to log odds.

    Attributes
    ----------
    standard
        How features are brought to one scale.
    components
        What the networks see of them, float64 ``(F, C)``.
    networks
        Trained.
    center, spread
        The line from what the networks say to log odds.
    """

    standard: Standard
    components: Floats
    networks: GatedAttention
    center: float
    spread: float

    @torch.inference_mode()
    def answer(self, example: Example) -> Answer:
        """The index of the slide; see ``Model``."""
        if not len(example):
            return Answer(float("nan"))
        with one_thread():
            patches, offset = _bags([example], self.standard, self.components)
            said = self.networks(patches, offset).mean()
        return Answer(self.center + self.spread * float(said))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See ``Model``."""
        found = self.standard.arrays() | {
            "components": self.components,
            "scale": np.array([self.center, self.spread]),
        }
        return found | {name: value.numpy() for name, value in self.networks.state_dict().items()}


def fit_attention(
    examples: Sequence[Example],
    times: NDArray[np.int64] | None = None,
    *,
    seed: int,
    options: AttentionOptions | None = None,
) -> AttentionPooling:
    """Train ``MEMBERS`` attention networks on the indices of slides.

    What each says of the patients that it has not seen tells how far all are to be believed (``line_of_unseen``).

    Parameters
    ----------
    times
        How often each feature counts; see ``Standard``.
    seed
        Of first weights, dropout and who sees which patient.
    """
    options = options or AttentionOptions()
    known = [one for one in examples if np.isfinite(one.slide_target) and len(one)]
    standard, weight = standard_of(known, times), patient_weights(known)
    components = _components(np.concatenate([standard(one.inputs) for one in known]), options.components)
    target = np.array([one.slide_target for one in known])
    center = float(np.average(target, weights=weight))
    spread = float(max(np.sqrt(np.average((target - center) ** 2, weights=weight)), 1e-6))
    aimed = torch.tensor((target - center) / spread, dtype=torch.float32)
    unseen_by = _unseen_by(known, seed)
    seen = torch.tensor(weight * (unseen_by != np.arange(MEMBERS)[:, None]), dtype=torch.float32)
    bags = _bags(known, standard, components)
    with one_thread():
        networks = _trained(*bags, aimed, seen, options, seed)
        with torch.inference_mode():
            said = networks(*bags).double().numpy()[unseen_by, np.arange(len(known))]
    intercept, slope = line_of_unseen(center + spread * said, target, weight)
    return AttentionPooling(standard, components, networks, intercept + slope * center, slope * spread)


def _unseen_by(examples: Sequence[Example], seed: int) -> NDArray[np.int64]:
    """The network that does not learn from each slide ``(slides,)``, one for all slides of a patient."""
    names, patients = np.unique([one.patient for one in examples], return_inverse=True)
    return np.asarray(np.random.default_rng([seed, 2]).permutation(len(names))[patients] % MEMBERS)


def _trained(
    patches: torch.Tensor,
    offset: torch.Tensor,
    aimed: torch.Tensor,
    weight: torch.Tensor,
    options: AttentionOptions,
    seed: int,
) -> GatedAttention:
    with seeded(seed):
        networks = GatedAttention(MEMBERS, patches.shape[2], options.hidden, options.dropout)
        optimizer = torch.optim.AdamW(
            networks.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
        for _ in range(options.steps):
            optimizer.zero_grad()
            # A sum over the members, so that none learns less for the others; each has weights of its own.
            loss = (weight * (networks(patches, offset) - aimed) ** 2).mean(dim=1).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return networks.eval()


def _components(features: Floats, count: int) -> Floats:
    """Directions ``(F, C)`` of most variance among standard features, scaled so that the first has a deviation of 1."""
    values, vectors = np.linalg.eigh(np.cov(features.T))
    order = np.argsort(-values)[: min(count, len(values))]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))])
    return np.asarray((vectors * signs)[:, order] / np.sqrt(max(values[order[0]], 1e-12)))


def _bags(examples: Sequence[Example], standard: Standard, components: Floats) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches ``(B, n, C)`` of slides, filled up with zeros, and their offsets ``(B, n)``; see ``GatedAttention``."""
    most = max(len(one) for one in examples)
    patches = np.zeros((len(examples), most, components.shape[1]), dtype=np.float32)
    offset = np.full((len(examples), most), -np.inf, dtype=np.float32)
    for number, one in enumerate(examples):
        patches[number, : len(one)] = standard(one.inputs) @ components
        offset[number, : len(one)] = np.log(one.weight)
    return torch.tensor(patches), torch.tensor(offset)


def attention_of(arrays: dict[str, NDArray[Any]]) -> AttentionPooling:
    """The model that ``AttentionPooling.arrays`` put into a file."""
    weights = {name: array for name, array in arrays.items() if "." in name}
    members, features, hidden = weights["weights.embed"].shape
    networks = GatedAttention(members, features, hidden, 0.0)
    networks.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})
    center, spread = arrays["scale"]
    standard = Standard.from_arrays(arrays)
    return AttentionPooling(standard, arrays["components"], networks.eval(), float(center), float(spread))
