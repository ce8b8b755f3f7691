"""What was trained is used: evaluated, predicted with, exported, loaded from Python, trained on."""

from __future__ import annotations

import csv
import json
import logging
import random
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hydratune as library
from tests.conftest import hydratune

FIXED = ["runtime.precision=fp32", "runtime.layout=contiguous", "batch_size=8"]
CLASSES = ("dark", "light", "red")


def photo(kind: str, level: int, size: tuple[int, int] = (32, 24)) -> Image.Image:
    pixels = np.full((size[1], size[0], 3), level + (140 if kind == "light" else 0), dtype=np.uint8)
    if kind == "red":
        pixels[..., 0] = 255
    pixels[:4, :4] = 128
    return Image.fromarray(pixels)


def photos(root: Path, count: int, kinds: tuple[str, ...] = CLASSES, seed: int = 0) -> Path:
    chance = random.Random(seed)
    for kind in kinds:
        (root / kind).mkdir(parents=True)
        for i in range(count):
            photo(kind, chance.randrange(100)).save(root / kind / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with photographs and a run that was trained on them."""
    home = tmp_path_factory.mktemp("use")
    photos(home / "photos", 20)
    done = hydratune(
        "stage=pretrain", "model=resnet9_w16", "dataset=image_folder", "dataset.root=photos", "dataset.size=16",
        "epochs=2", "name=run", *FIXED, cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return home


@pytest.fixture
def inside(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(home)
    yield home


RUN = "outputs/pretrain/run"


def record(directory: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(directory) / "run.json").read_text())
    return found


def rows(directory: str | Path) -> list[dict[str, str]]:
    with open(Path(directory) / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def used(stage: str, *more: str, **options: Any) -> Any:
    return library.run([f"stage={stage}", f"init_from={RUN}", *more], quiet=True, **options)


# ---- evaluate


def test_evaluation_gives_the_run_s_own_metrics(inside: Path) -> None:
    result = used("evaluate", "name=own")
    before = record(RUN)["metrics"]
    assert {k: v for k, v in result.metrics.items() if not k.startswith("train_")} == before
    assert result.metrics["train_accuracy"] >= 0 and result.metric == before["test_accuracy"]
    made = record(result.directory)
    assert made["stage"] == "evaluate" and made["status"] == "complete" and made["lineage"]["run"] == RUN
    assert (
        list(Path(result.directory).glob("events.out.tfevents.*")) and not (result.directory / "checkpoints").exists()
    )


def test_other_data_is_evaluated_whole_and_by_the_names_of_its_classes(inside: Path) -> None:
    photos(inside / "later", 3, ("red", "dark"), seed=1)
    result = used("evaluate", "dataset=image_folder", "dataset.root=later", "name=later")
    assert {k.partition("_")[0] for k in result.metrics} == {"all"}
    run = library.load(RUN)
    paths = sorted((inside / "later").glob("*/*.png"))
    hits = [row["class"] == path.parent.name for path, row in zip(paths, run.predict(paths), strict=True)]
    assert result.metrics["all_accuracy"] == pytest.approx(sum(hits) / len(hits))
    only = used("evaluate", f"dataset.root={photos(inside / 'one', 2, ('light',))}", "name=one")
    assert "all_accuracy" in only.metrics  # one class alone, of those that are known


def test_parts_are_evaluated_as_they_are_called(inside: Path) -> None:
    photos(inside / "parts" / "test", 2)
    photos(inside / "parts" / "val", 2)
    found = used("evaluate", "dataset.root=parts", "name=parts").metrics
    assert {k.partition("_")[0] for k in found} == {"val", "test"}


def test_an_evaluation_set_is_normalised_as_the_run_was(inside: Path) -> None:
    """A folder of its own would be cut and normalised by its own numbers."""
    later = ["+dataset@evals.later=image_folder", "evals.later.root=photos", "evals.later.mean=null"]
    found = used("evaluate", *later, "name=evals").metrics
    assert found["later_accuracy"] == pytest.approx(
        (found["train_accuracy"] * 48 + found["val_accuracy"] * 6 + found["test_accuracy"] * 6) / 60
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["dataset.root=foreign"], "foreign has the class blue, which is none of the known ones: dark, light, red"),
        (["dataset=sentiment"], "dataset: holds texts, and the network was trained on other data"),
        (["init_from=null"], "stage=evaluate: init_from= a run directory"),
        (["inputs=photos"], "inputs=photos: belongs to stage=predict"),
        (["stage=predict"], "inputs=null: stage=predict wants files, folders"),
        (["stage=predict", "inputs=nowhere"], "inputs=nowhere: no such file or folder"),
        (["stage=predict", "inputs=dataset:tset"], "nearest: test"),
        (["stage=predict", "inputs=photos", "format=xls"], "format=xls: known: csv, jsonl, parquet"),
        (["stage=predict", "inputs=photos", "predict.views=0"], "predict.views=0: a whole number from 1"),
        (["stage=export"], "format: stage=export wants one of onnx, torch_export, safetensors"),
        (["stage=export", "format=onxn"], "format=onxn: nearest: onnx"),
    ],
)
def test_what_cannot_be_done_is_refused(inside: Path, more: list[str], said: str) -> None:
    if not (inside / "foreign").exists():
        photos(inside / "foreign", 1, ("blue",))
    with pytest.raises(ValueError) as raised:
        used("evaluate", *more, "name=refused")
    assert said in str(raised.value)
    assert not (inside / "outputs/evaluate/refused/run.json").exists()


def test_a_foreign_file_needs_model_and_data_and_its_own_head(inside: Path) -> None:
    run = library.load(RUN)
    from safetensors.torch import load_file, save_file

    tensors = load_file(next(Path(RUN).glob("checkpoints/*/model.safetensors")))
    save_file(tensors, "somebodys.safetensors")
    with pytest.raises(ValueError, match="is of no run, so that nothing says what it is; model= and dataset= would"):
        library.run(["stage=evaluate", "init_from=somebodys.safetensors"])
    named = ["stage=evaluate", "init_from=somebodys.safetensors", "model=resnet9_w16", "dataset=image_folder",
             "dataset.root=photos", "dataset.size=16", *FIXED]  # fmt: skip
    with pytest.raises(ValueError, match=r"init_head=true takes it\), and nothing is trained here"):
        library.run([*named, "name=f1"], quiet=True)
    found = library.run([*named, "init_head=true", "name=f2"], quiet=True).metrics
    paths = sorted(Path("photos").glob("*/*.png"))
    hits = [row["class"] == path.parent.name for path, row in zip(paths, run.predict(paths), strict=True)]
    assert found["all_accuracy"] == pytest.approx(sum(hits) / len(hits))


# ---- predict


def test_predictions_over_the_test_split_are_the_run_s_test_accuracy(inside: Path) -> None:
    result = used("predict", "inputs=dataset:test", "name=own")
    found = rows(result.directory)
    share = sum(row["class"] == row["true"] for row in found) / len(found)
    assert share == record(RUN)["metrics"]["test_accuracy"]
    assert set(found[0]) == {"sample", "class", "probability", "p(dark)", "p(light)", "p(red)", "true"}
    assert float(found[0]["probability"]) == max(float(found[0][f"p({name})"]) for name in CLASSES)


def test_what_cannot_be_read_is_named_and_the_rest_predicted(inside: Path) -> None:
    folder = photos(inside / "mixed", 2)
    (folder / "red" / "00b.png").write_bytes(b"no image")
    done = hydratune("stage=predict", f"init_from={RUN}", "inputs=mixed", "name=mixed", cwd=inside)
    assert done.returncode == 3 and "left out: mixed/red/00b.png is not a readable image" in done.stdout, done.stderr
    found = rows(inside / "outputs/predict/mixed")
    assert [row["file"] for row in found] == sorted(f"{kind}/{i:02d}.png" for kind in CLASSES for i in range(2))
    assert "00b.png" in (inside / "outputs/predict/mixed/unreadable.txt").read_text()


def test_tables_lists_and_other_forms(inside: Path) -> None:
    (inside / "list.csv").write_text("image,price\nphotos/dark/00.png,3\nphotos/red/01.png,4\n")
    listed = used("predict", "inputs=[list.csv,photos/light/00.png]", "format=jsonl", "name=listed")
    found = [json.loads(line) for line in (listed.directory / "predictions.jsonl").read_text().splitlines()]
    assert [row["file"] for row in found] == ["photos/dark/00.png", "photos/red/01.png", "photos/light/00.png"]
    assert isinstance(found[0]["probability"], float)


def test_what_was_broken_off_goes_on_and_is_the_same(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydratune.distributed import signals
    from hydratune.record import table

    whole = used("predict", "inputs=photos", "name=whole")
    monkeypatch.setattr(table, "EVERY", 0.0)
    asked = iter([None, None, signal.SIGTERM, *[None] * 100])
    monkeypatch.setattr(signals, "asked", lambda: next(asked))
    with pytest.raises(signals.Stopped):
        used("predict", "inputs=photos", "name=broken")
    broken = inside / "outputs/predict/broken"
    assert record(broken)["status"] == "interrupted" and len(rows(broken)) == 24
    with open(broken / "predictions.csv", "ab") as file:  # as if it had been killed within a line
        file.write(b"red/17.png,re")
    library.run([f"resume={broken}"], quiet=True)
    assert (broken / "predictions.csv").read_bytes() == (whole.directory / "predictions.csv").read_bytes()
    assert record(broken)["status"] == "complete"


def test_views_are_averaged_and_the_first_is_the_picture(inside: Path) -> None:
    one = rows(used("predict", "inputs=photos", "name=one_view").directory)
    several = rows(used("predict", "inputs=photos", "predict.views=4", "name=four").directory)
    again = rows(used("predict", "inputs=photos", "predict.views=4", "name=four_again").directory)
    assert several == again and several != one
    with pytest.raises(ValueError, match=r"predict.views=2: training does not augment"):
        used("predict", "inputs=photos", "predict.views=2", "dataset.augment.flip=false",
             "dataset.augment.resized_crop=null", "name=none")  # fmt: skip


# ---- export


@pytest.mark.parametrize("form", ["onnx", "torch_export", "safetensors"])
def test_the_exported_network_answers_alike(inside: Path, form: str) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    result = used("export", f"format={form}", f"name={form}")
    described = json.loads((result.directory / "model.json").read_text())
    assert described["answers"] == list(CLASSES) and described["preprocess"]["input_shape"] == [3, 16, 16]
    run = library.load(RUN)
    images = run.preprocess(["photos/dark/00.png", "photos/red/00.png", "photos/light/00.png", "photos/light/01.png"])
    with torch.no_grad():
        wanted = run.network(images)
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(result.directory / "model.onnx"))
        got = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        assert json.loads(session.get_modelmeta().custom_metadata_map["answers"]) == list(CLASSES)
    elif form == "torch_export":
        archive = zipfile.ZipFile(result.directory / "model.pt2")
        assert not [n for n in archive.namelist() if archive.read(n)[:2] in (b"PK", b"\x80\x02", b"\x80\x04")]
        got = torch.export.load(result.directory / "model.pt2").module()(images)
    else:
        from safetensors.torch import load_file

        tensors = load_file(result.directory / "model.safetensors")
        assert tensors.keys() == load_file(next(Path(RUN).glob("checkpoints/*/model.safetensors"))).keys()
        return
    assert (got - wanted).abs().max() <= 1e-4


def test_an_absent_package_says_how_to_install_it(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"the export extra has it: pip install 'hydratune\[export\]'"):
        used("export", "format=onnx", "name=absent")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="format=parquet: needs pyarrow"):
        used("predict", "inputs=photos", "format=parquet", "name=absent2")


# ---- from Python


def test_a_loaded_run_predicts_paths_pictures_and_tensors_alike(inside: Path) -> None:
    run = library.load(RUN)
    path = inside / "photos" / "red" / "00.png"
    picture = Image.open(path)
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    answers = run.predict([path, picture, tensor, tensor / 255])
    assert len({json.dumps({k: v for k, v in row.items() if k != "file"}) for row in answers}) == 1
    assert run.classes == list(CLASSES) and run.metrics == record(RUN)["metrics"]
    assert run.config["model"]["width"] == 16 and not run.network.training
    bad = run.predict([torch.zeros(7), path])
    assert "is no picture" in bad[0]["error"] and "class" in bad[1]
    with pytest.raises(ValueError, match="takes a list"):
        run.predict("photo.jpg")


def test_a_turned_photograph_is_read_as_training_reads_it(inside: Path) -> None:
    picture = photo("red", 10, (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(inside / "turned.jpg", exif=exif)
    run = library.load(RUN)
    from hydratune.data.images.decode import decode

    pixels = decode(inside / "turned.jpg", 16).float() / 255
    spec = record(RUN)["spec"]
    wanted = (pixels - torch.tensor(spec["mean"]).view(3, 1, 1)) / torch.tensor(spec["std"]).view(3, 1, 1)
    for given in (inside / "turned.jpg", Image.open(inside / "turned.jpg")):
        assert torch.allclose(run.preprocess([given])[0], wanted, atol=1e-5)


def test_running_from_python_leaves_the_caller_as_it_was(inside: Path) -> None:
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    levels = (logging.getLogger().level, list(logging.getLogger().handlers))
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    before = torch.get_num_threads()
    small = ["stage=pretrain", "dataset.train=64", "dataset.val=32", "dataset.test=32", "epochs=1", *FIXED]
    results = [library.run([*small, f"name=py{i}"], quiet=True) for i in range(2)]
    assert results[0].metrics == results[1].metrics
    assert torch.rand(1) == drawn and torch.get_num_threads() == before
    assert {n: signal.getsignal(n) for n in handlers} == handlers
    assert (logging.getLogger().level, list(logging.getLogger().handlers)) == levels
    for wrong, said in (
        (["stage=pretrian"], "stage=pretrian: no such option"),
        (["-m", "seed=1,2"], "is a flag of the command"),
        (["optimizer.lrr=1"], "optimizer.lrr=1: no such key; nearest: optimizer.lr"),
        (["stage=pretrain", "batch_size=0"], "batch_size=0: must be a whole number"),
    ):
        with pytest.raises(ValueError, match=said):
            library.run(wrong)
    done = hydratune(*small, "name=command", cwd=inside)
    assert done.returncode == 0
    assert record("outputs/pretrain/command")["checkpoint"] == record("outputs/pretrain/py0")["checkpoint"]


def test_nothing_that_a_run_stored_is_trusted(inside: Path) -> None:
    import shutil

    shutil.copytree(RUN, "foreign_run", dirs_exist_ok=True)
    overrides = Path("foreign_run/.hydra/overrides.yaml")
    overrides.write_text(
        overrides.read_text() + "- ++model._target_=os.system\n- trust=[os]\n- hydra.run.dir=/tmp/elsewhere\n"
    )
    with pytest.raises(ValueError, match="hydratune runs no code of os unless you trust it"):
        library.load("foreign_run")


# ---- texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    home = tmp_path_factory.mktemp("texts")
    for name in ("sentiment", "entities"):
        sizes = [f"dataset.{part}=48" for part in ("train", "val", "test")]
        done = hydratune(
            "stage=pretrain", "model=bert_tiny", f"dataset={name}", *sizes, "epochs=1", f"name={name}", *FIXED, cwd=home
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return home


def test_texts_are_evaluated_predicted_and_exported(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(texts)
    run = "outputs/pretrain/sentiment"
    wanted = record(run)["metrics"]
    found = library.run(["stage=evaluate", f"init_from={run}", "name=own"], quiet=True).metrics
    assert {k: v for k, v in found.items() if not k.startswith("train_")} == wanted
    own = library.run(["stage=predict", f"init_from={run}", "inputs=dataset:test", "name=own"], quiet=True)
    answers = rows(own.directory)
    assert sum(r["class"] == r["true"] for r in answers) / len(answers) == wanted["test_accuracy"]
    Path("texts.csv").write_text('text,id\n"good, really",1\nbad,2\n')
    Path("texts.txt").write_text("good, really\nbad\n")
    tables = [
        library.run(["stage=predict", f"init_from={run}", f"inputs={path}", f"name=t{i}"], quiet=True)
        for i, path in enumerate(("texts.csv", "texts.txt"))
    ]
    assert rows(tables[0].directory) == rows(tables[1].directory)
    loaded = library.load(run)
    ours = loaded.predict(["good, really", "bad"])
    assert [row["class"] for row in ours] == [row["class"] for row in rows(tables[0].directory)]
    inputs = loaded.preprocess(["good, really", "bad"])
    with torch.no_grad():
        shares = loaded.network(**inputs).double().softmax(1)
    assert [row["probability"] for row in ours] == pytest.approx(shares.max(1).values.tolist(), rel=1e-5)
    pytest.importorskip("onnxruntime")
    made = library.run(["stage=export", f"init_from={run}", "format=onnx", "name=x"], quiet=True)
    assert (made.directory / "tokenizer.json").is_file()


def test_a_table_with_names_is_read_by_a_network_whose_tables_had_none(tmp_path: Path) -> None:
    """SST-2's rows begin at once; a user's own table says `text` first, which is no text."""
    pytest.importorskip("transformers")
    (tmp_path / "own").mkdir()
    for part in ("train", "dev", "test"):
        lines = [f"a {word} film\t{i % 2}" for i, word in enumerate(["dull", "fine"] * 12)]
        (tmp_path / "own" / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    line = ["stage=finetune", "dataset=sst2", "dataset.path=own", "model=bert_tiny", "init_from=null", "steps=2"]
    done = hydratune(*line, "name=run", *FIXED, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "named.csv").write_text("text\na fine film\nText\n")
    asked = hydratune("stage=predict", "init_from=outputs/finetune/run", "inputs=named.csv", "name=p", cwd=tmp_path)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert [row["text"] for row in rows(tmp_path / "outputs/predict/p")] == ["a fine film", "Text"]


def test_tagged_words_become_entities(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(texts)
    from hydratune.tasks.text import spans

    text, words = "Ada Lovelace saw Paris.", [(0, 3), (4, 12), (13, 16), (17, 22), (22, 23)]
    tags = torch.tensor([1, 2, 0, 3, 0])
    found = spans(tags, torch.tensor([0.5, 0.75, 1, 0.25, 1]), ["O", "B-PER", "I-PER", "B-LOC"], text, words)
    assert found == [
        {"type": "PER", "text": "Ada Lovelace", "start": 0, "end": 12, "score": 0.625},
        {"type": "LOC", "text": "Paris", "start": 17, "end": 22, "score": 0.25},
    ]
    run = library.load("outputs/pretrain/entities")
    (row,) = run.predict(["Ada Lovelace saw Paris."])
    assert len(row["tags"].split()) == 5 and isinstance(row["entities"], list)
    own = library.run(
        ["stage=predict", "init_from=outputs/pretrain/entities", "inputs=dataset:test", "name=e"], quiet=True
    )
    pairs = [(t, s) for r in rows(own.directory) for t, s in zip(r["true"].split(), r["tags"].split(), strict=True)]
    share = sum(t == s for t, s in pairs) / len(pairs)
    assert share == pytest.approx(record("outputs/pretrain/entities")["metrics"]["test_accuracy"])


# ---- masks, numbers, labels


def test_masks_have_the_size_of_their_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chance = np.random.default_rng(0)
    for i in range(12):
        for folder in ("images", "masks"):
            (tmp_path / "street" / folder).mkdir(parents=True, exist_ok=True)
        mask = np.zeros((20, 30), dtype=np.uint8)
        mask[:, : chance.integers(8, 22)] = 1
        image = np.stack([mask * 200, mask * 30, 255 - mask * 100], 2)
        Image.fromarray(image).save(tmp_path / "street/images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "street/masks" / f"{i}.png")
    library.run(
        ["stage=pretrain", "dataset=image_masks", "dataset.root=street", "dataset.size=16", "model=resnet9_w16",
         "epochs=2", "name=street", *FIXED, "batch_size=4"], quiet=True,
    )  # fmt: skip
    run = "outputs/pretrain/street"
    found = library.run(["stage=evaluate", f"init_from={run}", "name=e"], quiet=True).metrics
    assert {k: v for k, v in found.items() if not k.startswith("train_")} == record(run)["metrics"]
    made = library.run(["stage=predict", f"init_from={run}", "inputs=street/images", "name=p"], quiet=True)
    answers = rows(made.directory)
    assert [row["file"] for row in answers] == sorted(f"{i}.png" for i in range(12))
    mask = np.array(Image.open(made.directory / answers[0]["mask"]))
    assert mask.shape == (20, 30) and set(np.unique(mask[:, :5])) == {255} and set(np.unique(mask[:, 5:25])) <= {0, 1}
    # of what lies within, each class has the share that its column says
    inner = mask[:, 5:25]
    assert (inner == 1).mean() == pytest.approx(float(answers[0]["share(class 1)"]), abs=0.1)


def test_numbers_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = photos(tmp_path / "photos", 16)
    lines = ["image,level,labels"]
    for path in sorted(root.glob("*/*.png")):
        level = int(np.array(Image.open(path))[-1, -1, 1])
        labels = ";".join(w for w, there in (("bright", level > 100), ("red", path.parent.name == "red")) if there)
        lines.append(f"{path.relative_to(tmp_path)},{level},{labels}")
    Path("table.csv").write_text("\n".join(lines) + "\n")
    base = ["stage=pretrain", "dataset=image_csv", "dataset.path=table.csv", "dataset.size=16", "model=resnet9_w16",
            "epochs=2", *FIXED]  # fmt: skip
    library.run([*base, "dataset/task=regression", "dataset.label=level", "name=numbers"], quiet=True)
    library.run([*base, "dataset/task=multilabel", "dataset.label=labels", "name=labels"], quiet=True)
    made = {}
    for name in ("numbers", "labels"):
        run = f"outputs/pretrain/{name}"
        found = library.run(["stage=evaluate", f"init_from={run}", f"name={name}"], quiet=True).metrics
        assert {k: v for k, v in found.items() if not k.startswith("train_")} == record(run)["metrics"]
        own = library.run(["stage=predict", f"init_from={run}", "inputs=dataset:test", f"name={name}"], quiet=True)
        made[name] = rows(own.directory)
    errors = [abs(float(row["level"]) - float(row["true level"])) for row in made["numbers"]]
    assert sum(errors) / len(errors) == pytest.approx(
        record("outputs/pretrain/numbers")["metrics"]["test_mae"], rel=1e-5
    )
    from hydratune.tasks.multilabel import average_precision

    names = ["bright", "red"]
    scores = torch.tensor([[float(row[f"p({n})"]) for n in names] for row in made["labels"]], dtype=torch.float64)
    true = torch.tensor([[float(n in row["true"].split("; ")) for n in names] for row in made["labels"]])
    there = true.sum(0) > 0
    assert (
        float(average_precision(true, scores)[there].mean()) == record("outputs/pretrain/labels")["metrics"]["test_map"]
    )
    # a table of other images is asked in the run's own units
    Path("other.csv").write_text("\n".join([lines[0], *lines[1:9]]) + "\n")
    found = library.run(
        ["stage=evaluate", "init_from=outputs/pretrain/numbers", "dataset.path=other.csv", "name=other"], quiet=True
    ).metrics
    rows_ = library.load("outputs/pretrain/numbers").predict([line.split(",")[0] for line in lines[1:9]])
    errors = [abs(row["level"] - float(line.split(",")[1])) for row, line in zip(rows_, lines[1:9], strict=True)]
    assert found["all_mae"] == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_completion_knows_groups_and_options(tmp_path: Path) -> None:
    installed = hydratune("--shell-completion", "install=bash", cwd=tmp_path)
    assert installed.returncode == 0 and "-F hydra_bash_completion" in installed.stdout
    for line, wanted in (("hydratune freeze=he", "freeze=head_only"), ("hydratune stage=pred", "stage=predict"),
                         ("hydratune optimizer.l", "optimizer.lr=")):  # fmt: skip
        asked = hydratune("--shell-completion", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)))
        assert wanted in asked.stdout, asked.stdout + asked.stderr


def test_loading_needs_no_training_data(inside: Path) -> None:
    code = f"""
import hydratune, pathlib
pathlib.Path("photos").rename("gone")
try:
    print(hydratune.load("{RUN}").predict(["gone/red/00.png"])[0]["class"])
finally:
    pathlib.Path("gone").rename("photos")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=inside)
    assert done.returncode == 0 and done.stdout.strip() in CLASSES, done.stderr
