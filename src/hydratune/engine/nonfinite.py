"""Loss or gradient that is NaN or Inf."""

from __future__ import annotations

import math
from collections.abc import Sequence


class NonFinite(RuntimeError):
    """Raised before the update, so the weights are still those of the last step."""


def which(loss: float) -> str:
    return "gradient" if math.isfinite(loss) else "loss"


def refusal(step: int, loss: float, ids: Sequence[int], budget: int) -> NonFinite:
    """ids: samples of the batch; budget: how many such steps were skipped before."""
    spent = f" after {budget} skipped steps (engine.skip_budget)" if budget else ""
    return NonFinite(
        f"step {step}: {which(loss)} is not finite (loss {loss}); stopped before the update{spent}. Samples of the "
        f"batch: {list(ids[:8])}{'...' if len(ids) > 8 else ''} (all in run.json). A smaller optimizer.lr, "
        "engine.clip=1.0 or schedule.warmup_steps often helps; engine.on_nonfinite=skip goes on without such steps"
    )
