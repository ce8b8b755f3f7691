"""Text on real data: what pretraining is worth for sentiment and entities, and a GPT against bz2.

    python scripts/bench/language.py [--out DIRECTORY] [--quick]

A small BERT learns hidden words of film reviews and is fine-tuned on SST-2 and on CoNLL 2003, three seeds each, against
the same network from scratch; either may choose its learning rate by validation with the first seed. A small GPT learns
the next token of the reviews, and of Shakespeare; its bits per byte stand beside those of bz2 -9 on the same held-out
bytes. Every figure is read from run.json, test is looked at once per run, and a run that is there is not repeated.
Expects HYDRATUNE_DATA to hold text/{sst2,conll2003,reviews,shakespeare}.
"""

from __future__ import annotations

import argparse
import bz2
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydratune.distributed.runtime import cpu_name
from hydratune.record.screen import Screen

SEEDS = (1, 2, 3)
RATES = ("3e-4", "1e-3")
COMMON = ["optimizer=adamw", "schedule=cosine_warmup", "freeze=none"]
NO_DROPOUT = [f"model.config.{key}_pdrop=0.0" for key in ("resid", "embd", "attn")]
TASKS = {"sst2": ("sentiment, SST-2", "accuracy", 5), "conll2003": ("entities, CoNLL 2003", "f1", 8)}


def run(out: Path, name: str, *overrides: str) -> dict[str, Any]:
    """The record of a finished run; made now unless it is there."""
    stage = next(o.partition("=")[2] for o in overrides if o.startswith("stage="))
    directory = out / stage / name
    if (
        not (directory / "run.json").is_file()
        or json.loads((directory / "run.json").read_text())["status"] != "complete"
    ):
        command = [sys.executable, "-m", "hydratune", f"outputs={out}", f"name={name}", "resume=auto", *overrides]
        print("$ hydratune " + shlex.join(command[3:]), flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((directory / "run.json").read_text())


def fine_tuned(out: Path, dataset: str, start: str, origin: list[str], epochs: int) -> list[dict[str, Any]]:
    """One run per seed, at the rate that validates best with the first one."""
    monitor = TASKS[dataset][1]

    def at(rate: str, seed: int) -> dict[str, Any]:
        more = ["batch_size=32", f"epochs={epochs}", f"optimizer.lr={rate}", f"seed={seed}", "test=true"]
        name = f"{dataset}_{start}_{rate}_{seed}"
        return run(out, name, "stage=finetune", "model=bert_tiny", f"dataset={dataset}", *COMMON, *origin, *more)

    tried = {rate: at(rate, SEEDS[0]) for rate in RATES}
    best = max(tried, key=lambda r: tried[r]["metrics"][f"val_{monitor}"])
    return [tried[best], *(at(best, seed) for seed in SEEDS[1:])]


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.4f} +- {statistics.stdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def held_out(directory: Path, corpus: list[str]) -> bytes:
    """The very bytes of the test part."""
    from hydratune.data.text.corpus import TextCorpus
    from hydratune.data.text.tokenizer import TokenizerRecipe
    from hydratune.tasks.language import CausalLanguage

    path, documents = corpus
    return TextCorpus(CausalLanguage(), TokenizerRecipe(), path, documents).part("test").encode()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=Path("outputs/language"))
    arguments.add_argument("--quick", action="store_true", help="a few steps of each, to see that it runs")
    options = arguments.parse_args()
    out, quick = options.out, options.quick
    data = Path(os.environ.get("HYDRATUNE_DATA", "data")) / "text"
    reviews, shakespeare = f"{data}/reviews/reviews.txt", f"{data}/shakespeare/input.txt"
    short = ["steps=20"] if quick else []
    screen, started = Screen(), time.perf_counter()

    masked = ["dataset=text_files", f"dataset.path={reviews}", "dataset.documents=line", "dataset.max_length=64"]
    masked += ["dataset.tokenizer.lowercase=false", "dataset.tokenizer.vocab_size=4000", "dataset.task.share=0.3"]
    masked += ["model.config.hidden_dropout_prob=0.0", "model.config.attention_probs_dropout_prob=0.0"]
    pretraining = run(
        out, "bert_reviews", "stage=pretrain", "model=bert_tiny", *masked, *COMMON, "batch_size=16", "epochs=9",
        "optimizer.lr=1e-3", "optimizer.betas=[0.9,0.98]", "engine.clip=1.0", *short,
    )  # fmt: skip
    parent = out / "pretrain" / "bert_reviews"
    # From scratch it has the same tokenizer: what differs is the weights.
    scratch = ["init_from=null", f"dataset.tokenizer.name={parent / 'tokenizer'}"]
    rows = []
    for dataset, (title, monitor, epochs) in TASKS.items():
        for start, origin in (("pretrained", [f"init_from={parent}"]), ("scratch", scratch)):
            runs = fine_tuned(out, dataset, start, [*origin, *short], epochs)
            val, test = ([r["metrics"][f"{part}_{monitor}"] for r in runs] for part in ("val", "test"))
            rate = runs[0]["provenance"]["optimizer"]["lr"]
            seconds = statistics.mean(r["seconds"] for r in runs)
            rows.append((title, start, f"{rate:g}", monitor, spread(val), spread(test), f"{seconds:.0f}"))
    bits = []
    for name, path, documents, epochs, vocabulary in (
        ("reviews", reviews, "line", 2, 4000), ("shakespeare", shakespeare, "file", 12, 1000),
    ):  # fmt: skip
        record = run(
            out, f"gpt_{name}", "stage=pretrain", "model=gpt_tiny", "dataset=causal_files", f"dataset.path={path}",
            f"dataset.documents={documents}", f"dataset.tokenizer.vocab_size={vocabulary}", *COMMON, "batch_size=32",
            f"epochs={epochs}", "optimizer.lr=2e-3", "test=true", *NO_DROPOUT, *short,
        )  # fmt: skip
        content = held_out(out, [path, documents])
        compressed = 8 * len(bz2.compress(content, 9)) / len(content)
        own = record["metrics"]["test_bits_per_byte"]
        bits.append((name, f"{len(content):,}", f"{own:.3f}", f"{compressed:.3f}", f"{record['seconds']:.0f}"))
    values = pretraining["metrics"]
    screen.line(f"{cpu_name()}; {time.perf_counter() - started:.0f} s in all (what was there is not counted)")
    screen.line(
        f"pretraining on the reviews: {pretraining['num_steps']} steps, {pretraining['seconds']:.0f} s, "
        f"val perplexity of hidden words {values['val_perplexity']:.1f}, accuracy {values['val_accuracy']:.3f}"
    )
    columns = ("task", "start", "rate", "metric", f"val, {len(SEEDS)} seeds", f"test, {len(SEEDS)} seeds", "s per run")
    screen.table("a small BERT, fine-tuned", columns, rows)
    screen.table("a small GPT against bz2 -9", ("held-out part of", "bytes", "GPT, bits/byte", "bz2 -9", "s"), bits)


if __name__ == "__main__":
    main()
