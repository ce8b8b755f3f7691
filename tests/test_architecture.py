"""The rules of the house, each as a test."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "hydratune"
FILES = sorted(SOURCE.rglob("*.py"))

# From the top; imports go down only, and rooms on one floor do not import each other.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"sweep"},
    {"command"},
    {"errors"},
    {"job"},
    {"member", "outcome"},
    {"origin"},
    {"story"},
    {"guard"},
    {"assemble"},
    {"keys"},
    {"construct", "fingerprint", "overrides"},
    {"engine"},
    {"tasks"},
    {"models"},
    {"data"},
    {"freeze"},
    {"record"},
    {"optim", "runtime", "pretrained"},
    {"constructors"},
    {"markup"},
    {"layer_groups", "randomness", "signals", "company", "secrets"},
    {"types"},
    {"__init__"},
]
# hydra loads the entry point before torch may be loaded; the job below it is imported when it is known to be sound.
LATE = {("assemble", "job")}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def imports(path: Path) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "hydratune" else [node.module]
            yield from ((name, node) for name in names)


def at_top(path: Path) -> list[str]:
    """Modules imported when the file is loaded."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_down(path: Path) -> None:
    for name, _ in imports(path):
        words = name.split(".")
        if words[0] != "hydratune":
            continue
        target = words[1] if len(words) > 1 else "__init__"
        if not (SOURCE / target).exists() and not (SOURCE / f"{target}.py").exists():
            target = "__init__"
        if target != room(path) and (room(path), target) not in LATE:
            assert floor(room(path)) < floor(target), f"{path.name} imports {name} from a floor that is not below it"


@pytest.mark.parametrize(
    ("package", "owners"),
    [
        ("hydra", {"cli", "assemble", "guard", "sweep"}),
        ("omegaconf", {"cli", "assemble", "guard", "sweep"}),
        ("torch.distributed", {"runtime", "company"}),
        ("torch.utils.tensorboard", {"record"}),
        ("tensorboard", {"record"}),
    ],
)
def test_exclusive_owners(package: str, owners: set[str]) -> None:
    users = {room(p) for p in FILES for name, _ in imports(p) if name == package or name.startswith(f"{package}.")}
    assert users <= owners


def test_heavy_imports_happen_where_they_are_used() -> None:
    heavy = (
        "torchvision",
        "transformers",
        "timm",
        "torchmetrics",
        "tensorboard",
        "torch.utils.tensorboard",
        "matplotlib",
    )
    for path in FILES:
        assert not [m for m in at_top(path) if m.startswith(heavy)], path


def test_a_configuration_error_answers_without_torch() -> None:
    code = "import sys; import hydratune.cli.main, hydratune.config.instantiate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_types_hold_no_logic() -> None:
    tree = ast.parse((SOURCE / "types.py").read_text())
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.For | ast.While | ast.If | ast.Try)]


def test_nothing_unsafe() -> None:
    """No pickle, no eval or exec, no torch.load but the one that reads tensors only."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load"), path
                assert called not in ("hydra.utils.instantiate", "instantiate", "get_object"), path
                if called == "torch.load":
                    assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
        assert not [n for n, _ in imports(path) if n.split(".")[0] in ("pickle", "dill", "cloudpickle")], path


def test_no_utils_and_files_one_can_read_in_a_sitting() -> None:
    assert not list(SOURCE.rglob("utils.py"))
    long = {str(p.relative_to(SOURCE)): n for p in FILES if (n := len(p.read_text().splitlines())) > 300}
    assert not long


def test_no_item_and_no_component_receives_cfg() -> None:
    for path in FILES:
        text = path.read_text()
        assert ".item()" not in text, path
        assert "(cfg" not in text and " cfg:" not in text, path


def test_top_level_holds_nothing_else() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    allowed = {"pyproject.toml", "conf", "src", "scripts", "tests", "outputs", "README.md"}
    assert {t for t in top if not t.startswith(".")} <= allowed
