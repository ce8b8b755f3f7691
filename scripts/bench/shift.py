"""Which part of a network to fine-tune under which shift of the data; and what a linear probe before it is worth.

    python scripts/bench/shift.py surgical [--seeds 1 2 3 4 5] [--rates 0.03 0.1] [--picture FILE.png] [-- OVERRIDES]
    python scripts/bench/shift.py lp_ft [--shift feature] ...

A network learns shapes100; then the same task comes shifted: noisy and blurred (input), with other textures (feature),
or with its labels permuted and merged (output). surgical: one block and the head train, the first, the middle or the
last (arXiv 2210.11466 finds first for input, middle for feature, last for output), or the group that freeze.first=auto
chooses by its gradient. lp_ft: a probe and then everything (arXiv 2202.10054) against everything and against the probe
alone. Every arm has the same steps, and each is shown at its best rate of one grid by mean validation accuracy; mean
and standard deviation of the test accuracy over seeds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transfer import said, sweep

BASE = [
    "stage=finetune", "model=resnet9_w16", "steps=100", "engine.eval_every=100", "test=true", "dataset.train=1000",
    "dataset@pretrain.dataset=shapes100", "pretrain.dataset.train=8000", "pretrain.optimizer.lr=0.1",
]  # fmt: skip
BLOCKS = {
    "first": ["freeze=surgical", "freeze.first=stem", "freeze.last=layer1"],
    "middle": ["freeze=surgical", "freeze.first=layer2"],
    "last": ["freeze=surgical", "freeze.first=layer3"],
    "auto": ["freeze=surgical", "freeze.first=auto"],
}
PROBES = {"head_only": ["freeze=head_only"], "none": ["freeze=none"], "lp_ft": ["freeze=lp_ft"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study", choices=["surgical", "lp_ft"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--rates", nargs="+", default=["0.03", "0.1"])
    parser.add_argument("--shift", nargs="+")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("overrides", nargs="*", default=[])
    options = parser.parse_intermixed_args()
    arms = BLOCKS if options.study == "surgical" else PROBES
    shifts = options.shift or (["input", "feature", "output"] if options.study == "surgical" else ["feature"])
    grid = ["seed=" + ",".join(map(str, options.seeds)), "optimizer.lr=" + ",".join(options.rates)]
    found: dict[str, dict[str, tuple[float, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as home:
        for shift in shifts:
            found[shift] = {}
            for arm, choice in arms.items():
                line = [*BASE, *choice, f"dataset.shift={shift}", *grid, *options.overrides]
                records = sweep(line, Path(home) / shift / arm)
                found[shift][arm] = _best(records)
                if norms := [r["gradient_norms"] for r in records if "gradient_norms" in r]:
                    chosen = Counter(max(n, key=lambda name: n[name]) for n in norms)
                    print(f"{shift}: {dict(chosen)}; of one run {norms[0]}")
    table = Table(title=f"test accuracy, seeds {' '.join(map(str, options.seeds))}, rates {' '.join(options.rates)}")
    for column in ("shift", *arms, "wins", "margin", "largest spread"):
        table.add_column(column)
    for shift, cells in found.items():
        means = sorted(((statistics.mean(tests), arm) for arm, (_, tests) in cells.items()), reverse=True)
        spread = max(statistics.stdev(tests) for _, tests in cells.values())
        shown = [f"{said(tests)} (lr {rate:g})" for rate, tests in cells.values()]
        table.add_row(shift, *shown, means[0][1], f"{means[0][0] - means[1][0]:.4f}", f"{spread:.4f}")
    Console(width=160).print(table)
    if options.picture:
        _draw(found, options.picture)


def _best(records: list[dict[str, Any]]) -> tuple[float, list[float]]:
    """(the rate that is best by mean validation accuracy, its test accuracies)."""
    by_rate: dict[float, list[dict[str, Any]]] = {}
    for record in records:
        by_rate.setdefault(record["provenance"]["optimizer"]["lr"], []).append(record["metrics"])
    rate = max(by_rate, key=lambda r: statistics.mean(m["val_accuracy"] for m in by_rate[r]))
    return rate, [m["test_accuracy"] for m in by_rate[rate]]


def _draw(found: dict[str, dict[str, tuple[float, list[float]]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 2.2 * len(found), 3.2), layout="constrained")
    axes = figure.subplots(1, len(found), sharey=False, squeeze=False)[0]
    for axis, (shift, cells) in zip(axes, found.items(), strict=True):
        means = [statistics.mean(tests) for _, tests in cells.values()]
        errors = [statistics.stdev(tests) for _, tests in cells.values()]
        colours = ["tab:blue" if m == max(means) else "lightgrey" for m in means]
        axis.bar(list(cells), means, yerr=errors, color=colours, capsize=4)
        axis.set_title(f"{shift} shift")
        axis.set_ylim(bottom=max(min(means) - 3 * max(errors) - 0.02, 0))
    axes[0].set_ylabel("test accuracy")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
