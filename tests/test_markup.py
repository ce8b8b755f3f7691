"""Other people's words are text: on the screen, in tables of Markdown, in the report."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from hydratune.core.markdown import as_shown, fenced, in_markdown, markdown_table
from hydratune.record.screen import Screen
from hydratune.sweep.plan import Entry, Unit
from hydratune.sweep.pool import Event
from hydratune.sweep.screen import SweepScreen
from tests.conftest import TINY, hydratune

STRANGE = ["[/x]/good", "[red]a[/red]", "[link=file:///x]y[/link]", ":smile:", "100%[", "\\[b]"]
OBEYED = ["\x1b[2Jgone", "\x1b]0;title\x07", "a\rb", "\x9b31m", "a\u202eb", "\x00", "bad\udcff", "\x08\x08"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain(shown: str) -> str:
    """Without what rich itself says to a terminal."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown)


@pytest.mark.parametrize("word", STRANGE)
def test_a_table_shows_names_as_they_are(word: str) -> None:
    out = io.StringIO()
    screen = Screen(out)
    screen.table(f"title {word}", (f"column {word}", "other"), [(f"cell {word}", word)])
    screen.line(f"line {word}")
    for part in ("title", "column", "cell", "line"):
        assert f"{part} {word}" in out.getvalue()


@pytest.mark.parametrize("word", STRANGE)
def test_a_live_line_shows_names_as_they_are(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    out = Terminal()
    with Screen(out).progress(f"label {word}", 0, 4) as live:
        live.show(2, {"loss": f"seen {word}"})
    assert f"label {word}" in plain(out.getvalue()) and f"loss seen {word}" in plain(out.getvalue())
    told = Terminal()
    monkeypatch.setattr("sys.stdout", told)
    screen, unit = SweepScreen(), Unit([Entry(0, [], {}, Path("job") / word.replace("/", "-"))])
    with screen.running(1, None):
        screen.heard(Event(unit, {"first": 0, "step": 1, "total": 4, "seen": {"loss": f"seen {word}"}}))
    assert unit.name in plain(told.getvalue()) and f"loss seen {word}" in plain(told.getvalue())


@pytest.mark.parametrize("word", OBEYED)
def test_nothing_that_a_terminal_would_obey_is_printed(word: str) -> None:
    out = io.StringIO()
    screen = Screen(out)
    screen.line(f"x{word}y")
    screen.table(word, (word,), [(word,)])
    with screen.progress(word, 0, 4) as live:
        live.milestone(2, {"loss": word})
    shown = out.getvalue()
    shown.encode()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown) and f"x{as_shown(word)}y" in shown
    assert as_shown("one\ttwo\nthree\r\n") == "one\ttwo\nthree\n"


CELLS = ["a|b", "a\\|b", "`a|b`", "``", "<script>alert(1)</script>", "<b>", "a\nb", "\n| x | y |\n", "[l](http://x.y)",
         "![p](http://x.y/z)", "*a* **b**", "_a_ __b__", "a_b_c", "&lt;", "C:\\|", "\\", "\\\\|", "# a"]  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorBoard's own copy of bleach
def test_a_table_of_markdown_has_its_cells_and_no_others() -> None:
    from tensorboard.plugin_util import markdown_to_safe_html

    page = str(markdown_to_safe_html(markdown_table(("a|b", "`c`"), [(c, c) for c in CELLS])))
    rows = [re.findall("<t[dh]>(.*?)</t[dh]>", row, re.S) for row in page.split("<tr>")[1:]]
    assert rows[0] == ["a|b", "`c`"] and [len(row) for row in rows] == [2] * (len(CELLS) + 1)
    read = [row[0].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for row in rows[1:]]
    assert read == [" ".join(c.split()) if "\n" in c else c for c in CELLS]
    assert "&lt;script" in page and "<a " not in page and "<img" not in page
    title = str(markdown_to_safe_html(f"**{in_markdown('weights from [/x](y)*`')}**"))
    assert title == "<p><strong>weights from [/x](y)*`</strong></p>"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("text", ["a: 1", "a: |\n  ```\n  # b\n", "```\n# b\n````\n", "a: '`'"])
def test_a_block_of_code_ends_at_its_own_fence(text: str) -> None:
    from tensorboard.plugin_util import markdown_to_safe_html

    page = str(markdown_to_safe_html(fenced(text, "yaml")))
    assert page.startswith("<pre><code>") and page.count("</code>") == 1 and page.rstrip().endswith("</code></pre>")
    assert "<h1>" not in page


def test_names_of_markup_go_through_a_whole_run(tmp_path: Path) -> None:
    from PIL import Image

    photos = tmp_path / "photos"
    for i, name in enumerate(("[red]", "a|b`<script>", "\x1b[2Jc")):
        for k in range(12):
            place = photos / name / f"{k}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (80 * i, 10 * k, 0)).save(place)
    (photos / "[red]" / "broken[y]\x1b[1m.png").write_bytes(b"no image")
    data = ["dataset=image_folder", f"dataset.root={photos}", "dataset.size=16", "dataset.skip_broken=1"]
    line = [*data, *TINY[3:], "model=mlp", "epochs=1", "batch_size=8"]
    first = hydratune("stage=pretrain", *line, "hydra.run.dir='[/x]/good'", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    second = hydratune("stage=finetune", "init_from='[/x]/good'", *line, "hydra.run.dir='[/x]/two'", cwd=tmp_path)
    assert second.returncode == 0 and "weights from [/x]/good" in " ".join(second.stdout.split()), second.stderr
    wrong = hydratune("dataset=image_folder", "dataset.root='no\x1b[2Jwhere[/x]'", cwd=tmp_path)
    assert wrong.returncode == 2 and "no\\x1b[2Jwhere[/x]: no such folder" in wrong.stderr
    for done in (first, second, wrong):
        assert "\x1b" not in done.stdout + done.stderr
    texts = [p for p in tmp_path.rglob("*") if p.suffix in (".md", ".json", ".log", ".txt", ".html")]
    assert texts and not [p for p in texts if b"\x1b" in p.read_bytes()]
