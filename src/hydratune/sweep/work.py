"""The command hydratune-work: runs what a sweep hands out over a shared directory, until the sweep is over."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydratune.config.job import Job
from hydratune.core.markdown import as_shown
from hydratune.core.paths import expanded
from hydratune.distributed import signals
from hydratune.sweep.forkserver import context
from hydratune.sweep.plan import Entry, Unit
from hydratune.sweep.pool import Places, Pool
from hydratune.sweep.shared import BEATS, POLL, UNITS, Beat, Offers, Silence, Taken, read_json

WAIT = 60.0  # seconds without a sign of the sweep's command after which a worker leaves
LOG = 4000  # characters of a failed unit's log that are told


def main() -> None:
    """hydratune-work SWEEPDIR [--jobs N] [--wait SECONDS]"""
    parser = argparse.ArgumentParser(
        "hydratune-work",
        description="Runs what a sweep's command hands out (sweep.on=workers), until the sweep is over.",
    )
    parser.add_argument("directory", help="of the sweep, on a disk that all machines share")
    parser.add_argument("--jobs", type=int, help="how many at a time; default: one per GPU, or one")
    parser.add_argument("--wait", type=float, default=WAIT, help=f"seconds without its command; default: {WAIT:g}")
    given = parser.parse_args()
    directory = expanded(given.directory).absolute()
    if given.jobs is not None and given.jobs < 1:
        parser.error("--jobs: at least 1")
    gpus = Places.of(1).gpus
    count = given.jobs or gpus or 1
    if count == 1:
        sys.exit(0 if serve(directory, given.wait) else 1)
    sys.exit(_several(directory, count, gpus, given.wait))


def _several(directory: Path, count: int, gpus: int, wait: float) -> int:
    """As many of this command, each with a GPU of its own where there are any."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = visible or [str(i) for i in range(gpus)]
    started = []
    for i in range(count):
        own = {"CUDA_VISIBLE_DEVICES": names[i % len(names)]} if names else {}
        line = [sys.executable, "-m", "hydratune.sweep.work", str(directory), "--jobs", "1", "--wait", str(wait)]
        started.append(subprocess.Popen(line, env={**os.environ, **own}))
    try:
        return max(process.wait() for process in started)
    except KeyboardInterrupt:
        for process in started:
            process.terminate()
        return max(process.wait() for process in started)


def serve(directory: Path, wait: float = WAIT) -> bool:
    """Take units until the sweep is over. Returns whether there was one."""
    signals.listen()
    context()
    host = "".join(c if c.isalnum() or c in "-." else "-" for c in socket.gethostname())
    worker = f"{host}-{os.getpid()}-{secrets.token_hex(2)}"
    command, silence = directory / UNITS / "command.json", Silence()
    offers, places = Offers(directory, worker), Places.of(1)
    done, seen = 0, False
    tell(f"{worker}: waits for units of {directory}")
    with _alive(directory, worker) as life:
        while True:
            taken = offers.take()
            if taken is not None:
                seen, done = True, done + 1
                life.unit = taken
                _run(taken, Pool(directory / ".workers"), places, life)
                life.unit = None
                continue
            told = read_json(command)
            seen |= bool(told)
            if told.get("over") or silence.of(command) > wait:
                why = "the sweep is over" if told.get("over") else f"nothing was heard of its command for {wait:g} s"
                tell(f"{worker}: {why}; {done} units were done here")
                return seen
            time.sleep(POLL)


class _Life:
    """What the thread that beats looks after."""

    unit: Taken | None = None
    pool: Pool | None = None


@contextmanager
def _alive(directory: Path, worker: str) -> Iterator[_Life]:
    """A count that goes up; and what runs is ended where its unit is no longer ours, as after a long freeze."""
    life, over = _Life(), threading.Event()
    beat = Beat(directory / UNITS / "workers" / f"{worker}.json", host=socket.gethostname(), pid=os.getpid())

    def go_on() -> None:
        while not over.wait(min(float(read_json(directory / UNITS / "command.json").get("patience", WAIT)) / BEATS, 5)):
            unit, pool = life.unit, life.pool
            if unit is not None and pool is not None and not unit.is_ours:
                pool.kill()
            beat.go_on()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield life
    finally:
        over.set()
        thread.join()
        beat.path.unlink(missing_ok=True)


def _run(taken: Taken, pool: Pool, places: Places, life: _Life) -> None:
    """One unit, in a process of its own; whoever planned it hears all that it says."""
    try:
        told = taken.read()
        unit = _unit_of(told)
    except ValueError as error:
        for number, _ in _raw(taken):
            taken.say(number=number, failed=str(error))
        taken.say(ended=0)
        return
    tell(f"{told['mode']}: {unit.name}")
    life.pool, code, again = pool, 0, False
    try:
        for event in pool.run(str(told["mode"]), [unit], places):
            if event.died is not None:
                code = event.died
            elif taken.is_ours:
                taken.say(**event.message)
    except KeyboardInterrupt:  # this machine is wanted for something else: another one goes on from the checkpoint
        again = True
        raise
    finally:
        life.pool = None
        if taken.is_ours and again:
            os.replace(taken.path, taken.path.parent.parent / "offered" / f"{taken.path.stem.partition('@')[0]}.json")
        elif taken.is_ours:
            taken.say(ended=code, log=pool.log_of(unit)[-LOG:] if code else "")


def _raw(taken: Taken) -> Sequence[Any]:
    return read_json(taken.path).get("jobs", ())


def _unit_of(told: dict[str, Any]) -> Unit:
    jobs = [(number, Job.from_json(values)) for number, values in told["jobs"]]
    entries = [Entry(number, (), {}, job.directory, replace(job)) for number, job in jobs]
    return Unit(entries, told["threads"])


def tell(text: str) -> None:
    print(as_shown(text), flush=True)


if __name__ == "__main__":
    main()
