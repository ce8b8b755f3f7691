"""Whole runs on text: hand-over of weights and tokenizer, caches, resume, sweeps, what is exported and shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hydratune.record import checkpoint
from tests.conftest import hydratune, make_job

NET = [
    "model=bert_tiny", "model.config.hidden_size=32", "model.config.num_hidden_layers=2",
    "model.config.num_attention_heads=2", "model.config.intermediate_size=64",
]  # fmt: skip
GPT = ["model=gpt_tiny", "model.config.n_embd=32", "model.config.n_layer=2", "model.config.n_head=2"]
PLAIN = ["model.config.resid_pdrop=0.0", "model.config.embd_pdrop=0.0", "model.config.attn_pdrop=0.0"]  # GPT's dropout
SMALL = ["batch_size=16", "runtime.precision=fp32", "optimizer=adamw", "optimizer.lr=3e-3", "epochs=null", "steps=12"]
SIZES = ["dataset.train=200", "dataset.val=60", "dataset.test=60"]
PRE = ["pretrain.steps=4", "pretrain.batch_size=16", "dataset@pretrain.dataset=python_docs",
       "pretrain.dataset.tokenizer.vocab_size=500", "optimizer@pretrain.optimizer=adamw"]  # fmt: skip


def run_job(home: Path, *overrides: str, **more: Any) -> Any:
    from hydratune.experiment.run import run_job

    return run_job(make_job([*SMALL, *overrides], home, **more))


def weights(result: Any) -> dict[str, torch.Tensor]:
    return checkpoint.load(result.directory / result.record.checkpoint["path"]).model


def texts(directory: Path) -> dict[str, list[str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    events.Reload()
    tags = [t for t in events.Tags()["tensors"] if t.endswith("/text_summary")]
    return {
        t.removesuffix("/text_summary"): [e.tensor_proto.string_val[0].decode() for e in events.Tensors(t)]
        for t in tags
    }


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("mlm")
    return run_job(home, "stage=pretrain", *NET, "dataset=python_docs", "dataset.tokenizer.vocab_size=500")


def test_a_pretraining_is_handed_over_with_its_tokenizer(tmp_path: Path) -> None:
    result = run_job(tmp_path, "stage=finetune", *NET, "dataset=sentiment", *SIZES, *PRE)
    parent = Path(result.record.lineage.run)
    assert json.loads((parent / "run.json").read_text())["metrics"].keys() >= {"val_perplexity", "val_log_likelihood"}
    own, theirs = ((d / "tokenizer" / "tokenizer.json").read_text() for d in (result.directory, parent))
    assert own == theirs
    assert result.record.metrics.keys() >= {"val_accuracy", "val_macro_f1", "val_mcc", "test_accuracy"}
    before = checkpoint.load(parent / "checkpoints" / result.record.lineage.checkpoint).model
    after = weights(result)
    assert (
        before["bert.embeddings.word_embeddings.weight"].shape == after["bert.embeddings.word_embeddings.weight"].shape
    )
    load = (result.directory / "load.md").read_text()
    assert "100% of the trunk" in load and "classifier.weight" in load


def test_a_pretraining_without_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pretrain.dataset=shapes10: .* takes text, .*; init_from=RUN .*=null none"):
        run_job(tmp_path, "stage=finetune", *NET, "dataset=sentiment", *SIZES)


def test_the_metric_that_selects_can_be_chosen(tmp_path: Path) -> None:
    few = [*NET, "dataset=sentiment", *SIZES, "init_from=null", "freeze=none", "engine.eval_every=3"]
    result = run_job(tmp_path, "stage=finetune", *few, "dataset.task.monitor=mcc")
    assert result.record.monitor == "mcc" and result.metric == result.record.metrics["val_mcc"]
    assert result.metric == max(value for _, value in result.record.history)
    with pytest.raises(ValueError, match="dataset.task.monitor=top1: one of accuracy, macro_f1, mcc"):
        run_job(tmp_path / "other", "stage=finetune", *few, "dataset.task.monitor=top1")


def test_an_early_end_and_a_net_that_says_one_class_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"some words {i},{'no' if i % 8 == 0 else 'yes'}\n" for i in range(160))
    (tmp_path / "a.csv").write_text(f"text,label\n{rows}")
    files = ["dataset=text_csv", f"dataset.path={tmp_path / 'a.csv'}", "init_from=null", "freeze=head_only"]
    run_job(tmp_path, "stage=finetune", *NET, *files, "steps=80", "engine.eval_every=20", "engine.patience=2")
    said = capsys.readouterr().out
    assert "train: 129 texts; no 16, yes 113" in said and "val: divided off train: 15 texts; no 2, yes 13" in said
    assert "stopped after 60 of 80 steps: no better accuracy in 2 evaluations" in said
    assert "every sample of val gets one class" in said


def test_head_only_hands_the_trunk_over_bit_for_bit(pretrained: Any, tmp_path: Path) -> None:
    origin = f"init_from={pretrained.directory}"
    result = run_job(tmp_path, "stage=finetune", *NET, "dataset=sentiment", *SIZES, origin, "freeze=head_only")
    before, after = weights(pretrained), weights(result)
    shared = [n for n in before if n.startswith("bert.")]
    assert len(shared) > 30 and all(torch.equal(before[n], after[n]) for n in shared)


@pytest.mark.parametrize("dataset", ["sentiment", "entities"])
@pytest.mark.parametrize("freeze", ["head_only", "last_groups"])
def test_cached_features_train_what_computed_ones_do(
    dataset: str, freeze: str, pretrained: Any, tmp_path: Path
) -> None:
    base = [
        "stage=finetune",
        *NET,
        f"dataset={dataset}",
        *SIZES,
        f"init_from={pretrained.directory}",
        f"freeze={freeze}",
    ]
    kept = {
        mode: run_job(
            tmp_path / mode, *base, f"freeze.cache={mode}", "steps=30", "model.config.hidden_dropout_prob=0.0"
        )
        for mode in ("off", "memory", "disk")
    }
    reference = weights(kept["off"])
    for mode in ("memory", "disk"):
        # To the last bit, though the cache was made from other batches with other padding.
        assert (kept[mode].directory / "freeze.md").read_text().count(f"{mode}, ") == 1
        for name, tensor in weights(kept[mode]).items():
            assert torch.equal(tensor, reference[name]), (mode, name)
        assert kept[mode].record.metrics == kept["off"].record.metrics


@pytest.mark.parametrize(
    "overrides",
    [
        [*NET, "dataset=python_docs", "dataset.tokenizer.vocab_size=500"],
        [*GPT, "dataset=causal_python_docs", "dataset.tokenizer.vocab_size=500"],
        [*NET, "dataset=entities", *SIZES, "dataset.tokenizer.vocab_size=300"],
    ],
    ids=["masked", "causal", "token"],
)
def test_resumed_is_never_stopped(overrides: list[str], tmp_path: Path) -> None:
    plain = ["stage=pretrain", *overrides, "engine.eval_every=3", "engine.save_every=2"]
    whole = run_job(tmp_path / "whole", *plain)
    job = make_job([*SMALL, *plain, "resume=auto"], tmp_path / "parts")
    from dataclasses import replace

    from hydratune.experiment.run import run_job as go

    go(replace(job, halt=0.5))
    assert checkpoint.steps(job.directory / "checkpoints")
    again = go(job)
    one, other = weights(whole), weights(again)
    assert all(torch.equal(one[n], other[n]) for n in one)
    assert whole.record.history == again.record.history


def test_a_gpt_writes_in_tensorboard_and_classifies(tmp_path: Path) -> None:
    base = [*GPT, "dataset=causal_python_docs", "dataset.tokenizer.vocab_size=500", "dataset.task.generate=12"]
    writer = run_job(tmp_path / "a", "stage=pretrain", *base, "engine.eval_every=6")
    shown = texts(writer.directory)
    assert len(shown["val/generated"]) == 2 and "goes on" in shown["val/generated"][0]
    assert {"batch", "val/predicted"} <= shown.keys()
    metrics = writer.record.metrics
    assert metrics["val_bits_per_byte"] > 0 and metrics["test_bits_per_byte"] > 0
    result = run_job(
        tmp_path / "b", "stage=finetune", *GPT, "dataset=sentiment", *SIZES, f"init_from={writer.directory}",
        "freeze=lora", "freeze.rank=2",
    )  # fmt: skip
    assert (result.directory / "adapter" / "adapter_config.json").is_file()
    found = [n for n in weights(result) if "lora_A" in n]
    assert len(found) == 8 and not any(n.startswith("score") for n in found)
    shown = texts(result.directory)
    assert {"batch", "val/per_class", "val/worst_mistakes"} <= shown.keys()


def test_what_a_run_exports_answers_as_the_run_does(pretrained: Any, tmp_path: Path) -> None:
    import transformers

    result = run_job(
        tmp_path, "stage=finetune", *NET, "dataset=entities", *SIZES, f"init_from={pretrained.directory}", "steps=40"
    )
    home = result.directory / "export"
    model = transformers.AutoModelForTokenClassification.from_pretrained(home).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(home)
    said = tokenizer(["Ada", "lives", "in", "Paris", "."], is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(said["input_ids"], said["attention_mask"]).logits
    assert logits.shape == (1, said["input_ids"].shape[1], 7)
    assert sorted(model.config.id2label.values()) == ["B-LOC", "B-ORG", "B-PER", "I-LOC", "I-ORG", "I-PER", "O"]
    best = weights(result)
    own = model.state_dict()
    assert all(torch.equal(own[n], t) for n, t in best.items())
    # And it is where a fine-tuning may begin: by its directory, tokenizer and all.
    more = run_job(
        tmp_path / "again",
        "stage=finetune",
        "model=hf",
        f"model.name={home}",
        "dataset=entities",
        *SIZES,
        "init_from=auto",
    )
    assert more.record.lineage.weights.endswith("export/model.safetensors")
    assert more.record.metrics["val_f1"] >= 0


@pytest.mark.slow
def test_the_sweep_of_the_readme(tmp_path: Path) -> None:
    """Shared trunks and probes, side by side; a job of it alone is the same to the last bit."""
    base = [
        "experiment=bert_tiny_sentiment", *NET, "dataset=sentiment", *SIZES, *PRE, "batch_size=16", "epochs=null",
        "steps=8", "runtime.precision=fp32",
    ]  # fmt: skip
    grid = ["optimizer.lr=1e-3,3e-3", "freeze=head_only,last_groups,gradual,lora,none"]
    done = hydratune("-m", *base, *grid, "hydra.sweep.dir=s", "sweep.jobs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    records = {p.parent.name: json.loads(p.read_text()) for p in tmp_path.glob("s/*/run.json")}
    assert len(records) == 10 and all(r["status"] == "complete" for r in records.values())
    assert any(r.get("trained_with") for r in records.values())
    for wanted in ("freeze=last_groups,optimizer.lr=0.001", "freeze=lora,optimizer.lr=0.003"):
        name = next(n for n in records if n.startswith(wanted))
        alone = hydratune(*base, *wanted.split(","), "name=alone_" + str(len(name)), f"hydra.run.dir=alone/{len(name)}",
                          f"runtime.threads={records[name]['runtime']['threads']}", "test=false",
                          cwd=tmp_path)  # fmt: skip
        assert alone.returncode == 0, alone.stdout + alone.stderr
        one, other = (
            checkpoint.load(next(d.glob("checkpoints/step-00000008"))).model
            for d in (tmp_path / "s" / name, tmp_path / "alone" / str(len(name)))
        )
        assert all(torch.equal(one[n], other[n]) for n in one), name


@pytest.mark.slow
@pytest.mark.parametrize("data", ["causal_python_docs", "entities"])
def test_two_processes_train_what_one_does(data: str, tmp_path: Path) -> None:
    """Ragged parts, other padding for each rank: the same loss, gradients and counts."""
    from tests.faults.harness import run

    net = GPT if data.startswith("causal") else [*NET, "dataset.train=203", "dataset.val=61", "dataset.test=61"]
    plain = ["model.config.hidden_dropout_prob=0.0", "model.config.attention_probs_dropout_prob=0.0"]
    options = ["stage=pretrain", *net, f"dataset={data}", *SMALL, *(PLAIN if net is GPT else plain),
               "dataset.tokenizer.vocab_size=500", "hydra.run.dir=run", "runtime.threads=1"]  # fmt: skip
    found = []
    for world in (1, 2):
        home = tmp_path / str(world)
        home.mkdir()
        done = run(*options, cwd=home, world=world)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append(json.loads((home / "run" / "run.json").read_text())["metrics"])
    assert found[0] == pytest.approx(found[1], rel=2e-3)
    shared = run(*options, "runtime.strategy=fsdp", "hydra.run.dir=other", cwd=tmp_path / "2", world=2)
    if data.startswith("causal"):
        assert shared.returncode != 0 and "transformer.wte.weight belongs to several groups" in shared.stderr
    else:
        assert shared.returncode == 0, shared.stdout + shared.stderr


def test_a_sentence_for_what_is_missing_or_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("review,stars\ngood film,5\nbad film,1\n")
    base = ["stage=finetune", "init_from=null"]
    for overrides, said in (
        ([*NET, "dataset=text_csv", "dataset.path=rows.csv"],
         "dataset.text=text: rows.csv line 2 has no such column; it has review, stars"),
        (["model=resnet20", "dataset=sentiment"], "model: takes no text, and the data set has nothing else"),
        ([*NET, "dataset=shapes10"], "takes text, and the data set has none"),
        ([*NET, "dataset=causal_python_docs"], "bert is not made for causal language modelling"),
        (["model=hf", "model.name=nothing_here", "dataset=sentiment"], "nothing_here"),
        ([*NET, "dataset=sentiment", "dataset.tokenizer.kind=words"], "wordpiece, bpe, bytes"),
        ([*NET, "dataset=sentiment", "dataset.max_lenght=9"], "max_length"),
        ([*NET, "dataset=sentiment", "model.config.num_attention_heads=3"], "model.config: bert cannot be built so"),
        (["model=hf", "model.name=./nothing", "dataset=sentiment"], "model.name, unless it is given"),
    ):  # fmt: skip
        done = hydratune(*base, *overrides, cwd=tmp_path, HF_HUB_OFFLINE="1")
        assert done.returncode == 2 and said in done.stderr, (overrides, done.stdout, done.stderr)
        assert len(done.stderr.strip().splitlines()) <= 2, done.stderr


def test_without_the_extra_a_sentence_names_the_command(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    for name in ("transformers", "tokenizers"):
        (hidden / name).mkdir(parents=True)
        (hidden / name / "__init__.py").write_text("raise ImportError('not here')\n")
    done = hydratune("experiment=bert_tiny_mlm", cwd=tmp_path, PYTHONPATH=str(hidden))
    assert done.returncode == 2 and "pip install 'hydratune[text]'" in done.stderr, done.stderr
    plain = hydratune("--help", cwd=tmp_path, PYTHONPATH=str(hidden))
    assert plain.returncode == 0


def test_importing_hydratune_imports_no_transformers() -> None:
    import subprocess

    code = "import sys, hydratune.experiment.run, hydratune.data.text.corpus, hydratune.tasks.language; "
    code += "import hydratune.models.text.huggingface; "
    code += "assert not {'transformers', 'tokenizers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
