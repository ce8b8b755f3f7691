"""The jobs of a sweep, composed one after the other: what they have in common is read and merged once.

Each goes through Hydra's own loader, which parses, checks and applies its overrides. Two steps of it are the same for
many jobs, and are not made again: which files there are to read, and what those files give before any value is set.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hydratune.config.compose import make_job
from hydratune.config.errors import explain
from hydratune.config.instantiate import build, check
from hydratune.config.keys import refuse_truths
from hydratune.config.trust import trusted
from hydratune.config.validate import validate
from hydratune.sweep.grid import Overrides, in_step, repeated
from hydratune.sweep.plan import Entry, directory_name, override_dirname, plain
from hydratune.sweep.settings import SweepSettings


def remembering(loader: ConfigLoader) -> ConfigLoader:
    """A loader of the same kind that remembers. One of another Hydra than we know stays as it is."""
    kind = type(loader)
    if not isinstance(loader, ConfigLoaderImpl):
        return loader
    made: ConfigLoader = type(f"Remembering{kind.__name__}", (_Remembering, kind), {})(loader.get_search_path())
    return made


class _Remembering(ConfigLoaderImpl):
    """In Hydra 1.3 and 1.4."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self._read: dict[tuple[Any, ...], CachingConfigRepository] = {}
        self._merged: dict[tuple[Any, ...], DictConfig] = {}

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str], *given: list[Override] | None
    ) -> tuple[list[Override], CachingConfigRepository]:
        """Files are looked for in the same places where the same is said of Hydra itself."""
        key = config_name, *(o for o in overrides if o.lstrip("+~").startswith("hydra"))
        if key not in self._read:
            parsed, self._read[key] = super()._parse_overrides_and_create_caching_repo(config_name, overrides, *given)
            return parsed, self._read[key]
        (parsed_before,) = given or (None,)
        return parsed_before or OverridesParser.create().parse_overrides(overrides), self._read[key]

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        """A copy of what these files gave before. Merging changes what was read: they are read anew for others."""
        assert isinstance(repo, CachingConfigRepository)
        named = [(d.config_path, d.parent, d.package, d.is_self, d.primary) for d in defaults]
        key = id(repo), *named
        if key not in self._merged:
            fresh = CachingConfigRepository(repo.delegate)
            self._merged[key] = super()._compose_config_from_defaults_list(defaults, fresh)
        return copy.deepcopy(self._merged[key])


class Composer:
    """Jobs of one sweep from their overrides.

    directory, settings, dry_run: of the sweep.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig, arguments: Sequence[str]) -> None:
        """loader: one that remembers. master: the sweep's own configuration. arguments: as typed. Raises ValueError."""
        self.directory = Path(str(master.hydra.sweep.dir)).absolute()
        self.settings, self.dry_run, self.arguments = _settings(master), bool(master.dry_run), list(arguments)
        self._loader, self._master, self._trust = loader, master, trusted(arguments)
        self._fixed, self._values = _typed(loader, master, arguments)
        if self.settings.repeat > 1:
            if "seed" in self._values:
                raise ValueError(
                    f"sweep.repeat={self.settings.repeat}: the seed is swept already; seed=1,2,3 or sweep.repeat=3, "
                    "not both"
                )
            self._fixed -= {"seed"}

    def try_first(self, jobs: Sequence[Overrides]) -> None:
        """Raises what Hydra raises for the first job: what is wrong with one is mostly wrong with all."""
        for overrides in jobs[:1]:
            self._loader.load_sweep_config(self._master, list(overrides))

    def cells(self, jobs: Sequence[Overrides], first: int) -> list[list[Entry]]:
        """Of each job its seeds, the jobs being numbered from `first` on.

        Raises what Hydra raises for overrides that do not fit the configuration, and ValueError for sweep.zip. What is
        wrong with a value is kept as its job's error.
        """
        times, groups = self.settings.repeat, self.settings.zip
        places = in_step(jobs, groups, self._values) if groups else range(len(jobs))
        return [
            [
                self._composed(overrides, (first + place) * times + i)
                for i, overrides in enumerate(repeated(jobs[place], times, int(self._master.seed)))
            ]
            for place in places
        ]

    def entry(self, overrides: Sequence[str], number: int) -> Entry:
        """One more job; whatever is wrong with it is kept as its error."""
        try:
            return self._composed(overrides, number)
        except Exception as error:
            return self._refused(list(overrides), self._varies(overrides), number, error)

    def _varies(self, overrides: Sequence[str]) -> dict[str, str]:
        pairs = [o.lstrip("+~").partition("=") for o in overrides]
        return {k: plain(v) for k, _, v in pairs if k not in self._fixed and not k.startswith("hydra")}

    def _refused(self, overrides: list[str], varies: dict[str, str], number: int, error: Exception) -> Entry:
        home = self.directory / directory_name(varies)
        return Entry(number, overrides, varies, home, error=explain(error, overrides) or repr(error))

    def _composed(self, overrides: Sequence[str], number: int) -> Entry:
        """Raises what Hydra raises."""
        overrides, varies = list(overrides), self._varies(overrides)
        before = HydraConfig.instance().cfg
        config = self._loader.load_sweep_config(self._master, overrides)
        try:
            return self._checked(config, overrides, varies, number)
        except Exception as error:
            return self._refused(overrides, varies, number, error)
        finally:
            HydraConfig.instance().cfg = before

    def _checked(self, config: DictConfig, overrides: list[str], varies: dict[str, str], number: int) -> Entry:
        """config: as Hydra's loader gives it, taken apart here rather than copied. Raises ValueError."""
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
            config.hydra.job.override_dirname = override_dirname(varies)
        HydraConfig.instance().cfg = cast(Any, config)  # which interpolations ask
        home = self.directory / str(OmegaConf.select(config, "hydra.sweep.subdir"))
        with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
            config.hydra.runtime.output_dir = str(home)
        own = OmegaConf.masked_copy(config, ["hydra"])
        HydraConfig.instance().cfg = cast(Any, own)
        OmegaConf.clear_cache(config)  # the same as in a single run, where a job's part is composed by itself
        with read_write(config), open_dict(config):
            config.pop("hydra")
        job = make_job(
            config, own.hydra.runtime.choices, list(own.hydra.overrides.task), home, self.arguments, self._trust,
            sweep=True,
        )  # fmt: skip
        validate(job)
        texts = {
            "config.yaml": job.text,
            "hydra.yaml": OmegaConf.to_yaml(own),
            "overrides.yaml": OmegaConf.to_yaml(own.hydra.overrides.task),
        }
        return Entry(number, overrides, varies, home, job, hydra=texts)


def _settings(master: DictConfig) -> SweepSettings:
    node = OmegaConf.to_container(master.sweep, resolve=True)
    refuse_truths(node, "sweep")
    check(node, "sweep", ())
    made: SweepSettings = build(node, "sweep", ())
    return made


def _typed(loader: ConfigLoader, master: DictConfig, arguments: Sequence[str]) -> tuple[set[str], dict[str, list[str]]]:
    """(keys that the command line gives one value, so that no job differs in them; the values of those with several).

    Values of a file's hydra.sweeper.params count as typed, where the command line says nothing else.
    """
    typed = [a for a in arguments if "=" in a and not a.startswith("-")]
    given = OmegaConf.select(master, "hydra.sweeper.params")
    params = [f"{k}={v}" for k, v in (given or {}).items()]
    with contextlib.suppress(Exception):
        parser = OverridesParser.create(config_loader=loader)
        own, files = parser.parse_overrides(typed), parser.parse_overrides(params)
        fixed = {o.get_key_element().lstrip("+~") for o in own if not o.is_sweep_override()}
        several = {o.get_key_element().lstrip("+~"): o for o in [*files, *own] if o.is_discrete_sweep()}
        return fixed, {k: list(o.sweep_string_iterator()) for k, o in several.items() if k not in fixed}
    return set(), {}
