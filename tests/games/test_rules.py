"""Rules against open_spiel's, move for move; boards that it does not have against a slow reading of the rules."""

from __future__ import annotations

import numpy as np
import pytest

from hydratune.games.connect4 import Connect4
from hydratune.games.game import Game
from hydratune.games.othello import Othello
from hydratune.games.tictactoe import TicTacToe

GAMES = {"connect4": Connect4(), "othello6": Othello(6), "othello8": Othello(8), "tictactoe": TicTacToe()}
SPIEL = {"connect4": "connect_four", "othello8": "othello", "tictactoe": "tic_tac_toe"}


def random_games(game: Game, count: int, seed: int) -> tuple[list[list[int]], list[list[list[int]]], np.ndarray]:
    """(moves of each game, what was legal before each, the result for whoever moved first), played all at once."""
    draw = np.random.default_rng(seed)
    states = np.repeat(game.start()[None], count, 0)
    moves: list[list[int]] = [[] for _ in range(count)]
    legal: list[list[list[int]]] = [[] for _ in range(count)]
    result = np.full(count, np.nan, np.float32)
    alive = np.arange(count)
    for ply in range(game.longest + 1):
        ended = game.result(states[alive])
        over = ~np.isnan(ended)
        result[alive[over]] = ended[over] * (1 if ply % 2 == 0 else -1)
        alive = alive[~over]
        if not len(alive):
            return moves, legal, result
        allowed = game.legal(states[alive])
        chosen = np.where(allowed, draw.random(allowed.shape), -1).argmax(1)
        for i, a, may in zip(alive, chosen, allowed, strict=True):
            moves[i].append(int(a))
            legal[i].append(np.flatnonzero(may).tolist())
        states[alive] = game.play(states[alive], chosen)
    raise AssertionError("a game went on beyond the longest")


@pytest.mark.slow
@pytest.mark.parametrize("name", SPIEL)
def test_ten_thousand_random_games_are_open_spiels(name: str) -> None:
    check(name, 10_000)


@pytest.mark.parametrize("name", SPIEL)
def test_random_games_are_open_spiels(name: str) -> None:
    check(name, 200)


def check(name: str, count: int) -> None:
    pyspiel = pytest.importorskip("pyspiel", reason="needs open_spiel (hydratune[games])")
    spiel = pyspiel.load_game(SPIEL[name])
    for moves, legal, result in zip(*random_games(GAMES[name], count, seed=1), strict=True):
        state = spiel.new_initial_state()
        for move, may in zip(moves, legal, strict=True):
            assert not state.is_terminal()
            assert state.legal_actions() == may
            state.apply_action(move)
        assert state.is_terminal()
        assert state.returns()[0] == result


class SlowOthello:
    """The rules as one reads them, cell by cell."""

    def __init__(self, size: int) -> None:
        self.size, half = size, size // 2
        self.board = {(half - 1, half): 0, (half, half - 1): 0, (half - 1, half - 1): 1, (half, half): 1}
        self.player = 0

    def turned(self, cell: tuple[int, int], player: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                line, (y, x) = [], (cell[0] + dy, cell[1] + dx)
                while (dy or dx) and self.board.get((y, x)) == 1 - player:
                    line.append((y, x))
                    y, x = y + dy, x + dx
                if line and self.board.get((y, x)) == player:
                    found += line
        return found

    def legal(self, player: int) -> list[int]:
        cells = [(y, x) for y in range(self.size) for x in range(self.size) if (y, x) not in self.board]
        return [y * self.size + x for y, x in cells if self.turned((y, x), player)]

    def play(self, action: int) -> None:
        if action < self.size**2:
            cell = divmod(action, self.size)
            for turned in self.turned(cell, self.player):
                self.board[turned] = self.player
            self.board[cell] = self.player
        self.player = 1 - self.player


def test_othello_six_by_six_is_as_one_reads_the_rules() -> None:
    game = GAMES["othello6"]
    lengths = set()
    for moves, legal, result in zip(*random_games(game, 60, seed=2), strict=True):
        slow = SlowOthello(6)
        for move, may in zip(moves, legal, strict=True):
            assert (slow.legal(slow.player) or [36]) == may
            slow.play(move)
        assert not slow.legal(0) and not slow.legal(1)
        lead = sum(1 if owner == 0 else -1 for owner in slow.board.values())
        assert np.sign(lead) == result
        lengths.add(len(moves))
    assert len(lengths) > 3  # passes and early ends were among them


@pytest.mark.parametrize("name", GAMES)
def test_a_symmetric_board_has_symmetric_moves(name: str) -> None:
    """What is legal on a turned board are the turned moves, and the planes of a turned position are turned planes."""
    game = GAMES[name]
    draw = np.random.default_rng(3)
    states = np.repeat(game.start()[None], 64, 0)
    for _ in range(5):
        legal = game.legal(states)
        states = game.play(states, np.where(legal, draw.random(legal.shape), -1).argmax(1))
    planes, legal = game.inputs(states).reshape(64, game.planes[0], -1), game.legal(states)
    known = {p.tobytes(): i for i, p in enumerate(planes[:, :2])}
    assert len(known) > 20
    for symmetry in game.symmetries():
        turned = planes[:, :, symmetry.cells]
        found = states_of(game, turned[:, :2])
        assert (game.inputs(found).reshape(64, game.planes[0], -1) == turned).all()
        assert (game.legal(found) == legal[:, symmetry.actions]).all()


def states_of(game: Game, stones: np.ndarray) -> np.ndarray:
    """The states with these two planes of stones [B, 2, cells]; which bit is which cell is found by setting each."""
    bit = {}
    for word in (0, 1):
        for shift in range(64):
            state = np.zeros((1, game.words), np.uint64)
            state[0, word] = np.uint64(1) << np.uint64(shift)
            plane = game.inputs(state).reshape(game.planes[0], -1)[word]
            if plane.sum():
                bit[word, int(plane.argmax())] = state[0]
    result = np.zeros((len(stones), game.words), np.uint64)
    for i, word, cell in zip(*np.nonzero(stones), strict=True):
        result[i] |= bit[int(word), int(cell)]
    return result


def test_a_full_board_without_four_is_a_draw_and_not_unfinished() -> None:
    """alpha-zero-general's Connect4Game let such a game go on."""
    rows = ["xxoxxox", "ooxooxo", "xxoxxox", "ooxooxo", "xxoxxox", "ooxooxo"]
    own, other = (sum(1 << (7 * c + r) for r in range(6) for c in range(7) if rows[r][c] == side) for side in "xo")
    state = np.array([[own, other]], np.uint64)
    assert GAMES["connect4"].result(state)[0] == 0
    assert not GAMES["connect4"].legal(state).any()


def test_the_last_stone_can_win() -> None:
    moves = [0, 1, 0, 1, 0, 1]
    game = GAMES["connect4"]
    assert np.isnan(game.result(game.after(moves)[None])[0])
    assert game.result(game.after([*moves, 0])[None])[0] == -1  # the side to move has lost
    with pytest.raises(ValueError, match="move 8: the game has ended"):
        game.after([*moves, 0, 3])


def test_threats_are_the_cells_that_win() -> None:
    """The planes against playing every cell, on random positions."""
    game = Connect4()
    draw = np.random.default_rng(5)
    states = np.repeat(game.start()[None], 300, 0)
    for _ in range(14):
        legal = game.legal(states) & np.isnan(game.result(states))[:, None]
        go = legal.any(1)
        states[go] = game.play(states[go], np.where(legal[go], draw.random(legal[go].shape), -1).argmax(1))
    states = states[np.isnan(game.result(states))]
    planes = game.inputs(states)
    wins = np.zeros((len(states), 7), bool)
    for column in range(7):
        may = game.legal(states)[:, column]
        wins[may, column] = game.result(game.play(states[may], np.full(may.sum(), column))) == -1
    assert wins.any() and (((planes[:, 2] & planes[:, 4]).any(1)) == wins).all()


def test_moves_are_refused_by_number_and_name() -> None:
    with pytest.raises(ValueError, match="move 7: 0 is not legal"):
        GAMES["connect4"].after([0] * 7)
    assert GAMES["othello6"].action_name(36) == "pass" and GAMES["othello6"].action_name(7) == "b2"
    assert GAMES["connect4"].picture(GAMES["connect4"].after([3, 3])).splitlines()[-2:] == [
        ". . . x . . .",
        "1 2 3 4 5 6 7",
    ]
