"""The README's picture: pictures as the network sees them, and the learning curves of a sweep.

python scripts/picture.py outputs/sweeps/<sweep> [--out scripts/pictures/result.png]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hydratune.data.images.augment import Augment
from hydratune.data.images.shapes import Shapes
from hydratune.record.pictures import grid
from hydratune.tasks.classification import Classification


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures" / "result.png")
    options = parser.parse_args()
    images, labels = Shapes(Classification(), Augment(), classes=100, train=100).read("train")
    sheet = grid(images[labels.argsort()][:80], columns=10, smallest=64)

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    left.imshow(sheet.permute(1, 2, 0).numpy())
    left.set_title("shapes100: shape x texture, generated", fontsize=10)
    left.axis("off")
    strategies: dict[str, str] = {}
    styles: dict[float, str] = {}
    for path in sorted(options.sweep.glob("*/run.json")):
        story = json.loads(path.read_text())
        strategy = next((o.split("=")[1] for o in story["overrides"] if o.startswith("freeze=")), "")
        rate = story["provenance"]["optimizer"]["lr"]
        colour = strategies.setdefault(strategy, f"C{len(strategies)}")
        style = styles.setdefault(rate, ("-", "--", ":", "-.")[len(styles) % 4])
        events = EventAccumulator(str(path.parent), size_guidance={"scalars": 0})
        events.Reload()
        curve = events.Scalars("val/accuracy")
        right.plot([e.step for e in curve], [e.value for e in curve], style, color=colour, lw=1.4,
                   label=f"{strategy}, lr {rate:g}")  # fmt: skip
    right.set_xlabel("step")
    right.set_ylabel("validation accuracy")
    right.set_title(
        f"fine-tuning {story['provenance']['model']['_target_'].rpartition('.')[2]} after pretraining", fontsize=10
    )
    right.grid(alpha=0.3)
    right.legend(fontsize=7, ncols=2)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=90)


if __name__ == "__main__":
    main()
