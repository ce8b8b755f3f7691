"""Paths: the cache, a user's home, and how a path is shown."""

from __future__ import annotations

import os
from pathlib import Path

RUN_JSON = "run.json"  # of a run directory
MANIFEST = "manifest.json"  # of a checkpoint


def cache_home() -> Path:
    """$HYDRATUNE_CACHE, or hydratune/ in the user's cache directory."""
    asked = os.environ.get("HYDRATUNE_CACHE")
    return Path(asked or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "hydratune"))


def expanded(path: str | Path) -> Path:
    """~ and ~user are their homes, as far as there are such."""
    return Path(os.path.expanduser(path))


def shown_path(path: Path) -> Path:
    """Relative to where the user is, if it lies there."""
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path
