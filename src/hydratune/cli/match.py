"""The command hydratune-match: two players from the same openings, and who is better by how much."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress

from hydratune.cli.failures import in_a_line
from hydratune.games.game import Game
from hydratune.record.screen import Screen


def main() -> None:
    """hydratune-match RUN RUN|random|minmax:5|mcts:1000 [--openings 4] [--games 400] [--simulations 64] [--seed 0]"""
    arguments = _parser().parse_args()
    try:
        with in_a_line():
            match(arguments, Screen())
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("hydratune-match", description="A match between two players of a game.")
    parser.add_argument("first", metavar="RUN", help="a run directory or checkpoint of a network that plays a game")
    parser.add_argument(
        "second", metavar="OTHER", help="another one; random, minmax:PLIES, or mcts:SIMULATIONS (open_spiel's)"
    )
    parser.add_argument(
        "--openings",
        type=int,
        default=4,
        metavar="PLIES",
        help="games begin from all distinct positions after so many plies (default 4)",
    )
    parser.add_argument(
        "--games", type=int, metavar="N", help="at most so many, from openings that are drawn; each opening gives two"
    )
    parser.add_argument(
        "--simulations",
        type=int,
        nargs="+",
        default=[64],
        metavar="N",
        help="of each move; two numbers: of either player; 0: the network alone (default 64)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the openings that are drawn, and of players that draw")
    parser.add_argument("--trust", nargs="*", default=[], help="packages whose classes may be built")
    return parser


def match(arguments: argparse.Namespace, screen: Screen) -> None:
    """Raises ValueError for players that cannot meet."""
    from hydratune.cli.api import load
    from hydratune.games.match import elo, openings, play_match
    from hydratune.games.players import Player, named

    if len(arguments.simulations) > 2 or min(arguments.simulations) < 0:
        raise ValueError(f"--simulations {arguments.simulations}: one or two numbers, at least 0")
    if arguments.games is not None and arguments.games < 2:
        raise ValueError(f"--games {arguments.games}: at least 2, one with either colour")
    own, theirs = (arguments.simulations * 2)[:2]
    if arguments.first.partition(":")[0] in ("random", "minmax", "mcts"):
        raise ValueError(f"{arguments.first}: comes second; the first player is a run")
    first_run = load(arguments.first, trust=arguments.trust)
    game = first_run.game
    second: Player | None = named(arguments.second, game, arguments.seed)
    second_said = "as it is" if second is not None else said(theirs)
    if second is None:
        other = load(arguments.second, trust=arguments.trust)
        refuse_another_game(game, arguments.first, other.game, arguments.second)
        second = other.player(arguments.second, theirs)
    first = first_run.player(arguments.first, own)
    pairs = None if arguments.games is None else arguments.games // 2
    begins = openings(game, arguments.openings, pairs, arguments.seed)
    with screen.progress("match", 0, 2 * len(begins)) as line:
        result = play_match(game, first, second, begins, lambda done, _: line.show(done, {"games": str(done)}))
    low, high = result.interval(arguments.seed)
    counts, share = (result.wins, result.draws, result.losses), result.share
    rows = [
        [f"{arguments.first} ({said(own)})", *map(str, counts), f"{share:.1%}"],
        [f"{arguments.second} ({second_said})", *map(str, counts[::-1]), f"{1 - share:.1%}"],
    ]
    screen.table(f"{result.games} games of {game.name}", ["player", "wins", "draws", "losses", "points"], rows)
    over = f"bootstrap over {len(begins)} openings"
    screen.line(f"points of the first: {result.share:.1%}, 95% interval {low:.1%} to {high:.1%} ({over})")
    screen.line(f"Elo difference: {elo(result.share):+.0f} ({elo(low):+.0f} to {elo(high):+.0f})")
    if result.distinct < result.games:
        screen.line(f"{result.games - result.distinct} of the games are repetitions of others")


def refuse_another_game(game: Game, name: str, other: Game, others: str) -> None:
    """Raises ValueError."""
    if (other.name, other.num_actions) != (game.name, game.num_actions):
        raise ValueError(f"{others} plays {other.name}, and {name} plays {game.name}")


def said(simulations: int) -> str:
    return f"{simulations} simulations" if simulations else "policy only"


def moves_of(text: Sequence[str], names: Sequence[str]) -> list[int]:
    """Moves by their names. Raises ValueError."""
    found = []
    for name in text:
        with suppress(ValueError):
            found.append(names.index(name))
            continue
        raise ValueError(f"{name!r} is no move; moves are {', '.join(names[:12])}{' ...' if names[12:] else ''}")
    return found
