"""Weights from elsewhere: what is taken, what is not, and that each is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hydratune.models.load_weights import HeadAnswers, InitRules, load_into, read_state_dict, read_tensors
from tests.conftest import TINY, hydratune
from tests.tiny import network

HEAD = {"head.weight", "head.bias"}


def tensors() -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in network().state_dict().items()}


def loaded(given: dict[str, torch.Tensor], refused: str | None = None, **rules: Any) -> Any:
    return load_into(network().state_dict(), HEAD, given, "a file", InitRules(**rules), refused)


# ---- which of several


def test_state_dicts_are_found_however_they_are_wrapped(tmp_path: Path) -> None:
    for i, wrapped in enumerate(
        [
            {"model": {"state_dict": tensors()}},
            {"state_dict": {"model": tensors()}},
            {"model": tensors(), "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "epoch": 3},
            {"module": {"network": {"params": tensors()}}, "steps": torch.tensor(4)},
        ]
    ):
        torch.save(wrapped, tmp_path / f"{i}.pt")
        assert read_tensors(tmp_path / f"{i}.pt").keys() == tensors().keys(), i


def test_several_state_dicts_are_named_and_one_is_chosen(tmp_path: Path) -> None:
    twice = {n: t + 1 for n, t in tensors().items()}
    torch.save({"student": tensors(), "teacher": twice}, tmp_path / "dino.pt")
    with pytest.raises(ValueError, match="several state dicts: init_key= one of student, teacher"):
        read_tensors(tmp_path / "dino.pt")
    assert torch.equal(read_tensors(tmp_path / "dino.pt", "teacher")["head.bias"], twice["head.bias"])
    with pytest.raises(ValueError, match="init_key=teecher: .* it has student, teacher"):
        read_tensors(tmp_path / "dino.pt", "teecher")
    torch.save({"model": tensors(), "model_ema": twice}, tmp_path / "timm.pt")
    found, said = read_state_dict(tmp_path / "timm.pt")
    assert torch.equal(found["head.bias"], tensors()["head.bias"]) and "init_key=model_ema" in said


def test_prefix_and_names() -> None:
    given = {f"module.trunk.{n}": t for n, t in tensors().items()} | {"loss.centre": torch.zeros(3)}
    assert loaded(given, prefix="module.trunk.").trunk_share == 1
    with pytest.raises(ValueError, match=r"init_prefix=nowhere\.: no name there begins so"):
        loaded(given, prefix="nowhere.")
    renamed = {n.replace("stem", "first"): t for n, t in tensors().items()}
    assert loaded(renamed, names={"first": "stem"}).trunk_share == 1
    with pytest.raises(ValueError, match="init_map: frist is not there"):
        loaded(renamed, names={"frist": "stem"})


# ---- numbers of another kind


def test_quantized_weights_are_no_weights() -> None:
    given = {n: (t * 20).to(torch.int8) if t.is_floating_point() else t for n, t in tensors().items()}
    with pytest.raises(ValueError, match=r"holds int8 where float32 is wanted; quantized weights are not read"):
        loaded(given)


# ---- what is left over


def test_a_deeper_networks_weights_are_refused(tmp_path: Path) -> None:
    """resnet56's file fills resnet20 to 100%, and is another network's."""
    deep = hydratune(*TINY, "stage=pretrain", "model=resnet56", "steps=1", "hydra.run.dir=deep", cwd=tmp_path)
    assert deep.returncode == 0, deep.stderr
    (weights,) = tmp_path.glob("deep/checkpoints/*/model.safetensors")
    save_file(load_file(weights), tmp_path / "resnet56.safetensors")
    job = [*TINY, "stage=finetune", "model=resnet20", "steps=1", "init_from=resnet56.safetensors"]
    done = hydratune(*job, cwd=tmp_path)
    assert done.returncode == 2 and "so it is another model's; init_unused=" in done.stderr, done.stderr
    assert "layer1.3" in done.stderr or "layer1.4" in done.stderr or "layer1.5" in done.stderr, done.stderr
    asked = hydratune(*job, "init_unused=1", cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr


def test_shares_are_rounded_down() -> None:
    given = tensors()
    small = min((n for n in given if n not in HEAD and given[n].is_floating_point()), key=lambda n: given[n].numel())
    big = {**given}
    del big[small]
    with pytest.raises(ValueError) as error:
        loaded(big)
    assert "only 100.0%" not in str(error.value) and "of the trunk was found" in str(error.value)
    from hydratune.models.load_weights import _percent

    assert _percent(0.99996) == "99.9%" and _percent(1.0) == "100.0%"


# ---- heads


def test_a_head_under_another_name_is_known_by_place_and_shape() -> None:
    given = {n.replace("head.", "linear."): t for n, t in tensors().items()}
    taken = loaded(given)
    assert taken.renamed == {"head.weight": "linear.weight", "head.bias": "linear.bias"}
    assert {"head.weight", "head.bias"} <= set(taken.loaded)
    left = loaded(given, refused="nothing says which classes it was made for; init_head=true takes it")
    assert left.skipped["head.weight"].startswith("there as linear.weight: nothing says which classes")
    assert loaded({n.replace("head.", "linear."): t for n, t in tensors().items()}, names={"linear": "head"}).loaded


def test_rules_of_heads() -> None:
    def refused(
        theirs: list[str] | None, own: list[str], kinds: tuple[str | None, str] = ("classes", "classes"), **rules: Any
    ) -> str:
        made_for = None if theirs is None else HeadAnswers(kinds[0], theirs)
        return InitRules(**rules).refuses_head(made_for, HeadAnswers(kinds[1], own)) or ""

    assert not refused(["a", "b"], ["a", "b"])
    assert "another order; dataset.classes=[b,a]" in refused(["b", "a"], ["a", "b"])
    assert refused(["a", "c"], ["a", "b"]) == "made for other classes"
    assert "init_head=true takes it" in refused(None, ["a", "b"])
    assert not refused(None, [])  # a language model's: its classes are the tokens
    assert not refused(["x"], ["a", "b"], head=True)
    assert refused(["a", "b"], ["a", "b"], head=False) == "init_head=false"
    # What it was made for tells, also where neither side has names or both have the same
    assert "another target (values" in refused(["a"], ["a"], ("values", "labels"))
    assert "another target (masked" in refused([], [], ("masked", "causal"))
    assert not refused(["a", "b"], ["a", "b"], (None, "classes"))  # older checkpoints do not say it
    with pytest.raises(ValueError, match=r"init_head=true: head\.bias of a file cannot be taken"):
        loaded({n: t for n, t in tensors().items() if n not in HEAD}, head=True)


def folders(home: Path, names: str) -> None:
    from PIL import Image

    for i, name in enumerate(names):
        (home / name).mkdir(parents=True, exist_ok=True)
        for j in range(12):
            Image.new("RGB", (32, 32), (40 * i, 20 * j, 90)).save(home / name / f"{j}.png")


def test_a_head_for_other_classes_is_not_taken_from_a_path(tmp_path: Path) -> None:
    """By the file within the run, by a copy of it that nothing lies beside, and with init_head."""
    folders(tmp_path / "one", "ab")
    folders(tmp_path / "two", "cd")
    base = ["batch_size=4", "steps=1", "model=resnet20", "dataset=image_folder", "dataset.size=32", "test=false",
            "runtime.precision=fp32", "runtime.layout=contiguous", "dataset.augment.resized_crop=null"]  # fmt: skip
    first = hydratune("stage=pretrain", *base, "dataset.root=one", "hydra.run.dir=first", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (weights,) = tmp_path.glob("first/checkpoints/*/model.safetensors")
    save_file(load_file(weights), tmp_path / "copy.safetensors")

    def load_report(source: object, root: str, *more: str) -> str:
        home = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        line = ["stage=finetune", *base, f"dataset.root={root}", f"init_from={source}", f"hydra.run.dir={home}", *more]
        done = hydratune(*line, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rows = (home / "load.md").read_text().splitlines()
        return next(row for row in rows if row.startswith("| fc.weight"))

    assert "loaded" in load_report(weights, "one")
    assert "made for other classes" in load_report(weights, "two")
    assert "init_head=true takes it" in load_report(tmp_path / "copy.safetensors", "one")
    assert "loaded" in load_report(tmp_path / "copy.safetensors", "two", "init_head=true")
    assert "init_head=false" in load_report(weights, "one", "init_head=false")


def test_how_weights_are_taken_over_belongs_to_the_fingerprint(tmp_path: Path) -> None:
    from hydratune.config.fingerprint import content
    from tests.conftest import make_job

    plain, asked = (
        make_job(["stage=finetune", "init_from=null", *o], tmp_path).config for o in ([], ["init_head=true"])
    )
    assert content(plain, plain.freeze, "x", "", "fp32") != content(asked, asked.freeze, "x", "", "fp32")
    assert content(plain, plain.freeze, None, "", "fp32") == content(asked, asked.freeze, None, "", "fp32")


def test_torchvisions_weights_name_their_classes() -> None:
    from hydratune.models.vision.torchvision_models import _categories

    names = _categories("resnet18", "DEFAULT")
    assert names is not None and len(names) == 1000 and "tench" in names
    assert _categories("resnet18", "a/file.pth") is None
    assert json.dumps(names)
