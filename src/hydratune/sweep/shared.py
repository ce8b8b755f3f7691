"""Units handed out over a directory that several machines share: offered, taken by rename, told of line by line.

    .units/offered/KEY.json       what is to be done; a worker takes it by renaming it to
    .units/taken/KEY@WORKER.json  which only one of several can do
    .units/said/KEY.jsonl         what the worker says, a message a line; the last one is how it ended
    .units/workers/WORKER.json    a count that goes up while the worker lives
    .units/command.json           the same of the command that plans; it says `over` at its end

No clock is compared with another machine's: who waits for a count to go up has a clock of its own.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hydratune.core.secrets import as_references, from_references, hidden
from hydratune.record.claim import take_over
from hydratune.sweep.plan import Unit
from hydratune.sweep.pool import Event, Places

UNITS = ".units"
POLL = 0.1  # seconds
BEATS = 5  # of a worker's count in the time after which it is given up


class Cluster(Protocol):
    """Workers that were started elsewhere."""

    def problem(self) -> str | None:
        """Why none of them will take anything any more."""

    def leave(self) -> None:
        """The sweep is over: those that have not begun need not."""


class Beat:
    """A file with a count that goes up, whoever lives; and what it says beside it."""

    def __init__(self, path: Path, **said: Any) -> None:
        self.path, self.said, self.count = path, said, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self.go_on()

    def go_on(self, **more: Any) -> None:
        self.count += 1
        whole = self.path.with_name(f".{self.path.name}.partial")
        whole.write_text(json.dumps({"count": self.count, **self.said, **more}))
        os.replace(whole, self.path)


class Silence:
    """How long counts have not gone up, as seen from here."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[Any, float]] = {}

    def of(self, path: Path) -> float:
        """Seconds; of a file that is not there, since it was first asked for."""
        count = read_json(path).get("count")
        known, since = self._seen.get(path, (object(), 0.0))
        if count != known:
            since = time.monotonic()
            self._seen[path] = count, since
        return time.monotonic() - since


def read_json(path: Path) -> dict[str, Any]:
    """Empty where it is not there."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


@dataclass
class _Offer:
    unit: Unit
    read: int = 0  # bytes of what was said that have been heard
    log: str = ""
    directories: list[Path] = field(default_factory=list)


class SharedPool:
    """Has units run by whoever takes them from the directory; the same events as a Pool of processes has."""

    def __init__(self, directory: Path, patience: float, cluster: Cluster | None = None) -> None:
        """patience: seconds of silence after which a worker is given up, and its unit begun again by another.

        cluster: what has started the workers, if anything has.
        """
        self.home, self.patience, self.cluster = directory / UNITS, patience, cluster
        self._token, self._number = secrets.token_hex(4), 0
        self._offers: dict[str, _Offer] = {}
        self._logs: dict[int, str] = {}
        self._silence = Silence()
        for name in ("offered", "taken", "said"):  # of a command that is no more: its workers see that, and stop
            shutil.rmtree(self.home / name, ignore_errors=True)
            (self.home / name).mkdir(parents=True)
        self._beat = Beat(self.home / "command.json", over=False, patience=patience)
        self._beaten = time.monotonic()

    def run(self, mode: str, units: Sequence[Unit], places: Places, until: float | None = None) -> Iterator[Event]:
        """Events as they come. What is appended to `units` while it runs is run as well.

        until: of time.monotonic(), when nothing is on offer any more.
        """
        offered = 0
        try:
            while True:
                for unit in units[offered:]:
                    self._offer(mode, unit)
                offered = len(units)
                if not self._offers or (until is not None and time.monotonic() > until):
                    return
                heard, takers = False, self._takers()
                for key in list(self._offers):
                    for event in self._heard(key, takers):
                        heard = True
                        yield event
                self._live()
                if not heard:
                    time.sleep(POLL)
        finally:
            self.stop()

    def log_of(self, unit: Unit) -> str:
        """The end of what the unit's worker printed."""
        return hidden(self._logs.get(unit.entries[0].number, ""))

    def stop(self) -> None:
        """Nothing is on offer any more; workers see that theirs is gone, and stop."""
        for key in list(self._offers):
            self._forget(key)

    def close(self) -> None:
        """Workers that wait leave."""
        self.stop()
        self._beat.go_on(over=True)
        if self.cluster is not None:
            self.cluster.leave()

    # ---- one unit

    def _offer(self, mode: str, unit: Unit) -> None:
        self._number += 1
        key = f"{self._token}-{self._number:06d}"
        jobs = [[e.number, {**e.job.as_json(), "secrets": []}] for e in unit.entries if e.job is not None]
        told = {"mode": mode, "jobs": as_references(json.loads(json.dumps(jobs, default=str))), "threads": unit.threads}
        partial = self.home / f".{key}.partial"
        partial.write_text(json.dumps(told))
        directories = [e.directory for e in unit.entries] if mode == "train" else []
        self._offers[key] = _Offer(unit, directories=directories)
        os.replace(partial, self.home / "offered" / f"{key}.json")

    def _takers(self) -> dict[str, str]:
        """By key, the worker that has it. Listed once for all that is on offer, which may be hundreds."""
        names = (path.stem.partition("@") for path in (self.home / "taken").glob("*@*.json"))
        return {key: worker for key, _, worker in names}

    def _heard(self, key: str, takers: Mapping[str, str] | None = None) -> Iterator[Event]:
        offer = self._offers[key]
        for message in self._said(key, offer):
            if "ended" in message:
                self._logs[offer.unit.entries[0].number] = message.get("log", "")
                self._forget(key)
                yield Event(offer.unit, {}, message["ended"])
                return
            yield Event(offer.unit, message)
        worker = (self._takers() if takers is None else takers).get(key)
        if worker is None:
            return
        if self._silence.of(self.home / "workers" / f"{worker}.json") > self.patience:
            self._logs[offer.unit.entries[0].number] = f"nothing was heard of {worker} for {self.patience:g} s"
            self._forget(key)
            for directory in filter(Path.is_dir, offer.directories):
                take_over(directory)
            yield Event(offer.unit, {}, -signal.SIGKILL)

    def _said(self, key: str, offer: _Offer) -> Iterator[dict[str, Any]]:
        """Whole lines that have not been heard."""
        path = self.home / "said" / f"{key}.jsonl"
        if not path.is_file():
            return
        with path.open("rb") as file:
            file.seek(offer.read)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offer.read += len(line)
                yield json.loads(line)

    def _forget(self, key: str) -> None:
        del self._offers[key]
        (self.home / "offered" / f"{key}.json").unlink(missing_ok=True)
        for path in (self.home / "taken").glob(f"{key}@*.json"):
            path.unlink(missing_ok=True)

    def _live(self) -> None:
        if time.monotonic() > self._beaten + self.patience / BEATS:
            self._beat.go_on()
            self._beaten = time.monotonic()
            if self.cluster is not None and (why := self.cluster.problem()) is not None:
                raise RuntimeError(why)


# ---- the other side


class Offers:
    """What a worker sees of it."""

    def __init__(self, directory: Path, worker: str) -> None:
        self.home, self.worker = directory / UNITS, worker

    def take(self) -> Taken | None:
        """The first unit on offer that nobody else takes."""
        folder = self.home / "offered"
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            mine = self.home / "taken" / f"{path.stem}@{self.worker}.json"
            try:
                os.rename(path, mine)
            except FileNotFoundError:
                continue
            return Taken(mine, self.home / "said" / f"{path.stem}.jsonl")
        return None


class Taken:
    """A unit that is this worker's until its file is gone."""

    def __init__(self, path: Path, said: Path) -> None:
        self.path, self.said = path, said

    def read(self) -> dict[str, Any]:
        """mode, jobs, threads. Raises ValueError where a variable is not set here that a job uses."""
        found: dict[str, Any] = from_references(read_json(self.path))
        return found

    @property
    def is_ours(self) -> bool:
        return self.path.is_file()

    def say(self, **message: Any) -> None:
        with self.said.open("a") as file:
            file.write(json.dumps(message) + "\n")
