"""Which configurations give the same weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from hydratune import __version__
from hydratune.secrets import told_apart

WEIGHTS = ("model", "optimizer", "schedule", "dataset", "freeze", "engine", "batch_size", "epochs", "steps", "seed")
INIT = ("init_head", "init_key", "init_prefix", "init_map")
# Where things lie and how they are read changes no weight.
PLACES = {
    "root", "path", "download", "memory_mb", "workers", "log_every", "save_every", "keep", "weights", "cache",
    "duplicates",
}  # fmt: skip


def content(config: Mapping[str, Any], origin: str | None, files: str, precision: str) -> dict[str, Any]:
    """What determines the weights of a run: no paths, devices or workers.

    origin: hash of the weights it starts from; files: digest of a data set that no name identifies.
    """
    chosen = {key: _without_places(config[key]) for key in WEIGHTS}
    if chosen["steps"] is not None:
        chosen["epochs"] = None
    layout = config["runtime"].get("layout") or "auto"
    pinned: dict[str, Any] = {} if layout == "auto" else {"layout": layout}
    if origin is not None:  # how it is taken over, where that is not the usual way
        pinned |= {key: config[key] for key in INIT if config.get(key) not in (None, "auto", {})}
    return {
        **told_apart(chosen),
        "origin": origin,
        "files": files,
        "precision": precision,
        **pinned,
        "compile": config["runtime"]["compile"],
        "hydratune": __version__,
    }


def fingerprint(content: Mapping[str, Any]) -> str:
    """SHA-256 of canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """`key: old -> new` for every value that is not the same."""
    result = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            result += differences(a, b, f"{where}{key}.")
        elif a != b:
            result.append(f"{where}{key}: {a} -> {b}")
    return result


def _without_places(node: Any) -> Any:
    if isinstance(node, Mapping):
        # What a user's own class does with a parameter of such a name is not known here.
        own = str(node.get("_target_", "hydratune.")).startswith("hydratune.")
        kept = {k: v for k, v in node.items() if not (own and k in PLACES) and v is not None}
        return {k: _without_places(v) for k, v in kept.items()}
    return node
