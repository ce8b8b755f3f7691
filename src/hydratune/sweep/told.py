"""What a sweep's directory says of it: sweep.json, and the tables."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydratune.record.run import write_json
from hydratune.sweep import ranking
from hydratune.sweep.plan import Entry
from hydratune.sweep.prerequisites import strategy_of

SHARE = 0.05  # of a command's time, at most, for tables that nobody may be looking at


class Told:
    """Of one command. What earlier ones with the same directory said stays."""

    def __init__(self, directory: Path, arguments: Sequence[str]) -> None:
        self.directory, self.path = directory, directory / ranking.SWEEP
        self.command = shlex.join(["hydratune", *arguments])
        self._due = 0.0

    def jobs(self) -> list[dict[str, Any]]:
        """As sweep.json lists them now."""
        return list(self._read().get("jobs", []))

    def course(self) -> dict[str, Any]:
        """What was chosen for sweep.budget."""
        return dict(self._read().get("course", {}))

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        return found

    def write(
        self, entries: Iterable[Entry], numerics: Mapping[int, Any], made: Sequence[str], course: Mapping[str, Any]
    ) -> None:
        """These jobs, and those of earlier lines with the same directory. made: rows that no job trained."""
        jobs = [{**e.told(), "numerics": numerics.get(e.number, {})} for e in entries]
        jobs += [{"directory": name, "varies": {}, "fixed": {}, "strategy": strategy_of(name)} for name in made]
        names = {j["directory"] for j in jobs}
        jobs += [j for j in self.jobs() if j["directory"] not in names]
        keys = list(dict.fromkeys(k for j in jobs for k in j["varies"]))
        for job in jobs:  # one of another line may not have varied what this one does
            job["varies"] = {k: job["varies"].get(k, job["fixed"].get(k, "")) for k in keys}
        chosen = {"course": dict(course)} if course else {}
        write_json(self.path, {"command": self.command, "keys": keys, "jobs": jobs, **chosen})

    def rank(self, everything: bool = False) -> None:
        """The tables, after each job but not more than about once in a second, and less often where there are so many
        jobs that it takes its time: workers wait meanwhile.
        """
        began = time.monotonic()
        if everything or began > self._due:
            ranking.write_tables(self.directory, ranking.read(self.directory))
            ended = time.monotonic()
            self._due = ended + max(1.0, (ended - began) / SHARE)
