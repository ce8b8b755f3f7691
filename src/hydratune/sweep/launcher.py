"""What hydra/launcher=local does with jobs that are composed: it has them run, and ranks them."""

from __future__ import annotations

import math
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hydra.core.utils import JobReturn, JobStatus, setup_globals

from hydratune.distributed import signals
from hydratune.record.run_record import RunRecord
from hydratune.sweep import ranking
from hydratune.sweep.clusters import submit
from hydratune.sweep.composing import Composer
from hydratune.sweep.grid import with_value
from hydratune.sweep.plan import Entry
from hydratune.sweep.runner import SweepRunner
from hydratune.sweep.settings import SweepSettings

FURTHER = 3  # steps beyond an edge of a grid


@dataclass(frozen=True)
class Sweep:
    """One of this process: a sweeper such as Optuna's launches many times."""

    runner: SweepRunner
    composer: Composer


_SWEEPS: dict[Path, Sweep] = {}


class JobFailed(RuntimeError):
    """Some jobs of a sweep failed; each has its traceback in its own directory."""


def launch(composer: Composer, cells: Sequence[Sequence[Entry]]) -> list[JobReturn]:
    """Run the jobs; one return for each cell of them, FAILED where one did, never an exception of theirs."""
    setup_globals()
    signals.listen()
    directory, settings, arguments = composer.directory, composer.settings, composer.arguments
    entries = [entry for cell in cells for entry in cell]
    if not settings.wait and not composer.dry_run:
        _submit(directory, settings, arguments, entries)
    if directory not in _SWEEPS:
        _SWEEPS[directory] = Sweep(SweepRunner(directory, settings, composer.dry_run, arguments), composer)
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
                sweep.composer.entry(with_value(e.overrides, edge.key, edge.beyond), number + i)
                for i, e in enumerate(seeds)
            ]
            if all(entry.error is None for entry in entries):  # 1.2 may be no value for it
                runner.screen.line(f"{edge}: sweep.extend=true tries {edge.beyond}")
                added += entries
        if not added:
            return
        runner.run(added)
