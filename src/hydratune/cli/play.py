"""The command hydratune-play: a board in the terminal, and what the network thinks of each move."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from hydratune.cli.failures import in_a_line
from hydratune.cli.match import moves_of, refuse_another_game
from hydratune.games.tree import FORBIDDEN, softmax
from hydratune.record.screen import Screen

HELP = "type a move by its name; `back` takes two plies back, `hint` asks the network, `quit` ends"


def main() -> None:
    """hydratune-play RUN [--against OTHER] [--second] [--simulations 64] [--moves ...]"""
    arguments = _parser().parse_args()
    try:
        with in_a_line():
            play(arguments, Screen())
    except (KeyboardInterrupt, EOFError):
        print()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("hydratune-play", description=f"Play against a network. {HELP}.")
    parser.add_argument("run", metavar="RUN", help="a run directory or checkpoint of a network that plays a game")
    parser.add_argument(
        "--against", metavar="OTHER", help="another run, random, minmax:PLIES or mcts:SIMULATIONS plays in your place"
    )
    parser.add_argument("--second", action="store_true", help="the network moves first")
    parser.add_argument(
        "--simulations", type=int, default=64, metavar="N", help="of each move; 0: the network alone (default 64)"
    )
    parser.add_argument("--moves", nargs="*", default=[], help="that have been made already")
    parser.add_argument("--trust", nargs="*", default=[], help="packages whose classes may be built")
    return parser


def play(arguments: argparse.Namespace, screen: Screen) -> None:
    """Raises ValueError for moves that are none."""
    from hydratune.cli.api import load
    from hydratune.games.players import named

    run = load(arguments.run, trust=arguments.trust)
    game = run.game
    own = run.player(arguments.run, arguments.simulations, rows=1)
    other = None
    if arguments.against is not None:
        other = named(arguments.against, game)
        if other is None:
            theirs = load(arguments.against, trust=arguments.trust)
            refuse_another_game(game, arguments.run, theirs.game, arguments.against)
            other = theirs.player(arguments.against, arguments.simulations, rows=1)
    names = game.action_names
    moves = moves_of(arguments.moves, names)
    networks_turn = 0 if arguments.second else 1
    if other is None:
        screen.line(HELP)
    while True:
        state = game.after(moves)[None]
        first = len(moves) % 2 == 0
        screen.line("\n" + game.picture(state[0], *("xo" if first else "ox")))
        result = float(game.result(state)[0])
        if not np.isnan(result):
            winner = "" if result == 0 else ("x" if (result > 0) == first else "o")
            screen.line(f"{winner} wins" if winner else "a draw")
            return
        if len(moves) % 2 == networks_turn:
            moves.append(_opinion(run, own, state, names, screen))
            screen.line(f"{own.name} plays {names[moves[-1]]}")
        elif other is not None:
            moves.append(int(other.choose(state, [moves])[0]))
            screen.line(f"{arguments.against} plays {names[moves[-1]]}")
        else:
            _ask(run, own, state, moves, names, screen)


def _opinion(run: Any, own: Any, state: Any, names: list[str], screen: Screen) -> int:
    """Its move; and a table of the likeliest ones: what the network says at once, and what its search makes of it."""
    logits, values = own.forward(state)
    shares = softmax(np.where(run.game.legal(state), logits, FORBIDDEN)[0])
    columns, extra, after, ranked, move = ["move", "policy"], [], "", shares, int(shares.argmax())
    if own.search is not None:
        found = own.search.search(run.game, own.forward, state, None)
        columns += ["after search", "visits"]
        extra, ranked, move = [found.policy[0], found.visits[0]], found.policy[0], int(found.action[0])
        sure = ", proven" if found.proven[0] else ""
        after = f", after {own.search.simulations} simulations {float(found.value[0]):+.2f}{sure}"
    screen.line(f"{own.name}: value {float(values[0]):+.2f}{after}")
    order = sorted(np.flatnonzero(run.game.legal(state)[0]), key=lambda a: -ranked[a])[:8]
    rows = [
        [names[a], f"{shares[a]:.0%}", *([f"{extra[0][a]:.0%}", f"{extra[1][a]:.0f}"] if extra else [])] for a in order
    ]
    screen.table("", columns, rows)
    return move


def _ask(run: Any, own: Any, state: Any, moves: list[int], names: list[str], screen: Screen) -> None:
    """One line of the player's, done."""
    text = input("your move: ").strip()
    if text == "quit":
        raise EOFError
    if text == "back":
        del moves[-2:]
    elif text == "hint":
        _opinion(run, own, state, names, screen)
    elif text not in names or not run.game.legal(state)[0, names.index(text)]:
        legal = ", ".join(names[a] for a in np.flatnonzero(run.game.legal(state)[0]))
        screen.line(f"{text!r} is no legal move; {legal}")
    else:
        moves.append(names.index(text))
