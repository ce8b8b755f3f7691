"""k-fold cross-validation: folds partition the data, whatever the seed of a run, and a sweep averages over them."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from hydratune.config.fingerprint import content
from hydratune.data.dataset import k_fold_split
from hydratune.data.images.augment import Augment
from hydratune.data.images.folder import ImageFolder
from hydratune.data.images.table import ImageTable
from hydratune.data.text.labelled_text import ColumnFiles, TextTable
from hydratune.data.text.tokenizer import TokenizerRecipe
from hydratune.sweep import ranking, report
from hydratune.sweep.comparison import compared, quantile
from hydratune.sweep.soup import start_of
from hydratune.tasks.classification import Classification
from hydratune.tasks.multilabel import MultiLabel
from hydratune.tasks.text import SequenceClassification, TokenClassification
from tests.conftest import hydratune, make_job
from tests.test_data import picture
from tests.test_ranking import sweep

FOLDS = range(5)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRATUNE_CACHE", str(tmp_path / "cache"))


# ---- the split


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_folds_partition_the_samples_class_by_class(folds: int) -> None:
    labels = torch.tensor([0] * 31 + [1] * 12 + [2] * 3)[torch.randperm(46, generator=torch.Generator().manual_seed(2))]
    parts = [k_fold_split(labels, fold, folds, 0) for fold in range(folds)]
    for train, val in parts:
        assert sorted([*train.tolist(), *val.tolist()]) == list(range(46))
        for label, count in enumerate(labels.bincount().tolist()):
            assert int((labels[val] == label).sum()) in (count // folds, -(-count // folds))
        assert len(val) in (46 // folds, -(-46 // folds))
    assert sorted(i for _, val in parts for i in val.tolist()) == list(range(46))
    other = k_fold_split(labels, 0, folds, 1)[1]
    assert not torch.equal(other, parts[0][1])


def test_more_folds_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dataset\.folds=5: train and val have 4 samples together"):
        k_fold_split(torch.zeros(4, dtype=torch.int64), 0, 5, 0)


# ---- data sets


def photos(home: Path, parts: tuple[str, ...] = ("",), count: int = 20) -> Path:
    for p, part in enumerate(parts):
        for i in range(count):
            picture(home / "photos" / part / ("cat" if i % 4 else "dog") / f"{p}-{i}.png", (9 * i, 80 * p, 0), (8, 8))
    return home / "photos"


def splits(data: Any) -> dict[str, list[str]]:
    """The files of each split, by their names."""
    return {name: [str(p) for p in paths] for name, (paths, _) in data._files.items()}


@pytest.mark.parametrize("parts", [("",), ("train", "val"), ("train", "val", "test")])
def test_images_keep_their_test_split_and_the_rest_is_folded(tmp_path: Path, parts: tuple[str, ...]) -> None:
    root = photos(tmp_path, parts)

    def made(**options: Any) -> dict[str, list[str]]:
        return splits(ImageFolder(Classification(), Augment(), str(root), size=8, **options))

    every = [made(fold=fold) for fold in FOLDS]
    tests = {tuple(own["test"]) for own in every}
    assert tests == {tuple(made()["test"])}  # untouched, as it is without folds
    pool = sorted([*made()["train"], *made()["val"]])
    assert sorted(f for own in every for f in own["val"]) == pool
    assert all(sorted([*own["train"], *own["val"]]) == pool for own in every)
    whole = [made(fold=fold, test_share=0) for fold in FOLDS]
    assert ("test" in whole[0]) == ("test" in parts)
    assert sum(len(own["val"]) for own in whole) == 20 * len([part for part in parts if part != "test"])


def test_what_is_told_of_folds(tmp_path: Path) -> None:
    data = ImageFolder(Classification(), Augment(), str(photos(tmp_path)), size=8, fold=2)
    said = [data.split_summary(data.split(name)) for name in ("train", "val", "test")]
    assert said[0] == "all folds of 0 to 4 but 2: 14 images; cat 10, dog 4"
    assert said[1:] == ["fold 2 of 0 to 4: 3 images; cat 3, dog 0", "divided off train: 3 images; cat 2, dog 1"]


def test_tables_of_images_are_stratified_where_there_is_one_class(tmp_path: Path) -> None:
    photos(tmp_path)
    rows = [f"photos/{'cat' if i % 4 else 'dog'}/0-{i}.png,{'cat' if i % 4 else 'dog'},{'a;b' if i % 2 else 'a'}"
            for i in range(20)]  # fmt: skip
    (tmp_path / "table.csv").write_text("\n".join(["image,label,tags", *rows]))
    for task, label in ((Classification(), "label"), (MultiLabel(), "tags")):
        made = [ImageTable(task, Augment(), str(tmp_path / "table.csv"), label=label, size=8, test_share=0, fold=f)
                for f in FOLDS]  # fmt: skip
        val = [own._files["val"] for own in made]
        assert sorted(str(p) for paths, _ in val for p in paths) == sorted({str(p) for paths, _ in val for p in paths})
        if label == "label":
            assert all(labels.bincount().tolist() == [3, 1] for _, labels in val)
        assert sum(len(paths) for paths, _ in val) == 20


def reviews(home: Path, rare: bool = False) -> Path:
    words = ["good", "bad", "fine", "poor", "nice", "weak"]
    rows = [f"{words[i % 6]} number {i},{'no' if i % 2 else 'yes'}" for i in range(40)]
    rows += ["never seen before,perhaps"] * rare
    (home / "reviews.csv").write_text("\n".join(["text,label", *rows]))
    return home / "reviews.csv"


def test_texts_are_folded_with_the_same_classes_in_each(tmp_path: Path) -> None:
    path = reviews(tmp_path, rare=True)
    made = [TextTable(SequenceClassification(), TokenizerRecipe(vocab_size=100), str(path), fold=f) for f in FOLDS]
    pool = [*made[0].parts["train"], *made[0].parts["val"]]
    assert Counter(row for own in made for row in own.parts["val"]) == Counter(pool)
    assert {tuple(own.parts["test"]) for own in made} == {tuple(made[0].parts["test"])}
    assert {tuple(own.class_names()) for own in made} == {("no", "perhaps", "yes")}
    assert len({own.digest() for own in made}) == 5  # no tokenizer, cache or checkpoint of one is another's
    for own in made:
        labels = Counter(row[1] for row in own.parts["val"])
        assert abs(labels["yes"] - labels["no"]) <= 1
        assert own.split("val").summary.startswith(f"fold {own.fold} of 0 to 4: ")


def test_sentences_with_tags_are_folded(tmp_path: Path) -> None:
    (tmp_path / "tags.txt").write_text("\n\n".join(f"Ada B-PER\nis{i} O" for i in range(20)) + "\n")
    made = [ColumnFiles(TokenClassification(), TokenizerRecipe(vocab_size=100), str(tmp_path / "tags.txt"), fold=f)
            for f in FOLDS]  # fmt: skip
    assert sum(len(own.parts["val"]) for own in made) == 18 and len(made[0].parts["test"]) == 2


@pytest.mark.parametrize(("options", "said"), [
    ({"fold": 5}, r"dataset\.fold=5: from 0 to 4, as dataset\.folds=5"),
    ({"fold": -1}, r"dataset\.fold=-1: from 0"),
    ({"fold": 0, "folds": 1}, r"dataset\.folds=1: at least 2"),
])  # fmt: skip
def test_folds_that_there_are_not_are_refused_at_once(options: dict[str, int], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        ImageFolder(Classification(), Augment(), str(tmp_path), **options)
    with pytest.raises(ValueError, match=said):
        TextTable(SequenceClassification(), TokenizerRecipe(), str(tmp_path), **options)


# ---- runs


def test_a_fold_is_another_run_and_no_fold_the_same_as_ever(tmp_path: Path) -> None:
    root = photos(tmp_path)

    def job(*overrides: str) -> Any:
        return make_job(["stage=pretrain", "dataset=image_folder", f"dataset.root={root}", *overrides], tmp_path).config

    plain, first, second = job(), job("dataset.fold=0"), job("dataset.fold=1")
    known = [content(c, {}, None, "", "fp32") for c in (plain, first, second, job("dataset.fold=1", "dataset.folds=3"))]
    assert "fold" not in json.dumps(known[0]) and len({json.dumps(own) for own in known}) == 4
    assert len({c.loop_key() for c in (plain, first, second)}) == 3  # none of them trains beside another fold


LINE = ["stage=finetune", "init_from=null", "model=resnet9_w16", "model.width=8", "batch_size=8", "steps=6",
        "dataset=image_folder", "dataset.root=photos", "dataset.size=8", "runtime.precision=fp32",
        "runtime.layout=contiguous", "engine.eval_every=3", "dataset.augment.flip=false",
        "dataset.augment.resized_crop=null"]  # fmt: skip


def run_json(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "run.json").read_text())
    return found


def test_a_sweep_over_folds_is_one_cell_and_each_job_what_it_is_alone(tmp_path: Path) -> None:
    """Frozen trunks are cached, and no fold reads another one's features."""
    photos(tmp_path, count=30)
    swept = hydratune(
        "-m", *LINE, "freeze=head_only", "freeze.cache=disk", "dataset.fold=0,1,2", "dataset.folds=3",
        "optimizer.lr=0.01,0.1", "hydra.sweep.dir=all", "sweep.soup=uniform", cwd=tmp_path,
    )  # fmt: skip
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert "cells, over folds" in swept.stdout
    ranked = ranking.read(tmp_path / "all")
    assert [len(cell.rows) for cell in ranked.cells] == [3, 3] and ranked.folds == 3
    assert ranked.edges() == [] or all(edge.key == "optimizer.lr" for edge in ranked.edges())
    columns, rows = ranking.cell_table(ranked)
    assert columns[0] == "optimizer.lr" and "dataset.fold" not in columns and {row[3] for row in rows} == {"3"}
    ids = {row.varies["dataset.fold"]: row for row in ranked.rows if row.varies["optimizer.lr"] == "0.1"}
    assert len({run_json(row.directory)["fingerprint"] for row in ids.values() if row.status == "complete"}) == 3
    for fold in ("0", "2"):
        own = run_json(ids[fold].directory)
        alone = hydratune(
            *LINE, "freeze=head_only", "freeze.cache=off", f"dataset.fold={fold}", "dataset.folds=3",
            "optimizer.lr=0.1", *own["runtime"]["repeat"].split(), f"hydra.run.dir=alone{fold}", cwd=tmp_path,
        )  # fmt: skip
        assert alone.returncode == 0, alone.stderr
        assert run_json(tmp_path / f"alone{fold}")["checkpoint"] == own["checkpoint"]
        assert f"val: fold {fold} of 0 to 2: " in alone.stdout
    soup = run_json(tmp_path / "all" / "soup-uniform")
    assert len({tuple(name.split("dataset.fold=")[1][:1]) for name in soup["lineage"]["of"]}) == 1, soup["lineage"]


def test_a_fold_that_was_stopped_goes_on_bitwise(tmp_path: Path) -> None:
    photos(tmp_path)
    line = [*LINE, "dataset.fold=3", "engine.save_every=3", "freeze=none"]
    for name, steps in (("whole", "6"), ("half", "3")):
        done = hydratune(*line, f"steps={steps}", f"hydra.run.dir={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    more = hydratune("resume=half", "steps=6", cwd=tmp_path)
    assert more.returncode == 0, more.stdout + more.stderr
    a, b = ((tmp_path / n / "checkpoints/step-00000006/model.safetensors").read_bytes() for n in ("whole", "half"))
    assert a == b


# ---- tables


KEYS = ("lr", "seed", "dataset.fold")


def test_folds_are_averaged_over_like_seeds_and_paired(tmp_path: Path) -> None:
    """Folds differ by 0.1 and cells by 0.02 in each of them."""
    best = {"0": 0.9, "1": 0.8, "2": 0.7, "3": 0.95, "4": 0.85}
    jobs = [{"lr": "1", "seed": "0", "dataset.fold": f, "value": v} for f, v in best.items()]
    jobs += [{"lr": "2", "seed": "0", "dataset.fold": f, "value": v - 0.02 - 0.001 * int(f)} for f, v in best.items()]
    ranked = ranking.read(sweep(tmp_path / "s", jobs, KEYS))
    columns, rows = ranking.cell_table(ranked)
    assert columns == ["lr", "val accuracy", "sd", "n", "against the best"] and ranked.over == "folds"
    assert rows[0][1:4] == ["0.8400", "0.0962", "5"]
    # mean -0.022, sd 0.001581 of five; four times as many train as validate: 1/5 + 1/4
    reach = quantile(4) * 0.00158114 * math.sqrt(1 / 5 + 1 / 4)
    assert rows[1][4] == f"-0.0220 [{-0.022 - reach:+.4f}, {-0.022 + reach:+.4f}] worse"
    report.write(tmp_path / "s")
    assert "Cells, over folds" in (tmp_path / "s" / "report.html").read_text()


def test_seeds_and_folds_are_paired_by_both(tmp_path: Path) -> None:
    noise = {("1", "0"): 0.0, ("1", "1"): 0.1, ("2", "0"): 0.05, ("2", "1"): -0.1}
    jobs = [{"lr": lr, "seed": s, "dataset.fold": f, "value": 0.7 + n - less}
            for lr, less in (("1", 0.0), ("2", 0.03)) for (s, f), n in noise.items()]  # fmt: skip
    ranked = ranking.read(sweep(tmp_path / "s", jobs, KEYS))
    assert [len(c.rows) for c in ranked.cells] == [4, 4] and ranked.over == "seeds and folds"
    found = ranked.against_best(ranked.cells[1])
    assert found.interval == pytest.approx((-0.03, -0.03)) and found.words == "worse"


def test_a_job_of_no_fold_is_not_one_more_of_them(tmp_path: Path) -> None:
    jobs = [{"lr": "1", "dataset.fold": f, "value": 0.5} for f in ("0", "1", "2")]
    jobs += [{"lr": "1", "dataset.fold": "", "value": 0.9}]
    ranked = ranking.read(sweep(tmp_path / "s", jobs, KEYS))
    assert [len(c.rows) for c in ranked.cells] == [1, 3] and ranked.folds == 3


def test_two_folds_tell_nothing_and_overlap_widens_what_is_said() -> None:
    assert compared({"0": 0.5, "1": 0.6}, {"0": 0.6, "1": 0.7}, None, 1.0).words == "too few folds to tell"
    own, best = {"0": 0.50, "1": 0.52, "2": 0.54}, {"0": 0.56, "1": 0.60, "2": 0.57}
    narrow, wide = compared(own, best, None), compared(own, best, None, 0.5)
    assert narrow.interval is not None and wide.interval is not None
    ratio = (wide.interval[1] - wide.interval[0]) / (narrow.interval[1] - narrow.interval[0])
    assert ratio == pytest.approx(math.sqrt((1 / 3 + 1 / 2) * 3))
    assert compared(dict(zip("345", own.values(), strict=True)), best, None, 0.5).words == "within the noise"


def test_jobs_of_two_folds_do_not_begin_alike(tmp_path: Path) -> None:
    for fold in (0, 1, None):
        home = tmp_path / str(fold)
        home.mkdir()
        dataset = {"name": "x", **({} if fold is None else {"fold": fold})}
        (home / "run.json").write_text(json.dumps({"seed": 0, "provenance": {"model": {}, "dataset": dataset}}))
    assert len({start_of(tmp_path / str(fold)) for fold in (0, 1, None)}) == 3
