"""Runs and sweeps that lie under a directory, as far as their records tell."""

from __future__ import annotations

import json
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydratune.config.groups import LABELS, TRAINING
from hydratune.config.instantiate import nearest
from hydratune.core.markdown import number
from hydratune.record.claim import is_claimed
from hydratune.record.run_record import RUN_JSON, RunRecord
from hydratune.sweep.rows import SWEEP

KEYS = ("when", "what", "status", "metric", "size", "time", "directory")
FIELDS = {"size": "bytes", "time": "seconds"}
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne, ">=": operator.ge, "<=": operator.le, "=": operator.eq, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


@dataclass(frozen=True)
class Listed:
    """A run, or a sweep with the metric of its winner. bytes: of all below it."""

    directory: str
    record: RunRecord
    what: str
    status: str
    bytes: int
    jobs: int = 0  # of a sweep

    @property
    def when(self) -> str:
        return (self.record.ended or self.record.started or "")[:16].replace("T", " ")

    @property
    def monitor(self) -> str:
        return self.record.monitor or ""

    @property
    def metric(self) -> float | None:
        """Validation's, at the best evaluation; of an evaluation the test's."""
        found = self.record.score()
        return self.record.score("test") if found is None else found

    @property
    def seconds(self) -> float:
        return self.record.seconds or 0.0

    def value(self, key: str) -> Any:
        """Of a column, a config group's option, a key of the configuration, or a metric; None where there is none."""
        own = {"stage": self.record.stage, "seed": self.record.seed}
        if key in own:
            return own[key]
        if key in KEYS:
            return getattr(self, FIELDS.get(key, key))
        if key in (self.record.metrics or {}):
            return (self.record.metrics or {})[key]
        typed = dict(o.lstrip("+~").partition("=")[::2] for o in self.record.overrides)
        if "." not in key:
            return (self.record.choices or {}).get(key, typed.get(key))
        node: Any = self.record.provenance
        for word in key.split("."):
            node = node.get(word) if isinstance(node, Mapping) else None
        return typed.get(key) if node is None else node

    def as_json(self) -> dict[str, Any]:
        record = self.record
        return {
            "directory": self.directory, "what": self.what, "status": self.status, "stage": record.stage,
            "when": self.when, "monitor": record.monitor, "metric": self.metric, "metrics": dict(record.metrics or {}),
            "size": self.bytes, "seconds": self.seconds, "jobs": self.jobs, "overrides": list(record.overrides),
        }  # fmt: skip


def listed(root: Path, jobs: bool = False) -> Iterator[Listed]:
    """Runs, and sweeps; jobs: those of sweeps as well. Raises ValueError where there is no such directory."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such directory")
    sweeps = {path.parent for path in (*root.glob(SWEEP), *root.glob(f"*/{SWEEP}"), *root.glob(f"*/*/{SWEEP}"))}
    for sweep in sorted(sweeps):
        yield _sweep(sweep)
    for depth in ("*", "*/*", "*/*/*"):
        for path in sorted(root.glob(f"{depth}/{RUN_JSON}")):
            if jobs or path.parents[1] not in sweeps:
                yield _run(path.parent)


def _run(directory: Path) -> Listed:
    try:
        record = RunRecord.read(directory)
        status = record.status or "unreadable"
    except (ValueError, TypeError, OSError, RecursionError):
        record, status = RunRecord(), "unreadable"
    if status == "running" and not is_claimed(directory):
        status = "interrupted"
    return Listed(str(directory), record, _what(record), status, size_of(directory))


def _sweep(directory: Path) -> Listed:
    try:
        told = json.loads((directory / SWEEP).read_text())
        keys, jobs = [str(key) for key in told["keys"]], len(told["jobs"])
    except (ValueError, TypeError, KeyError, OSError, RecursionError):
        return Listed(str(directory), RunRecord(), "sweep", "unreadable", size_of(directory))
    best = directory / "best"
    record = _run(directory / best.read_text().strip()).record if best.is_file() else RunRecord()
    status = "running" if is_claimed(directory) else "complete" if best.is_file() else "no winner"
    what = f"sweep of {jobs} jobs over {', '.join(keys) or 'nothing'}: {_what(record)}"
    return Listed(str(directory), record, what, status, size_of(directory), jobs)


def _what(record: RunRecord) -> str:
    """Stage, and the options of the groups that name a run; of older records what was typed."""
    choices, shown = record.choices, LABELS if record.stage in TRAINING else ("model", "dataset")
    if choices:
        words = [f"{group}={choices[group]}" for group in shown if choices.get(group)]
    else:
        words = [o for o in record.overrides if not re.match(r"\+*(name|outputs|stage|resume|hydra)\b", o)]
    return " ".join([record.stage or "", *words]).strip()


def size_of(directory: Path) -> int:
    """Bytes of all files below it."""
    total = 0
    stack = [str(directory)]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:  # removed meanwhile
            continue
    return total


def placed(runs: Sequence[Listed], key: str, reverse: bool = False) -> list[Listed]:
    """By a key: the newest, the largest number or the first word first; what has no value of it comes last.

    Raises ValueError for a key that none of them has.
    """
    known = [run for run in runs if run.value(key) not in (None, "")]
    if runs and not known and key not in KEYS:
        raise ValueError(f"--sort {key}: {nearest(key, KEYS)}")
    words = any(isinstance(run.value(key), str) for run in known)
    down = key == "when" or not words
    known.sort(key=lambda run: str(run.value(key)) if words else run.value(key), reverse=down != reverse)
    return known + [run for run in runs if run.value(key) in (None, "")]


def condition(text: str) -> Callable[[Listed], bool]:
    """`key=value` with one of = != < > <= >=. Raises ValueError for what is no condition."""
    found = re.fullmatch(r"([\w./@]+)(!=|>=|<=|=|>|<)(.*)", text)
    if found is None:
        raise ValueError(f"--where {text}: key=value, or with one of {' '.join(COMPARE)}")
    key, how, value = found.groups()

    def meets(run: Listed) -> bool:
        own = run.value(key)
        if own is None:
            return how == "!="
        wanted, given = number(value), own if isinstance(own, int | float) else number(str(own))
        if wanted is not None and given is not None:
            return COMPARE[how](given, wanted)
        if how not in ("=", "!="):
            return False
        return COMPARE[how](str(own).lower(), value.lower())

    return meets
