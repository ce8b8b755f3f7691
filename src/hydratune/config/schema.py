"""What constructors take, read from the source text: a misspelt key is refused before torch is loaded."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydratune.config.public import PUBLIC

TARGET = "_target_"


@dataclass(frozen=True)
class Parameter:
    name: str
    annotation: ast.expr | None
    required: bool


@cache
def signature(target: str) -> Sequence[Parameter] | None:
    """Parameters of a public class or function; None where there is no such thing.

    A class without an `__init__` of its own, or one that hands on **keywords, has its parent's parameters as well,
    wherever that lies.
    """
    module = PUBLIC.get(target)
    return None if module is None else _signature(module, target.rpartition(".")[2])


@cache
def _tree(module: str) -> ast.Module | None:
    path = Path(__file__).parents[1].joinpath(*module.split(".")[1:]).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else None


def _signature(module: str, name: str) -> Sequence[Parameter] | None:
    tree = _tree(module)
    for node in tree.body if tree else ():
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _arguments(node.args)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _of_class(module, node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hydratune."):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _signature(str(node.module), alias.name)
    return None


def _of_class(module: str, node: ast.ClassDef) -> Sequence[Parameter]:
    own: list[Parameter] = []
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            own = _arguments(item.args)
            if item.args.kwarg is None:
                return own
    bases = [b.id for b in node.bases if isinstance(b, ast.Name)]
    found = (_signature(module, base) for base in bases)
    inherited: Sequence[Parameter] = next((f for f in found if f), ())
    if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
        own = [Parameter(ast.unparse(f.target), f.annotation, f.value is None) for f in fields]
    names = {p.name for p in own}
    return [*own, *(p for p in inherited if p.name not in names)]


def _arguments(arguments: ast.arguments) -> list[Parameter]:
    positional = [a for a in (*arguments.posonlyargs, *arguments.args) if a.arg != "self"]
    optional = len(arguments.defaults)
    result = [Parameter(a.arg, a.annotation, i < len(positional) - optional) for i, a in enumerate(positional)]
    keyword = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return result + [Parameter(a.arg, a.annotation, default is None) for a, default in keyword]


def fits(value: Any, annotation: ast.expr) -> bool:
    """Whether a value from YAML suits a parameter's annotation; a component suits whatever is not built in."""
    if isinstance(annotation, ast.BinOp):
        return fits(value, annotation.left) or fits(value, annotation.right)
    if isinstance(annotation, ast.Constant):
        return value is None
    if isinstance(annotation, ast.Subscript):
        container = ast.unparse(annotation.value)
        inner = annotation.slice
        if container in ("Sequence", "list"):
            return isinstance(value, list | tuple) and all(fits(v, inner) for v in value)
        if container == "tuple" and isinstance(inner, ast.Tuple):
            if ast.unparse(inner.elts[-1]) == "...":
                return isinstance(value, list | tuple) and all(fits(v, inner.elts[0]) for v in value)
            same = isinstance(value, list | tuple) and len(value) == len(inner.elts)
            return same and all(fits(v, e) for v, e in zip(value, inner.elts, strict=True))
        if container in ("Mapping", "dict"):
            return isinstance(value, Mapping)
        return True
    simple: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "str": str, "bool": bool}
    kind = simple.get(ast.unparse(annotation))
    if kind is None:
        return isinstance(value, Mapping) and TARGET in value
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def choices(path: str, key: str, annotation: ast.expr) -> str:
    """What there is of a kind of component, and how it is chosen; nothing for plain values."""
    room = {"Task": "tasks"}.get(ast.unparse(annotation))
    if room is None:
        return ""
    found = [public for public in PUBLIC if public.startswith(f"hydratune.{room}.")]
    return f", by its class: {path}.{key}.{TARGET}= one of {', '.join(found)}"


def wanted(annotation: ast.expr) -> str:
    words = {
        "int": "a whole number",
        "float": "a number",
        "str": "a word",
        "bool": "true or false",
        "None": "null",
        "Task": "a task",
    }
    parts = [p.strip() for p in ast.unparse(annotation).split("|")]
    return " or ".join(words.get(p, p.replace("Sequence", "list of ").replace("tuple", "list of ")) for p in parts)
