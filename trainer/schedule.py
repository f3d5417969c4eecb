"""Learning rate as a pure function of the step."""

import math
from collections.abc import Sequence

DROP = 0.1


def learning_rate_scale(
    step: int, total_steps: int, warmup_steps: int, final_scale: float, drops: Sequence[int] = ()
) -> float:
    """Factor on the peak learning rate for step `step` (0-based) of `total_steps`.

    Rises linearly over `warmup_steps`, then falls on a half cosine to `final_scale`; or with `drops`, steps, stays
    and falls to a tenth of itself at each of them, as in AAHR and VSE++.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if drops:
        return DROP ** sum(step >= drop for drop in drops)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final_scale + (1 - final_scale) * 0.5 * (1 + math.cos(math.pi * progress))
