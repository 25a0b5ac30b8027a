"""How the learning rate goes through a training."""

from __future__ import annotations

import numpy as np


def learning_rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the highest learning rate at a step: a linear rise, then half a cosine down to a hundredth."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, progress))))
