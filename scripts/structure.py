"""The structure of the code as its imports have it: rooms from top to bottom, what each imports, what does not fit.

    python scripts/structure.py

An arrow up, or a cycle among modules, is listed and the exit status is 1. Imports within functions count, as do those
by name (importlib.import_module, sys.modules) and those for type checkers alone.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "hydratune"
# From the top; imports go down only
ROOMS = {
    "__main__": "the command's first lines, and signals before a job begins",
    "cli": "the command line before and after Hydra",
    "sweep": "which jobs there are, who runs them, what came of them",
    "experiment": "prepare, run and finish jobs; where weights come from; what a run tells",
    "engine": "the loop, trials, trunks, evaluation, autotuning",
    "tasks": "losses, metrics and heads",
    "models": "networks as layer groups; weights from anywhere",
    "data": "data sets, streams, augmentation, tokenizers",
    "games": "rules, the search over them, matches; no torch",
    "freeze": "strategies, phases and what they cost",
    "optim": "optimizers and schedules",
    "record": "run directories, checkpoints, TensorBoard, the screen",
    "distributed": "devices and precision, processes, signals",
    "config": "from YAML to typed jobs and to components; no torch",
    "core": "types, batches, seeds, paths, words as they are shown",
}
FLOORS = list(ROOMS)


def modules() -> dict[str, Path]:
    """Dotted name below hydratune -> file; a package goes by its own name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Modules of hydratune that a file imports, in whatever way."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("hydratune."):
            below = node.value.removeprefix("hydratune.")
            names = [node.value] if below and below in known else []
        for name in names:
            if name.partition(".")[0] == "hydratune":
                module = name.partition(".")[2]
                while module and module not in known:
                    module = module.rpartition(".")[0]
                yield module


def graph() -> dict[str, set[str]]:
    """Module -> the modules that it imports. config.public names modules to load for others, and imports none."""
    known = modules()
    found = {}
    for module, path in known.items():
        public = module == "config.public"
        found[module] = set() if public else {m for m in imported(path, known) if m != module}
    return found


def arrows_up(edges: Mapping[str, set[str]]) -> list[str]:
    wrong = []
    for module, targets in edges.items():
        for target in targets:
            if not module:  # the package itself: what `import hydratune` loads
                wrong += [] if room_of(target) in ("config", "core") else [f"hydratune imports {target}"]
            elif not target or room_of(target) not in FLOORS or room_of(module) not in FLOORS:
                wrong.append(f"{module} imports {target or 'hydratune itself'}")
            elif FLOORS.index(room_of(target)) < FLOORS.index(room_of(module)):
                wrong.append(f"{module} imports {target}, which lies above it")
    return sorted(wrong)


def cycles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of modules that import each other, directly or not (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for target in sorted(edges.get(module, ())):
            if target not in order:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], order[target])
        if low[module] == order[module]:
            part = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(part) > 1:
                found.append(sorted(part))

    for module in sorted(edges):
        if module not in order:
            visit(module)
    return found


def main() -> int:
    edges, files = graph(), modules()
    print(f"{'room':<12} {'files':>5} {'lines':>6}  imports")
    for room, purpose in ROOMS.items():
        own = [m for m in files if room_of(m) == room]
        lines = sum(len(files[m].read_text(encoding="utf-8").splitlines()) for m in own)
        targets = {room_of(t) for m in own for t in edges[m]} - {room}
        named = ", ".join(sorted(targets, key=FLOORS.index)) or "-"
        print(f"{room:<12} {len(own):>5} {lines:>6}  {named}\n{'':<26} ({purpose})")
    wrong = arrows_up(edges) + [f"a cycle: {' -> '.join(part)}" for part in cycles(edges)]
    print("\n".join(wrong) if wrong else "no arrow up, no cycle")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
