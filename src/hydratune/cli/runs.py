"""The command hydratune-runs: every run and sweep under a directory, compared, filtered, and pruned. Loads no torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hydratune.cli.failures import in_a_line
from hydratune.cli.prune import prune
from hydratune.cli.run_list import KEYS, Listed, condition, listed, placed
from hydratune.config.fingerprint import differences
from hydratune.record.run_record import RunRecord
from hydratune.record.screen import Screen, duration

COLUMNS = ("when", "what", "status", "metric", "size", "time", "directory")


def main() -> None:
    """hydratune-runs [DIRECTORY] [--sort KEY] [--where KEY=VALUE] [--diff A B] [--json]; hydratune-runs prune"""
    arguments = _parser().parse_args(_with_default(sys.argv[1:]))
    try:
        with in_a_line():
            _act(arguments)
    except BrokenPipeError:
        sys.exit(0)


def _act(arguments: argparse.Namespace) -> None:
    if arguments.action == "prune":
        prune(Path(arguments.directory), arguments.keep_best, arguments.where, arguments, Screen())
    elif arguments.diff:
        show_difference([Path(p) for p in arguments.diff], Screen())
    else:
        runs = [run for run in listed(Path(arguments.directory), arguments.jobs) if _meets(run, arguments.where)]
        show(placed(runs, arguments.sort, arguments.reverse), arguments.json, Screen())


def _with_default(arguments: Sequence[str]) -> list[str]:
    """`list` is what is done where no action is named."""
    named = next((a for a in arguments if not a.startswith("-")), "")
    return list(arguments) if named in ("prune", "list") or {"-h", "--help"} & {*arguments} else ["list", *arguments]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("hydratune-runs", description="Runs and sweeps under a directory.")
    actions = parser.add_subparsers(dest="action", metavar="list | prune")
    shown = actions.add_parser("list", help="show them (what happens where no action is named)")
    pruned = actions.add_parser("prune", help="remove the checkpoints of all but the best runs; the records stay")
    for own in (shown, pruned):
        own.add_argument("directory", nargs="?", default="outputs", help="default: outputs")
        own.add_argument(
            "--where", action="append", default=[], metavar="KEY=VALUE",
            help="only those: model=resnet20, optimizer.lr=0.1, status!=complete, metric>0.9; may be repeated",
        )  # fmt: skip
    shown.add_argument(
        "--sort", default="when", metavar="KEY", help=f"{', '.join(KEYS)}, a key; the largest number first"
    )
    shown.add_argument("--reverse", action="store_true", help="the other way round")
    shown.add_argument("--jobs", action="store_true", help="the jobs of sweeps as well")
    shown.add_argument("--diff", nargs=2, metavar=("A", "B"), help="what two runs differ in")
    shown.add_argument("--json", action="store_true", help="one JSON list")
    pruned.add_argument("--keep-best", type=int, required=True, metavar="N", help="of each stage, data set and metric")
    pruned.add_argument("--dry-run", action="store_true", help="say what would be removed")
    pruned.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def _meets(run: Listed, wanted: Sequence[str]) -> bool:
    return all(condition(one)(run) for one in wanted)


def show(runs: Sequence[Listed], as_json: bool, screen: Screen) -> None:
    if as_json:
        print(json.dumps([run.as_json() for run in runs], indent=1))
        return
    rows = []
    for run in runs:
        metric = "" if run.metric is None else f"{run.metric:.4f} {run.monitor}"
        time = duration(run.seconds) if run.seconds else ""
        rows.append((run.when, run.what, run.status, metric, size(run.bytes), time, run.directory))
    screen.table("runs", COLUMNS, rows)
    screen.line(f"{len(runs)} runs and sweeps, {size(sum(run.bytes for run in runs))}")


def size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.1f} GB"


def show_difference(directories: Sequence[Path], screen: Screen) -> None:
    """Configuration, metrics, versions and machine of two runs, as far as they are not the same."""
    records = []
    for directory in directories:
        record = RunRecord.read(directory)
        if not record.exists:
            raise ValueError(f"{directory}: no run directory (it should hold run.json)")
        records.append(record)
    rows = []
    for part in (
        "stage",
        "choices",
        "provenance",
        "metrics",
        "best_step",
        "num_steps",
        "seconds",
        "versions",
        "runtime",
    ):
        old, new = ({part: getattr(record, part)} for record in records)
        for line in differences(old, new):
            key, _, values = line.partition(": ")
            rows.append((key.removeprefix("provenance."), *values.split(" -> ", 1)))
    if rows:
        screen.table("differences", ("key", *map(str, directories)), rows)
    else:
        screen.line("the same configuration, metrics, versions and machine")
