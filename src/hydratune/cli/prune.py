"""Room on the disk: the weights of all but the best runs are removed, and what is known of them stays."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydratune.cli.run_list import Listed, condition, listed, size_of
from hydratune.record.claim import is_claimed
from hydratune.record.screen import Screen

HEAVY = ("checkpoints", "export", "adapter", "merged.safetensors")


def prune(root: Path, keep: int, where: Sequence[str], options: Any, screen: Screen) -> None:
    """Remove the weights of complete runs but for the best `keep` of each stage, data set and metric.

    A run that is in use, that can still go on, or whose weights another one that stays was made from, is left alone.
    Raises ValueError for a number below 0, and where nobody can be asked.
    """
    if keep < 0:
        raise ValueError(f"--keep-best {keep}: at least 0")
    runs = list(listed(root, jobs=True))
    chosen = [run for run in _candidates(runs, keep) if all(condition(one)(run) for one in where)]
    sizes = [_heavy(run) / 1e6 for run in chosen]
    rows = [(r.directory, r.what, f"{r.metric:.4f}", f"{size:,.1f} MB") for r, size in zip(chosen, sizes, strict=True)]
    total = sum(sizes)
    if not chosen:
        screen.line("nothing to remove")
        return
    screen.table("weights that go", ("directory", "what", "metric", "size"), rows)
    if options.dry_run:
        screen.line(f"dry run: {total:,.1f} MB of {len(chosen)} runs would be removed")
        return
    if not options.yes:
        if not sys.stdin.isatty():
            raise ValueError("prune: --yes removes them without asking; --dry-run shows them alone")
        if input(f"remove {total:,.1f} MB? [y/N] ").strip().lower() not in ("y", "yes"):
            screen.line("nothing is removed")
            return
    for run in chosen:
        if is_claimed(Path(run.directory)):
            continue
        for name in HEAVY:
            path = Path(run.directory, name)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    screen.line(f"removed {total:,.1f} MB of {len(chosen)} runs; their records and TensorBoard files stay")


def _candidates(runs: Sequence[Listed], keep: int) -> list[Listed]:
    """Complete ones, beyond the best of their kind, that no other one needs."""
    kinds: dict[tuple[Any, ...], list[Listed]] = {}
    for run in runs:
        if not run.jobs and run.status == "complete" and run.metric is not None and _heavy(run):
            kinds.setdefault((run.record.stage, run.value("dataset"), run.monitor), []).append(run)
    chosen = []
    for alike in kinds.values():
        chosen += sorted(alike, key=lambda run: -(run.metric or 0.0))[keep:]
    winners = {
        str(Path(run.directory, Path(run.directory, "best").read_text().strip())) for run in runs if _has_best(run)
    }
    going = {run.directory for run in chosen} - winners
    needed = {_parent(run) for run in runs if run.directory not in going}
    return [run for run in chosen if run.directory in going and str(Path(run.directory).absolute()) not in needed]


def _has_best(run: Listed) -> bool:
    return bool(run.jobs) and Path(run.directory, "best").is_file()


def _parent(run: Listed) -> str:
    """The run that its first weights came from."""
    lineage = run.record.lineage
    return "" if lineage is None or lineage.run is None else str(Path(lineage.run).absolute())


def _heavy(run: Listed) -> int:
    paths = [Path(run.directory, name) for name in HEAVY]
    return sum(size_of(path) if path.is_dir() else path.stat().st_size for path in paths if path.exists())
