"""What Hydra itself would build, looked at before Hydra does: its own node runs code before any job of ours begins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydratune import construct
from hydratune.assemble import config_directory

if TYPE_CHECKING:
    from omegaconf import DictConfig

# What Hydra itself would build or import before a job begins, as far as a user's directory of configurations may say it
HYDRA_BUILDS = (
    r"hydra\._internal\.core_plugins\.\w+\.Basic(Launcher|Sweeper)",
    r"hydra_plugins\.[a-z_0-9]+\.[a-z_0-9]+\.[A-Z]\w*(Launcher|Sweeper)",
    r"optuna\.(samplers|pruners)\.[A-Z]\w*",
)
LOGS_WITH = r"logging\.(handlers\.)?[A-Z]\w*(Handler|Formatter)|colorlog\.ColoredFormatter"


def refuse_foreign_hydra(arguments: Sequence[str]) -> None:
    """A user's own directory of configurations must not make Hydra run code: it composes, and we look at it, first.

    Hydra imports callbacks and logging classes before it calls us. Raises ValueError.
    """
    from hydra import initialize_config_dir
    from hydra._internal.utils import get_args_parser
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    typed = get_args_parser().parse_known_args(list(arguments))[0]
    if not (typed.config_dir or typed.config_path or typed.config_name or "hydra.searchpath" in " ".join(arguments)):
        return  # nothing but our own files and what was typed
    home = Path(typed.config_path or config_directory()).absolute()
    name = typed.config_name or "config"
    _refuse_searchpath(home / f"{name.removesuffix('.yaml')}.yaml")
    extra = [f"hydra.searchpath=[file://{Path(typed.config_dir).absolute()}]"] if typed.config_dir else []
    parsed = OverridesParser.create().parse_overrides(list(typed.overrides))
    one = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    swept = [o for o in parsed if o.is_sweep_override()]
    several = [[f"{o.get_key_element()}={v}" for v in o.sweep_string_iterator()] for o in swept]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(home), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        for more in [[], *([choice] for choices in several for choice in choices)]:
            found = hydra.compose_config(name, [*one, *more, *extra], RunMode.RUN, from_shell=False)
            _look_at_hydra(found.hydra, [a for a in arguments if a.lstrip("+~").startswith("hydra.")])
    GlobalHydra.instance().clear()


def _refuse_searchpath(primary: Path) -> None:
    """pkg:// imports a package as soon as it is composed."""
    import yaml

    content = yaml.safe_load(primary.read_text()) if primary.is_file() else {}
    node = content.get("hydra") if isinstance(content, Mapping) else None
    for where in (node or {}).get("searchpath") or [] if isinstance(node, Mapping) else []:
        if not str(where).startswith("file://"):
            raise ValueError(f"{primary}: hydra.searchpath: {where}: only file:// is searched from a file")


def _look_at_hydra(node: DictConfig, typed: Sequence[str]) -> None:
    """Raises ValueError for what would run code; what was typed on the command line is its typist's own."""
    from omegaconf import OmegaConf

    callbacks, env = OmegaConf.select(node, "callbacks"), OmegaConf.select(node, "job.env_set")
    for key, value in (("callbacks", callbacks), ("job.env_set", env)):
        if value and not any(t.lstrip("+~").startswith(f"hydra.{key}") for t in typed):
            raise ValueError(f"hydra.{key}={value}: a configuration file must not say this, as it runs code")

    def walk(value: Any, where: str) -> None:
        if isinstance(value, list):
            for i, item in enumerate(value):
                walk(item, f"{where}[{i}]")
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{where}.{key}")
                if key == construct.TARGET and not any(re.fullmatch(p, str(item), re.ASCII) for p in HYDRA_BUILDS):
                    raise ValueError(f"{where}.{key}={item}: Hydra would build this; it is no launcher and no sweeper")
                logs = "logging" in where
                if logs and (key == "()" or (key == "class" and not re.fullmatch(LOGS_WITH, str(item), re.ASCII))):
                    raise ValueError(f"{where}.{key}={item}: no class of Python's logging, so it is not imported")
        elif isinstance(value, str) and "logging" in where:
            built = "${" in value and not value.startswith("${hydra.runtime.output_dir}/")
            if built or re.search(r"ext://(?!sys\.std(out|err)$)|cfg://", value):
                raise ValueError(f"{where}={value}: only ext://sys.stdout and ext://sys.stderr are looked up")

    parts = {k: node[k] for k in ("launcher", "sweeper", "job_logging", "hydra_logging") if k in node}
    for key, part in parts.items():
        walk(OmegaConf.to_container(part, resolve=False) if OmegaConf.is_config(part) else part, f"hydra.{key}")
