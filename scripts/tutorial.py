# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # hydratune in three minutes
#
# From a folder of pictures to a network that other programs can run: a sweep over freezing strategies and learning
# rates, its leaderboard, predictions for new pictures, and an export.
#
#     python scripts/tutorial.py [folder of your own photos]
#
# The folder has a folder per class. Without one, pictures of shapes are drawn. The script is also a notebook:
# `jupytext --to notebook scripts/tutorial.py`.

# %%
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hydratune

began = time.perf_counter()
given = [a for a in sys.argv[1:] if Path(a).is_dir()]
home = Path(tempfile.mkdtemp(prefix="hydratune-tutorial-"))
photos = Path(given[0]).absolute() if given else home / "photos"
print(f"everything is written to {home}")


def draw(folder: Path) -> None:
    """A folder per shape, 40 pictures each, as hydratune's own data set `shapes10` draws them."""
    from torchvision.io import write_png

    from hydratune.data import Augment, Shapes
    from hydratune.tasks import Classification

    shapes = Shapes(Classification(), Augment(), classes=10, train=400, val=10, test=10)
    images, labels = shapes.read("train")
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        own = folder / shapes.spec().class_names[label]
        own.mkdir(parents=True, exist_ok=True)
        write_png(image, str(own / f"{number:03d}.png"))


if not given:
    draw(photos)
print(f"{photos} has the classes {', '.join(sorted(p.name for p in photos.iterdir() if p.is_dir()))}")

# %% [markdown]
# ## A sweep
#
# `-m` runs every combination. The jobs that start alike are trained side by side: they share data, batches, and the
# part of the network that none of them changes. `init_from=auto` pretrains once, on generated pictures, as no weights
# of the world are here; with a connection `model=resnet18 model.weights=DEFAULT init_from=null` starts from ImageNet.

# %%
command = [
    sys.executable, "-m", "hydratune", "-m", "stage=finetune", "model=resnet9_w16", "dataset=image_folder",
    f"dataset.root={photos}", "dataset.size=32", "batch_size=32", "epochs=6", "pretrain.epochs=4",
    "optimizer=sgd_nesterov", "optimizer@pretrain.optimizer=sgd_nesterov", "pretrain.dataset.train=2000",
    "freeze=head_only,last_groups,none", "optimizer.lr=0.01,0.1", f"outputs={home / 'outputs'}",
    f"hydra.sweep.dir={home / 'outputs/sweeps/photos'}",
]  # fmt: skip
print(" ".join(command[1:]))
subprocess.run(command, check=True)

# %% [markdown]
# ## Its leaderboard
#
# `report.html` in the sweep's directory shows the same with pictures; TensorBoard shows every job's curves.

# %%
board = hydratune.leaderboard(home / "outputs/sweeps/photos")
rows = board if isinstance(board, list) else board.to_dict("records")
for row in rows:
    print(row["rank"], row["freeze"], row["optimizer.lr"], row["val accuracy"])

# %% [markdown]
# ## Predictions
#
# `best:` follows the sweep's winner. Anything that is a picture can be asked about: paths, PIL images, tensors.

# %%
best = f"best:{home / 'outputs/sweeps/photos'}"
run = hydratune.load(best)
some = sorted(photos.glob("*/*"))[::75][:5]
for path, answer in zip(some, run.predict(some), strict=True):
    print(f"{path.parent.name}/{path.name}: {answer['class']} ({answer['probability']:.2f})")

# %% [markdown]
# The command does the same for whole folders, and writes a table: one row for each picture.

# %%
quoted = f"init_from='{best}'"
predicted = hydratune.run(["stage=predict", quoted, f"inputs={photos}", f"outputs={home / 'outputs'}"])

# %% [markdown]
# ## An export
#
# ONNX (`format=onnx`, with `pip install 'hydratune[export]'`), a program of torch.export, or plain tensors. The file is
# run once and compared with the network before it is called done.

# %%
exported = hydratune.run(["stage=export", quoted, "format=torch_export", f"outputs={home / 'outputs'}"])
print(f"done in {time.perf_counter() - began:.0f} s: {predicted.directory}, {exported.directory}")
