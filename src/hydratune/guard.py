"""What Hydra itself would act on, looked at before Hydra does: its own node runs code before any job of ours begins.

Callbacks, logging classes, launchers' shell commands, pickles of old runs: rather than list what is dangerous, whatever
another one's files add to the `hydra` node is refused, but for a few plain settings. What is typed is its typist's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from hydratune.assemble import config_directory
from hydratune.overrides import refuse_name

# Settings of a cluster and of a sweep that a file may hold, as plain words and numbers
PLAIN = (
    r"launcher\.(n_jobs|partition|timeout_min|gpus_per_node|cpus_per_task|cpus_per_gpu|mem_gb|nodes|tasks_per_node|"
    r"account|qos|constraint|array_parallelism|signal_delay_s)|sweeper\.(n_trials|n_jobs|max_batch_size|direction)"
)
# What a composition itself writes there
MADE = re.compile(r"(overrides|runtime|searchpath|job\.(override_dirname|id|num|config_name))(\.|$)")
MOST = 500  # combinations of groups that are composed to be looked at


def refuse_foreign_hydra(arguments: Sequence[str], resumed: bool = False) -> None:
    """Compose as Hydra will and refuse what other people's files say under `hydra`. Raises ValueError.

    resumed: whether some of the arguments come out of a run directory.
    """
    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path, get_args_parser
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    typed = get_args_parser().parse_known_args(list(arguments))[0]
    if typed.experimental_rerun:
        raise ValueError(
            "--experimental-rerun reads a pickle, which could be anybody's; resume=<run directory> does not"
        )
    if typed.config_path or typed.config_name:
        raise ValueError(
            "--config-path and --config-name: hydratune's own stays the first; --config-dir adds yours to it"
        )
    if not (typed.config_dir or resumed or any("hydra.searchpath" in a for a in arguments)):
        return  # nothing but our own files and what was typed

    def loader(path: Any) -> Any:
        GlobalHydra.instance().clear()
        return Hydra.create_main_hydra2("hydratune", path).config_loader

    def ours() -> ConfigSearchPathImpl:
        return create_config_search_path(str(config_directory()))  # type: ignore[return-value]

    theirs = ours()
    if typed.config_dir:
        home = Path(typed.config_dir).absolute()
        if shadow := next((p for p in (home / "config.yaml", home / "config.yml") if p.exists()), None):
            raise ValueError(
                f"{shadow}: hydratune's own comes first; what is read is a file in a group, such as experiment/"
            )
        theirs.prepend("command-line", f"file://{home}", SearchPathQuery(provider="schema"))
    own = [o for o in typed.overrides if re.match(r"[+~]*hydra[./]", o) and "hydra.searchpath" not in o]
    expected = _raw(loader(ours()).load_configuration("config", own, RunMode.RUN, from_shell=False))
    composer = loader(theirs)
    parser = OverridesParser.create(config_loader=composer)
    parsed = parser.parse_overrides(list(typed.overrides))
    fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    mode = RunMode.MULTIRUN if typed.multirun else RunMode.RUN

    def composed(more: Sequence[str]) -> Any:
        return composer.load_configuration(
            "config", [*fixed, *more], mode, from_shell=False, validate_sweep_overrides=False
        )

    swept = [o for o in parsed if o.is_sweep_override() and o.is_discrete_sweep()]
    first = [f"{o.key_or_group}={next(o.sweep_string_iterator())}" for o in swept]
    params = _params(composed(first))
    swept += [o for o in parser.parse_overrides(params) if o.is_sweep_override() and o.is_discrete_sweep()]
    groups = [o for o in swept if composer.get_group_options(o.key_or_group)]
    choices = [[f"{o.key_or_group}={value}" for value in o.sweep_string_iterator()] for o in groups]
    others = [f"{o.key_or_group}={next(o.sweep_string_iterator())}" for o in swept if o not in groups]
    combinations = list(product(*choices))
    if len(combinations) > MOST:
        raise ValueError(
            f"--config-dir with {len(combinations)} combinations of groups: more than {MOST} are not looked at"
        )
    for combination in combinations:
        _look(composed([*others, *combination]), expected)
    GlobalHydra.instance().clear()


def _raw(config: Any) -> Any:
    """The hydra node as it is written, nothing resolved."""
    from omegaconf import OmegaConf

    node = config._get_node("hydra")
    if not OmegaConf.is_dict(node) or OmegaConf.is_interpolation(config, "hydra"):
        raise ValueError("hydra: must be a mapping, written out")
    return dict(_leaves(OmegaConf.to_container(node, resolve=False), ""))


def _leaves(node: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node and where != ".sweeper.params":
        for key, value in node.items():
            yield from _leaves(value, f"{where}.{key}")
    else:
        yield where.lstrip("."), node


def _params(config: Any) -> list[str]:
    """The sweep that a file asks for, as overrides. Raises ValueError for one that reaches into Hydra's own node."""
    params = _raw(config).get("sweeper.params") or {}
    if not isinstance(params, Mapping):
        raise ValueError(f"hydra.sweeper.params={params}: must be a mapping, written out")
    for key, value in params.items():
        if not re.fullmatch(r"\+{0,2}(?!hydra\b)[A-Za-z][\w.]*", str(key), re.ASCII) or "${" in str(value):
            raise ValueError(f"hydra.sweeper.params: {key}={value}: only plain keys of a job are swept by a file")
    return [f"{key}={value}" for key, value in params.items()]


def _look(config: Any, expected: Mapping[str, Any]) -> None:
    """Raises ValueError for what is another one's."""
    from omegaconf import OmegaConf

    found = _raw(config)
    _params(config)
    for key in sorted(found.keys() | expected.keys(), key=str):
        value = found.get(key)
        same = key in found and key in expected and value == expected[key]
        plain = re.fullmatch(PLAIN, key, re.ASCII) and re.fullmatch(r"[\w.:,-]*", str(value), re.ASCII)
        if not (same or plain or MADE.match(key) or key == "sweeper.params"):
            raise ValueError(
                f"hydra.{key}={value}: said by a configuration file, and Hydra acts on it before hydratune can look; "
                "type it on the command line if you mean it"
            )
    written = OmegaConf.to_container(config, resolve=False)
    for key in ("name", "stage"):  # parts of a directory's path, made before a job is looked at
        if "${" not in (said := str(written[key])):  # type: ignore[index, call-overload]
            refuse_name(said, key)
