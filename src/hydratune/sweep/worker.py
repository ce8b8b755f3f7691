"""A worker process: one unit of jobs, each with its own log and its own traceback; messages to the one who started it.

Messages are JSON: nothing is pickled between the two but the arguments of this process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hydratune.config.job import Job
from hydratune.core.markdown import as_shown
from hydratune.core.secrets import HidingStream
from hydratune.distributed import signals
from hydratune.record.claim import claim
from hydratune.record.run import write_record, write_text
from hydratune.record.run_record import RunRecord
from hydratune.record.screen import LiveLine, Screen


def main(mode: str, jobs: str, connection: Connection, log: str, threads: int | None, gpu: int | None) -> None:
    """mode: train, pretrain (what the first one asks for), autotune (the precision that the first one would choose),
    estimate (what each would cost), check (the first one's data, test split included), soup:how:directory, or
    interpolate:shares:directory.
    """
    signals.listen(impatient=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started us decides
    _log_to(log)
    threading.Thread(target=_watch, args=(connection,), daemon=True).start()
    if gpu is not None:
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[gpu] if gpu < len(visible) else str(gpu)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    unit = {Job.from_json(values): number for number, values in json.loads(jobs)}
    try:
        _work(mode, unit, connection)
        _send(connection, done=True)
    except Exception as error:  # shown here, as it may hold what is written nowhere
        print(as_shown("".join(traceback.format_exception(error))), file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)


def _work(mode: str, unit: Mapping[Job, int], connection: Connection) -> None:
    if mode == "estimate":
        from hydratune.sweep.estimate_costs import estimate_costs

        _send(connection, costs={unit[job]: found for job, found in estimate_costs(list(unit)).items()})
    elif mode == "autotune":
        from hydratune.sweep.estimate_costs import autotuned

        _send(connection, precision=autotuned(next(iter(unit))))
    elif mode == "check":
        _check(next(iter(unit)), connection)
    elif mode.startswith(("soup:", "interpolate:")):
        kind, how, home = mode.split(":", 2)
        try:
            _send(connection, line=_made(kind, how, Path(home), list(unit)))
        except (Exception, SystemExit) as error:
            print(as_shown("".join(traceback.format_exception(error))), file=sys.stderr)
            _send(connection, failed=message_of(error))
    elif mode == "pretrain":
        _pretrain(next(iter(unit)), connection)
    else:
        with _screens(list(unit)) as screens:
            _train(unit, screens, Telling(connection, lines=False), connection)


def _made(kind: str, how: str, home: Path, jobs: list[Job]) -> str:
    """Weights out of those of complete jobs. Returns what was done."""
    if kind == "soup":
        from hydratune.sweep.soup import average

        return average(jobs, how, home)
    from hydratune.sweep.interpolate import interpolate

    return interpolate(jobs[0], [float(share) for share in how.split(",")], home)


def _pretrain(job: Job, connection: Connection) -> None:
    from hydratune.experiment.run import pretrain

    try:
        pretrain(job, Telling(connection))
    except (Exception, SystemExit) as error:
        print(as_shown("".join(traceback.format_exception(error))), file=sys.stderr)
        _send(connection, failed=message_of(error))


def _check(job: Job, connection: Connection) -> None:
    from hydratune.experiment.job_group import check_data

    try:
        check_data(job)
    except (Exception, SystemExit) as error:
        print(as_shown("".join(traceback.format_exception(error))), file=sys.stderr)
        _send(connection, failed=message_of(error))


def _train(unit: Mapping[Job, int], screens: Mapping[Job, Screen], screen: Screen, connection: Connection) -> None:
    from hydratune.experiment.selfplay import run_jobs

    left = dict(unit)
    try:
        for job, outcome in run_jobs(list(unit), screen, screens.__getitem__):
            number = left.pop(job)
            if isinstance(outcome, Exception):
                record_failure(job, outcome)
                _send(connection, number=number, failed=message_of(outcome))
            else:
                _send(connection, number=number, metric=outcome.metric, status=outcome.record.status)
    except (Exception, SystemExit) as error:
        # What all of them have in common has failed, or one of them has ended the process.
        alone = len(left) > 1 and not isinstance(error, ValueError)
        for job, number in left.items():
            if alone:
                _send(connection, number=number, again=message_of(error))
            else:
                record_failure(job, error)
                _send(connection, number=number, failed=message_of(error))


def message_of(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"called sys.exit({error.code})"
    text = (str(error).splitlines() or [""])[0]
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"


def record_failure(job: Job, error: BaseException | str) -> None:
    """The traceback, and a run.json that says so, also where the run had not begun.

    A run that is complete stays it: what failed then is its test.
    """
    directory = job.directory
    directory.mkdir(parents=True, exist_ok=True)
    whole = error if isinstance(error, str) else "".join(traceback.format_exception(error))
    write_text(directory / "traceback.txt", whole)
    try:
        lock = claim(directory)
    except ValueError:
        return
    text = error.splitlines()[0] if isinstance(error, str) else message_of(error)
    known = RunRecord.read(directory)
    failed = {"test_error": text} if known.status == "complete" else {"status": "failed", "error": text}
    write_record(directory, known.changed(config_hash=known.config_hash or job.config_hash, **failed))
    os.close(lock)


class Telling(Screen):
    """What would go to the terminal goes to whoever started this process."""

    def __init__(self, connection: Connection, lines: bool = True) -> None:
        """lines: whether they are told; if not they stay in this process's log."""
        super().__init__()
        self._connection, self._lines = connection, lines

    def line(self, text: str) -> None:
        if self._lines:
            _send(self._connection, line=text)
        else:
            super().line(text)

    def progress(self, label: str, first: int, total: int) -> LiveLine:
        return TellingLine(self._connection, self, label, first, total)


class TellingLine(LiveLine):
    def __init__(self, connection: Connection, screen: Screen, label: str, first: int, total: int) -> None:
        super().__init__(screen, label, first, total)
        self._connection = connection

    def show(self, step: int, seen: Mapping[str, str]) -> None:
        _send(self._connection, first=self._first, step=step, total=self._total, seen=dict(seen))

    def milestone(self, step: int, seen: Mapping[str, str]) -> None:
        self.show(step, seen)


@contextlib.contextmanager
def _screens(jobs: list[Job]) -> Iterator[dict[Job, Screen]]:
    """Each job's tables and lines go to the log in its own directory."""
    with contextlib.ExitStack() as files:
        screens = {}
        for job in jobs:
            job.directory.mkdir(parents=True, exist_ok=True)
            file = files.enter_context(open(job.directory / "hydratune.log", "a", buffering=1))
            screens[job] = Screen(file)
        yield screens


def _send(connection: Connection, **message: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more: _watch ends this process
        connection.send_bytes(json.dumps(message, default=str).encode())


def _log_to(path: str) -> None:
    """Whatever is printed here, by native code also, goes to a file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    faulthandler.enable()
    sys.stdout, sys.stderr = HidingStream(sys.stdout), HidingStream(sys.stderr)


def _watch(connection: Connection) -> None:
    """When the one who started this process is gone, so is it: its directories must not stay claimed."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv_bytes()
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(5.0)
    os._exit(1)
