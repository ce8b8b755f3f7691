"""hydratune from Python: the jobs of the command line, what was trained, and the tables of sweeps.

Nothing here ends the process, and the caller's logging, signals, threads and random numbers are as they were after it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from hydratune.cli.arguments import prepare
from hydratune.cli.hydra_guard import watched
from hydratune.cli.resolvers import resolvers
from hydratune.cli.stored import stage_of
from hydratune.config.compose import config_directory, make_job
from hydratune.config.errors import explain
from hydratune.config.groups import USING
from hydratune.config.hydra_versions import initialize
from hydratune.config.overrides import quoted
from hydratune.config.trust import trusted
from hydratune.config.validate import validate
from hydratune.core.secrets import hide_in_file

if TYPE_CHECKING:
    from hydratune.config.job import Job
    from hydratune.experiment.finish import Result
    from hydratune.experiment.loaded import LoadedRun


def run(overrides: Sequence[str], config_dir: str | Path | None = None, quiet: bool = False) -> Result:
    """The job that `hydratune <overrides>` would run. Its `directory`, `metric`, `metrics` and `record`.

    config_dir: as --config-dir. Raises ValueError for what the command line would refuse, and whatever else goes wrong.
    """
    job, texts = _composed(list(overrides), config_dir)
    with _as_it_was():
        from hydratune.record.screen import Screen

        _write_hydra(job.directory, texts)
        screen = Screen(quiet=quiet)
        if job.config.stage in USING:
            from hydratune.experiment.use import use

            return use(job, screen)
        from hydratune.experiment.selfplay import run_job

        return run_job(job, screen)


def load(
    path: str | Path, overrides: Sequence[str] = (), config_dir: str | Path | None = None, trust: Sequence[str] = ()
) -> LoadedRun:
    """What a run trained: a run directory, best:<sweep directory>, a checkpoint; or a file, with model= and dataset=.

    trust: packages whose classes may be built, as nothing that a run stored is believed. Raises ValueError.
    """
    from hydratune.experiment.loaded import loaded

    arguments = ["stage=evaluate", f"init_from={quoted(str(path))}", *overrides]
    if trust:
        arguments.append(f"trust=[{','.join(trust)}]")
    job, _ = _composed(arguments, config_dir)
    with _as_it_was():
        return loaded(job)


def leaderboard(directory: str | Path) -> Any:
    """A sweep's jobs, the best first: a row each as a dict. A DataFrame where pandas is installed."""
    from hydratune.sweep import ranking

    columns, rows = ranking.job_table(ranking.read(Path(directory)))
    found = [dict(zip(columns, map(_value, row), strict=True)) for row in rows]
    try:
        import pandas
    except ImportError:
        return found
    return pandas.DataFrame(found, columns=columns)


def _value(cell: str) -> Any:
    """A number where it is one; None for what is not there."""
    if cell in ("", "-"):
        return None
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


# ---- composing as the command does, within this process


def _composed(arguments: list[str], config_dir: str | Path | None) -> tuple[Job, Mapping[str, str]]:
    """(the job, the texts of its .hydra directory; none where it holds them already)"""
    if flags := [a for a in arguments if a.startswith("-")]:
        raise ValueError(f"{flags[0]}: is a flag of the command; here there are overrides alone, for one job at a time")
    search = [f"hydra.searchpath=[{quoted('file://' + str(Path(config_dir).absolute()))}]"] if config_dir else []
    typed = [*(["--config-dir", str(config_dir)] if config_dir else []), *arguments]
    with _explained(arguments):
        prepared = [a for a in prepare(typed) if a not in typed[: len(typed) - len(arguments)]]
    stored = stage_of(arguments) in USING or any(a.startswith("resume=") for a in arguments)
    with (
        _explained(arguments),
        resolvers(),
        _hydra_config(),
        initialize(config_directory()),
    ):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        if stored or config_dir:  # others' files may be among what is composed
            search_path = hydra.config_loader.get_search_path()
            hydra.config_loader = watched([*prepared, *search])(search_path)
        config = compose("config", overrides=[*search, *prepared], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        task = OmegaConf.masked_copy(config, [str(k) for k in config if k != "hydra"])
        settings = config.hydra
        job = make_job(
            task, settings.runtime.choices, list(settings.overrides.task), Path(str(settings.run.dir)), typed,
            trusted(arguments), sweep=False,
        )  # fmt: skip
        texts = {
            "config.yaml": OmegaConf.to_yaml(task),
            "hydra.yaml": OmegaConf.to_yaml(OmegaConf.masked_copy(config, ["hydra"])),
            "overrides.yaml": OmegaConf.to_yaml(settings.overrides.task),
        }
        validate(job)
        return job, ({} if settings.output_subdir is None or job.config.dry_run else texts)


@contextmanager
def _hydra_config() -> Iterator[None]:
    """What Hydra says of the job that is composed, for a while."""
    before = HydraConfig.instance().cfg
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


@contextmanager
def _explained(arguments: Sequence[str]) -> Iterator[None]:
    """What Hydra and OmegaConf raise, in the words of the command line."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        text = explain(error, arguments)
        if text is None:
            raise
        raise ValueError(text) from error


def _write_hydra(directory: Path, texts: Mapping[str, str]) -> None:
    """What the command would have written before a job begins."""
    home = directory / ".hydra"
    for name, text in texts.items():
        home.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    if texts:
        hide_in_file(home / "hydra.yaml")


@contextmanager
def _as_it_was() -> Iterator[None]:
    """torch's threads, random numbers and determinism, and the filters of warnings, belong to the caller."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    with warnings.catch_warnings(), torch.random.fork_rng():
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.backends.cudnn.deterministic = deterministic
