"""BERT of TensorFlow, in a file that TensorFlow 2.21 wrote, under the names that transformers has for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from hydratune.models.families import known_family
from hydratune.models.foreign import read_weights
from tests.conftest import hydratune

HERE = Path(__file__).parent / "tensorflow"
SIZES = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 30,
         "max_position_embeddings": 16}  # fmt: skip


def as_tensorflow_calls_it(name: str) -> str:
    """Google's name of a tensor of transformers' BertForPreTraining."""
    theirs = name.replace(".", "/").replace("/layer/", "/layer_").removesuffix("_embeddings/weight")
    if theirs != name.replace(".", "/").replace("/layer/", "/layer_"):
        return f"{theirs}_embeddings"
    if "LayerNorm" in name:
        return theirs.replace("/weight", "/gamma").replace("/bias", "/beta")
    if name == "cls.predictions.bias":
        return "cls/predictions/output_bias"
    if "seq_relationship" in name:
        return theirs.replace("/weight", "/output_weights").replace("/bias", "/output_bias")
    return theirs.replace("/weight", "/kernel")


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining"])
def test_bert_of_tensorflow_is_transformers(kind: str) -> None:
    """TensorFlow wrote each tensor as the numbers from its place in the order of names on, by 64."""
    transformers = pytest.importorskip("transformers")
    model = getattr(transformers, kind)(transformers.BertConfig(**SIZES))
    tensors, said = read_weights(HERE / "bert.ckpt.index")
    assert said == "BERT's of TensorFlow, under transformers' names"
    places = {name: i for i, name in enumerate(sorted(map(as_tensorflow_calls_it, tensors)))}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}  # tied to others
    assert all(name.startswith(("cls.seq_relationship", "bert.pooler")) for name in unexpected)
    for name, own in model.state_dict().items():
        name = {
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        }.get(name, name)
        theirs = as_tensorflow_calls_it(name)
        shape = tuple(own.T.shape) if theirs.endswith("/kernel") else tuple(own.shape)
        wanted = torch.arange(own.numel()).add(places[theirs]).div(64).reshape(shape)
        assert torch.equal(own, wanted.T if theirs.endswith("/kernel") else wanted), name


def test_heads_of_bert_and_what_only_looks_like_it() -> None:
    layer = {"bert/embeddings/word_embeddings": torch.zeros(3, 2)}
    bert = layer | {"bert/encoder/layer_0/attention/self/query/kernel": torch.zeros(2, 2)}
    for theirs, own in {"output_weights": "classifier.weight", "output_bias": "classifier.bias",
                        "cls/squad/output_weights": "qa_outputs.weight"}.items():  # fmt: skip
        family = known_family(bert | {theirs: torch.zeros(2, 2)})
        assert family is not None and own in family.renamed(bert | {theirs: torch.zeros(2, 2)})
    albert = layer | {"bert/encoder/transformer/group_0/inner_group_0/attention_1/self/query/kernel": torch.zeros(2, 2)}
    assert known_family(albert) is None


def test_a_run_starts_from_bert_of_tensorflow(tmp_path: Path) -> None:
    """init_from names the checkpoint as TensorFlow does, by what its files have in common."""
    transformers = pytest.importorskip("transformers")
    transformers.BertConfig(**SIZES).save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxy"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    for file in HERE.glob("bert.ckpt.*"):
        shutil.copy(file, tmp_path)
    done = hydratune(
        "stage=finetune", "model=hf", "model.name=.", "model.weights=false", "init_from=bert.ckpt", "dataset=sentiment",
        "dataset.max_length=16", "dataset.train=40", "dataset.val=20", "dataset.test=20", "steps=2", "batch_size=10",
        "test=false", "freeze=head_only", "hydra.run.dir=run", cwd=tmp_path, HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "bert.ckpt.index (BERT's of TensorFlow, under transformers' names): 100% of the trunk" in (
        (tmp_path / "run/load.md").read_text()
    )
