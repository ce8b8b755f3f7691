"""Self-play beside its peers, row by row; what was measured is kept in --results, and is not measured again.

    python scripts/bench/selfplay.py plain|pretrain|speed|minmax|mcts|selfplay|longer|matches|nothing --seeds 1 2 3

plain: 60 seconds of supervised learning in a plain loop (4 blocks of 32 channels, BatchNorm, stones alone): baseline.
pretrain: experiment=connect4_pretrain; wrong moves of the policy and with searches of 64 and 256 on 250 held-out
    positions of each of six kinds.
speed: evaluations a second of 256 games, against a plain numpy loop of the same search and network, and open_spiel's
    Python MCTS with the same network. minmax, mcts: the pretrained network against those.
selfplay: pretrained, then --minutes of generations; longer: pretrained, and trained on for as long; nothing:
    generations from random weights. matches: the first against the second and against what it began with, 400 games
    a seed. table: what is known.

Needs the data under $HYDRATUNE_DATA and `pip install 'hydratune[games]'`; nothing may run beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peers.numpy_gumbel import PlainGumbel
from rich.console import Console
from rich.table import Table
from torch import nn

import hydratune
from hydratune.data.boards.solved import SolvedPositions
from hydratune.distributed.runtime import cpu_name
from hydratune.games.connect4 import Connect4
from hydratune.games.match import elo, openings, play_match
from hydratune.games.players import Minmax, named
from hydratune.games.search import Gumbel, schedule
from hydratune.tasks.policy_value import PolicyValue

KINDS = ["opening near", "opening midway", "opening far", "middle near", "middle midway", "end near"]
SIMULATIONS = (0, 64, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows: dict[str, Callable[[argparse.Namespace, int], Any]] = {
        "plain": plain, "pretrain": pretrain, "speed": speed, "minmax": minmax, "mcts": mcts, "selfplay": selfplay,
        "longer": longer, "nothing": nothing, "matches": matches,
    }  # fmt: skip
    parser.add_argument("row", choices=[*rows, "table"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--home", type=Path, default=Path("selfplay-bench"), help="where runs lie")
    parser.add_argument("--results", type=Path, default=Path("selfplay.jsonl"))
    options = parser.parse_args()
    known = {}
    if options.results.exists():
        known = {r["key"]: r for r in map(json.loads, options.results.read_text().splitlines())}
    for seed in options.seeds if options.row != "table" else ():
        key = f"{options.row} {seed}"
        if key not in known:
            started = time.perf_counter()
            found = rows[options.row](options, seed)
            known[key] = {"key": key, "machine": cpu_name(), "seconds": round(time.perf_counter() - started), **found}
            with options.results.open("a") as file:
                file.write(json.dumps(known[key]) + "\n")
        print(json.dumps(known[key]))
    show(known)


def show(known: dict[str, dict[str, Any]]) -> None:
    table = Table(title="mean and standard deviation over seeds")
    for column in ("row", "figure", "seeds", "value"):
        table.add_column(column)
    for row in dict.fromkeys(key.split()[0] for key in known):
        every = [r for key, r in known.items() if key.split()[0] == row]
        for name in [n for n, v in every[0].items() if isinstance(v, int | float)]:
            values = [r[name] for r in every if name in r]
            spread = f" +- {statistics.stdev(values):.4f}" if values[1:] else ""
            table.add_row(row, name, str(len(values)), f"{statistics.mean(values):.4f}{spread}")
    Console(width=140).print(table)


# ---- runs


def command(options: argparse.Namespace, *line: str, until: float | None = None) -> float:
    """Run it; where it takes longer than `until` seconds it is asked to stop, and leaves a checkpoint. Its seconds."""
    options.home.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "hydratune", *line, "resume=auto"], cwd=options.home)
    try:
        process.wait(until)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
    if process.returncode not in (0, 143):
        raise SystemExit(f"hydratune {' '.join(line)}: status {process.returncode}")
    return time.perf_counter() - started


def run_of(options: argparse.Namespace, stage: str, name: str) -> Path:
    return options.home / "outputs" / stage / name


def wrong_moves(forward: Any, game: Connect4) -> dict[str, float]:
    """Of the policy and with searches, the mean over kinds, and of each kind."""
    found: dict[str, float] = {}
    states, moves = held_out(game)
    for simulations in SIMULATIONS:
        shares = []
        for kind in KINDS:
            own, led = states[kind], moves[kind]
            if simulations:
                chosen = Gumbel(simulations).search(game, forward, own, None).action
            else:
                chosen = np.where(game.legal(own), forward(own)[0], -np.inf).argmax(1)
            shares.append(float((led[np.arange(len(own)), chosen] != best_of(led)).mean()))
            found[f"wrong_{simulations} {kind}"] = shares[-1]
        found[f"wrong_{simulations}"] = statistics.mean(shares)
    return found


def held_out(game: Connect4) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """250 positions of each kind of the test split, and what their moves lead to."""
    split = solved(game).split("test")
    kinds = split.kinds.numpy()
    ids = {name: np.flatnonzero(kinds == split.kind_names.index(name))[:250] for name in KINDS}
    moves = split.targets.moves.numpy()
    return {k: split.states[i] for k, i in ids.items()}, {k: moves[i] for k, i in ids.items()}


def best_of(moves: np.ndarray) -> np.ndarray:
    return np.where(moves >= 2, -2, moves).max(1)


def solved(game: Connect4) -> SolvedPositions:
    import os

    return SolvedPositions(PolicyValue(), game, os.environ["HYDRATUNE_DATA"] + "/connect4/solved.txt")


def loaded(path: Path) -> Any:
    return hydratune.load(path).player(path.name, 64)


def pretrain(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    spent = command(options, "experiment=connect4_pretrain", f"seed={seed}", f"name=seed{seed}")
    player = loaded(run_of(options, "pretrain", f"seed{seed}"))
    return {"minutes": spent / 60, **wrong_moves(player.forward, player.game)}


def longer(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """As many minutes of its own data as self-play has of games, at self-play's rate, from the pretrained weights."""
    start = run_of(options, "pretrain", f"seed{seed}").resolve()
    line = ["experiment=connect4_pretrain", "stage=finetune", "dataset=connect4", f"init_from={start}", "test=false"]
    line += ["schedule=constant", "optimizer.lr=5e-4", "steps=1000000", "engine.eval_every=500", "monitor=latest"]
    spent = command(options, *line, f"seed={seed}", f"name=longer{seed}", until=60 * options.minutes)
    player = loaded(run_of(options, "finetune", f"longer{seed}"))
    return {"minutes": spent / 60, **wrong_moves(player.forward, player.game)}


def selfplay(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    start = run_of(options, "pretrain", f"seed{seed}").resolve()
    line = ["experiment=connect4_selfplay", f"init_from={start}", f"seed={seed}", f"name=seed{seed}"]
    spent = command(options, *line, "generations=1000", until=60 * options.minutes)
    player = loaded(run_of(options, "selfplay", f"seed{seed}"))
    return {"minutes": spent / 60, **wrong_moves(player.forward, player.game)}


def nothing(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    line = [
        "experiment=connect4_selfplay",
        "init_from=null",
        f"seed={seed}",
        f"name=nothing{seed}",
        "optimizer.lr=2e-3",
    ]
    spent = command(options, *line, "generations=1000", until=60 * options.minutes)
    player = loaded(run_of(options, "selfplay", f"nothing{seed}"))
    return {"minutes": spent / 60, **wrong_moves(player.forward, player.game)}


def matches(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    first = loaded(run_of(options, "selfplay", f"seed{seed}"))
    found: dict[str, Any] = {}
    for name, path in (("pretrained", ("pretrain", f"seed{seed}")), ("longer", ("finetune", f"longer{seed}"))):
        if not (where := run_of(options, *path)).exists():
            continue
        result = play_match(first.game, first, loaded(where), openings(first.game, 4, 200, seed))
        low, high = result.interval()
        found |= {
            f"{name} share": result.share,
            f"{name} low": low,
            f"{name} high": high,
            f"{name} p": result.p_value(),
        }
        found |= {
            f"{name} elo": elo(result.share),
            f"{name} points": result.points.tolist(),
            f"{name} distinct": result.distinct,
        }
    return found


def mcts(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """100 games against open_spiel's MCTS with 1000 rollouts and its solver."""
    first = loaded(run_of(options, "pretrain", f"seed{seed}"))
    result = play_match(first.game, first, named("mcts:1000", first.game, seed), openings(first.game, 4, 50, seed))
    low, high = result.interval()
    return {"share": result.share, "low": low, "high": high, "wins": result.wins, "draws": result.draws}


def minmax(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Wrong moves of minmax with depth 5 and of the pretrained network with a search of 256, by kind."""
    player = loaded(run_of(options, "pretrain", f"seed{seed}"))
    states, moves = held_out(player.game)
    other, found, fewer = Minmax(player.game, 5, seed), {}, 0
    for kind in KINDS:
        chosen = other.choose(states[kind], [[int(w) for w in s] for s in states[kind]])
        led = moves[kind]
        theirs = float((led[np.arange(len(led)), chosen] != best_of(led)).mean())
        ours = Gumbel(256).search(player.game, player.forward, states[kind], None).action
        own = float((led[np.arange(len(led)), ours] != best_of(led)).mean())
        found |= {f"minmax {kind}": theirs, f"search {kind}": own}
        fewer += own < theirs
    return {**found, "kinds with fewer": fewer}


# ---- the baseline


class PlainNet(nn.Module):
    def __init__(self, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                          nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
            for _ in range(blocks)
        )  # fmt: skip
        self.policy = nn.Sequential(nn.Conv2d(width, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 42, 7))
        self.value = nn.Sequential(nn.Conv2d(width, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 42, 3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.policy(x), self.value(x)


def plain(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    game = Connect4(threats=False)
    train = solved(game).split("train")
    net, started, steps = PlainNet(), time.perf_counter(), 0
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    outcome = torch.tensor([-1.0, 0.0, 1.0])
    good = (train.targets.policy > 0).float()
    good /= good.sum(1, keepdim=True)
    while (spent := time.perf_counter() - started) < 60:
        ids = torch.randint(len(train), (256,))
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * max(1 - spent / 60, 0.02)
        with torch.autocast("cpu", torch.bfloat16):
            policy, value = net(train.inputs[ids].float())
        illegal = train.targets.moves[ids] == 3
        loss = -(good[ids] * policy.float().masked_fill(illegal, -1e4).log_softmax(1)).sum(1).mean()
        loss = loss - (train.targets.value[ids] * value.float().log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    net.eval()

    def forward(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            policy, value = net(torch.from_numpy(game.inputs(states)).float())
        return policy.numpy(), (value.softmax(1) @ outcome).numpy()

    return {"steps": steps, **wrong_moves(forward, game)}


# ---- speed


def speed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """256 games, 64 simulations, in turns, with all threads; the tree's share is what the network does not take."""
    player = loaded(run_of(options, "pretrain", f"seed{options.seeds[0]}"))
    game, draw = player.game, np.random.default_rng(seed)
    states = np.repeat(game.start()[None], 300, 0)
    for _ in range(8):
        legal = game.legal(states)
        states = game.play(states, np.where(legal, draw.random(legal.shape), -1).argmax(1))
        states = states[np.isnan(game.result(states))]
    states = states[:256]
    noise = draw.gumbel(size=(len(states), 7)).astype(np.float32)
    inside, asked = [0.0], [0]

    def forward(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        started = time.perf_counter()
        found = player.forward(at)
        inside[0] += time.perf_counter() - started
        asked[0] += len(at)
        return found

    turns = np.stack([schedule(int(w), 64) for w in game.legal(states).sum(1)])
    plainly = PlainGumbel(game, forward, 64)
    ours: list[float] = []
    theirs: list[float] = []
    tree: list[float] = []
    both = [
        (lambda: Gumbel(64).search(game, forward, states, noise), ours),
        (lambda: plainly.search(states, noise, turns), theirs),
    ]
    for turn in range(8):
        for search, rates in both if turn % 2 else both[::-1]:
            inside[0], asked[0], started = 0.0, 0, time.perf_counter()
            search()
            spent = time.perf_counter() - started
            rates.append(65 * len(states) / spent)  # positions looked at: those that have ended need no network
            if rates is ours:
                tree.append(1 - inside[0] / spent)
    spiel = spiel_rate(run_of(options, "pretrain", f"seed{options.seeds[0]}"))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "evaluations/s": statistics.median(ours), "numpy loop": statistics.median(theirs),
        "ratio": statistics.median(ratios), "ratio least": min(ratios), "ratio most": max(ratios),
        "tree": statistics.median(tree), "open_spiel": spiel, "times open_spiel": statistics.median(ours) / spiel,
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def spiel_rate(run: Path) -> float:
    """Evaluations a second of open_spiel's Python MCTS with the same network, a position at a time, each once."""
    import pyspiel
    from open_spiel.python.algorithms import mcts as python_mcts

    alone = hydratune.load(run).player("", 64, rows=1)
    known: dict[str, tuple[np.ndarray, float]] = {}  # of this move
    places: dict[tuple[int, ...], np.ndarray] = {(): alone.game.start()}
    looked = [0]

    def place(history: tuple[int, ...]) -> np.ndarray:
        if history not in places:
            places[history] = alone.game.play(place(history[:-1])[None], np.array(history[-1:]))[0]
        return places[history]

    class Evaluator(python_mcts.Evaluator):
        def _said(self, state: Any) -> tuple[np.ndarray, float]:
            key = state.history_str()
            if key not in known:
                looked[0] += 1
                logits, values = alone.forward(place(tuple(state.history()))[None])
                known[key] = logits[0], float(values[0])
            return known[key]

        def evaluate(self, state: Any) -> list[float]:
            value = self._said(state)[1]
            return [value, -value] if state.current_player() == 0 else [-value, value]

        def prior(self, state: Any) -> list[tuple[int, float]]:
            logits, _ = self._said(state)
            legal = state.legal_actions()
            shares = np.exp(logits[legal] - logits[legal].max())
            return list(zip(legal, shares / shares.sum(), strict=True))

    game = pyspiel.load_game("connect_four")
    bot = python_mcts.MCTSBot(game, 1.5, 64, Evaluator(), solve=True)
    started, state = time.perf_counter(), game.new_initial_state()
    while time.perf_counter() - started < 10:
        if state.is_terminal():
            state = game.new_initial_state()
        state.apply_action(bot.step(state))
        known.clear()
    return looked[0] / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
