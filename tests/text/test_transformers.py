"""Transformers cut into groups compute what the library computes, and go back to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hydratune.experiment.prepare import _adapted
from hydratune.freeze.lora import LoRA, merged
from hydratune.models.initialise import initialised
from hydratune.models.network import Network, build_network
from hydratune.models.text.families import DECODERS, ENCODERS, family
from hydratune.models.text.huggingface import huggingface
from tests.text.small import CONFIGS, SIZES, body_of, config, inside, network_of, spec, tokens

QUESTIONS = ("sequence", "token", "masked", "causal")
CAUSAL = ("gpt2", *DECODERS)
PAIRS = [
    (f, q)
    for f in CONFIGS
    for q in QUESTIONS
    if not (q == "masked" and f in CAUSAL) and not (q == "causal" and f not in CAUSAL)
]


def answers(network: Network, model: Any, question: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(ours, the library's) on ragged sequences, without what is filled up."""
    batch = tokens()
    for group in network.groups:
        group.module.eval()
    with torch.no_grad():
        ours = network.forward(batch)
        theirs = model.eval()(input_ids=batch.values, attention_mask=inside(batch).long()).logits
    return (ours, theirs) if question == "sequence" else (ours[inside(batch)], theirs[inside(batch)])


@pytest.mark.parametrize(("name", "question"), PAIRS)
def test_groups_compute_what_the_library_computes(name: str, question: str) -> None:
    body, network = network_of(name, question)
    source: Any = body.source.eval()
    assert source.config._attn_implementation == "sdpa"
    assert torch.allclose(*answers(network, source, question), atol=1e-6, rtol=0)
    # Every tensor under the name that it has there
    assert network.parameters().keys() == dict(source.named_parameters()).keys()


@pytest.mark.parametrize(("name", "question"), PAIRS)
def test_the_last_group_below_the_head_is_a_block(name: str, question: str) -> None:
    """With what follows the blocks, a norm or pooling: freeze=last_groups would else train next to nothing."""
    _, network = network_of(name, question)
    sizes = [sum(p.numel() for p in group.module.parameters()) for group in network.groups]
    assert [g.name for g in network.groups[1:-1]] == [f"block{i}" for i in range(len(sizes) - 2)]
    assert sizes[-2] >= sizes[1]


@pytest.mark.parametrize(("name", "question"), [("bert", "masked"), ("bert", "token"), ("gpt2", "causal")])
def test_gradients_are_the_library_s(name: str, question: str) -> None:
    body, network = network_of(name, question)
    source: Any = body.source.eval()
    batch = tokens()
    network.forward(batch)[inside(batch)].square().sum().backward()
    ours = {n: p.grad.clone() for n, p in network.parameters().items() if p.grad is not None}
    source.zero_grad()
    source(input_ids=batch.values, attention_mask=inside(batch).long()).logits[inside(batch)].square().sum().backward()
    for n, p in source.named_parameters():
        assert torch.allclose(ours[n], p.grad, atol=1e-4, rtol=1e-4), n


@pytest.mark.parametrize(("name", "question"), PAIRS)
def test_padding_changes_no_answer(name: str, question: str) -> None:
    _, network = network_of(name, question)
    batch, alone = tokens((4, 9)), tokens((4, 9))
    short = alone._replace(values=alone.values[:1, :4], lengths=alone.lengths[:1], asked=alone.asked[:1])
    for group in network.groups:
        group.module.eval()
    with torch.no_grad():
        together, single = network.forward(batch), network.forward(short)
    both = (together[0], single[0]) if question == "sequence" else (together[0, :4], single[0])
    assert torch.allclose(*both, atol=1e-5)


def test_the_head_answers_where_it_is_asked() -> None:
    _, network = network_of("bert", "masked")
    batch = tokens()
    for group in network.groups:
        group.module.eval()
    asked = torch.tensor([[2, 5], [0, 1], [3, 0]])
    with torch.no_grad():
        every, some = network.forward(batch), network.forward(batch._replace(asked=asked))
    assert torch.allclose(some, torch.stack([every[i, a] for i, a in enumerate(asked)]), atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_weights_are_a_function_of_seed_and_name(name: str) -> None:
    question = "masked" if name == "bert" else "causal"

    def build(**more: Any) -> Any:
        def constructed() -> Any:
            return huggingface(config=config(name, **more), text_spec=spec(question), question=question)

        return initialised(3, constructed, lambda b: b.source.named_parameters()).source.state_dict()

    layers = {"gpt2": "n_layer"}.get(name, "num_hidden_layers")
    two, again, three = build(), build(), build(**{layers: 3})
    for n, t in two.items():
        assert torch.equal(t, again[n])
        # GPT-2 draws these for a network of so many layers
        other = three[n] * (3 / 2) ** 0.5 if name == "gpt2" and n.endswith("c_proj.weight") else three[n]
        assert torch.allclose(t, other, rtol=1e-6), f"{n} depends on how many layers there are"


@pytest.mark.parametrize(("name", "question"), PAIRS)
def test_what_is_exported_is_read_back_with_equal_outputs(name: str, question: str, tmp_path: Path) -> None:
    import transformers

    from hydratune.models.text.huggingface import CLASSES

    body, network = network_of(name, question)
    with torch.no_grad():
        for p in network.parameters().values():
            p.add_(0.01)
    assert body.export is not None
    body.export(tmp_path, {n: t.detach() for n, t in network.state_dict().items()})
    again, info = getattr(transformers, CLASSES[question]).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.allclose(*answers(network, again, question), atol=1e-6, rtol=0)
    if question in ("sequence", "token"):
        assert again.config.id2label == {0: "a", 1: "b", 2: "c"}
    # And it is a model for hydratune: the same weights under the same names.
    more = huggingface(name=str(tmp_path), text_spec=spec(question), question=question)
    assert more.weights is not None
    _, tensors = more.weights()
    own = network.state_dict()
    assert all(torch.equal(tensors[n], own[n]) for n in tensors.keys() & own.keys())
    assert own.keys() <= tensors.keys()


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_low_rank_updates_begin_at_nothing_and_merge(name: str) -> None:
    _, network = network_of(name, "sequence")
    for group in network.groups:
        group.module.eval()
    before = network.forward(tokens())
    adapted = _adapted(network, LoRA(rank=2), seed=0)
    assert torch.allclose(adapted.forward(tokens()), before, atol=1e-6)
    layers = sorted(n for n in adapted.parameters() if n.endswith("lora_A.weight"))
    assert len(layers) == 2 * (6 if name == "bert" else 4)  # those of attention and of the layers after it
    with torch.no_grad():
        for n, p in adapted.parameters().items():
            if "lora_B" in n:
                p.fill_(0.05)
    moved = adapted.forward(tokens())
    assert not torch.allclose(moved, before, atol=1e-4)
    _, plain = network_of(name, "sequence")
    plain.load(merged(adapted.state_dict()))
    for group in plain.groups:
        group.module.eval()
    assert torch.allclose(plain.forward(tokens()), moved, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # PEFT's own
def test_peft_reads_the_updates_of_a_gpt(tmp_path: Path) -> None:
    import peft

    from hydratune.freeze.lora import save_adapter

    _, network = network_of("gpt2", "sequence")
    for group in network.groups:
        group.module.eval()
    adapted = _adapted(network, LoRA(rank=2), seed=0)
    with torch.no_grad():
        for n, p in adapted.parameters().items():
            if "lora_B" in n:
                p.normal_()
    save_adapter(tmp_path, adapted.state_dict(), ["score"])
    batch = tokens()
    ours = adapted.forward(batch)
    again: Any = peft.PeftModel.from_pretrained(body_of("gpt2", "sequence").source, tmp_path).eval()
    theirs = again(input_ids=batch.values, attention_mask=inside(batch).long()).logits
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_tied_weight_trains_once_and_has_one_name() -> None:
    _, network = network_of("gpt2", "causal")
    names = network.parameters()
    assert "transformer.wte.weight" in names and "lm_head.weight" not in names
    assert not network.own_of_head()
    forked = network.fork(2)
    # Below the fork lies the one tensor that both use
    assert forked.head.module.head.weight is network.groups[0].module.layer.wte.weight
    assert forked.parameters().keys() == names.keys()
    whole = network.fork(0)
    assert whole.head.module.head.weight is whole.groups[0].module.layer.wte.weight
    assert whole.head.module.head.weight is not network.head.module.head.weight


OTHERS = {
    "ElectraConfig": {**SIZES, "embedding_size": 16},
    "AlbertConfig": {**SIZES, "embedding_size": 16},
    "DebertaV2Config": SIZES,
    "GPTNeoXConfig": SIZES,
    "Gemma2Config": {**SIZES, "num_key_value_heads": 2, "head_dim": 16},
}


@pytest.mark.parametrize(
    ("name", "question"),
    [(n, q) for n in OTHERS for q in (("causal",) if n[0] == "G" else ("sequence", "token", "masked"))],
)
def test_other_families_are_divided_into_body_and_head(name: str, question: str) -> None:
    import transformers

    chosen = getattr(transformers, name)(**OTHERS[name])
    if (name, question) == ("AlbertConfig", "sequence"):  # its head takes what its body makes of the first token
        with pytest.raises(ValueError, match="albert cannot be divided into a body and a head"):
            huggingface(config=chosen, text_spec=spec(question), question=question)
        return
    body = huggingface(config=chosen, text_spec=spec(question), question=question)
    network = build_network(body, body.head)  # type: ignore[arg-type]
    source: Any = body.source.eval()
    assert torch.allclose(*answers(network, source, question), atol=1e-6, rtol=0)
    assert network.parameters().keys() == dict(source.named_parameters()).keys()
    assert [g.name for g in network.groups] == ["body", "head"]


def test_what_cannot_be_is_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="gpt2 is not made for masked language modelling"):
        family("gpt2", "masked")
    with pytest.raises(ValueError, match="bert is not made for causal language modelling; gpt2, llama"):
        family("bert", "causal")
    with pytest.raises(ValueError, match="either name .* or config"):
        huggingface(text_spec=spec("token"), question="token")
    with pytest.raises(ValueError, match="model.options.dropuot=0.1: no such key"):
        huggingface(config=config("bert"), options={"dropuot": 0.1}, text_spec=spec("token"), question="token")
    with pytest.raises(ValueError, match="attends to 8 tokens at most"):
        huggingface(config=config("mistral", sliding_window=8), text_spec=spec("causal"), question="causal")
    assert set(ENCODERS) > {"bert", "roberta"}


def test_a_configuration_gets_the_room_that_the_data_wants() -> None:
    body = huggingface(
        config=config("roberta", max_position_embeddings=12), text_spec=spec("masked", max_length=40), question="masked"
    )
    assert body.source.config.max_position_embeddings == 50  # two lie below RoBERTa's first position
    network = build_network(body, body.head)  # type: ignore[arg-type]
    assert network.forward(tokens((40, 3))).shape == (2, 40, 100)


def test_a_directory_that_brings_code_runs_none_of_it(tmp_path: Path) -> None:
    import json

    from hydratune.data.text.tokenizer import TokenizerRecipe

    canary = tmp_path / "canary"
    home = tmp_path / "evil"
    home.mkdir()
    (home / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    auto = {"AutoConfig": "evil.Evil", "AutoModelForMaskedLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    (home / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    (home / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil", "auto_map": auto}))
    with pytest.raises(ValueError, match="model.name="):
        huggingface(name=str(home), text_spec=spec("masked"), question="masked")
    with pytest.raises(ValueError, match="no tokenizer could be read there"):
        TokenizerRecipe(name=str(home)).tokenizer(list, "", None)
    # A known family whose weights are a pickle: not read
    config("bert").save_pretrained(home)
    bomb = b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."
    (home / "pytorch_model.bin").write_bytes(bomb)
    body = huggingface(name=str(home), text_spec=spec("masked"), question="masked")
    assert body.weights is not None
    with pytest.raises(ValueError, match=r"holds no model.safetensors; other formats are not read"):
        body.weights()
    assert not canary.exists()
