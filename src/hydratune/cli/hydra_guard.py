"""What Hydra itself would act on, looked at before Hydra does: its own node runs code before any job of ours begins.

Callbacks, logging classes, launchers' shell commands, pickles of old runs: rather than list what is dangerous, whatever
another one's files add to the `hydra` node is refused, but for a few plain settings. What is typed is its typist's own.
Nothing is foretold: each configuration is looked at as it leaves Hydra's loader, be it a sweep's own, that of one of
its jobs, or what a flag asks to be shown. Whichever way it came to what it says, Hydra has nothing else to act on.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal import hydra as internal
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hydratune.config.compose import config_directory
from hydratune.config.overrides import refuse_name

Leaves = dict[tuple[Any, ...], Any]  # path of keys -> value as it is written

# Settings of a cluster and of a sweep that a file may hold, as plain words and numbers
PLAIN = re.compile(
    r"launcher\.(n_jobs|partition|timeout_min|gpus_per_node|cpus_per_task|cpus_per_gpu|mem_gb|nodes|tasks_per_node|"
    r"account|qos|constraint|array_parallelism|signal_delay_s)|sweeper\.(n_trials|n_jobs|max_batch_size|direction)"
)
# What Hydra's loader writes there after all files; the search path has been used by then
WRITTEN = re.compile(
    r"runtime\.(version|version_base|cwd|config_sources|choices\..*)|job\.(override_dirname|config_name)|searchpath"
)
MODES = ("hydra.mode=RUN", "hydra.mode=MULTIRUN")  # what Hydra adds to the line


def refuse_foreign_hydra(arguments: Sequence[str], resumed: bool = False) -> None:
    """Refuse flags that would lead around us, and have Hydra refuse what other people's files say under `hydra`.

    Raises ValueError, here or where Hydra composes. resumed: whether some of the arguments come out of a run directory.
    """
    typed = get_args_parser().parse_known_args(list(arguments))[0]
    if typed.experimental_rerun:
        raise ValueError(
            "--experimental-rerun reads a pickle, which could be anybody's; resume=<run directory> does not"
        )
    if typed.config_path or typed.config_name:
        raise ValueError(
            "--config-path and --config-name: hydratune's own stays the first; --config-dir adds yours to it"
        )
    if typed.config_dir:
        home = Path(typed.config_dir).absolute()
        if shadow := next((p for p in (home / "config.yaml", home / "config.yml") if p.exists()), None):
            raise ValueError(
                f"{shadow}: hydratune's own comes first; what is read is a file in a group, such as experiment/"
            )
    if typed.config_dir or resumed or any("hydra.searchpath" in a for a in arguments):
        internal.ConfigLoaderImpl = watched(arguments)  # type: ignore[misc]
        made = internal.Hydra.create_main_hydra2("hydratune", create_config_search_path(None))
        GlobalHydra.instance().clear()
        assert isinstance(made.config_loader, WatchedLoader)  # else another Hydra than we know


def watched(typed: Sequence[str]) -> type[WatchedLoader]:
    """A class, as Hydra takes it for one. typed: overrides that are the user's own."""
    return type("WatchedLoader", (WatchedLoader,), {"typed": frozenset(typed)})


class WatchedLoader(ConfigLoaderImpl):
    """Hydra's loader, with a look at all that it composes."""

    typed: frozenset[str]

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.refused: str | None = None

    def _load_configuration_impl(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *args: Any, **more: Any
    ) -> DictConfig:
        """What all ways to a configuration lead through, in Hydra 1.3 and 1.4.

        Raises ValueError for what is another one's, and ever after: Hydra goes on where a first look fails.
        """
        if self.refused is not None:
            raise ValueError(self.refused)
        config = super()._load_configuration_impl(config_name, overrides, run_mode, *args, **more)
        try:
            _refuse_others(_hydra_node(config), self._expected(config_name, overrides, run_mode))
            _refuse_places(config)
        except ValueError as error:
            self.refused = str(error)
            raise
        return config

    def _expected(self, config_name: str | None, overrides: list[str], run_mode: RunMode) -> Leaves:
        """What our own files and what was typed make of Hydra's node, and what its loader adds of its own."""
        lines: dict[bool, list[str]] = {True: [], False: []}
        for override in OverridesParser.create().parse_overrides(overrides):
            lines[override.is_hydra_override()].append(str(override.input_line))
        own = [o for o in lines[True] if (o in self.typed or o in MODES) and "hydra.searchpath" not in o]
        ours = _ours(config_name, tuple(own), run_mode)
        return {**ours, ("overrides", "hydra"): lines[True], ("overrides", "task"): lines[False]}


@cache
def _ours(config_name: str | None, typed: tuple[str, ...], run_mode: RunMode) -> Leaves:
    loader = ConfigLoaderImpl(create_config_search_path(str(config_directory())))
    return _hydra_node(loader.load_configuration(config_name, list(typed), run_mode, from_shell=False))


def _refuse_others(found: Leaves, expected: Leaves) -> None:
    for path in {**found, **expected}:
        value, name = found.get(path), ".".join(map(str, path))
        same = path in found and path in expected and value == expected[path]
        plain = PLAIN.fullmatch(name) and re.fullmatch(r"[\w.:,-]*", str(value), re.ASCII)
        if not (same or plain or WRITTEN.fullmatch(name) or _is_param(path, value)):
            raise ValueError(
                f"hydra.{name}={value}: said by a configuration file, and Hydra acts on it before hydratune can look; "
                "type it on the command line if you mean it"
            )


def _hydra_node(config: DictConfig) -> Leaves:
    """As it is written, nothing resolved."""
    node = config._get_node("hydra")
    if not OmegaConf.is_dict(node) or OmegaConf.is_interpolation(config, "hydra"):
        raise ValueError("hydra: must be a mapping, written out")
    return dict(_leaves(OmegaConf.to_container(node, resolve=False)))


def _leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, (*path, key))
    else:
        yield path, node


def _is_param(path: tuple[Any, ...], value: Any) -> bool:
    """Of a sweep that a file asks for: of a job's keys, in words, as Hydra builds its sweeper out of them.

    What the jobs of that sweep are is looked at when they are composed.
    """
    if path[:2] != ("sweeper", "params") or len(path) == 2:
        return path == ("sweeper", "params") and not value
    key = re.fullmatch(r"[+~]{0,2}(?!hydra\b)[A-Za-z][\w./@]*", str(path[2]), re.ASCII)
    return len(path) == 3 and key is not None and isinstance(value, str | int | float) and "${" not in str(value)


def _refuse_places(config: DictConfig) -> None:
    """Raises ValueError for a name that leads elsewhere: Hydra makes a run's directory before the job is looked at."""
    config, before = copy.deepcopy(config), HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)  # which interpolations ask
    try:
        for key in ("name", "stage"):
            refuse_name(str(OmegaConf.select(config, key)), key)
        for group, option in config.hydra.runtime.choices.items():
            if ".." in str(option):
                raise ValueError(f"{group}={option}: an option is a file of a configuration directory")
        if not (outputs := str(OmegaConf.select(config, "outputs"))).isprintable():  # a cluster's script holds it
            raise ValueError(f"outputs={outputs!r}: must be a directory")
    finally:
        HydraConfig.instance().cfg = before
