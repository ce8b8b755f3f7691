"""Regression and multi-label classification: columns, losses, metrics, and whole commands."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hydratune.core.types import Batch, ImageSpec, TargetSpec
from hydratune.data.images.augment import Augment
from hydratune.data.images.table import ImageTable
from hydratune.data.targets import targets_of
from hydratune.tasks.classification import Classification
from hydratune.tasks.multilabel import MultiLabel, average_precision
from hydratune.tasks.regression import Regression
from tests.conftest import hydratune
from tests.tiny import CPU

COMMAND = ["dataset.size=16", "model=resnet9_w16", "model.width=8", "batch_size=16", "runtime.precision=fp32",
           "runtime.layout=contiguous"]  # fmt: skip
TEXT = ["model=bert_tiny", "model.config.hidden_size=16", "model.config.num_attention_heads=2",
        "model.config.intermediate_size=16", "model.config.num_hidden_layers=1", "batch_size=16", "epochs=2",
        "dataset.tokenizer.vocab_size=200", "runtime.precision=fp32", "init_from=null", "freeze=none",
        "stage=finetune"]  # fmt: skip


def table(home: Path, rows: Sequence[Sequence[Any]], header: Sequence[str], name: str = "table.csv") -> Path:
    with (home / name).open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return home / name


def photos(home: Path, count: int = 60) -> Path:
    """Grey squares whose brightness is what the table asks for."""
    chance = random.Random(0)
    (home / "photos").mkdir()
    rows = []
    for i in range(count):
        level = chance.randrange(256)
        pixels = np.full((16, 16, 3), level, dtype=np.uint8)
        pixels[:, :, 2] = 255 - level
        Image.fromarray(pixels).save(home / "photos" / f"{i}.png")
        labels = ";".join([*(["light"] if level > 128 else ["dark"]), *(["strong"] if abs(level - 128) > 64 else [])])
        row = [f"photos/{i}.png", level / 10, -level, labels, int(level > 128), int(abs(level - 128) > 64)]
        rows.append([*row, ("train", "val", "test")[i % 5 % 3 if i % 5 > 2 else 0]])
    return table(home, rows, ["image", "level", "negative", "labels", "is_light", "is_strong", "part"])


# ---- columns


def test_numbers_are_standardised_by_train_and_told_in_their_own_units() -> None:
    found = targets_of("values", ["price", "weight"], [["1", "10"], ["3", "30"]], None, "auto")
    assert found.spec == TargetSpec(("price", "weight"), (2.0, 20.0), (1.0, 10.0))
    encoded = found.encoded([["2", "40"]], "val")
    assert encoded.tolist() == [[0.0, 2.0]] and encoded.dtype == torch.float32
    assert found.summary(encoded) == "price 2 to 2, weight 40 to 40"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([["a"], ["1"]], "holds 'a', which is no number"),
        ([["nan"], ["1"]], "which is no finite number"),
        ([[""], ["1"]], "holds '', which is no number"),
        ([["2"], ["2"]], "is the same in every row of train"),
    ],
)
def test_what_is_no_number_is_refused(rows: list[list[str]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        targets_of("values", ["price"], rows, None, "auto")


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["cat;dog", "dog", ""], ("cat", "dog")),
        (["cat|dog", "dog"], ("cat", "dog")),
        (["cat, dog", "dog"], ("cat", "dog")),
        (['["cat", "hot dog"]', '["cat"]'], ("cat", "hot dog")),
        (["['cat', 'dog']", "[]"], ("cat", "dog")),
        (["only"], ("only",)) if False else (["only;"], ("only",)),
    ],
)
def test_labels_in_one_column_are_found_however_they_are_listed(cells: list[str], names: tuple[str, ...]) -> None:
    if len(names) == 1:
        found = targets_of("labels", ["tags"], [[c] for c in cells], None, "auto")
        assert found.names == names
        return
    found = targets_of("labels", ["tags"], [[c] for c in cells], None, "auto")
    assert found.names == names
    assert found.encoded([[cells[0]]], "train").tolist() == [[1.0, 1.0]]


def test_labels_in_columns_of_0_and_1() -> None:
    found = targets_of("labels", ["cat", "dog"], [["1", "0"], ["true", "FALSE"], ["1.0", ""]], None, "auto")
    assert found.encoded([["0", "1"], ["yes", "no"]], "val").tolist() == [[0, 1], [1, 0]]
    with pytest.raises(ValueError, match="cat of val holds '2', neither 0 nor 1"):
        found.encoded([["2", "1"]], "val")
    assert found.summary(torch.tensor([[1.0, 0], [0, 0]])) == "cat 1, dog 0; 1 without any"


def test_labels_that_could_be_divided_in_two_ways_are_refused() -> None:
    with pytest.raises(ValueError, match="say which one separates them"):
        targets_of("labels", ["tags"], [["a;b"], ["c,d"]], None, "auto")
    assert targets_of("labels", ["tags"], [["a;b"], ["c,d"]], None, ";").names == ("a", "b", "c,d")
    with pytest.raises(ValueError, match="val has the label 'z', which train never has"):
        targets_of("labels", ["tags"], [["a;b"]], None, ";").encoded([["z"]], "val")


def test_a_table_of_images(tmp_path: Path) -> None:
    path = photos(tmp_path)
    data = ImageTable(Classification(), Augment(), str(path), label="is_light", part="part", size=16)
    assert data.spec().class_names == ("0", "1") and data.split("train").labels.dtype == torch.int64  # type: ignore
    assert len(data.split("train")) + len(data.split("val")) + len(data.split("test")) == 60
    other = ImageTable(Regression(), Augment(), str(path), label=["level", "negative"], size=16)
    assert other.spec().targets is not None and other.spec().targets.names == ("level", "negative")  # type: ignore
    assert other.split("train").labels.shape[1] == 2 and data.files() != other.files()  # type: ignore[union-attr]
    assert other.split_summary(other.split("val")).startswith("divided off train: ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label": "nothing"}, "dataset.label=nothing: .*no such column; it has image"),
        ({"image": "picture"}, "dataset.image=picture: .*no such column"),
        ({"label": ["level", "level"]}, "columns other than those"),
        ({"label": []}, "columns other than those"),
        ({"label": ["level", "negative"]}, "one column of classes; dataset/task=multilabel"),
        ({"part": "level"}, "neither train, val nor test"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    path = photos(tmp_path, 6)
    with pytest.raises(ValueError, match=said):
        ImageTable(Classification(), Augment(), str(path), **{"label": "is_light", "size": 16, **options}).files()


# ---- metrics


def test_r2_and_mae_are_in_the_targets_own_units() -> None:
    spec = ImageSpec((3, 1, 1), (), (0.0,), (1.0,), TargetSpec(("price",), (10.0,), (2.0,)))
    task = Regression()
    metrics = task.metrics(spec, CPU)
    true, predicted = torch.tensor([[-1.0], [0.0], [1.0], [2.0]]), torch.tensor([[-1.0], [1.0], [1.0], [1.5]])
    for part in (slice(2, 4), slice(0, 2)):  # in any order
        metrics.update(predicted[part], Batch(None, true[part], torch.arange(4)[part]))
    values = metrics.compute()
    assert values["mae"] == pytest.approx(0.75) and values["rmse"] == pytest.approx((5.0 / 4) ** 0.5)
    assert values["r2"] == pytest.approx(1 - 1.25 / 5.0) and values["loss"] == pytest.approx(1.25 / 4)
    assert values["negative_mae"] == -values["mae"] and not metrics.warnings()


def test_huber_is_torchs() -> None:
    outputs, targets = torch.randn(6, 2), torch.randn(6, 2)
    own = Regression("huber", delta=0.3).loss(outputs, Batch(None, targets, torch.arange(6))).mean()
    assert torch.allclose(own, torch.nn.functional.huber_loss(outputs, targets, delta=0.3))


def test_average_precision_is_scikit_learns() -> None:
    """Values of sklearn.metrics.average_precision_score 1.7 for these scores, ties among them."""
    true = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0], [1, 0]], dtype=torch.float64)
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.4], [0.7, 0.4], [0.3, 0.4], [0.2, 0.2]], dtype=torch.float64)
    wanted = [(1 / 1 + 2 / 3 + 3 / 5) / 3, 2 / 3]
    assert average_precision(true, scores).tolist() == pytest.approx(wanted)
    assert average_precision(torch.zeros(3, 1), torch.rand(3, 1)).tolist() == [0.0]


def test_the_threshold_is_chosen_unless_it_is_typed() -> None:
    spec = ImageSpec((3, 1, 1), ("a", "b"), (0.0,), (1.0,))
    logits = torch.logit(torch.tensor([[0.3, 0.1], [0.4, 0.2], [0.1, 0.1], [0.05, 0.35]]))
    targets = torch.tensor([[1.0, 0], [1, 0], [0, 0], [0, 1]])

    def seen(**options: Any) -> dict[str, float]:
        metrics = MultiLabel(**options).metrics(spec, CPU)
        metrics.update(logits, Batch(None, targets, torch.arange(4)))
        return metrics.compute()

    assert seen()["micro_f1"] == 1.0 and 0.19 < seen()["threshold"] < 0.3 and seen()["map"] == 1.0
    assert seen(threshold=0.5)["micro_f1"] == 0.0 and seen(threshold=0.5)["map"] == 1.0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Regression("mae"), "dataset.task.loss=mae: one of mse, huber"),
        (lambda: Regression(monitor="mae"), "negative_mae"),
        (lambda: Regression(delta=0.0), "must be above 0"),
        (lambda: MultiLabel(threshold=1.5), "between 0 and 1"),
        (lambda: MultiLabel(monitor="accuracy"), "map, macro_f1, micro_f1"),
        (lambda: MultiLabel(head_init="ones"), "standard or zero"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


# ---- whole commands


def record(home: Path, name: str) -> dict[str, Any]:
    (path,) = home.glob(f"outputs/*/{name}/run.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_task_is_chosen_as_a_group_and_kept_by_a_resume(tmp_path: Path) -> None:
    photos(tmp_path)
    data = ["dataset=image_csv", "dataset.path=table.csv", "dataset/task=regression", "dataset.label=[level,negative]"]
    done = hydratune("stage=pretrain", *data, *COMMAND, "steps=8", "engine.eval_every=4", "name=first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kept = record(tmp_path, "first")
    assert kept["monitor"] == "r2" and {"val_mae", "test_rmse"} <= kept["metrics"].keys()
    again = hydratune("resume=outputs/pretrain/first", cwd=tmp_path)
    assert again.returncode == 0 and "is complete" in again.stdout, again.stderr
    images = list((tmp_path / "outputs/pretrain/first").glob("events*"))
    assert images and b"scatter/level" in images[0].read_bytes()


def test_a_head_for_another_target_is_never_taken_over_silently(tmp_path: Path) -> None:
    """Neither side has classes: it was taken, as only the shapes were looked at."""
    photos(tmp_path)
    data = ["dataset=image_csv", "dataset.path=table.csv", "dataset/task=regression", *COMMAND, "steps=2",
            "engine.eval_every=2"]  # fmt: skip
    assert hydratune("stage=pretrain", *data, "dataset.label=level", "name=first", cwd=tmp_path).returncode == 0
    start = ["stage=finetune", "init_from=outputs/pretrain/first", "freeze=none"]
    other = hydratune(*start, *data, "dataset.label=negative", "name=second", cwd=tmp_path)
    assert other.returncode == 0 and "fc.weight: made for other targets" in other.stdout, other.stdout + other.stderr
    same = hydratune(*start, *data, "dataset.label=level", "name=third", cwd=tmp_path)
    assert same.returncode == 0 and "made for" not in same.stdout
    kind = [o.replace("dataset/task=regression", "dataset/task=multilabel") for o in data]
    labels = hydratune(*start, *kind, "dataset.label=is_light", "name=fourth", cwd=tmp_path)
    assert "made for another target" in " ".join(labels.stdout.split()), labels.stdout + labels.stderr


def test_a_sweep_of_labels(tmp_path: Path) -> None:
    photos(tmp_path)
    data = ["dataset=image_csv", "dataset.path=table.csv", "dataset/task=multilabel", "dataset.label=labels"]
    done = hydratune(
        "-m", "stage=finetune", "init_from=null", *data, *COMMAND, "epochs=2", "freeze=head_only,none",
        "optimizer.lr=0.01,0.1", "hydra.sweep.dir=sweep", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    board = (tmp_path / "sweep" / "leaderboard.csv").read_text()
    assert board.count("complete") == 4 and "val map" in board


@pytest.mark.parametrize(
    ("task", "label", "metric"),
    [("regression", "[stars]", "val_r2"), ("multilabel", "tags", "val_map"), ("multilabel", "[good,short]", "val_map")],
)
def test_texts_have_them_too(tmp_path: Path, task: str, label: str, metric: str) -> None:
    pytest.importorskip("transformers")
    chance = random.Random(0)
    rows = []
    for _ in range(60):
        stars = chance.randint(1, 5)
        text = " ".join(["good" if stars > 2 else "poor"] * chance.randint(1, 6))
        tags = ";".join((["liked"] if stars > 2 else ["disliked"]) + (["short"] if len(text) < 12 else []))
        rows.append([text + f" {chance.random():.3f}", stars, tags, int(stars > 2), int(len(text) < 12)])
    table(tmp_path, rows, ["text", "stars", "tags", "good", "short"])
    data = ["dataset=text_csv", "dataset.path=table.csv", f"dataset/task={task}", f"dataset.label={label}"]
    done = hydratune(*TEXT, *data, "name=run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert metric in record(tmp_path, "run")["metrics"]
