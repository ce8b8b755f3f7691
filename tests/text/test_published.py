"""Models as others publish them: names without a prefix, heads for other classes, numbers of their own, pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hydratune.core.types import Backbone, Padded, TextSpec
from hydratune.data.stream import Batches, Placement
from hydratune.experiment.init_from import Origin
from hydratune.experiment.prepare import load_origin
from hydratune.models.load_weights import HeadAnswers, InitRules
from hydratune.models.network import build_network
from hydratune.models.text.huggingface import huggingface
from tests.text.small import SPECIAL, config, inside, spec, tokens


def saved(directory: Path, name: str, kind: str, **more: Any) -> Any:
    """A model of transformers as it saves itself."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, kind).from_config(config(name, vocab_size=100, max_position_embeddings=64, **more))
    model.save_pretrained(directory)
    return model.eval()


def report_of(body: Backbone, question: str) -> Any:
    network = build_network(body, body.head)  # type: ignore[arg-type]
    assert body.weights is not None
    said, tensors = body.weights()
    own = network.state_dict()
    head = {n for n in own if n.startswith(("classifier", "score", "cls", "lm_head"))}
    known = None if body.classes is None else HeadAnswers(None, list(body.classes))
    origin = Origin(said, tensors, head=known)
    return load_origin(own, head, origin, HeadAnswers("classes", list(spec(question).class_names)), InitRules())


@pytest.mark.parametrize(("name", "question"), [("gpt2", "causal"), ("gpt2", "sequence"), ("bert", "token")])
def test_a_file_of_the_body_alone_is_found(name: str, question: str, tmp_path: Path) -> None:
    """As gpt2's own file, whose tensors are called wte.weight and h.0..., without transformer. in front."""
    source = saved(tmp_path, name, "AutoModel")
    assert not any(k.startswith(("transformer.", "bert.")) for k in load_file(tmp_path / "model.safetensors"))
    body = huggingface(name=str(tmp_path), text_spec=spec(question), question=question)
    report = report_of(body, question)
    assert report.trunk_share == 1.0
    prefix = f"{body.source.base_model_prefix}."
    own = body.source.state_dict()
    assert all(torch.equal(own[prefix + k], v) for k, v in source.state_dict().items() if prefix + k in own)


def test_a_head_for_other_classes_is_not_taken(tmp_path: Path) -> None:
    more = {"id2label": {0: "c", 1: "a", 2: "b"}, "label2id": {"c": 0, "a": 1, "b": 2}}
    saved(tmp_path, "bert", "AutoModelForTokenClassification", **more)
    body = huggingface(name=str(tmp_path), text_spec=spec("token"), question="token")
    assert body.classes == ["c", "a", "b"]
    report = report_of(body, "token")
    assert report.skipped["classifier.weight"] == (
        "made for the same classes in another order; dataset.classes=[c,a,b] takes it"
    )
    other = tmp_path / "other"
    saved(other, "bert", "AutoModelForTokenClassification", id2label={0: "x", 1: "y", 2: "z"})
    report = report_of(huggingface(name=str(other), text_spec=spec("token"), question="token"), "token")
    assert report.skipped["classifier.weight"] == "made for other classes"
    same = tmp_path / "same"
    saved(same, "bert", "AutoModelForTokenClassification", id2label={0: "a", 1: "b", 2: "c"})
    assert not report_of(huggingface(name=str(same), text_spec=spec("token"), question="token"), "token").skipped


def test_a_model_keeps_its_own_numbers(tmp_path: Path) -> None:
    """A tokenizer that knows no padding changes neither RoBERTa's positions nor what an embedding leaves out."""
    source = saved(tmp_path / "roberta", "roberta", "AutoModelForMaskedLM")
    own = TextSpec(100, 16, {"eos": 2, "mask": 4})
    body = huggingface(name=str(tmp_path / "roberta"), text_spec=own, question="masked")
    assert body.source.config.pad_token_id == source.config.pad_token_id == 1
    saved(tmp_path / "llama", "llama", "AutoModelForCausalLM")
    llama = huggingface(name=str(tmp_path / "llama"), text_spec=own, question="causal")
    assert llama.source.model.embed_tokens.padding_idx is None  # type: ignore[union-attr]
    assert llama.export is not None
    llama.export(tmp_path / "export", llama.source.state_dict())
    said = json.loads((tmp_path / "export" / "config.json").read_text())
    assert said["pad_token_id"] == 2 and said["use_cache"] is True and said["dtype"] == "float32"


def test_half_precision_on_disk_is_full_here(tmp_path: Path) -> None:
    saved(tmp_path, "llama", "AutoModelForCausalLM")
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "dtype": "bfloat16"}))
    tensors = {k: t.bfloat16() for k, t in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    body = huggingface(name=str(tmp_path), text_spec=spec("causal"), question="causal")
    assert {p.dtype for p in body.source.parameters()} == {torch.float32}
    assert report_of(body, "causal").trunk_share == 1.0
    assert body.source.config.dtype == torch.float32


@pytest.mark.parametrize("name", ["bert", "electra", "roberta"])
def test_the_second_text_of_a_pair_has_another_type(name: str) -> None:
    import transformers

    from tests.text.small import SIZES

    special = {**SPECIAL, "cls": 6, "sep": 7}
    chosen = transformers.ElectraConfig(**SIZES, embedding_size=16) if name == "electra" else config(name)
    text = TextSpec(100, 16, special, ("a", "b", "c"), pairs=True)
    body = huggingface(config=chosen, text_spec=text, question="sequence")
    network = build_network(body, body.head)  # type: ignore[arg-type]
    for group in network.groups:
        group.module.eval()
    batch = tokens((10, 7, 4))
    values = torch.where((batch.values == 7) | (batch.values == 6), 8, batch.values)
    values[:, 0] = 6
    for row, ends in enumerate(((4, 9), (2, 6), (3,))):  # two pairs and a single text
        values[row, list(ends)] = 7
    types = torch.zeros_like(values)
    types[0, 5:10], types[1, 3:7] = 1, 1
    if name == "roberta":
        types.zero_()
    given = Padded(values, batch.lengths, batch.asked)
    source: Any = body.source.eval()
    with torch.no_grad():
        theirs = source(input_ids=values, attention_mask=inside(given).long(), token_type_ids=types).logits
        plain = source(input_ids=values, attention_mask=inside(given).long()).logits
        ours = network.forward(given)
    assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)
    if name != "roberta":
        assert not torch.allclose(ours[:2], plain[:2], atol=1e-6, rtol=0)
        assert torch.allclose(ours[2], plain[2], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["ElectraConfig", "RemBertConfig"])
def test_what_sees_the_answer_does_not_model_the_next_token(kind: str) -> None:
    import transformers

    from tests.text.small import SIZES

    chosen = getattr(transformers, kind)(**SIZES)
    with pytest.raises(ValueError, match="sees the tokens that it should predict"):
        huggingface(config=chosen, text_spec=spec("causal"), question="causal")


def test_a_decoder_that_is_not_cut_finds_the_end_of_a_text() -> None:
    """The library's head looks for it by the padding token, of which such models often know none."""
    import transformers

    from tests.text.small import SIZES

    chosen = transformers.GPTNeoXConfig(**SIZES)
    body = huggingface(config=chosen, text_spec=TextSpec(100, 16, {"eos": 2}, ("a", "b", "c")), question="sequence")
    network = build_network(body, body.head)  # type: ignore[arg-type]
    for group in network.groups:
        group.module.eval()
    batch, source = tokens((10, 7, 4)), body.source
    alone = Padded(batch.values[2:, :4], batch.lengths[2:], batch.asked[2:])
    with torch.no_grad():
        assert torch.allclose(network.forward(batch)[2], network.forward(alone)[0], atol=1e-5)
    assert source.config.pad_token_id is None  # type: ignore[union-attr]


def test_the_exported_tokenizer_tells_the_model_of_pairs(tmp_path: Path) -> None:
    import transformers

    from hydratune.data.text.tokenizer import TokenizerRecipe
    from hydratune.tasks.text import SequenceClassification
    from tests.text.small import Texts

    rows = [((f"it rains {i}", "it is wet"), "yn"[i % 2]) for i in range(40)]
    data = Texts(SequenceClassification(), {"train": rows}, TokenizerRecipe(vocab_size=120))
    body = huggingface(config=config("bert"), text_spec=data.spec(), question="sequence")
    network = build_network(body, body.head)  # type: ignore[arg-type]
    for group in network.groups:
        group.module.eval()
    assert body.export is not None
    data.keep(tmp_path, export=True)
    body.export(tmp_path, {n: t.detach() for n, t in network.state_dict().items()})
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    batch = next(data.stream(data.split("val"), body, Batches(4), Placement(torch.device("cpu"))).eval_batches())
    pairs = [data.parts["val"][i][0] for i in batch.ids.tolist()]
    given = tokenizer([a for a, _ in pairs], [b for _, b in pairs], padding=True, return_tensors="pt")
    assert given["token_type_ids"].sum() > 0
    with torch.no_grad():
        assert torch.allclose(network.forward(batch.inputs), model(**given).logits, atol=1e-5)


def test_what_reads_its_answer_off_the_filling_is_refused() -> None:
    """XLNet's head takes the last position, whatever stands there."""
    import transformers

    chosen = transformers.XLNetConfig(d_model=32, n_layer=2, n_head=2, d_inner=64)
    with pytest.raises(ValueError, match=r"xlnet (takes what is filled up|cannot be divided)"):
        huggingface(config=chosen, text_spec=spec("sequence"), question="sequence")
