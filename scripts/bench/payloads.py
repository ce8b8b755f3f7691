"""Every payload of tests/faults/payloads.py: what refused it, and whether it was executed.

python scripts/bench/payloads.py
"""

from __future__ import annotations

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.faults.payloads import PAYLOADS, prepare


def main() -> int:
    table = Table("", "kind", "payload", "answer", title="payloads")
    executed = accepted = 0
    optuna = find_spec("optuna") is not None
    payloads = [p for p in PAYLOADS if optuna or "Optuna" not in p.name]
    for number, payload in enumerate(payloads, start=1):
        with tempfile.TemporaryDirectory() as place:
            home = Path(place)
            sys.path.insert(0, place)
            prepare(home)
            try:
                said = payload.attack(home).replace(place, "~")
            except AssertionError as error:
                said, accepted = f"ACCEPTED ({error})", accepted + 1
            executed += (home / "canary").exists() or sys.modules.pop("canary_module", None) is not None
            sys.path.remove(place)
        table.add_row(str(number), payload.kind, payload.name, said[:110])
    console = Console(width=200, highlight=False)
    console.print(table)
    console.print(f"{len(payloads)} payloads, {accepted} accepted, {executed} executed")
    return 1 if executed or accepted else 0


if __name__ == "__main__":
    sys.exit(main())
