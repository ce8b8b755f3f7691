"""Tables as users have them: columns, delimiters, labels, what is there twice; and files that are none."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from hydratune.cli.arguments import prepare
from hydratune.data.dataset import SPLITS
from hydratune.data.text.corpus import PythonDocumentation, TextCorpus
from hydratune.data.text.labelled_text import ColumnFiles, TextTable
from hydratune.data.text.labels import in_order
from hydratune.data.text.text_files import read_text
from hydratune.data.text.text_tables import cell
from hydratune.data.text.tokenizer import TokenizerRecipe
from hydratune.tasks.classification import Classification
from hydratune.tasks.language import CausalLanguage, MaskedLanguage
from hydratune.tasks.text import SequenceClassification, TokenClassification
from tests.conftest import hydratune
from tests.text.small import Tags, Texts, sentences


def table(path: Path, content: str | bytes, **more: Any) -> TextTable:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return TextTable(SequenceClassification(), TokenizerRecipe(vocab_size=150), str(path), **more)


def rows_of(path: Path, content: str | bytes, **more: Any) -> list[Any]:
    return table(path, content, **more).rows()["train"]


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# ---- labels


def test_equal_values_of_json_are_one_label(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": label} for label in (1, 1.0, "1", " 1", -0.0, 0, 2.5, True, False, 1e300)]
    labels = [label for _, label in rows_of(tmp_path / "a.jsonl", lines(rows))]
    assert labels == ["1", "1", "1", "1", "0", "0", "2.5", "true", "false", "1e+300"]
    assert rows_of(tmp_path / "a.json", json.dumps(rows[:2])) == [("a", "1"), ("a", "1")]


def test_values_of_numpy_are_words_too() -> None:
    numpy = pytest.importorskip("numpy")
    assert [cell(numpy.int64(3), "x"), cell(numpy.float32(2), "x"), cell(numpy.float64(0.5), "x")] == ["3", "2", "0.5"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "null"])
def test_what_is_no_value_is_no_label(value: str, tmp_path: Path) -> None:
    """Python's parser takes NaN and Infinity, which JSON does not have."""
    content = f'{{"text": "a", "label": 1}}\n{{"text": "b", "label": {value}}}\n'
    with pytest.raises(ValueError, match=r"label of .*a.jsonl line 2 holds (nan|-?inf|nothing), and no text or number"):
        rows_of(tmp_path / "a.jsonl", content)
    other = f'{{"text": "a", "label": 1, "score": {value}}}\n'  # in a column that nobody asks for
    assert rows_of(tmp_path / "a.jsonl", other) == [("a", "1")]


def table_of_labels(path: Path, labels: list[str], **more: Any) -> TextTable:
    return table(path, "text,label\n" + "".join(f"text {i},{label}\n" for i, label in enumerate(labels * 20)), **more)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            ["0", "1", "1.0"],
            "the labels '1' and '1.0', which are one number and would be two classes; write them alike",
        ),
        (["pos", "nan"], "the label 'nan', which is how a missing one is written"),
        (["pos", "NaN", "neg"], "the label 'NaN', which is how a missing one is written"),
        (["pos", "<NA>"], "the label '<NA>', which is how a missing one is written"),
    ],
)
def test_labels_that_only_a_mistake_can_make_are_refused(labels: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        table_of_labels(tmp_path / "a.csv", labels).class_names()
    named = table_of_labels(tmp_path / "a.csv", labels, classes=labels)  # whoever names them means them
    assert named.class_names() == labels and not named.doubts()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["Pos", "pos", "neg"], ["the labels 'Pos' and 'pos' look alike, and are classes of their own"]),
        (["a b", "a  b", "c"], ["the labels 'a  b' and 'a b' look alike, and are classes of their own"]),
        (["café", "cafe\u0301"], ["the labels 'cafe\u0301' and 'café' look alike, and are classes of their own"]),
        (["None", "for"], ["the label 'None', 16 times in train, may stand for a missing one"]),
        (["for", "against"], []),
    ],
)
def test_labels_that_may_be_a_mistake_are_told(labels: list[str], said: list[str], tmp_path: Path) -> None:
    assert list(table_of_labels(tmp_path / "a.csv", labels).check(False)) == said


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ("10 2 1", "1 2 10"),
        ("10 -1 2 0", "-1 0 2 10"),
        ("1.0 10.5 0.5 2.5", "0.5 1.0 2.5 10.5"),
        ("1e1 9", "9 1e1"),
        ("10 2 a", "10 2 a"),
        ("100000000000000000001 100000000000000000000", "100000000000000000000 100000000000000000001"),
    ],
)
def test_labels_that_are_numbers_are_in_their_order(labels: str, order: str) -> None:
    assert in_order(labels.split()) == order.split()


@pytest.mark.parametrize("classes", [["a", "a"], ["a"], ["a", "b", " a"], ["a", ""]])
def test_classes_that_cannot_be_told_apart_are_refused(classes: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset.classes=\["):
        table(tmp_path / "a.csv", "x", classes=classes)


def test_classes_may_be_given_as_numbers(tmp_path: Path) -> None:
    assert table_of_labels(tmp_path / "a.csv", ["0", "1"], classes=[1, 0]).class_names() == ["1", "0"]


# ---- columns


def test_numbers_that_are_names_of_other_columns_are_refused(tmp_path: Path) -> None:
    """pandas names columns 0 and 1 where nobody names them; in another order a number could mean either."""
    content = "1,0\npos,fine\nneg,bad\n"
    said = "dataset.text=0: in .*a.csv line 2 column number 0 is called '1', and number 1 is called '0'; say which by"
    with pytest.raises(ValueError, match=said):
        rows_of(tmp_path / "a.csv", content, text=0, label=1)
    assert rows_of(tmp_path / "a.csv", content, text="0", label="1")[0] == ("fine", "pos")
    assert rows_of(tmp_path / "a.csv", "0,1\nfine,pos\n", text=0, label=1) == [("fine", "pos")]
    assert rows_of(tmp_path / "a.csv", "2019,2020\nfine,pos\n", text=2019, label=2020) == [("fine", "pos")]
    assert rows_of(tmp_path / "a.csv", "fine,pos\n", text="0", label=1, header=False) == [("fine", "pos")]
    assert rows_of(tmp_path / "a.jsonl", '{"1": "pos", "0": "fine"}\n', text=0, label=1) == [("fine", "pos")]
    for text in (2, -1, "2"):
        with pytest.raises(ValueError, match=f"dataset.text={text}: .* has no such column; .*it has 0, 1"):
            rows_of(tmp_path / "a.csv", "0,1\nfine,pos\n", text=text, label=1)


def test_the_index_of_pandas_is_a_column_like_others(tmp_path: Path) -> None:
    for first in ("", "Unnamed: 0"):
        content = f"{first},text,label\n0,fine,pos\n1,bad,neg\n"
        assert rows_of(tmp_path / "a.csv", content) == [("fine", "pos"), ("bad", "neg")]


def test_a_column_for_two_things_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset.label=text: is what dataset.text is, too"):
        table(tmp_path / "a.csv", "x", label="text")
    with pytest.raises(ValueError, match="dataset.tag=1: is what dataset.word is, too"):
        ColumnFiles(TokenClassification(), TokenizerRecipe(), str(tmp_path), word=1, tag=1)


# ---- delimiters


@pytest.mark.parametrize(
    ("name", "content", "more"),
    [
        ("a.csv", "text|label\na, b|x\n", {"delimiter": "|"}),
        ("a.csv", "text\tlabel\na, b\tx\n", {"delimiter": "tab"}),
        ("a.csv", "text\tlabel\na, b\tx\n", {"delimiter": "\t"}),
        ("a.csv", "text\tlabel\na, b\tx\n", {"delimiter": "\\t"}),
        ("a.tsv", "text;label\na, b;x\n", {"delimiter": ";"}),
        ("a.txt", 'text,label\n"a, b",x\n', {"delimiter": ","}),
        ("a.csv", "sep=;\ntext;label\na, b;x\n", {}),
        ("a.csv", '\ufeff"sep=|"\r\ntext|label\r\na, b|x\r\n', {}),
        ("a.csv", "sep=;\ntext|label\na, b|x\n", {"delimiter": "|"}),
    ],
)
def test_delimiters(name: str, content: str, more: dict[str, Any], tmp_path: Path) -> None:
    assert rows_of(tmp_path / name, content, **more) == [("a, b", "x")]


def test_places_count_the_line_of_the_delimiter(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a.csv line 4 has 3 values for 2 columns; values that hold a semicolon need"):
        rows_of(tmp_path / "a.csv", "sep=;\ntext;label\na;x\nb;c;y\n")


@pytest.mark.parametrize(
    ("name", "mark", "said"),
    [
        ("a.csv", "|", "no commas between its values; 'dataset.delimiter=\"|\"' reads it"),
        ("a.csv", ";", "no commas between its values; 'dataset.delimiter=\";\"' reads it"),
        ("a.csv", "\t", "no commas between its values; 'dataset.delimiter=tab' reads it"),
        ("a.tsv", ",", "no tabs between its values; 'dataset.delimiter=\",\"' reads it"),
    ],
)
def test_a_table_with_another_delimiter_says_which(name: str, mark: str, said: str, tmp_path: Path) -> None:
    content = f"text{mark}label\nfine{mark}pos\n"
    with pytest.raises(ValueError) as error:
        rows_of(tmp_path / name, content)
    assert said in str(error.value)
    value = str(error.value).split("dataset.delimiter=")[1].split("'")[0].strip('"')
    assert rows_of(tmp_path / name, content, delimiter=value) == [("fine", "pos")]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"delimiter": "||"}, "dataset.delimiter=||: one character, tab, or null"),
        ({"delimiter": ""}, "dataset.delimiter=: one character"),
        ({"delimiter": "\n"}, "one character"),
        ({"quote": "''"}, "dataset.quote='': one character, auto, or null"),
        ({"quote": "|", "delimiter": "|"}, "dataset.delimiter=|: is what dataset.quote is, too"),
        ({"delimiter": '"'}, 'dataset.delimiter=": is what dataset.quote is, too'),
    ],
)
def test_marks_that_cannot_be_are_refused(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        table(tmp_path / "a.csv", "x", **more)
    assert said in str(error.value)


# ---- files that are none, or odd


def test_what_json_leaves_open_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a.jsonl line 2: an object has the key 'text' twice"):
        rows_of(tmp_path / "a.jsonl", '{"text": "a", "label": 1}\n{"text": "a", "text": "b", "label": 1}\n')
    with pytest.raises(ValueError, match="a.json is one JSON object; a list of objects is read"):
        rows_of(tmp_path / "a.json", json.dumps({"data": [{"text": "a", "label": 1}]}, indent=1))
    with pytest.raises(ValueError, match="a.json: it is nested too deeply"):
        rows_of(tmp_path / "a.json", "[" * 100_000)
    with pytest.raises(ValueError, match="a.jsonl line 1: Exceeds the limit"):
        rows_of(tmp_path / "a.jsonl", '{"text": ' + "9" * 5000 + "}")


def test_json_lines_with_a_mark_and_empty_lines(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"text": "a", "label": 1}\r\n\r\n  \n{"text": "b", "label": 2}'
    assert rows_of(tmp_path / "a.jsonl", content) == [("a", "1"), ("b", "2")]


def test_zero_bytes_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.csv holds a zero byte in line 2, .*iconv -f utf-16le"):
        rows_of(tmp_path / "a.csv", b"text,label\nfi\0ne,pos\n")


def test_the_line_of_a_wrong_byte_is_right_behind_a_mark(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not UTF-8: byte 0xe9 in line 2"):
        rows_of(tmp_path / "a.csv", b"\xef\xbb\xbftext,label\n\xe9,pos\n")


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", tmp_path):
        with pytest.raises(ValueError, match=f"dataset.path={path}: is no regular file"):
            read_text(path)
    with pytest.raises(ValueError, match=r"cannot be read .No such file"):
        read_text(tmp_path / "nothing")


def test_names_that_are_not_utf_8_can_be_told(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    odd = Path(os.fsdecode(os.fsencode(home) + b"/\xe9.csv"))
    try:
        odd.write_text("text,label\nx\n")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(ValueError) as error:
        TextTable(SequenceClassification(), TokenizerRecipe(), str(odd)).rows()
    assert r"\xe9.csv line 2 has 1 value" in str(error.value) and str(error.value).encode()
    (home / "train.csv").write_text("text,label\n" + "a,x\nb,y\n" * 20)
    said = TextTable(SequenceClassification(), TokenizerRecipe(vocab_size=150), str(home)).keep(tmp_path / "tokenizer")
    assert said.endswith(r"val nor test: \xe9.csv") and said.encode()


def test_homes_are_found_and_those_of_nobody_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.csv").write_text("text,label\nfine,pos\n")
    (tmp_path / "a.txt").write_text("words\n")
    assert TextTable(SequenceClassification(), TokenizerRecipe(), "~/a.csv").rows()["train"] == [("fine", "pos")]
    assert TextCorpus(MaskedLanguage(), TokenizerRecipe(), "~/a.txt").documents() == {"train": ["words\n"]}
    with pytest.raises(ValueError, match="dataset.path=~nobody_here/a.csv: no such file or folder"):
        TextTable(SequenceClassification(), TokenizerRecipe(), "~nobody_here/a.csv").rows()
    with pytest.raises(ValueError, match="dataset.tokenizer.name=~nobody_here/x .*no such directory"):
        TokenizerRecipe(name="~nobody_here/x").tokenizer(list, "", None)


def test_homes_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves ~ alone within a word, and Hydra's grammar has no such letter."""
    monkeypatch.setenv("HOME", "/home/me too")
    assert prepare(["dataset.path=~/a", "seed=1"]) == ["dataset.path='/home/me too/a'", "seed=1"]
    assert prepare(["-m", "dataset.path=~/a,~/b"])[1:] == ["dataset.path='/home/me too/a','/home/me too/b'"]
    for other in ("~dataset.path", "dataset.path='~/a'", "dataset.path=a~/b", "dataset.path=[~/a]"):
        assert prepare([other]) == [other]


def test_lines_of_words_have_as_many_columns(tmp_path: Path) -> None:
    """A word with a blank in it would have its half for a tag."""
    (tmp_path / "a.txt").write_text("EU B-ORG\nNew York B-LOC\n")
    with pytest.raises(ValueError, match="a.txt line 2 has 3 columns, and the first line has 2"):
        ColumnFiles(TokenClassification(), TokenizerRecipe(), str(tmp_path / "a.txt")).rows()


SMALL = {
    "a.csv": b'text,label\n"so, it is",1\nno,0\n"two\nlines",1\nfine,0\n',
    "a.tsv": b"text\tlabel\nso it is\tpos\nno\tneg\nfine\tpos\nbad\tneg\n",
    "a.jsonl": b'{"text": "so", "label": 1}\n{"text": "no", "label": 0.0}\n{"text": "ok", "label": true}\n',
    "a.json": b'[{"text": "so", "label": "a"}, {"text": "no", "label": "b"}, {"text": "ok", "label": "a"}]',
    "a.conll": b"-DOCSTART- -X- O\n\nEU NNP B-ORG\nsays VBZ O\n\n# id 3\nPeter NNP B-PER\n",
}
ODD = [
    *(bytes([i]) for i in b"\0\r\n\t,;\"'\\{}[]: #-\xff\xc3"), b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xa8",
    b"NaN", b"1e999", b"-Infinity", b"null", b"\\ud800", b"9" * 5000, b"[" * 3000, b"sep=;\n", b"text", b"label",
]  # fmt: skip


def mutated(dice: random.Random, content: bytes) -> bytes:
    result = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        at, other = dice.randrange(len(result) + 1), dice.randrange(len(result) + 1)
        result[at : at + dice.choice((0, 0, 1, 6))] = dice.choice((dice.choice(ODD), b"", result[other : other + 12]))
    return bytes(result)


@pytest.mark.parametrize("name", SMALL)
def test_nothing_but_a_sentence_comes_of_a_garbled_file(name: str, tmp_path: Path) -> None:
    dice, path, read = random.Random(name), tmp_path / name, 0
    for _ in range(400):
        path.write_bytes(mutated(dice, SMALL[name]))
        kind: Any = (ColumnFiles, TokenClassification()) if name == "a.conll" else (TextTable, SequenceClassification())
        data = kind[0](kind[1], TokenizerRecipe(vocab_size=150), str(path))
        try:
            data.rows()
        except Exception as error:
            assert type(error) is ValueError and str(path) in str(error), path.read_bytes()
            continue
        read += 1
        try:
            assert data.numbers and data.compared()
        except Exception as error:
            assert type(error) is ValueError, path.read_bytes()
    assert read > 10


# ---- what is there twice


def test_texts_that_are_there_twice_are_counted() -> None:
    rows = {
        "train": [("alpha beta", "yes"), ("beta", "no"), ("gamma", "no"), ("gamma", "yes")] * 10,
        "val": [("alpha  beta ", "yes"), ("delta", "no")],
        "test": [("beta", "yes"), ("gamma", "no"), ("zeta", "no")],
    }
    assert list(Texts(SequenceClassification(), rows).check(False)) == [
        "1 of the 2 texts of val are also in train",
        "2 of the 3 texts of test are also in train",
        "2 texts are there under more than one label",
    ]
    with pytest.raises(ValueError, match="dataset.duplicates=refuse: 1 of the 2 texts of val are also in train; 2 of"):
        Texts(SequenceClassification(), rows, duplicates="refuse").check(False)
    with pytest.raises(ValueError, match="dataset.duplicates=drop: one of tell, refuse"):
        Texts(SequenceClassification(), rows, duplicates="drop")
    assert not list(
        Texts(SequenceClassification(), {"train": [(f"a {i}", "yn"[i % 2]) for i in range(40)]}).check(True)
    )


def test_sentences_and_documents_that_are_there_twice_are_counted(tmp_path: Path) -> None:
    own = (["alpha", "beta"], ["B-X", "O"])
    rows = {"train": [own, (["beta"], ["O"])], "val": [own, (["gamma"], ["O"])], "test": [(["beta"], ["B-X"])]}
    assert list(Tags(TokenClassification(), rows).check(True)) == [
        "1 of the 2 sentences of val are also in train",
        "1 of the 1 sentences of test are also in train",
        "1 sentences are there under more than one label",
    ]
    for name, words in (("train", "one two\nthree four\n"), ("val", "three four \nfive six\n"), ("test", "one two\n")):
        (tmp_path / f"{name}.txt").write_text(words)
    corpus = TextCorpus(MaskedLanguage(), TokenizerRecipe(vocab_size=100), str(tmp_path), documents="line")
    assert list(corpus.check(True)) == [
        "1 of the 2 documents of val are also in train",
        "1 of the 1 documents of test are also in train",
    ]


def test_rows_of_the_hub_are_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    from hydratune.data.text.hub import HubTexts

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    rows = [{"text": f"text {i}", "label": (0.0, 1.0)[i % 2]} for i in range(20)]
    (tmp_path / "mine" / "train.jsonl").write_text(lines(rows))
    (tmp_path / "mine" / "test.jsonl").write_text(lines(rows[:3]))

    def of(**more: Any) -> HubTexts:
        return HubTexts(SequenceClassification(), TokenizerRecipe(vocab_size=150), "~/mine", **more)

    assert of().class_names() == ["0", "1"]
    assert list(of().check(False)) == ["3 of the 3 texts of test are also in train"]
    with pytest.raises(ValueError, match="dataset.duplicates=refuse"):
        of(duplicates="refuse").check(False)
    blank = [{"text": f"text {i}", "label": (" a", "a", "b ")[i % 3]} for i in range(20)]
    (tmp_path / "mine" / "train.jsonl").write_text(lines(blank))
    (tmp_path / "mine" / "test.jsonl").write_text(lines(blank[:3]))
    assert of().class_names() == ["a", "b"]
    (tmp_path / "mine" / "test.jsonl").write_text(lines([{"text": "x", "label": " "}]))
    with pytest.raises(ValueError, match="dataset.label=label: is empty in row 0 of test"):
        of().class_names()


@pytest.mark.parametrize(
    ("test", "said"),
    [([], "the test split is empty"), ([(" ", "yes"), ("", "no")], "every text of test is empty")],
)
def test_a_test_split_that_cannot_be_used_is_found_before(test: list[Any], said: str) -> None:
    rows = {"train": sentences(40), "val": [("alpha", "yes")], "test": test}
    Texts(SequenceClassification(), rows).check(False)  # nobody will read it
    with pytest.raises(ValueError, match=said):
        Texts(SequenceClassification(), rows).check(True)


def test_sentences_without_any_token_are_refused() -> None:
    rows = {
        "train": [(["alpha"], ["B-X"]), (["beta"], ["O"])],
        "val": [(["\u200b"], ["O"])],
        "test": [(["beta"], ["O"])],
    }
    with pytest.raises(ValueError, match="no word of the val split has a token"):
        Tags(TokenClassification(), rows).check(False)


def test_texts_are_tokenized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Texts(SequenceClassification(), {"train": sentences(40)})
    asked = []
    plain = data.encoded
    monkeypatch.setattr(data, "encoded", lambda name: asked.append(name) or plain(name))
    data.check(True)
    assert all(len(data.split(name)) for name in SPLITS) and sorted(asked) == sorted(SPLITS)


# ---- values out of range


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_length", 0), ("max_length", -1), ("max_length", 3), ("max_length", 2**40), ("bucket", 0), ("bucket", -1),
     ("bucket", 10**30), ("val_share", 0.0), ("val_share", 1.0), ("test_share", -0.5), ("test_share", float("nan"))],
)  # fmt: skip
def test_values_out_of_range_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"dataset.{key}={value}: ".replace("+", r"\+")):
        PythonDocumentation(MaskedLanguage(), TokenizerRecipe(), **{key: value})


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: TokenizerRecipe(vocab_size=0), "dataset.tokenizer.vocab_size=0: from 100 to"),
        (lambda: TokenizerRecipe(vocab_size=-1), "vocab_size=-1: from 100"),
        (lambda: TokenizerRecipe(vocab_size=10**30), "vocab_size=10+: from 100 to 10,000,000 tokens"),
        (lambda: TokenizerRecipe(kind="bpe", vocab_size=200), "vocab_size=200: from 258 to"),
        (lambda: MaskedLanguage(0.0), "dataset.task.share=0.0"),
        (lambda: MaskedLanguage(float("nan")), "dataset.task.share=nan"),
        (lambda: CausalLanguage(temperature=float("nan")), "dataset.task.temperature=nan: must be above 0"),
        (lambda: CausalLanguage(temperature=float("inf")), "dataset.task.temperature=inf: must be above 0"),
        (lambda: CausalLanguage(temperature=0), "dataset.task.temperature=0: must be above 0"),
        (lambda: CausalLanguage(prompt=0), "dataset.task.prompt=0: from 1 to"),
        (lambda: CausalLanguage(generate=-1), "dataset.task.generate=-1: from 0 to"),
        (lambda: CausalLanguage(generate=10**9), "dataset.task.generate=1000000000: from 0 to 10,000 tokens"),
        (lambda: Classification(label_smoothing=1.0), "dataset.task.label_smoothing=1.0"),
        (lambda: SequenceClassification(label_smoothing=float("nan")), "dataset.task.label_smoothing=nan"),
        (lambda: TokenClassification(label_smoothing=-0.1), "dataset.task.label_smoothing=-0.1"),
        (lambda: TokenClassification(monitor="loss"), "dataset.task.monitor=loss: one of f1"),
    ],
)
def test_settings_out_of_range_are_refused(build: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build()


# ---- by the command


def test_the_command_tells_what_is_there_twice_and_how_a_table_is_read(tmp_path: Path) -> None:
    rows = "".join(f"words {i % 30} and more|{'np'[i % 2]}\n" for i in range(60))
    (tmp_path / "a.csv").write_text("text|label\n" + rows)
    plain = ["stage=pretrain", "model=bert_tiny", "dataset=text_csv", "dataset.path=a.csv", "name=x", "steps=2"]
    plain += ["dataset.tokenizer.vocab_size=150", "batch_size=8", "runtime.precision=fp32"]
    done = hydratune(*plain, cwd=tmp_path)
    hint = "'dataset.delimiter=\"|\"'"
    assert done.returncode == 2 and f"{hint} reads it" in done.stderr, done.stderr
    done = hydratune(*plain, hint.strip("'"), cwd=tmp_path, HYDRATUNE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert "texts of test are also in train" in done.stdout and "warning: " in done.stdout, done.stdout
