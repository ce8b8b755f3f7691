"""One claimed run directory that tells its own story."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from hydratune.core.markdown import as_shown, in_markdown
from hydratune.core.secrets import hidden, hidden_in
from hydratune.core.types import Summary
from hydratune.record import checkpoint
from hydratune.record.checkpoint import Snapshot
from hydratune.record.claim import claim, is_ours
from hydratune.record.run_record import RUN_JSON, RunRecord
from hydratune.record.tensorboard import Board, SilentBoard, cut_back, sizes

LOST = 75  # exit status of a process whose run another one has taken over
FAILURES = ("error", "nonfinite", "test_error")  # of an earlier attempt


class Run:
    """Claims a directory, keeps run.json current, and owns its checkpoints and its TensorBoard writer; or, being one
    of several processes' and not the first's, writes nothing at all.

    The claim is an advisory lock that the kernel drops with the process, so no stale one stays behind.
    Raises ValueError where another live process has the directory.
    """

    def __init__(
        self, directory: Path, record: RunRecord | None = None, first_step: int = 0, silent: bool = False,
        status: str = "running",
    ) -> None:  # fmt: skip
        """record: what run.json says from now on; None: what it says already.

        first_step: where a resumed run goes on; TensorBoard drops what it had logged beyond it.
        """
        self.directory, self.silent = directory, silent
        self.checkpoints = directory / "checkpoints"
        self._lock: int | None = os.open(os.devnull, os.O_RDONLY) if silent else claim(directory)
        known = RunRecord.read(directory)
        if known.events is not None and not silent:
            cut_back(directory, known.events)
        self._before, self._started = float(known.seconds or 0), time.perf_counter()
        forgotten: dict[str, Any] = dict.fromkeys((*FAILURES, "events"))
        self.record = (record or known).changed(**forgotten, status=status)
        self.update()
        self.board = SilentBoard() if silent else Board(directory, first_step)

    def update(self, **changes: Any) -> None:
        """Change entries of run.json, atomically."""
        self.record = self.record.changed(**changes)
        if not self.silent:
            self._leave_if_lost()
            write_record(self.directory, self.record)

    def save(self, step: int, snapshot: Snapshot) -> Path:
        """A checkpoint."""
        self._leave_if_lost()
        return checkpoint.save(self.checkpoints, step, snapshot)

    def _leave_if_lost(self) -> None:
        """Another process goes on with this run: nothing that this one does on its way out may touch the directory."""
        if self._lock is not None and not self.silent and not is_ours(self._lock, self.directory):
            os._exit(LOST)

    @property
    def seconds(self) -> float:
        """Spent on this run, earlier sessions that ended in an orderly way included."""
        return round(self._before + time.perf_counter() - self._started, 2)

    def table(self, name: str, markdown: str) -> None:
        """A report as `<name>.md` and as text in TensorBoard."""
        if not self.silent:
            write_text(self.directory / f"{name}.md", markdown + "\n")
        self.board.text(name, markdown)

    def add(self, name: str, sentence: str, step: int) -> None:
        """To such a report, what became known after `step` updates."""
        if not self.silent:
            path = self.directory / f"{name}.md"
            write_text(path, f"{path.read_text() if path.exists() else ''}\n{in_markdown(sentence)}\n")
        self.board.text(name, in_markdown(sentence), step)

    def show(self, what: Mapping[str, Summary], step: int) -> None:
        """In TensorBoard, each by its kind."""
        for tag, content in what.items():
            if isinstance(content, str):
                self.board.text(tag, content, step)
            elif isinstance(content, Mapping):
                self.board.scalars({f"{tag}/{name}": value for name, value in content.items()}, step)
            else:
                self.board.picture(tag, content, step)

    @contextlib.contextmanager
    def shown_once(self, **changes: Any) -> Iterator[None]:
        """What TensorBoard is shown within goes with these entries of run.json, as if both were one write: where the
        process ends before the second, the run cuts the first off when it goes on.
        """
        self.board.flush()
        self.update(events=sizes(self.directory))
        yield
        self.board.flush()
        self.update(**changes, events=None)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is None:  # it has ended before those that it ran beside
            return
        try:
            if error is not None:
                status = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
                with contextlib.suppress(OSError):  # a full disk, perhaps, which is the error
                    if self.record.status != "complete":
                        self.update(status=status, error=f"{type(error).__name__}: {error}", seconds=self.seconds)
            with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
                self.board.close()
        finally:
            os.close(self._lock)
            self._lock = None


def write_record(directory: Path, record: RunRecord) -> None:
    write_json(directory / RUN_JSON, record.as_json())


def write_json(path: Path, content: Any) -> None:
    # Secrets are hidden in the words of it, not in the text: a value such as 0.001 is half of a JSON file's numbers.
    _write(path, json.dumps(hidden_in(content), indent=1, default=lambda o: hidden(str(o))) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all, whoever reads it meanwhile."""
    _write(path, as_shown(text))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
