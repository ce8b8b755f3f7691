"""What the documentation says is so: links lead somewhere, command lines compose, worked examples run."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from hydratune.config.groups import USING
from tests.boxes import coco_home
from tests.conftest import TINY, hydratune, make_job

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(p for d in ("conf", "src", "scripts", "tests") for p in (ROOT / d).rglob("*.md"))]
PROGRAMS = ("hydratune", "hydratune-report", "hydratune-runs", "hydratune-match", "hydratune-play", "torchrun")
GROUPS = ("dataset", "engine", "freeze", "optimizer", "runtime", "schedule", "sweep")
KEY = rf"(?<![\w.@/-])(?:{'|'.join(GROUPS)})(?:\.[a-z]\w*)+"
GAMES = ["generations=2", "model.blocks=1", "dataset.play.games=16", "dataset.play.rows=16", "dataset.play.shard=8",
         "search.simulations=4", "dataset.val_share=0.3"]  # fmt: skip
SMALL = ["steps=4", "batch_size=16", "runtime.precision=fp32", "runtime.layout=contiguous"]


@dataclass(frozen=True)
class Block:
    """A fenced block of code. file: what the line above it calls it, as in "`my_conf/model/my_net.yaml`:"."""

    text: str
    file: str


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def taken_apart(page: Path) -> tuple[str, list[Block]]:
    """(the page without its blocks of code, those)"""
    prose: list[str] = []
    blocks: list[Block] = []
    code: list[str] | None = None
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            if code is not None:
                above = next((said for said in reversed(prose) if said.strip()), "")
                named = re.fullmatch(r"`([\w./]+)`:", above)
                blocks.append(Block("\n".join(code) + "\n", named[1] if named else ""))
                prose.append("(code)")
            code = None if code is not None else []
        elif code is not None:
            code.append(line)
        else:
            prose.append(line)
    assert code is None, f"{page}: a block of code is not closed"
    return "\n".join(prose), blocks


# ---- size, links, paths, keys


def test_the_front_page_can_be_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 10_000


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} (.+)$", taken_apart(page)[0], re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", taken_apart(page)[0])
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)}: {link}: no such heading; {sorted(anchors(target))}"


def keys_of(node: Any, where: str) -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{where}.{key}"
        yield from keys_of(value, f"{where}.{key}")


def known_keys() -> set[str]:
    """Of every option of every group."""
    found = {"runtime.repeat"}  # of run.json
    for group in GROUPS:
        for path in (ROOT / "conf" / group).rglob("*.yaml"):
            read = yaml.safe_load(path.read_text(encoding="utf-8"))
            where = ".".join(path.parent.relative_to(ROOT / "conf").parts)  # dataset/task/x.yaml: of dataset.task
            found |= set(keys_of(read.get(group, {}) if group == "sweep" else read, where))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_keys_and_paths_in_the_text_are_there(page: Path) -> None:
    keys = known_keys()
    for said in re.findall(r"`([^`\n]+)`", taken_apart(page)[0]):
        for key in re.findall(KEY, said):
            if not key.endswith((".md", ".py")):
                assert key in keys, f"{name_of(page)}: `{said}`: no option has the key {key}"
        for path in re.findall(r"(?<![\w./])(?:scripts|tests|conf)/[\w./]*\w", said):
            assert (ROOT / path).exists(), f"{name_of(page)}: `{said}`: there is no {path}"


# ---- command lines


def command_lines() -> Iterator[tuple[Path, list[str], str]]:
    """(page, what is typed, the error that the page shows below it) of each line that starts a program of ours."""
    for page in PAGES:
        for block in taken_apart(page)[1]:
            lines = [*block.text.splitlines(), ""]
            for line, below in pairwise(lines):
                typed = line.removeprefix("$ ")
                if typed.split(" ")[0] not in PROGRAMS:
                    continue
                command: list[str] = []
                for word in [*shlex.split(typed, comments=True), ";"]:
                    if word != ";":
                        command.append(word)
                    elif command:
                        yield page, command, below.removeprefix("error: ") if below.startswith("error: ") else ""
                        command = []


def written(page: Path, directory: Path) -> None:
    """The files that a page shows, where it says that they lie."""
    for block in taken_apart(page)[1]:
        if block.file:
            path = directory / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")


def without_absent_plugins(overrides: Sequence[str]) -> list[str]:
    """A launcher or a sweeper that is not installed is at least one of those that pip would bring."""
    from hydratune.config.errors import PLUGINS

    kept = list(overrides)
    for group, extras in PLUGINS.items():
        kind = group.partition("/")[2]
        for option in [o.partition("=")[2] for o in kept if o.startswith(f"{group}=")]:
            assert option in extras, f"{group}={option}"
            if find_spec(f"hydra_plugins.hydra_{extras[option]}_{kind}") is None:
                kept = [o for o in kept if not o.startswith((f"{group}=", f"hydra.{kind}."))]
    return kept


def jobs_of(overrides: Sequence[str]) -> list[list[str]]:
    """As few jobs of a sweep as have each value of each key once; one that is no sweep is its own only job."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep

    values: list[list[str]] = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if not override.is_sweep_override():
            values.append([str(override.input_line)])
            continue
        swept = override.value()
        every = [str(swept.start)] if isinstance(swept, IntervalSweep) else list(override.sweep_string_iterator())
        values.append([f"{override.get_key_element()}={value}" for value in every])
    return [[own[i % len(own)] for own in values] for i in range(max(map(len, values), default=1))]


@pytest.fixture
def users_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a user's own package and configuration lie; what was imported from there is forgotten."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for module in [m for m in sys.modules if m.partition(".")[0] == "my_package"]:
        del sys.modules[module]


COMMANDS = list(command_lines())


def test_there_are_command_lines() -> None:
    assert len(COMMANDS) > 40 and sum(bool(error) for *_, error in COMMANDS) > 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_compose(page: Path, users_directory: Path) -> None:
    written(page, users_directory)
    for _, command, error in [c for c in COMMANDS if c[0] == page]:
        if command[0] == "hydratune-report":
            assert len(command) == 2
        elif command[0] == "hydratune-runs":
            from hydratune.cli.runs import _parser, _with_default

            _parser().parse_args(_with_default(command[1:]))
        elif command[0] in ("hydratune-match", "hydratune-play"):
            from hydratune.cli import match, play

            {"hydratune-match": match, "hydratune-play": play}[command[0]]._parser().parse_args(command[1:])
        elif error:
            with pytest.raises(Exception) as raised:  # Hydra's own, some of them
                check_line(command[1:], users_directory)
            from hydratune.config.errors import explain

            assert explain(raised.value, command[1:]) == error
        else:
            try:
                check_line(command[command.index("hydratune") + 1 :], users_directory)
            except (Exception, SystemExit) as wrong:
                raise AssertionError(f"{name_of(page)}: {shlex.join(command)}: {wrong}") from wrong


def check_line(arguments: Sequence[str], directory: Path) -> None:
    """Flags, keys, options and values of a line, as the command would look at them before it loads torch.

    `...` stands for what a user adds; where something lies that a line names is not looked at.
    """
    from hydra._internal.utils import get_args_parser

    from hydratune.cli.arguments import as_list, opened
    from hydratune.config.overrides import flags_first
    from hydratune.config.trust import trusted

    typed = [a for a in arguments if a != "..."]
    parsed = get_args_parser().parse_args(flags_first(typed))
    overrides = [opened(o) for o in parsed.overrides if not o.startswith("resume=")]
    overrides = overrides if parsed.multirun else [as_list(o) for o in overrides]
    using = any(o.removeprefix("stage=") in USING for o in overrides)
    origin = str(directory) if using else "null"
    overrides = [f"init_from={origin}" if re.match(r"init_from=.*[/.]", o) else o for o in overrides]
    overrides = [f"inputs={directory}" if o.startswith("inputs=") else o for o in overrides]
    overrides = without_absent_plugins(overrides)
    if parsed.config_dir:
        home = directory / parsed.config_dir
        assert home.is_dir(), f"the page shows no file of {parsed.config_dir}"
        overrides.append(f"hydra.searchpath=['file://{home}']")
    for job in jobs_of(overrides) if parsed.multirun else [overrides]:
        make_job(job, directory, sweep=parsed.multirun, trust=tuple(trusted(typed)))


# ---- worked examples


def some_images(directory: Path) -> None:
    """What the examples read: scans.npz, and photos in a folder per grade."""
    import numpy as np
    from PIL import Image

    dice = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", 48), ("val", 16), ("test", 16)):
        arrays[f"x_{name}"] = dice.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        arrays[f"y_{name}"] = np.arange(count) % 2
    np.savez(directory / "scans.npz", **arrays)
    for grade in ("0", "1", "2"):
        (directory / "my_photos" / grade).mkdir(parents=True)
        for i in range(12):
            pixels = dice.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(directory / "my_photos" / grade / f"{i}.png")


@pytest.mark.parametrize(
    ("page", "number", "more", "metrics"),
    [
        ("data", 0, [], {"val_accuracy", "test_accuracy"}),
        ("tasks", 0, ["dataset.size=16"], {"val_accuracy", "val_mean_absolute_error", "test_mean_absolute_error"}),
        ("tasks", 1, ["dataset.augment.resized_crop=null"], {"val_map", "test_map50"}),
        ("models", 0, TINY, {"val_accuracy"}),
        ("freeze", 0, [*TINY, "init_from=null"], {"val_accuracy"}),
        ("games", 0, GAMES, {"val_negative_loss"}),
    ],
)
def test_the_worked_example_runs(page: str, number: int, more: list[str], metrics: set[str], tmp_path: Path) -> None:
    written(ROOT / "src" / "hydratune" / page / "README.md", tmp_path)
    some_images(tmp_path)
    if number:
        pytest.importorskip("faster_coco_eval")
        coco_home(tmp_path / "my_coco", count=20)
    lines = [command for where, command, _ in COMMANDS if where.parent.name == page and "--config-dir" in command]
    done = hydratune(*lines[number][1:], *more, *SMALL, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (home,) = (p.parent for p in tmp_path.glob("outputs/*/*/run.json"))
    record = json.loads((home / "run.json").read_text())
    assert record["status"] == "complete" and record["trust"] == ["my_package"]
    assert metrics <= record["metrics"].keys() and record["frozen_unchanged"] is True
    if page == "freeze":
        assert "| stem and head | 0-0 | stem, head |" in (home / "freeze.md").read_text()
    if page == "models":
        assert "stem, block0, block1, head" in (home / "freeze.md").read_text()
