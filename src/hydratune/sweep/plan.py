"""Which jobs a sweep has, what each is called, and which of them train side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydratune.config.job import Job
from hydratune.config.overrides import safe_name
from hydratune.core.secrets import hide_in_file
from hydratune.record.run_record import RunRecord


@dataclass(frozen=True)
class Entry:
    """One cell of the grid. `job` is None where its configuration was refused, and `error` says why."""

    number: int
    overrides: Sequence[str]
    varies: Mapping[str, str]  # key -> value, of the keys that the sweep varies
    directory: Path
    job: Job | None = None
    error: str | None = None
    hydra: Mapping[str, str] = field(default_factory=dict)  # file -> text of .hydra/
    same_as: int | None = None  # another entry asks for the very same

    @property
    def name(self) -> str:
        return self.directory.name

    def told(self) -> dict[str, Any]:
        """The entry as sweep.json has it."""
        pairs = (o.lstrip("+~").partition("=") for o in self.overrides)
        return {
            "directory": self.name,
            "varies": dict(self.varies),
            "fixed": {k: v for k, _, v in pairs if k not in self.varies},
            "strategy": self.job.choices.get("freeze", "") if self.job else "",
            "error": self.error,
            "same_as": self.name if self.same_as is not None else None,
        }

    def write_hydra(self) -> None:
        """What Hydra's run_job would write."""
        home = self.directory / ".hydra"
        home.mkdir(parents=True, exist_ok=True)
        for name, text in self.hydra.items():
            (home / name).write_text(text)
        hide_in_file(home / "hydra.yaml")  # it holds the directory, resolved


@dataclass(frozen=True)
class Unit:
    """Entries that one worker process runs, side by side where there are several; threads: null leaves torch's own."""

    entries: Sequence[Entry]
    threads: int | None = None

    @property
    def name(self) -> str:
        more = f" and {len(self.entries) - 1} beside it" if len(self.entries) > 1 else ""
        return f"{self.entries[0].name}{more}"


def override_dirname(varies: Mapping[str, str]) -> str:
    """`freeze=lp_ft,optimizer.lr=0.001,seed=2`, as Hydra calls what a directory's name is made of."""
    return ",".join(f"{k}={v}" for k, v in sorted(varies.items())) or "job"


def directory_name(varies: Mapping[str, str]) -> str:
    """The same for every file system; what is strange or too long gets a hash."""
    return safe_name(override_dirname(varies))


def plain(value: str) -> str:
    """A number in its usual form; anything else as it is."""
    try:
        return f"{float(value):.10g}" if not value.lstrip("+-").isdigit() else value
    except ValueError:
        return value


def settled(entries: Sequence[Entry], known: Mapping[Path, RunRecord]) -> list[Entry]:
    """Each with the directory that is its own: where its run lies already, else a new one; equal jobs are one.

    known: run directories of the sweep and their records. A run is known by what it asks for and not by its name, so
    that a grid may grow by keys; one that failed before it began holds nothing, and leaves its name to the next.
    """
    never = {path for path, record in known.items() if record.status == "failed" and not record.began}
    begun = {path: record.config_hash for path, record in known.items() if path not in never}
    by_hash = {own: path for path, own in begun.items() if own}
    taken = {path.name: own for path, own in begun.items()}
    first: dict[str, int] = {}
    result = []
    for entry in entries:
        job = entry.job
        if job is None:
            result.append(entry)
            continue
        if job.config_hash in first:
            result.append(
                replace(entry, same_as=first[job.config_hash], directory=result[first[job.config_hash]].directory)
            )
            continue
        directory = by_hash.get(job.config_hash) or by_hash.get(job.former_hash) or entry.directory
        if taken.get(directory.name, job.config_hash) not in (job.config_hash, job.former_hash):
            directory = directory.with_name(f"{directory.name}-{job.config_hash[:8]}")
        taken[directory.name] = job.config_hash
        first[job.config_hash] = len(result)
        result.append(replace(entry, directory=directory, job=replace(job, directory=directory)))
    return result


def companies(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries that may share a loop, in the order of their first."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        assert entry.job is not None
        key = json.dumps([entry.job.config.loop_key(), list(entry.job.trust)])
        found.setdefault(key, []).append(entry)
    return list(found.values())


def heads_alone(entries: Sequence[Entry]) -> bool:
    """Whether their heads alone train: the trunk is the cost and serves all, so they belong together unmeasured."""
    every = [e.job.config.strategy_target for e in entries if e.job is not None]
    return all(target == "hydratune.freeze.HeadOnly" for target in every)


# Of what a worker gains when it is given the others' cores as well: threads of one job wait for one another
ALL_CORES = 0.8


def shared_out(
    entries: Sequence[Entry], parts: int, fork: Mapping[int, int], work: Callable[[Sequence[Entry]], float],
    all_cores: bool = True,
) -> list[list[Entry]]:  # fmt: skip
    """The entries of one company in at most `parts` units, arranged so that the last one is done soonest.

    fork: by an entry's number, the first group that it ever changes; what is above 0 shares a trunk with its like.
    work: what entries take side by side. Tried are those with one fork kept together, each wherever there is room, and,
    where it may have all_cores, one unit.
    """
    clusters: dict[int, list[Entry]] = {}
    for entry in entries:
        clusters.setdefault(fork[entry.number], []).append(entry)
    together = [*(c for f, c in clusters.items() if f), *([e] for e in clusters.get(0, ()))]
    arrangements = [_packed(items, parts, work) for items in (together, [[e] for e in entries])]
    best = min(arrangements, key=lambda units: max(map(work, units)))
    if all_cores and work(entries) / (ALL_CORES * parts) <= max(map(work, best)):
        return [list(entries)]
    return best


def _packed(items: Sequence[list[Entry]], parts: int, work: Callable[[Sequence[Entry]], float]) -> list[list[Entry]]:
    """The longest first, each to the unit that has least."""
    units: list[list[Entry]] = [[] for _ in range(min(parts, len(items)))]
    loads = [0.0] * len(units)
    for item in sorted(items, key=lambda i: -work(i)):
        least = loads.index(min(loads))
        units[least] += item
        loads[least] = work(units[least])
    return [sorted(unit, key=lambda e: e.number) for unit in units]
