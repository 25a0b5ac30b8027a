"""A random forest on the features of each patch, grown on patients drawn anew for every tree.

Trees whose patients were drawn together know which patients they have not seen, and what they say of these tells how
far the forest's answers must be stretched, as a mean over trees lies too near to the mean of the training, or drawn in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki67.errors import ConfigError
from ki67.prediction.examples import (
    Answer,
    Example,
    Floats,
    answer_of_patches,
    labelled_patches,
    line_of_unseen,
    patient_weights,
)
from ki67.random_forest import Trees, joined_trees

LEAF_PATCHES = 5


@dataclass(frozen=True)
class PatchForest:
    """Log odds of a patch as a line of what the trees say in the mean.

    Attributes
    ----------
    trees
        On the features of a patch, one number a node.
    intercept, slope
        Of the line.
    """

    trees: Trees
    intercept: float
    slope: float

    def answer(self, example: Example) -> Answer:
        """The index of each patch and of the slide; see ``Model``."""
        said = self.trees.probabilities(np.ascontiguousarray(example.inputs, dtype=np.float32))[:, 0]
        return answer_of_patches(self.intercept + self.slope * said, example.weight)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See ``Model``."""
        line = {"line": np.array([self.intercept, self.slope])}
        return {name: np.ascontiguousarray(array) for name, array in vars(self.trees).items()} | line


def fit_forest(
    examples: Sequence[Example], times: NDArray[np.int64] | None = None, *, trees: int, seed: int
) -> PatchForest:
    """Grow a forest on the labelled patches of slides.

    Parameters
    ----------
    times
        How often each feature is in the hat of which those of a split are drawn, ``(F,)``; None: once each.
    trees
        How many.
    seed
        Of the patients of each tree and the features it looks at.

    References
    ----------
    Breiman L (2001) Random forests, Machine Learning 45:5-32, doi:10.1023/A:1010933404324
    """
    from sklearn.tree import DecisionTreeRegressor

    learned = labelled_patches(examples)
    hat = np.repeat(np.arange(learned.inputs.shape[1]), 1 if times is None else times)
    seen = [np.ascontiguousarray(one.inputs[:, hat]) for one in examples]
    inputs = np.ascontiguousarray(learned.inputs[:, hat])
    patients = sorted({one.patient for one in examples})
    said = [np.zeros(len(one)) for one in examples]
    heard = np.zeros(len(examples))
    grown = []
    for number in range(trees):
        drawn = np.random.default_rng([seed, number])
        often = np.bincount(drawn.integers(len(patients), size=len(patients)), minlength=len(patients))
        tree = DecisionTreeRegressor(
            max_features="sqrt", min_samples_leaf=LEAF_PATCHES, random_state=int(drawn.integers(2**31))
        )
        chosen = often[learned.patient] > 0
        weight = (learned.weight * often[learned.patient])[chosen]
        grown.append(tree.fit(inputs[chosen], learned.target[chosen], sample_weight=weight).tree_)
        for place, example in enumerate(examples):
            if often[patients.index(example.patient)] == 0 and len(example):
                said[place] += tree.predict(seen[place])
                heard[place] += 1
    unseen = [(e, s / h) for e, s, h in zip(examples, said, heard, strict=True) if h]
    values = np.concatenate([part.value[:, 0] for part in grown])
    joined = joined_trees(grown, values)
    feature = np.where(joined.feature < 0, -1, hat[joined.feature]).astype(np.int32)
    return PatchForest(replace(joined, feature=feature), *_stretch(unseen))


def _stretch(unseen: Sequence[tuple[Example, Floats]]) -> tuple[float, float]:
    """Intercept and slope for what trees say of slides that they have not seen."""
    known = [(one, said) for one, said in unseen if np.isfinite(one.slide_target)]
    odds = np.array([answer_of_patches(said, one.weight).odds for one, said in known])
    target = np.array([one.slide_target for one, _ in known])
    return line_of_unseen(odds, target, patient_weights([one for one, _ in known]))


def forest_of(arrays: dict[str, NDArray[Any]], features: int) -> PatchForest:
    """The forest that ``PatchForest.arrays`` put into a file, for so many features.

    Raises
    ------
    ConfigError
        If its trees do not end.
    """
    line = arrays["line"]
    trees = Trees(**{name: array for name, array in arrays.items() if name != "line"})
    if not trees.sound(features, 1):
        raise ConfigError("the trees of the prediction model do not end; train it again with predict_train")
    return PatchForest(trees, float(line[0]), float(line[1]))
