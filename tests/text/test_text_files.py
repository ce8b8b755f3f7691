"""What users' files hold, and what is said of those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hydratune.data.text.corpus import TextCorpus
from hydratune.data.text.labelled_text import ColumnFiles, TextTable
from hydratune.data.text.text_files import Parts, lines_of, parts_of
from hydratune.data.text.tokenizer import TokenizerRecipe
from hydratune.tasks.language import MaskedLanguage
from hydratune.tasks.text import SequenceClassification, TokenClassification
from tests.text.small import Texts, sentences

ENDINGS = (".csv", ".txt")


def table(path: Path, **more: Any) -> TextTable:
    return TextTable(SequenceClassification(), TokenizerRecipe(vocab_size=150), str(path), **more)


def table_of(path: Path, content: str, **more: Any) -> TextTable:
    path.write_text(content, encoding="utf-8", newline="")
    return table(path, **more)


def rows_of(path: Path, content: str, **more: Any) -> list[Any]:
    return table_of(path, content, **more).rows()["train"]


# ---- parts


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001.csv", "validation-00000-of-00001.csv", "test-00000-of-00001.csv"),
        ("wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"),
        ("Train/a.csv", "DEV/a.csv", "Test/b.csv"),
        ("train_a.csv", "val.csv", "test.csv"),
        ("training.csv", "dev.csv", "testing.csv"),
        ("Training/a.csv", "Validation/b.csv", "Testing/c.csv"),
    ],
)
def test_parts_are_found_however_they_are_called(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in (*names, ".ipynb_checkpoints/train-checkpoint.csv", "__MACOSX/._train.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    train, val, test = (tmp_path / name for name in names)
    assert parts_of(tmp_path, ENDINGS) == Parts({"train": [train], "val": [val], "test": [test]})


@pytest.mark.parametrize(
    "names", [("how_to_test.txt", "one.txt"), ("index.txt", "training.txt"), ("a/test.txt", "b.txt")]
)
def test_files_that_are_called_nothing_are_all_train(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert parts_of(tmp_path, ENDINGS) == Parts({"train": [tmp_path / name for name in names]})


def test_parts_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    for name in ("test.csv", "reviews.csv"):
        (tmp_path / name).write_text("text,label\n" + "a,x\nb,y\n" * 9)
    with pytest.raises(ValueError, match=r"has test.csv, but nothing that is called train"):
        parts_of(tmp_path, ENDINGS)
    assert len(parts_of(tmp_path, ENDINGS, labelled=False).files["train"]) == 2  # chapters, perhaps
    (tmp_path / "train.csv").write_text("text,label\n" + "c,x\nd,y\n" * 9)
    assert parts_of(tmp_path, ENDINGS).left_alone == (tmp_path / "reviews.csv",)
    said = table(tmp_path).keep(tmp_path / "tokenizer")
    assert said.endswith("left alone, as they are called neither train, val nor test: reviews.csv")


def test_folders_called_training_and_testing_are_parts_beside_other_files(tmp_path: Path) -> None:
    for name in ("Training/a.csv", "Testing/b.csv", "notes.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    train, test, notes = (tmp_path / name for name in ("Training/a.csv", "Testing/b.csv", "notes.csv"))
    assert parts_of(tmp_path, ENDINGS) == Parts({"train": [train], "test": [test]}, (notes,))


@pytest.mark.parametrize("names", [("train/a.csv", "Training/b.csv"), ("train.csv", "val.csv", "dev.csv")])
def test_two_names_for_one_part_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=r"both mean (train|val)"):
        parts_of(tmp_path, ENDINGS)


# ---- tables


def test_a_table_as_a_spreadsheet_writes_it(tmp_path: Path) -> None:
    """A mark at the beginning, other ends of lines, quoted ones within a text, rows of nothing."""
    content = '\ufefftext,label\r\n"two\r\nlines, one text",a\r\n,\r\n\r\n"""so""",b\r\n'
    assert rows_of(tmp_path / "rows.csv", content) == [("two\r\nlines, one text", "a"), ('"so"', "b")]


def test_letters_that_look_like_ends_of_lines_are_none(tmp_path: Path) -> None:
    odd = "one\u2028two\x85three\x0bfour"
    assert lines_of(f"{odd}\r\nb\nc\rd") == [odd, "b", "c", "d"]
    assert rows_of(tmp_path / "a.tsv", f"label\ttext\npos\t{odd}\n") == [(odd, "pos")]
    line = json.dumps({"text": odd, "label": 1}, ensure_ascii=False)
    assert rows_of(tmp_path / "a.jsonl", line + "\n") == [(odd, "1")]


def test_a_json_list_is_a_table_too(tmp_path: Path) -> None:
    content = json.dumps([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], indent=1)
    assert rows_of(tmp_path / "a.json", content) == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": None, "label": "x"}, "text of .*a.jsonl line 1 holds nothing"),
        ({"text": {"en": "a"}, "label": "x"}, "text of .*a.jsonl line 1 holds a dict, and no text or number"),
        ({"text": "a", "label": ["x", "y"]}, "label of .*a.jsonl line 1 holds a list"),
        ({"text": "a", "label": " "}, "dataset.label=label: is empty in .*a.jsonl line 1"),
        ({"text": "\ud83d", "label": "x"}, "text of .*a.jsonl line 1 holds half of a letter"),
        ({"text": "a"}, "dataset.label=label: .*a.jsonl line 1 has no such column; it has text"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(row: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        rows_of(tmp_path / "a.jsonl", json.dumps(row) + "\n")


def test_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"text {i}\t{i % 12}\n" for i in range(120)))
    assert table(tmp_path / "a.tsv").class_names() == [str(i) for i in range(12)]


def test_pairs_of_texts(tmp_path: Path) -> None:
    content = "premise\thypothesis\tlabel\n" + "".join(f"it rains {i}\tit is wet\t{'ny'[i % 2]}\n" for i in range(40))
    assert rows_of(tmp_path / "a.tsv", content, text=["premise", "hypothesis"])[0] == (("it rains 0", "it is wet"), "n")
    data = table(tmp_path / "a.tsv", text=["premise", "hypothesis"])
    split, own = data.split("train"), data.tokenizer
    first = split.tokens[: int(split.lengths[0])].tolist()
    assert first.count(own.special["sep"]) == 2 and first[0] == own.special["cls"]
    assert data.spec().pairs and not table(tmp_path / "a.tsv", text="premise").spec().pairs
    bare = TextTable(SequenceClassification(), TokenizerRecipe(kind="bytes"), str(tmp_path / "a.tsv"),
                     text=["premise", "hypothesis"])  # fmt: skip
    with pytest.raises(ValueError, match="this tokenizer puts nothing between the texts of a pair"):
        bare.spec()
    with pytest.raises(ValueError, match="one column, or two of pairs"):
        rows_of(tmp_path / "a.tsv", content, text=["premise", "hypothesis", "label"])
    with pytest.raises(ValueError, match="dataset.text=hypotesis: .* nearest: hypothesis"):
        rows_of(tmp_path / "a.tsv", content, text=["premise", "hypotesis"])


def test_texts_that_are_cut_are_told(tmp_path: Path) -> None:
    data = Texts(SequenceClassification(), {"train": [("alpha beta gamma " * 20, "yes"), *sentences(40)]})
    assert "26 texts, 1 of them cut at 16 tokens; " in data.split_summary(data.split("train"))
    short = Texts(SequenceClassification(), {"train": [("alpha", "yes"), ("beta", "no")] * 20})
    assert short.split_summary(short.split("train")) == "26 texts; no 13, yes 13"
    assert short.split_summary(short.split("val")) == "divided off train: 6 texts; no 3, yes 3"
    own = {"train": [("alpha", f"c{i}") for i in range(20)] * 2, "val": [("alpha", "c3")], "test": [("alpha", "c3")]}
    many = Texts(SequenceClassification(), own)
    assert many.split_summary(many.split("val")) == "1 texts; 20 classes of 0 to 1 texts"


def test_texts_of_nothing_are_told_and_refused_where_there_are_no_others(tmp_path: Path) -> None:
    rows = [("", "yes"), ("alpha", "yes"), ("beta", "no")] * 20
    data = Texts(SequenceClassification(), {"train": rows, "val": rows[:3], "test": rows[:3]})
    assert data.split_summary(data.split("train")) == "60 texts, 20 of them empty; no 20, yes 40"
    with pytest.raises(ValueError, match="every text of train is empty"):
        table_of(tmp_path / "a.csv", "text,label\n ,a\n ,b\n").parts  # noqa: B018


def test_texts_that_the_tokenizer_does_not_know_are_told() -> None:
    known = [("alpha beta", "yes"), ("beta alpha", "no")] * 20
    data = Texts(SequenceClassification(), {"train": known, "val": [("щука рак", "yes")], "test": known})
    assert "unknown" not in data.split_summary(data.split("train"))
    assert data.split_summary(data.split("val")).endswith("; 100% of the tokens are unknown to this tokenizer")


def test_blanks_around_labels_make_no_classes(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "a.csv", "text,label\nx,a\ny,a \nz, b\n") == [("x", "a"), ("y", "a"), ("z", "b")]


def test_a_column_that_is_there_twice_is_asked_for_by_number(tmp_path: Path) -> None:
    content = "text,label,text,more,more\nx,a,y,1,2\n"
    with pytest.raises(ValueError, match="a.csv has 2 columns called text; say which by its number, 0 or 2"):
        rows_of(tmp_path / "a.csv", content)
    assert rows_of(tmp_path / "a.csv", content, text=2) == [("y", "a")]


@pytest.mark.parametrize(("count", "part"), [(3, "test"), (1, "test")])
def test_labels_that_divide_nothing_are_named(count: int, part: str, tmp_path: Path) -> None:
    content = "text,label\n" + "".join(f"words,id{i}\n" for i in range(count))
    with pytest.raises(ValueError, match=f"no label occurs twice in the {count} rows .* 'id0', .* can be {part}"):
        table_of(tmp_path / "a.csv", content).parts  # noqa: B018


def test_tables_are_no_prose_and_lines_end_alike(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,a\n")
    with pytest.raises(ValueError, match="is a table, whose columns would all be read as prose"):
        TextCorpus(MaskedLanguage(), TokenizerRecipe(), str(tmp_path / "a.csv")).documents()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    data = TextCorpus(MaskedLanguage(), TokenizerRecipe(), str(tmp_path / "a.txt"))
    assert data.documents() == {"train": ["one\ntwo\nthree\n"]}


def test_a_corpus_with_nothing_to_hide_in_a_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one short line Z")
    data = TextCorpus(MaskedLanguage(), TokenizerRecipe(vocab_size=100), str(tmp_path / "a.txt"))
    assert len(data.split("train"))
    with pytest.raises(ValueError, match="the val split has no words to hide, in . letters of text"):
        data.split("val")


# ---- columns


def columns(path: Path, content: str, **more: Any) -> list[Any]:
    path.write_text(content, encoding="utf-8")
    task = TokenClassification()
    return ColumnFiles(task, TokenizerRecipe(vocab_size=120), str(path), **more).rows()["train"]


def test_words_that_look_like_something_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    assert columns(path, "# O\nEU B-ORG\n# O\n") == [(["#", "EU", "#"], ["O", "B-ORG", "O"])]
    assert columns(path, "# id 5\tdomain=en\nEU _ _ B-ORG\n\n# id 6\tdomain=en\nall _ _ O") == [
        (["EU"], ["B-ORG"]), (["all"], ["O"])
    ]  # fmt: skip
    assert columns(path, "# text = EU\nEU B-ORG\n\n# newpar\nall O") == [(["EU"], ["B-ORG"]), (["all"], ["O"])]
    assert columns(path, "EU\tB-ORG \nin\xa0fact\tO\t\n".replace("O\t\n", "O\n")) == [
        (["EU", "in\xa0fact"], ["B-ORG", "O"])
    ]
    assert columns(path, "in\xa0fact  O\n") == [(["in\xa0fact"], ["O"])]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("EU B-ORG\nrejects\n", "a.txt line 2 has 1 column, not word=0 and tag=-1"),
        ("EU\t\tB-ORG\n\tx\tO\n", "a.txt line 2 has an empty word"),
        ("EU\tx\tB-ORG\nis\tx\t\n", "a.txt line 2 has an empty tag"),
    ],
)
def test_lines_without_a_word_or_a_tag_are_refused(content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        columns(tmp_path / "a.txt", content)
