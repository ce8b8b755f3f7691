"""Where the run, checkpoint or file lies that a configuration names."""

from __future__ import annotations

import json
from pathlib import Path

from hydratune.record import checkpoint


def found(wanted: str) -> Path:
    """The path that `init_from` names; best:<sweep directory>, and the file `best` in it, lead to the winner."""
    sweep = wanted.removeprefix("best:")
    path = Path(sweep).expanduser() / "best" if sweep != wanted else Path(wanted).expanduser()
    if path.name != "best" or path.is_dir():
        return path
    if not path.is_file():
        raise ValueError(f"init_from={wanted}: no winner yet (hydratune-report {path.parent} says how far it is)")
    return path.parent / path.read_text().strip()


def best_checkpoint(directory: Path) -> Path:
    """Of a run directory. Raises ValueError where it holds no whole one."""
    newest, _ = checkpoint.newest_valid(directory / "checkpoints")
    if newest is None:
        raise ValueError(f"init_from={directory}: this run directory holds no whole checkpoint")
    best = json.loads((newest / "state.json").read_text())["best"].get("step")
    chosen = checkpoint.path_of(directory / "checkpoints", best or 0)
    return chosen if (chosen / checkpoint.MANIFEST).is_file() else newest
