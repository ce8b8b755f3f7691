"""Which configurations give the same weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from hydratune.config.groups import GROUPS, INIT, WEIGHTS
from hydratune.config.job import JobConfig, Node
from hydratune.core.secrets import told_apart
from hydratune.core.version import __version__

# Where things lie and how they are read changes no weight.
PLACES = {
    "root", "path", "download", "memory_mb", "workers", "log_every", "save_every", "keep", "weights", "cache",
    "duplicates", "directories", "recompute",
}  # fmt: skip

# Keys that came later, with what it meant that they were not there: as such they change no weight.
LATER: dict[str, Any] = {"rotate": 0, "vertical_flip": False, "sampling": "shuffle", "folds": 5}


def content(config: JobConfig, strategy: Node, origin: str | None, files: str, precision: str) -> dict[str, Any]:
    """What determines the weights of a run: no paths, devices or workers.

    strategy: what its freeze strategy is built from, `norm` included. origin: hash of the weights it starts from;
    files: digest of a data set that no name identifies.
    """
    groups = {g.name: config.component(g.name) for g in GROUPS if g.weights}
    chosen = {**groups, "freeze": strategy, **{key: getattr(config, key) for key in WEIGHTS}}
    chosen = {key: _without_places(value) for key, value in chosen.items()}
    if config.steps is not None:
        chosen["epochs"] = None
    layout = config.runtime.get("layout") or "auto"
    pinned: dict[str, Any] = {} if layout == "auto" else {"layout": layout}
    if config.monitor is not None:  # which of its checkpoints is the best
        pinned["monitor"] = config.monitor
    if config.selfplay:
        pinned |= {"generations": config.generations, "search": _without_places(config.search)}
        made = ("directories", "grows")  # by the run itself
        chosen["dataset"] = {k: v for k, v in chosen["dataset"].items() if k not in made}
    if origin is not None:  # how it is taken over, where that is not the usual way
        pinned |= {key: value for key in INIT if (value := getattr(config, key)) not in (None, "auto", {})}
    return {
        **told_apart(chosen),
        "origin": origin,
        "files": files,
        "precision": precision,
        **pinned,
        "compile": config.runtime["compile"],
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
        told = {k: v for k, v in node.items() if not own or (k not in PLACES and LATER.get(k, ...) != v)}
        kept = {k: v for k, v in told.items() if v is not None}
        return {k: _without_places(v) for k, v in kept.items()}
    return node
