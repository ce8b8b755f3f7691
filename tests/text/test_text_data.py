"""Tokenizers, batches by length, and what is read from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hydratune.core.ragged import one_after_the_other, side_by_side, starts_of
from hydratune.core.types import Batch
from hydratune.data.stream import Batches, Placement
from hydratune.data.text.corpus import Corpus, PythonDocumentation, TextCorpus
from hydratune.data.text.labelled_text import ColumnFiles, TextTable
from hydratune.data.text.sentences import BLAME, PRAISE, GeneratedEntities, GeneratedSentiment
from hydratune.data.text.text_dataset import TextDataset
from hydratune.data.text.text_stream import Noise, TextStream
from hydratune.data.text.tokenizer import TokenizerRecipe
from hydratune.tasks.language import CausalLanguage, MaskedLanguage
from hydratune.tasks.text import SequenceClassification, TokenClassification
from tests.text.small import CPU, Tags, Texts, sentences, trained


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRATUNE_CACHE", str(tmp_path / "cache"))


def stream_of(data: TextDataset, name: str = "train", size: int = 4, training: bool = True, **more: Any) -> TextStream:
    bucket = more.pop("bucket", data.bucket)
    batches, place = Batches(size, 3, training), Placement(CPU, **more)
    return TextStream(data.split(name), data.spec(), data.task, data.tokenizer, batches, place, bucket)


# ---- padding


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_side_by_side_and_one_after_the_other_are_inverse(sizes: list[int]) -> None:
    lengths = torch.tensor(sizes)
    flat = torch.randn(int(lengths.sum()), 3)
    padded = side_by_side(flat, starts_of(lengths), lengths, max(sizes) + 2)
    assert padded.shape == (len(sizes), max(sizes) + 2, 3)
    assert torch.equal(one_after_the_other(padded, lengths), flat)
    for row, size in zip(padded, sizes, strict=True):
        assert not row[size:].any()


# ---- tokenizers


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "bytes"])
def test_the_same_texts_train_the_same_tokenizer(kind: str, tmp_path: Path) -> None:
    texts = [text for text, _ in sentences()] * 3
    recipe = {"kind": kind, "vocab_size": 300}
    one, other = (TokenizerRecipe(**recipe).tokenizer(lambda: texts, key, None) for key in ("a", "b"))  # type: ignore[arg-type]
    assert one.home != other.home
    assert one.digest == other.digest
    assert one.vocab_size == 258 if kind == "bytes" else one.vocab_size <= 300
    one.save(tmp_path / "kept", 64)
    again = TokenizerRecipe().tokenizer(list, "", str(tmp_path / "kept"))
    for longest, said in ((32, 64), (128, 128)):  # what it was told before is not made shorter
        again.save(tmp_path / "again", longest)
        assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["model_max_length"] == said
    again = TokenizerRecipe().tokenizer(list, "", str(tmp_path / "kept"))
    assert again.digest == one.digest and again.special == one.special


def test_a_tokenizer_is_trained_once(tmp_path: Path) -> None:
    asked = []

    def texts() -> list[str]:
        asked.append(1)
        return ["a few words", "a few more"]

    for _ in range(3):
        TokenizerRecipe(vocab_size=120).tokenizer(texts, "key", None)
    assert len(asked) == 1


def test_another_tokenizer_than_that_of_the_weights_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, ["one two three"]).save(tmp_path / "one", 64)
    trained(tmp_path, ["one two three"], kind="bpe", vocab_size=270).save(tmp_path / "two", 64)
    recipe = TokenizerRecipe(name=str(tmp_path / "one"))
    assert recipe.tokenizer(list, "", str(tmp_path / "one")).vocab_size
    with pytest.raises(ValueError, match=r"dataset.tokenizer.name=.*one: is not the tokenizer that the weights"):
        recipe.tokenizer(list, "", str(tmp_path / "two"))
    with pytest.raises(ValueError, match="no tokenizer could be read there .no such directory"):
        TokenizerRecipe(name=str(tmp_path / "nothing")).tokenizer(list, "", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no tokenizer could be read there .(?!no such)"):
        TokenizerRecipe(name=str(tmp_path / "empty")).tokenizer(list, "", None)


@pytest.mark.parametrize(
    ("trained_as", "wished", "said"),
    [
        ({}, {}, ""),
        ({}, {"kind": "wordpiece", "lowercase": False}, ""),
        ({}, {"lowercase": True}, "it is wordpiece, with capitals: lowercase=true asks for another pretraining"),
        ({"lowercase": True}, {"lowercase": True}, ""),
        ({"lowercase": True}, {"kind": "bpe", "lowercase": False}, "it is wordpiece, lower case: kind=bpe and lower"),
        ({"kind": "bpe", "vocab_size": 300}, {"kind": "bpe"}, ""),
        ({"kind": "bpe", "vocab_size": 300}, {"kind": "bytes"}, "kind=bytes asks for another pretraining"),
        ({"kind": "bytes"}, {}, ""),
        ({"kind": "bytes"}, {"kind": "wordpiece"}, "it is bytes, with capitals: kind=wordpiece asks for another"),
    ],
)
def test_wishes_that_an_inherited_tokenizer_does_not_fulfil_are_told(
    trained_as: dict[str, Any], wished: dict[str, Any], said: str, tmp_path: Path
) -> None:
    trained(tmp_path, ["One two three two three"] * 3, **trained_as).save(tmp_path / "kept", 64)
    told = TokenizerRecipe(**wished).tokenizer(list, "", str(tmp_path / "kept")).message
    assert said in told and ("asks for" in told) == bool(said), told


@given(st.text(max_size=40))
@settings(max_examples=50, deadline=None)
def test_tokens_of_bytes_stand_for_their_bytes(text: str) -> None:
    own = _of_bytes()
    tokens, lengths, cut = own.encode([text], None, wrap=False)
    size = sum(own.token_bytes[t] for t in tokens.tolist())
    assert size == len(text.encode()) and int(lengths) == len(tokens) and not cut
    assert own.decode([t for t in tokens.tolist() if own.token_bytes[t]]) == text


def _of_bytes(found: list[Any] = []) -> Any:  # noqa: B006
    if not found:
        found.append(trained(Path("bytes"), ["a bit of text", "and more text"], kind="bpe", vocab_size=270))
    return found[0]


def test_long_texts_keep_their_ends_and_empty_ones_are_samples(tmp_path: Path) -> None:
    own = trained(tmp_path, ["one two three four five"])
    tokens, lengths, cut = own.encode(["one two three four five", "", "two"], 4)
    assert lengths.tolist() == [4, 2, 3] and cut == 1
    assert tokens[0] == own.special["cls"] and tokens[3] == own.special["sep"]


# ---- batches


def test_batches_are_a_function_of_seed_and_epoch_and_of_about_one_length() -> None:
    data = Texts(SequenceClassification(), {"train": sentences(200)})
    stream, again = stream_of(data), stream_of(data)
    orders = [stream.order(e) for e in range(3)]
    assert all(torch.equal(o, again.order(e)) for e, o in enumerate(orders))
    assert not torch.equal(orders[0], orders[1])
    for order in orders:
        assert len(order) == stream.steps_per_epoch * 4 == len(set(order.tolist()))
    lengths = stream.split.lengths
    widest = {bucket: _padded(stream_of(data, bucket=bucket).order(0), lengths) for bucket in (1, 8)}
    assert widest[8] < 0.8 * widest[1]


def _padded(order: torch.Tensor, lengths: torch.Tensor) -> float:
    return float(lengths[order].view(-1, 4).max(1).values.sum())


def test_from_any_step_the_batches_are_the_same() -> None:
    data = Texts(MaskedLanguage(), {"train": sentences(60)})
    stream = stream_of(data)
    whole = list(stream.batches(0, 25))
    rest = list(stream_of(data).batches(13, 25))
    assert all(_same(a, b) for a, b in zip(whole[13:], rest, strict=True))


def _same(a: Batch, b: Batch) -> bool:
    pairs = [*zip(a.inputs, b.inputs, strict=True), (a.targets, b.targets), (a.ids, b.ids)]
    return all(torch.equal(x, y) for x, y in pairs)


def test_ranks_share_a_batch_and_see_the_same_masks() -> None:
    data = Texts(MaskedLanguage(), {"train": sentences(60)})
    whole = next(stream_of(data, size=6).batches(4, 5))
    parts = [next(stream_of(data, size=6, rank=r, world=2).batches(4, 5)) for r in range(2)]
    assert sorted(torch.cat([p.ids for p in parts]).tolist()) == sorted(whole.ids.tolist())
    rows = {int(i): whole.inputs.values[k, : whole.inputs.lengths[k]] for k, i in enumerate(whole.ids)}
    for part in parts:
        for k, i in enumerate(part.ids.tolist()):
            assert torch.equal(part.inputs.values[k, : part.inputs.lengths[k]], rows[i])


def test_evaluation_sees_every_sample_once() -> None:
    data = Texts(SequenceClassification(), {"train": sentences(61)})
    stream = stream_of(data, "val", training=False)
    ids = torch.cat([batch.ids for batch in stream.eval_batches()])
    assert sorted(ids.tolist()) == list(range(len(stream.split)))


@pytest.mark.parametrize("count", [5, 13, 41])
def test_in_evaluation_every_process_has_something_in_every_batch(count: int) -> None:
    data = Texts(SequenceClassification(), {"train": sentences(60), "val": sentences(count)})
    counted = [
        [b.ids.tolist() for b in stream_of(data, "val", size=4, training=False, rank=r, world=3).eval_batches()]
        for r in range(3)
    ]
    assert len({len(batches) for batches in counted}) == 1 and all(ids for batches in counted for ids in batches)
    assert sorted(i for batches in counted for ids in batches for i in ids) == list(range(count))


def test_noise_depends_on_sample_and_position_alone() -> None:
    one = Noise(1, 2, torch.tensor([5, 9]), 8).uniform("choice")
    other = Noise(1, 2, torch.tensor([9, 7, 5]), 12).uniform("choice")
    assert torch.equal(one[0], other[2, :8]) and torch.equal(one[1], other[0, :8])
    for changed in (Noise(2, 2, torch.tensor([5]), 8), Noise(1, 3, torch.tensor([5]), 8)):
        assert not torch.equal(changed.uniform("choice")[0], one[0])
    many = Noise(0, 0, torch.arange(400), 250)
    x, y = many.uniform("choice"), many.uniform("fate")
    assert float(x.min()) >= 0 and float(x.max()) < 1
    assert abs(float(x.mean()) - 0.5) < 0.005 and abs(float(x.var()) - 1 / 12) < 0.001
    for a, b in ((x, y), (x[:, 1:], x[:, :-1]), (x[1:], x[:-1])):  # neither names, positions nor samples go together
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.01


def test_masks_hide_the_share_that_was_asked_for() -> None:
    data = PythonDocumentation(MaskedLanguage(0.15), TokenizerRecipe(vocab_size=1000), max_length=64)
    stream = stream_of(data, size=64)
    spec, seen = data.spec(), [0, 0, 0, 0]
    for batch in stream.batches(0, 20):
        plain = side_by_side(
            stream.split.tokens, stream.split.starts[batch.ids], stream.split.lengths[batch.ids],
            batch.inputs.values.shape[1], spec.special["pad"],
        ).long()  # fmt: skip
        chosen = batch.targets != -100
        assert torch.equal(plain.gather(1, batch.inputs.asked)[chosen], batch.targets[chosen])
        shown = batch.inputs.values.gather(1, batch.inputs.asked)
        other = torch.ones_like(plain, dtype=torch.bool).scatter(1, batch.inputs.asked, ~chosen)
        assert torch.equal(plain[other], batch.inputs.values[other])  # nothing else was touched
        masked, kept = shown[chosen] == spec.special["mask"], shown[chosen] == batch.targets[chosen]
        assert not torch.isin(batch.targets[chosen], torch.tensor(list(spec.special.values()))).any()
        seen = [
            a + int(b) for a, b in zip(seen, (chosen.sum(), masked.sum(), kept.sum(), (plain > 4).sum()), strict=True)
        ]
    assert abs(seen[0] / seen[3] - 0.15) < 0.01
    assert abs(seen[1] / seen[0] - 0.8) < 0.02 and abs(seen[2] / seen[0] - 0.1) < 0.02
    first = next(stream.batches(0, 1))
    sample = int(first.ids[0])
    later = [b for b in stream.batches(stream.steps_per_epoch, 2 * stream.steps_per_epoch) if sample in b.ids.tolist()]
    again = later[0].inputs.asked[later[0].ids.tolist().index(sample)]
    assert set(again.tolist()) != set(first.inputs.asked[0].tolist())  # others in every epoch


def test_the_next_token_of_every_token_is_asked_for_once() -> None:
    class Few(Corpus):
        def documents(self) -> dict[str, list[str]]:
            return {"train": ["one two three four five six seven " * 5, "eight nine"], "val": ["ten"], "test": ["ten"]}

    data = Few(CausalLanguage(), TokenizerRecipe(kind="bytes"), max_length=16, bucket=1)
    split = data.split("train")
    seen: dict[int, int] = {}
    for batch in stream_of(data, size=3, training=False).eval_batches():
        for i, row in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
            for k, token in enumerate(t for t in row if t != -100):
                seen[int(split.starts[i]) + k + 1] = token
    assert seen == {i: t for i, t in enumerate(split.tokens.tolist()) if i}
    assert data.tokenizer.decode(split.tokens.tolist()) == "".join(data._parts["train"])
    bytes_of_train = sum(data.tokenizer.token_bytes[t] for t in split.tokens.tolist())
    assert bytes_of_train == len("".join(data._parts["train"]).encode())


def test_labels_belong_to_the_first_token_of_a_word() -> None:
    rows = [(["Unbelievable", "Ada", "sings"], ["O", "B-PER", "O"]), (["in", "Paris"], ["O", "B-LOC"])] * 10
    data = Tags(TokenClassification(), {"train": rows})
    stream = stream_of(data, size=8)
    batch = next(stream.batches(0, 1))
    names = data.class_names()
    for k, i in enumerate(batch.ids.tolist()):
        labels = [t for t in batch.targets[k].tolist() if t != -100]
        start, length = int(stream.split.starts[i]), int(stream.split.lengths[i])
        pieces = data.tokenizer.fast.convert_ids_to_tokens(stream.split.tokens[start : start + length].tolist())
        words, tags = data.parts["train"][i]
        assert [names[t] for t in labels] == tags
        firsts = [p for p, t in zip(pieces, batch.targets[k].tolist(), strict=False) if t != -100]
        assert not any(p.startswith(("##", "[C")) for p in firsts)
        assert [w.startswith(p) for w, p in zip(words, firsts, strict=True)] == [True] * len(words)


# ---- files


def table(path: Path, content: str | bytes, **more: Any) -> TextTable:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return TextTable(SequenceClassification(), TokenizerRecipe(vocab_size=150), str(path), **more)


ROWS = [(f"word{i} and, more", "good" if i % 2 else "bad") for i in range(40)]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_tables_of_every_kind_hold_the_same(kind: str, tmp_path: Path) -> None:
    content = {
        "csv": "text,label\n" + "".join(f'"{t}",{c}\n' for t, c in ROWS),
        "tsv": "text\tlabel\n" + "".join(f"{t}\t{c}\n" for t, c in ROWS),
        "jsonl": "".join(json.dumps({"text": t, "label": c}) + "\n" for t, c in ROWS),
    }[kind]
    data = table(tmp_path / f"rows.{kind}", content)
    assert list(data.class_names()) == ["bad", "good"]
    assert sorted(r for part in data.parts.values() for r in part) == sorted(ROWS)
    assert {k: len(v) for k, v in data.parts.items()} == {"train": 32, "test": 4, "val": 4}


def test_a_folder_with_parts_and_no_header(tmp_path: Path) -> None:
    for part, rows in (("train", ROWS), ("dev", ROWS[:6]), ("test", ROWS[6:12])):
        (tmp_path / f"{part}.tsv").write_text("".join(f'"{t}\t{c}\n' for t, c in rows))
    data = TextTable(
        SequenceClassification(), TokenizerRecipe(vocab_size=150), str(tmp_path), text=0, label=1, header=False
    )
    assert {k: len(v) for k, v in data.parts.items()} == {"train": 40, "val": 6, "test": 6}
    assert data.parts["val"][0][0] == f'"{ROWS[0][0]}'  # a lone quotation mark is one, in TSV


@pytest.mark.parametrize(
    ("content", "more", "said"),
    [
        (
            "txt,label\nhi,a\nho,b\n",
            {},
            r"dataset.text=text: .* line 2 has no such column; nearest: txt. it has txt, label",
        ),
        ("", {}, "rows.csv is empty"),
        ("  \n\n", {}, "rows.csv is empty"),
        (b"text,label\nh\xe9,a\n", {}, r"rows.csv is not UTF-8: byte 0xe9 in line 2; iconv"),
        ("text,label\n" + "hi,a\n" * 20, {}, "train has the one label a"),
        ("text,label\n" + "hi,a\nho,b\n" * 9, {"classes": ["a"]}, "nothing to tell apart|does not have"),
        (
            "text,label\n" + "hi,a\nho,b\nhu,c\n" * 9,
            {"classes": ["a", "b"]},
            "label 'c' .*dataset.classes does not have",
        ),
        ("text,label\nhi,a\nho\n", {}, "rows.csv line 3 has 1 value for 2 columns$"),
        (
            "text,label\nhi,a\nhello, world,b\n",
            {},
            "rows.csv line 3 has 3 values for 2 columns; values that hold a comma need",
        ),
        ("text,label\nhi,a\nho,\n", {}, "dataset.label=label: is empty in .*rows.csv line 3"),
        (
            'text,label\n"hi,a\nho,b\n',
            {},
            "rows.csv line 3: unexpected end of data .*a quote within a value is doubled",
        ),
        ("text;label\nhi, you;a\n", {}, "rows.csv has no commas between its values"),
        ("text,label\n", {}, "train has no rows"),
        (b"\xff\xfeh\0i\0", {}, "rows.csv is not UTF-8: byte 0xff in line 1; iconv -f utf-16"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(content: str | bytes, more: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        table(tmp_path / "rows.csv", content, **more).class_names()


def test_a_label_that_training_never_saw(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\n")
    (tmp_path / "test.csv").write_text("text,label\nc,z\n")
    (tmp_path / "val.csv").write_text("text,label\nc,x\n")
    data = TextTable(SequenceClassification(), TokenizerRecipe(vocab_size=150), str(tmp_path))
    with pytest.raises(ValueError, match=r"test has the label 'z' \(of 'c'\), which train never has; labels: x, y"):
        data.spec()


def test_no_such_file_or_nothing_in_the_folder(tmp_path: Path) -> None:
    def of(path: Path) -> TextTable:
        return TextTable(SequenceClassification(), TokenizerRecipe(), str(path))

    with pytest.raises(ValueError, match=r"dataset.path=.*nowhere: no such file or folder"):
        of(tmp_path / "nowhere").class_names()
    with pytest.raises(ValueError, match=r"holds no .csv or .tsv"):
        of(tmp_path).class_names()
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": 1}\n{"text": \n')
    with pytest.raises(ValueError, match=r"bad.jsonl line 2 is no JSON"):
        of(tmp_path / "bad.jsonl").class_names()


CONLL = "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\nBlack NNP I-NP I-PER\n"


def test_columns_of_words(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(CONLL)
    for name in ("dev", "test"):
        (tmp_path / f"{name}.txt").write_text("EU NNP B-NP B-ORG\n\n")
    data = ColumnFiles(TokenClassification(), TokenizerRecipe(vocab_size=120), str(tmp_path))
    assert data.parts["train"] == [(["EU", "rejects"], ["B-ORG", "O"]), (["Peter", "Black"], ["B-PER", "I-PER"])]
    assert data.class_names() == ["B-ORG", "B-PER", "I-PER", "O"]
    (tmp_path / "train.txt").write_text("EU\n\n")
    with pytest.raises(ValueError, match="train.txt line 1 has 1 column, not word=0 and tag=3"):
        ColumnFiles(TokenClassification(), TokenizerRecipe(), str(tmp_path), tag=3).class_names()


def test_a_corpus_of_files_or_of_lines(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text("".join(f"line {k} of file {i}\n" for k in range(30)))

    def parts(**more: Any) -> dict[str, list[str]]:
        return TextCorpus(MaskedLanguage(), TokenizerRecipe(vocab_size=120), str(tmp_path), **more)._parts

    whole, lines = parts(val_share=0.1, test_share=0.1), parts(documents="line", val_share=0.1, test_share=0.1)
    for i in range(3):  # each file gives its end
        text = (tmp_path / f"{i}.txt").read_text()
        assert whole["train"][i] + whole["val"][i] + whole["test"][i] == text
    assert len(lines["train"]) + len(lines["val"]) + len(lines["test"]) == 90
    assert len(lines["test"]) == 9 and not set(lines["test"]) & set(lines["train"])


def test_a_data_set_of_the_hub_s_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    from hydratune.data.text.hub import HubTexts

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    home = tmp_path / "mine"
    home.mkdir()
    for part, rows in (("train", ROWS), ("test", ROWS[:4])):
        (home / f"{part}.jsonl").write_text("".join(json.dumps({"text": t, "label": c}) + "\n" for t, c in rows))

    def of(name: Path, **more: Any) -> HubTexts:
        return HubTexts(SequenceClassification(), TokenizerRecipe(vocab_size=150), str(name), **more)

    data = of(home)
    assert {k: len(v) for k, v in data.parts.items()} == {"train": 36, "val": 4, "test": 4}
    assert data.class_names() == ["bad", "good"]
    with pytest.raises(ValueError, match=r"dataset.text=txt: .* has no such column in train; it has text, label"):
        of(home, text="txt").class_names()
    with pytest.raises(ValueError, match=r"dataset.name=.*nothing: could not be had"):
        of(tmp_path / "nothing").class_names()


def test_a_data_set_of_the_hub_keeps_its_classes_and_tells_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of MNLI and SNLI: pairs, classes in an order of their own, some rows and the whole test part without label."""
    datasets = pytest.importorskip("datasets")
    from hydratune.data.text.hub import HubTexts

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    classes = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    features = datasets.Features({"premise": datasets.Value("string"), "hypothesis": datasets.Value("string"),
                                  "label": classes})  # fmt: skip
    home = tmp_path / "mine"
    home.mkdir()
    for part, labels in (("train", [0, 1, 2, -1] * 10), ("validation_matched", [2, 1, 0]), ("test_matched", [-1] * 4)):
        rows = {"premise": ["it rains"] * len(labels), "hypothesis": ["wet"] * len(labels), "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(home / f"{part}.parquet")
    pair = ["premise", "hypothesis"]
    files = {"train": "train.parquet", "validation_matched": "validation_matched.parquet",
             "test_matched": "test_matched.parquet"}  # fmt: skip
    (home / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {k}\n    path: {v}\n" for k, v in files.items()) + "---\n"
    )  # fmt: skip
    data = HubTexts(SequenceClassification(), TokenizerRecipe(vocab_size=150), str(home), text=pair)
    assert data.class_names() == ["entailment", "neutral", "contradiction"]
    assert {k: len(v) for k, v in data.parts.items()} == {"train": 27, "val": 3, "test": 3}
    assert data.parts["val"][0] == (("it rains", "wet"), "contradiction")
    assert data.split_summary(data.split("train")) == (
        "10 rows without a label are left out; 27 texts; entailment 9, neutral 9, contradiction 9"
    )


# ---- generated sets


def test_generated_sentences_are_deterministic_and_balanced() -> None:
    one, other = (GeneratedSentiment(SequenceClassification(), TokenizerRecipe(), 300, 50, 50) for _ in range(2))
    assert one.parts == other.parts and one.digest() == other.digest()
    assert (
        one.digest()
        != GeneratedSentiment(SequenceClassification(), TokenizerRecipe(), 300, 50, 50, split_seed=1).digest()
    )
    labels = [label for _, label in one.parts["train"]]
    assert labels.count("positive") == 150
    assert not set(one.parts["train"]) & set(one.parts["test"])


def test_no_word_tells_the_sentiment_and_no_name_the_entity() -> None:
    rows = GeneratedSentiment(SequenceClassification(), TokenizerRecipe(), 3000, 10, 10).parts["train"]
    for word in (*PRAISE, *BLAME, "not", "but"):
        having = [label for text, label in rows if word in text.replace(",", "").split()]
        assert 0.3 < having.count("positive") / len(having) < 0.7, word
    pairs = GeneratedEntities(TokenClassification(), TokenizerRecipe(), 3000, 10, 10).parts["train"]
    kinds: dict[str, set[str]] = {}
    for words, tags in pairs:
        for word, tag in zip(words, tags, strict=True):
            if tag != "O" and word not in ("and", "New"):
                kinds.setdefault(word, set()).add(tag[2:])
    several = [name for name, found in kinds.items() if len(found) > 1]
    assert len(several) > len(kinds) / 2


# ---- words


def test_words_of_bytes_keep_their_spaces(tmp_path: Path) -> None:
    """As transformers does with add_prefix_space, which its example for entities sets for such tokenizers."""
    import transformers
    from tokenizers import pre_tokenizers

    own = _of_bytes()
    words = ["more", "text", "and", "'s", "a", "bit"]
    tokens, lengths, begins = own.encode_words([words, ["text"]], 64)
    assert own.decode(tokens.tolist()[: int(lengths[0])]) == " more text and 's a bit"
    backend = type(own.fast.backend_tokenizer).from_str(own.fast.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)([words, ["text"]], is_split_into_words=True)
    assert tokens.tolist() == [i for ids in theirs["input_ids"] for i in ids]
    expected = []
    for i in range(2):
        ids = theirs.word_ids(i)
        expected += [w if w != before else -1 for w, before in zip(ids, [None, *ids], strict=False)]
    assert begins.tolist() == expected
    own.save(tmp_path / "export", 64, words=True)  # reads words as they were read here
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    assert again([words, ["text"]], is_split_into_words=True)["input_ids"] == theirs["input_ids"]


@given(st.lists(st.text("abcd'é.-", min_size=1, max_size=6), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_words_are_tokenized_as_transformers_does(words: list[str]) -> None:
    own = _of_pieces()
    tokens, lengths, begins = own.encode_words([words], 64)
    theirs = own.fast(words, is_split_into_words=True)
    assert tokens.tolist() == theirs["input_ids"] and int(lengths) == len(tokens)
    ids = theirs.word_ids(0)
    expected = [-1 if w is None or w == before else w for w, before in zip(ids, [None, *ids], strict=False)]
    assert begins.tolist() == expected


def _of_pieces(found: list[Any] = []) -> Any:  # noqa: B006
    if not found:
        found.append(trained(Path("pieces"), ["ab cd abc dab é a.b c-d ' "] * 3, vocab_size=120))
    return found[0]


def test_words_that_are_cut_off_are_told() -> None:
    rows = [(["alpha"] * 40, ["O"] * 39 + ["B-X"]), (["beta", "\u200b"], ["B-X", "O"])] * 20
    data = Tags(TokenClassification(), {"train": rows})
    said = data.split_summary(data.split("train"))
    assert said.startswith("26 sentences of 546 words; 351 ")
    assert "words lie beyond 16 tokens, or have none, and are not scored" in said


# ---- where tokenizers come from


@pytest.mark.parametrize("kind", ["RobertaTokenizerFast", "BertTokenizerFast", None])
def test_a_model_s_directory_keeps_its_special_tokens(kind: str | None, tmp_path: Path) -> None:
    """Published directories say little in tokenizer_config.json: the model's kind knows what is special."""
    from tests.text.small import config

    roberta = kind != "BertTokenizerFast"
    source = _of_bytes() if roberta else _of_pieces()
    source.fast.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    if roberta:
        vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
        vocabulary |= {w: i + 5 for i, w in enumerate(w for w in content["model"]["vocab"] if not w.startswith("<|"))}
        content["model"]["vocab"] = vocabulary
        content["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    said = {"model_max_length": 512} | ({"tokenizer_class": kind} if kind else {})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    config("roberta" if roberta else "bert").save_pretrained(tmp_path)
    special = TokenizerRecipe(name=str(tmp_path)).tokenizer(list, "", None).special
    assert {"pad", "cls", "sep", "mask", "unk"} <= special.keys()
    if roberta:
        assert special["pad"] == 1 and special["mask"] == 4


def test_weights_without_their_tokenizer_are_refused(tmp_path: Path) -> None:
    from hydratune.experiment.job_group import dataset_of_job
    from tests.conftest import make_job

    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "model.safetensors"
    file.write_bytes(b"")

    def wanted(*more: str) -> str | None:
        job = make_job([f"init_from={file}", "model=bert_tiny", "dataset=sentiment", *more], tmp_path)
        return dataset_of_job(job).tokenizer_beside()  # type: ignore[attr-defined]

    with pytest.raises(ValueError, match="no tokenizer lies beside these weights; dataset.tokenizer.name should be"):
        wanted()
    assert wanted(f"dataset.tokenizer.name={tmp_path}") is None
    (tmp_path / "mine" / "tokenizer").mkdir()
    (tmp_path / "mine" / "tokenizer" / "tokenizer.json").write_text("{}")
    assert wanted() == str(tmp_path / "mine" / "tokenizer")  # as of a run's merged.safetensors
