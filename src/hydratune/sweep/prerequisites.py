"""What must be so before the jobs of a sweep run: their data can be used, their pretrainings are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hydratune.config.job import JobConfig
from hydratune.sweep.plan import Entry, Unit
from hydratune.sweep.pool import Event, Places, Pool, ending

GENERATED = ("hydratune.data.Shapes",)  # there is nothing to be wrong with


class Prerequisites:
    """Each is seen to once, by a worker that has the machine to itself."""

    def __init__(self, pool: Pool, heard: Callable[[Event], None]) -> None:
        """heard: is told what the workers say."""
        self._pool, self._heard = pool, heard
        self._known: dict[str, str | None] = {}  # data set -> what is wrong with it

    def failures(self, entries: Sequence[Entry]) -> dict[int, str]:
        """By an entry's number, why it cannot run."""
        unusable = self._data(entries)
        return unusable | self._pretrainings([e for e in entries if e.number not in unusable])

    def _data(self, entries: Sequence[Entry]) -> dict[int, str]:
        """The test split is read last of all, and that is too late to find out that it cannot be."""

        def key(config: JobConfig) -> str | None:
            generated = config.dataset_target in GENERATED and not config.evals
            return None if generated or config.test is False else config.data_key()

        wanted = _alike(entries, key)
        for data, alike in wanted.items():
            if data not in self._known:
                self._known[data] = self._run("check", alike[0])
        return {e.number: why for data, alike in wanted.items() if (why := self._known[data]) for e in alike}

    def _pretrainings(self, entries: Sequence[Entry]) -> dict[int, str]:
        wanted = _alike(entries, JobConfig.pretraining_key).values()
        failed = [(alike, why) for alike in wanted if (why := self._run("pretrain", alike[0]))]
        return {e.number: f"its pretraining failed: {why}" for alike, why in failed for e in alike}

    def _run(self, mode: str, entry: Entry) -> str | None:
        """Why it failed; None where it did not."""
        alone, failed = Places.of(1), None
        for event in self._pool.run(mode, [Unit([entry], alone.threads())], alone):
            self._heard(event)
            failed = event.message.get("failed") or failed
            if event.died:
                failed = failed or ending(event.died)
        return failed


def _alike(entries: Sequence[Entry], key: Callable[[JobConfig], str | None]) -> dict[str, list[Entry]]:
    """Entries by the key of their configuration, in order; without those that have none."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        assert entry.job is not None
        if (own := key(entry.job.config)) is not None:
            found.setdefault(own, []).append(entry)
    return found
