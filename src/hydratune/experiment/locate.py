"""Which checkpoint of a run is meant."""

from __future__ import annotations

import json
from pathlib import Path

from hydratune.record import checkpoint


def best_checkpoint(directory: Path) -> Path:
    """Of a run directory. Raises ValueError where it holds no whole one."""
    newest, _ = checkpoint.newest_valid(directory / "checkpoints")
    if newest is None:
        raise ValueError(f"init_from={directory}: this run directory holds no whole checkpoint")
    best = json.loads((newest / "state.json").read_text())["best"].get("step")
    chosen = checkpoint.path_of(directory / "checkpoints", best or 0)
    return chosen if (chosen / checkpoint.MANIFEST).is_file() else newest
