"""What Hydra 1.4 and OmegaConf 2.4 ask for otherwise than Hydra 1.3 and OmegaConf 2.3 do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_dir
from omegaconf import OmegaConf

NEWER = tuple(int(part) for part in hydra.__version__.split(".")[:2]) >= (1, 4)


def version_base() -> dict[str, Any]:
    """Of hydra.main and its like: 1.4 has one set of defaults, and a warning for whoever names them."""
    return {} if NEWER else {"version_base": "1.3"}


def main_options() -> dict[str, Any]:
    """Of hydra.main. Nothing is built by Hydra but its own launchers, sweepers and logging to a file."""
    return {"execution_whitelist": ["logging.FileHandler"]} if NEWER else version_base()


def initialize(directory: str | os.PathLike[str]) -> initialize_config_dir:
    """A context in which Hydra composes from that directory."""
    return initialize_config_dir(str(Path(directory)), **version_base())


def register_resolver(name: str, resolver: Callable[..., Any]) -> None:
    """In place of one of that name."""
    if NEWER:
        register: Any = OmegaConf.register_resolver
        register(name, resolver, replace=True, annotation_validation="off")
    else:
        OmegaConf.register_new_resolver(name, resolver, replace=True)
