"""OmegaConf's resolvers that our configuration uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf.resolvers import oc

from hydratune.config.compose import from_environment
from hydratune.config.hydra_versions import register_resolver
from hydratune.config.overrides import safe_name


def register() -> None:
    register_resolver("safe_name", safe_name)
    register_resolver("oc.env", from_environment)


@contextmanager
def resolvers() -> Iterator[None]:
    """The same for a while; then `oc.env` is OmegaConf's own again."""
    register()
    try:
        yield
    finally:
        register_resolver("oc.env", oc.env)
