"""What hydra/launcher=local does: Hydra's sweeper says which jobs, this composes them, has them run and ranks them."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hydratune.config.compose import make_job
from hydratune.config.errors import explain
from hydratune.config.instantiate import build, check
from hydratune.config.keys import refuse_truths
from hydratune.config.trust import trusted
from hydratune.config.validate import validate
from hydratune.distributed import signals
from hydratune.record.run_record import RunRecord
from hydratune.sweep import ranking
from hydratune.sweep.clusters import submit
from hydratune.sweep.grid import in_step, repeated, with_value
from hydratune.sweep.plan import Entry, directory_name, override_dirname, plain
from hydratune.sweep.runner import SweepRunner
from hydratune.sweep.settings import SweepSettings

FURTHER = 3  # steps beyond an edge of a grid


@dataclass(frozen=True)
class Sweep:
    """One of this process: a sweeper such as Optuna's launches many times."""

    runner: SweepRunner
    compose: Callable[[list[str], int], Entry]  # from overrides and the job's number


_SWEEPS: dict[Path, Sweep] = {}


class JobFailed(RuntimeError):
    """Some jobs of a sweep failed; each has its traceback in its own directory."""


def launch(
    loader: ConfigLoader, master: DictConfig, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
) -> list[JobReturn]:
    """Run the jobs; one return for each, FAILED for those that did, never an exception of theirs."""
    setup_globals()
    signals.listen()
    directory = Path(str(master.hydra.sweep.dir)).absolute()
    arguments = sys.argv[1:]
    settings = _settings(master)
    fixed, values = _typed(loader, master, arguments)
    times = settings.repeat
    if times > 1:
        if "seed" in values:
            raise ValueError(f"sweep.repeat={times}: the seed is swept already; seed=1,2,3 or sweep.repeat=3, not both")
        fixed -= {"seed"}
    places = in_step(job_overrides, settings.zip, values) if settings.zip else range(len(job_overrides))
    compose = partial(_entry, loader, master, fixed=fixed, arguments=arguments)
    cells = [  # each with its seeds
        [
            compose(overrides, (initial_job_idx + place) * times + i)
            for i, overrides in enumerate(repeated(job_overrides[place], times, int(master.seed)))
        ]
        for place in places
    ]
    entries = [entry for cell in cells for entry in cell]
    if not settings.wait and not master.dry_run:
        _submit(directory, settings, arguments, entries)
    if directory not in _SWEEPS:
        runner = SweepRunner(directory, settings, bool(master.dry_run), arguments)
        _SWEEPS[directory] = Sweep(runner, compose)
    runner = _SWEEPS[directory].runner
    outcomes = runner.run(entries)
    outcomes = {n: _as_result(outcome, runner.entries[n], settings) for n, outcome in outcomes.items()}
    failures = {e.number: outcomes[e.number] for e in entries if isinstance(outcomes[e.number], str)}
    error = None
    if failures:
        named = "; ".join(f"{runner.entries[n].name}: {why}" for n, why in list(failures.items())[:8])
        error = JobFailed(
            f"{len(failures)} of {len(entries)} jobs failed: {named}{' ...' if len(failures) > 8 else ''}. "
            f"Each has its traceback.txt; the same command with hydra.sweep.dir={directory} tries them again"
        )
    results = []
    for cell in cells:
        found = [outcomes[entry.number] for entry in cell]
        metrics = [outcome for outcome in found if not isinstance(outcome, str)]
        result = JobReturn(overrides=list(cell[0].overrides), working_dir=os.getcwd(), task_name="hydratune")
        failed = len(metrics) < len(found)
        result.status = JobStatus.FAILED if failed else JobStatus.COMPLETED
        result.return_value = error if failed else statistics.fmean(metrics)
        results.append(result)
    return results


def _as_result(outcome: float | str, entry: Entry, settings: SweepSettings) -> float | str:
    """NaN in place of why it failed, where it has diverged and may."""
    lost = isinstance(outcome, str) and settings.may_diverge and RunRecord.read(entry.directory).nonfinite is not None
    return math.nan if lost else outcome


def _submit(directory: Path, settings: SweepSettings, arguments: Sequence[str], entries: Sequence[Entry]) -> NoReturn:
    """Hand the whole command over. Raises JobFailed where a job is refused already."""
    if refused := [f"{e.directory.name}: {e.error}" for e in entries if e.error is not None]:
        raise JobFailed(f"{len(refused)} of {len(entries)} jobs are refused: {'; '.join(refused[:8])}")
    print(f"{len(entries)} jobs were submitted ({submit(directory, settings, arguments)})")
    print(f"how far they are: hydratune-report {directory}")
    sys.exit(0)


def directories() -> list[Path]:
    """Of the sweeps that are not concluded."""
    return list(_SWEEPS)


def conclude() -> None:
    """Once the sweeper is through: go beyond edges where that is asked for, test the winner, write the report, show the
    table. Raises JobFailed.
    """
    failed = []
    for sweep in _SWEEPS.values():
        if sweep.runner.settings.extend and not sweep.runner.dry_run:
            _extend(sweep)
        again = f"The same command with hydra.sweep.dir={sweep.runner.directory} tries that again"
        failed += [f"{sentence}. {again}" for sentence in sweep.runner.conclude()]
    _SWEEPS.clear()
    if failed:
        raise JobFailed("; ".join(failed))


def _extend(sweep: Sweep) -> None:
    """The best cell with the next value of each key whose best one lies at an edge, as long as that is so."""
    runner = sweep.runner
    zipped = {key for group in runner.settings.zip for key in group}
    for _ in range(FURTHER):
        ranked = ranking.read(runner.directory)
        edges = [edge for edge in ranked.edges() if edge.key not in zipped]
        best = {row.directory.name for row in ranked.cells[0].rows} if edges else set()
        seeds = [entry for entry in runner.entries.values() if entry.name in best and entry.same_as is None]
        added, number = [], 1 + max(runner.entries, default=0)
        for edge in edges:
            entries = [
                sweep.compose(with_value(e.overrides, edge.key, edge.beyond), number + i) for i, e in enumerate(seeds)
            ]
            if all(entry.error is None for entry in entries):  # 1.2 may be no value for it
                runner.screen.line(f"{edge}: sweep.extend=true tries {edge.beyond}")
                added += entries
        if not added:
            return
        runner.run(added)


def _settings(master: DictConfig) -> SweepSettings:
    node = OmegaConf.to_container(master.sweep, resolve=True)
    refuse_truths(node, "sweep")
    check(node, "sweep", ())
    return build(node, "sweep", ())


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


def _entry(
    loader: ConfigLoader, master: DictConfig, overrides: list[str], number: int, fixed: set[str],
    arguments: Sequence[str],
) -> Entry:  # fmt: skip
    """Composed and checked; what is wrong with it is kept as its error."""
    pairs = [o.lstrip("+~").partition("=") for o in overrides]
    varies = {k: plain(v) for k, _, v in pairs if k not in fixed and not k.startswith("hydra")}
    directory = Path(str(master.hydra.sweep.dir)).absolute()
    named = directory_name(varies)
    before = HydraConfig.instance().cfg
    try:
        config = loader.load_sweep_config(master, overrides)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
            config.hydra.job.override_dirname = override_dirname(varies)
        HydraConfig.instance().set_config(config)
        home = directory / str(OmegaConf.select(config, "hydra.sweep.subdir"))
        with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
            config.hydra.runtime.output_dir = str(home)
        HydraConfig.instance().set_config(config)
        task = OmegaConf.masked_copy(config, [str(k) for k in config if k != "hydra"])
        job = make_job(
            task, config.hydra.runtime.choices, list(config.hydra.overrides.task), home, arguments,
            trusted(arguments), True,
        )  # fmt: skip
        validate(job)
        texts = {
            "config.yaml": OmegaConf.to_yaml(task),
            "hydra.yaml": OmegaConf.to_yaml(OmegaConf.masked_copy(config, ["hydra"])),
            "overrides.yaml": OmegaConf.to_yaml(config.hydra.overrides.task),
        }
        return Entry(number, overrides, varies, home, job, hydra=texts)
    except Exception as error:
        return Entry(number, overrides, varies, directory / named, error=explain(error, overrides) or repr(error))
    finally:
        HydraConfig.instance().cfg = before
