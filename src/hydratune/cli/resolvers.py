"""OmegaConf's resolvers that our configuration uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from hydratune.config.compose import from_environment
from hydratune.config.overrides import safe_name


def register() -> None:
    OmegaConf.register_new_resolver("safe_name", safe_name, replace=True)
    OmegaConf.register_new_resolver("oc.env", from_environment, replace=True)


@contextmanager
def resolvers() -> Iterator[None]:
    """The same for a while; then `oc.env` is OmegaConf's own again."""
    register()
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
