"""What a run tells the person who looks: tables on the screen, pictures and text in TensorBoard."""

from __future__ import annotations

import datetime
import platform
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hydratune.config.groups import LABELS, TRAINING
from hydratune.config.job import Job
from hydratune.core.markdown import fenced, in_markdown, markdown_table
from hydratune.core.paths import shown_path
from hydratune.core.types import LayerGroup, LoadReport, Phase
from hydratune.core.version import __version__
from hydratune.data.stream import Stream
from hydratune.distributed.runtime import Runtime
from hydratune.freeze import recompute
from hydratune.freeze import report as freeze_report
from hydratune.models.network import Network
from hydratune.record.run import Run
from hydratune.record.screen import Screen, duration

MOST = 12  # phases that the screen shows


def label(job: Job) -> str:
    shown = LABELS if job.config.stage in TRAINING else ("model", "dataset")
    return "  ".join(f"{g}={job.choices[g]}" for g in shown if job.choices.get(g))


def show_start(
    screen: Screen, run: Run, job: Job, data: Any, train_stream: Stream, first_step: int, num_steps: int
) -> None:
    """What is about to run, and on what. data: a JobGroup."""
    if first_step:
        screen.line(f"resuming {shown_path(job.directory)} from step {first_step} of {num_steps}")
    screen.line(f"{job.config.stage}  {label(job)}  ->  {shown_path(job.directory)}")
    run.board.text("config", fenced(job.text, "yaml"))
    if not run.silent and (message := data.dataset.keep(run.directory)):
        screen.line(message)
    for part, split in (("train", train_stream.split), ("val", data.val_split)):
        if summary := data.dataset.split_summary(split):
            screen.line(f"{part}: {summary}")
        if part == "train" and train_stream.drawing:
            screen.line(f"{part}: {train_stream.drawing}")
    for name, own in data.evals.items():
        if summary := data.dataset.split_summary(own.split):
            screen.line(f"{name}: {summary}")
    for warning in data.warnings:
        screen.line(f"warning: {warning}")


def show_load(screen: Screen, run: Run, loaded: LoadReport | None, random: Sequence[str] = ()) -> None:
    """random: parameters that stay as they were drawn."""
    if loaded is not None:
        renamed = {n: f"there as {there}" for n, there in loaded.renamed.items()}
        counts = [
            ("loaded", len(loaded.loaded), _some({n: why for n, why in renamed.items() if n in loaded.loaded})),
            ("skipped", len(loaded.skipped), _some(dict(sorted(loaded.skipped.items(), key=_by_reason)))),
            ("initialised", len(loaded.initialised), ", ".join(list(loaded.initialised)[:6])),
        ]
        title = f"weights from {loaded.source}: {loaded.trunk_share:.0%} of the trunk"
        screen.table(title, ("tensors", "count", "which and why"), counts)
        every = [(n, "loaded", renamed.get(n, "")) for n in loaded.loaded]
        every += [(n, "skipped", why) for n, why in loaded.skipped.items()]
        every += [(n, "initialised", why) for n, why in loaded.initialised.items()]
        run.table(
            "load", f"**{in_markdown(title)}**\n\n" + markdown_table(("tensor", "what became of it", "why"), every)
        )
    if random:
        screen.line(
            f"warning: {len(random):,} frozen tensors have random weights and keep them ({', '.join(random[:3])}"
            f"{', ...' if len(random) > 3 else ''}); init_from= names trained ones, freeze=none trains them"
        )


def show_phases(
    screen: Screen,
    run: Run | None,
    network: Network,
    phases: Sequence[Phase],
    costs: Sequence[tuple[str, ...]],
    runtime: Runtime,
    how: str,
    norms: Mapping[str, float] | None = None,
) -> None:
    """The freeze report; run: where it is kept, unless nothing is to be trained. norms: of gradients, by which the
    strategy has chosen.
    """
    ranking = freeze_report.ranking(norms or {})
    if ranking:
        screen.table("what was chosen by", freeze_report.RANKING, ranking)
    trains = freeze_report.trains(network.groups, phases)
    rest = f"; {len(trains) - MOST} more phases{'' if run is None else ' in freeze.md'}" if len(trains) > MOST else ""
    screen.table(f"what trains{rest}", freeze_report.TRAINS, trains[:MOST])
    text = markdown_table(freeze_report.TRAINS, trains)
    if costs:
        screen.table(f"what a step costs{rest}", freeze_report.COSTS, costs[:MOST])
        text += "\n\n" + markdown_table(freeze_report.COSTS, costs)
    if ranking:
        text += "\n\n" + markdown_table(freeze_report.RANKING, ranking)
    screen.line(f"computes in {runtime.chosen} on {runtime.torch_device}: {how}")
    if run is not None:
        run.table("freeze", text)


def show_recomputed(screen: Screen, run: Run | None, groups: Sequence[LayerGroup], phases: Sequence[Phase]) -> None:
    """Of engine.recompute: what each phase computes again, and what it does not, and why."""
    lines = [recompute.sentence(groups, phase) for phase in phases]
    for number, line in enumerate(lines):
        if number < MOST:
            screen.line(line)
        if run is not None:
            run.add("freeze", line, phases[number].first_step)


def _by_reason(skipped: tuple[str, str]) -> bool:
    """What is known here and not taken before what is not known."""
    return skipped[1] == "no such tensor here"


def _some(reasons: Mapping[str, str], most: int = 3) -> str:
    shown = [f"{name}: {why}" for name, why in list(reasons.items())[:most]]
    return "; ".join(shown) + (f"; and {len(reasons) - most} more (load.md)" if len(reasons) > most else "")


def show_result(
    screen: Screen, run: Run, job: Job, metrics: Mapping[str, float], monitor: str, best_step: str,
    warnings: Sequence[str] = (),
) -> None:  # fmt: skip
    """The table at the end: this run, and above it the one that its weights came from."""
    sets = ("val", "test", *job.config.evals)
    row = [job.config.stage, label(job), *shown(metrics, monitor, sets), best_step, duration(run.seconds)]
    rows = [row]
    parent = run.record.lineage
    if parent is not None and parent.metrics:
        own = parent.monitor or monitor
        named = str(parent.run) + ("" if own == monitor else f" ({own})")
        rows.insert(0, ["pretrain", named, *shown(parent.metrics, own, sets), "", ""])
    screen.table("result", ("stage", "what", *(f"{name} {monitor}" for name in sets), "best step", "time"), rows)
    others = [k.removeprefix("val_") for k in metrics if k.startswith("val_") and k != f"val_{monitor}"]
    screen.table("other metrics", ("metric", *sets), [[k, *shown(metrics, k, sets)] for k in others])
    for warning in warnings:
        screen.line(warning)
    screen.line(f"run directory:  {shown_path(job.directory)}")
    screen.line(f"look at it:     tensorboard --logdir {shlex.quote(job.config.outputs)}")


def shown(metrics: Mapping[str, float], name: str, sets: Sequence[str]) -> list[str]:
    """A metric on each of these evaluation sets."""
    values = [metrics.get(f"{own}_{name}") for own in sets]
    return ["-" if v is None else f"{v:.4f}" if abs(v) < 100 else f"{v:,.1f}" for v in values]


def hparams(job: Job) -> dict[str, Any]:
    """What was chosen and what was typed; one column each in TensorBoard's HPARAMS tab, which shows five at first."""
    shown: dict[str, Any] = {g: job.choices.get(g, "") for g in sorted(LABELS)}
    shown["optimizer.lr"] = job.config.learning_rate
    shown["seed"] = job.config.seed
    for override in job.overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key not in shown and not key.startswith(("hydra", "outputs", "name", "resume", "trust", "test", "stage")):
            shown[key] = value
    return shown


def prominent(job: Job) -> set[str]:
    """Of `hparams` those to be seen first: rate, strategy, and what a sweep varies or was typed for a single run."""
    typed = set(shlex.split(job.command))
    own = {o.lstrip("+~").partition("=")[0]: o for o in job.overrides}
    return {"freeze", "optimizer.lr"} | {k for k, o in own.items() if not job.sweep or o not in typed}


def versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("torch", "torchvision", "hydra-core", "omegaconf", "tensorboard", "safetensors")
    return {"hydratune": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
