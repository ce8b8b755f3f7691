"""Regression, multi-label classification and segmentation on real data, each a sweep of two rates by two strategies.

    python scripts/bench/kinds.py --data DIR [--only masks]

DIR holds camvid, flowers5 and text/sst2. The tables are made here: of every flower its kind, how bright and how warm
its picture is (means of its pixels), and labels; of every sentence how many words it has, and labels. Each sweep starts
from a pretraining of its own on the same kind of input (init_from=auto), so that freezing has something to freeze.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

IMAGES = ["model=resnet9_w32", "dataset.size=48", "batch_size=64", "optimizer=sgd_nesterov", "schedule=cosine_warmup",
          "epochs=6", "dataset@pretrain.dataset=cifar10_12k", "optimizer@pretrain.optimizer=sgd_nesterov",
          "schedule@pretrain.schedule=cosine_warmup", "pretrain.epochs=6", "pretrain.batch_size=64",
          "optimizer.lr=0.01,0.05", "freeze=last_groups,none"]  # fmt: skip
TEXTS = ["model=bert_tiny", "dataset@pretrain.dataset=text_files", "pretrain.epochs=1", "pretrain.batch_size=32",
         "pretrain.dataset.max_length=64", "optimizer@pretrain.optimizer=adamw", "pretrain.optimizer.lr=1e-3",
         "batch_size=32", "epochs=2", "dataset.max_length=64", "optimizer.lr=3e-4,1e-3",
         "freeze=last_groups,none"]  # fmt: skip
CASES = {
    "image regression": [*IMAGES, "dataset=image_csv", "dataset.path=flowers.csv", "dataset/task=regression",
                         "dataset.label=[brightness,warmth]"],
    "image labels": [*IMAGES, "dataset=image_csv", "dataset.path=flowers.csv", "dataset/task=multilabel",
                     "dataset.label=labels"],
    "text regression": [*TEXTS, "dataset=text_csv", "dataset.path=sst2", "dataset/task=regression",
                        "dataset.label=words", "dataset.text=text"],
    "text labels": [*TEXTS, "dataset=text_csv", "dataset.path=sst2", "dataset/task=multilabel",
                    "dataset.label=[positive,long,negation]", "dataset.text=text"],
    "masks": ["dataset=camvid", "dataset.size=96", "model=resnet9_w32", "batch_size=16", "optimizer=sgd_nesterov",
              "schedule=cosine_warmup", "epochs=8", "dataset@pretrain.dataset=cifar10_12k",
              "optimizer@pretrain.optimizer=sgd_nesterov", "schedule@pretrain.schedule=cosine_warmup",
              "pretrain.epochs=6", "pretrain.batch_size=64", "optimizer.lr=0.02,0.1", "freeze=last_groups,none"],
}  # fmt: skip
LABELS = {"positive": lambda text, label: label == "1", "long": lambda text, label: len(text.split()) > 20,
          "negation": lambda text, label: " not " in f" {text} " or "n't" in text}  # fmt: skip


def flowers(root: Path, home: Path) -> None:
    import numpy as np
    from PIL import Image

    with (home / "flowers.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "kind", "brightness", "warmth", "labels"])
        for path in sorted((root / "flowers5").glob("*/*.jpg")):
            pixels = np.asarray(Image.open(path).convert("RGB").resize((16, 16)), dtype=float) / 255
            red, _, blue = pixels.reshape(-1, 3).mean(0)
            bright, warm = float(pixels.mean()), float(red - blue)
            labels = [path.parent.name, *(["bright"] if bright > 0.45 else []), *(["warm"] if warm > 0.12 else [])]
            writer.writerow([path, path.parent.name, f"{bright:.4f}", f"{warm:.4f}", ";".join(labels)])


def sentences(root: Path, home: Path) -> None:
    (home / "sst2").mkdir()
    for part in ("train", "dev", "test"):
        lines = (root / "text" / "sst2" / f"{part}.tsv").read_text().splitlines()
        with (home / "sst2" / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "words", *LABELS])
            for line in lines:
                text, _, label = line.rpartition("\t")
                writer.writerow([text, len(text.split()), *(int(of(text, label.strip())) for of in LABELS.values())])


def rows(home: Path) -> Iterator[dict[str, str]]:
    with (home / "sweep" / "leaderboard.csv").open() as file:
        yield from csv.DictReader(file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    data, console = options.data.resolve(), Console(width=140)
    shown = Table("kind", "freeze", "optimizer.lr", "val", "test of the best", "sweep")
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        flowers(data, home)
        sentences(data, home)
        corpus = [f"pretrain.dataset.path={data}/text/reviews"]
        for case in options.only:
            began = time.perf_counter()
            more = corpus if case.startswith("text") else []
            own = home / case.replace(" ", "-")
            own.mkdir()
            command = [sys.executable, "-m", "hydratune", "-m", "stage=finetune", *CASES[case], *more]
            done = subprocess.run(
                [*command, f"hydra.sweep.dir={own}/sweep", "outputs=outputs"], cwd=home,
                env={**os.environ, "HYDRATUNE_DATA": str(data)}, capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode:
                raise SystemExit(f"{case}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
            seconds = time.perf_counter() - began
            for number, row in enumerate(rows(own)):
                value = next(v for k, v in row.items() if k.startswith("val "))
                test = next(v for k, v in row.items() if k.startswith("test "))
                metric = next(k for k in row if k.startswith("val ")).removeprefix("val ")
                named = f"{case} ({metric})" if not number else ""
                shown.add_row(named, row["freeze"], row["optimizer.lr"], value, test, f"{seconds:.0f} s" * (not number))
            console.print(f"{case}: {seconds:.0f} s")
    console.print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
