"""The batched search against a reference, and against positions whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from tests.games.reference import Reference, considered_visits, fake_network

from hydratune.games.connect4 import Connect4
from hydratune.games.game import Game
from hydratune.games.othello import Othello
from hydratune.games.search import Gumbel, Puct, Search, mixed_value, schedule
from hydratune.games.tictactoe import TicTacToe
from hydratune.games.tree import FORBIDDEN, Nodes

C4 = Connect4()
SEARCHES = [Gumbel(32), Puct(32)]


def positions(game: Game, plies: int, count: int = 40, seed: int = 0) -> np.ndarray:
    """Distinct ones in which the game goes on, after random moves."""
    draw = np.random.default_rng(seed)
    states = np.repeat(game.start()[None], count, 0)
    for _ in range(plies):
        legal = game.legal(states)
        states = game.play(states, np.where(legal, draw.random(legal.shape), -1).argmax(1))
        states = states[np.isnan(game.result(states))]
    return np.unique(states, axis=0)


def noise(game: Game, count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).gumbel(size=(count, game.num_actions)).astype(np.float32)


# ---- against a reference


@pytest.mark.parametrize(("game", "plies"), [(C4, 4), (C4, 20), (TicTacToe(), 2), (Othello(4), 3)])
@pytest.mark.parametrize("simulations", [3, 16, 50])
def test_gumbel_is_the_papers(game: Game, plies: int, simulations: int) -> None:
    """Same move, same improved policy, same visits, for every position of a batch. A winning or losing move that is
    proven beats the paper's choice, so there the moves may differ.
    """
    forward, states = fake_network(game), positions(game, plies)
    drawn = noise(game, len(states))
    found = Gumbel(simulations, considered=5).search(game, forward, states, drawn)
    reference = Reference(game, forward)
    compared = 0
    for i, state in enumerate(states):
        move, policy, root = reference.search(state, simulations, 5, drawn[i])
        visits = np.array([root.visits.get(a, 0) for a in range(game.num_actions)])
        assert (found.visits[i] == visits).all()
        assert found.policy[i] == pytest.approx([policy.get(a, 0) for a in range(game.num_actions)], abs=2e-4)
        assert found.proven[i] == (root.proven is not None)
        if not any(c.proven is not None for c in root.children.values()):
            assert found.action[i] == move
            compared += 1
    assert compared or plies == 20


def test_the_mixed_value_is_that_of_mctx_computed_by_hand() -> None:
    """Two moves of three were made: v = 0.2, N = (3, 1, 0), q = (0.5, -0.5), prior = (0.5, 0.3, 0.2)."""
    prior = np.array([[0.5], [0.3], [0.2]], np.float32)
    visits, q = np.array([[3.0], [1.0], [0.0]], np.float32), np.array([[0.5], [-0.5], [0.0]], np.float32)
    nodes = Nodes(np.log(prior), prior, np.array([0.2], np.float32), visits, q, visits > 0, np.full((3, 1), np.nan))
    seen = (0.5 * 0.5 - 0.3 * 0.5) / 0.8
    assert mixed_value(nodes)[0] == pytest.approx((0.2 + 4 * seen) / 5)
    advantage = Gumbel(4, c_scale=1.0).advantage(nodes)
    assert advantage[:, 0] == pytest.approx([53 * 0.75, 53 * 0.25, 53 * (mixed_value(nodes)[0] + 1) / 2], rel=1e-6)
    spread = Gumbel(4, rescale=True).advantage(nodes)[:, 0]
    assert spread == pytest.approx([5.3, 0.0, 5.3 * (mixed_value(nodes)[0] + 0.5)], rel=1e-5)


def test_sequential_halving_spends_what_it_has() -> None:
    """mctx.get_sequence_of_considered_visits, for 4 moves and 16 simulations, and where there is but one move."""
    assert schedule(4, 16).tolist() == [0] * 4 + [1] * 4 + [2, 2, 3, 3, 4, 4, 5, 5]
    assert schedule(1, 3).tolist() == [0, 1, 2]
    every = [(width, n) for width in range(1, 9) for n in range(1, 70)]
    assert all(schedule(width, n).tolist() == considered_visits(width, n) for width, n in every)


def test_puct_follows_a_tree_computed_by_hand() -> None:
    """Before any visit the prior decides; then q takes part, and what was not visited counts as the node's value."""
    prior = np.array([[0.6], [0.3], [0.1]], np.float32)
    none = np.zeros((3, 1), np.float32)
    fresh = Nodes(np.log(prior), prior, np.array([0.1], np.float32), none, none, none > 0, np.full((3, 1), np.nan))
    assert Puct(4, c=2.0).within(fresh)[:, 0] == pytest.approx([0.1 + 1.2, 0.1 + 0.6, 0.1 + 0.2])
    visits, q = np.array([[1.0], [0], [0]], np.float32), np.array([[-0.8], [0], [0]], np.float32)
    later = fresh._replace(visits=visits, q=q, known=visits > 0)
    mixed = (0.1 + 1 * -0.8) / 2
    assert Puct(4, c=2.0).within(later)[:, 0] == pytest.approx([-0.8 + 0.6, mixed + 0.6, mixed + 0.2])


# ---- positions whose answer is known


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("moves", [[3, 0, 3, 0, 3, 1], [6, 3, 0, 3, 0, 3, 1]])  # the first, the second player wins
def test_a_mate_in_one_is_found_whatever_the_network_says(search: Search, moves: list[int]) -> None:
    """A value from the wrong side, or a terminal value taken from the network, would miss it (open_spiel PR 1396)."""
    for value in (-1.0, 0.0, 1.0):
        found = search.search(C4, constant(value), C4.after(moves)[None], None)
        assert found.action[0] == 3 and found.value[0] == 1 and found.proven[0]
        assert found.policy[0, 3] > (0.5 if value >= 0 else 0.1)  # where every move seems to win, none stands out


@pytest.mark.parametrize("search", [Gumbel(200), Puct(200)])
@pytest.mark.parametrize("moves", [[0, 3, 0, 3, 1, 3], [6, 0, 3, 0, 3, 1, 3]])
def test_a_threat_is_blocked(search: Search, moves: list[int]) -> None:
    for value in (0.0, 1.0):
        assert search.search(C4, constant(value), C4.after(moves)[None], None).action[0] == 3


def constant(value: float):
    return lambda states: (np.zeros((len(states), 7), np.float32), np.full(len(states), value, np.float32))


@pytest.mark.parametrize("search", SEARCHES)
def test_full_columns_are_never_played_and_nothing_is_infinite(search: Search) -> None:
    """LightZero issues 158 and 178: a full column made completed values infinite."""
    states = positions(C4, 24, 400)
    legal = C4.legal(states)
    assert (~legal).any(1).sum() > 10
    found = search.search(C4, fake_network(C4), states, noise(C4, len(states)))
    assert legal[np.arange(len(states)), found.action].all()
    assert np.isfinite(found.policy).all() and (found.policy[~legal] == 0).all() and (found.visits[~legal] == 0).all()
    assert np.abs(found.policy.sum(1) - 1).max() < 1e-5 and np.abs(found.value).max() <= 1


def solved(game: Game, states: np.ndarray) -> np.ndarray:
    """[B] exact values by minimax, for small games."""
    result = game.result(states)
    for i in np.flatnonzero(np.isnan(result)):
        moves = np.flatnonzero(game.legal(states[i : i + 1])[0])
        result[i] = -solved(game, game.play(np.repeat(states[i : i + 1], len(moves), 0), moves)).min()
    return result


def test_the_target_is_never_worse_than_the_prior_where_values_are_exact() -> None:
    game = TicTacToe()
    states = positions(game, 4, 60)

    def forward(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return fake_network(game)(at)[0], solved(game, at).astype(np.float32)

    found = Gumbel(16).search(game, forward, states, noise(game, len(states)))
    for state, policy, prior in zip(states, found.policy, found.prior, strict=True):
        moves = np.flatnonzero(game.legal(state[None])[0])
        q = -solved(game, game.play(np.repeat(state[None], len(moves), 0), moves))
        assert policy[moves] @ q >= prior[moves] @ q - 1e-5
    assert (found.policy != found.prior).any()


def test_with_enough_simulations_tic_tac_toe_is_solved() -> None:
    game = TicTacToe()
    states = positions(game, 3, 60)
    found = Gumbel(400).search(game, fake_network(game), states, None)
    assert found.proven.mean() > 0.2
    assert (found.value[found.proven] == solved(game, states)[found.proven]).all()


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_is_a_function_of_position_weights_and_noise(search: Search) -> None:
    """No tree is kept, and no game sees another one."""
    forward, states = fake_network(C4), positions(C4, 8)
    drawn = noise(C4, len(states))
    whole = search.search(C4, forward, states, drawn)
    again = search.search(C4, forward, states[::-1], drawn[::-1])
    assert (whole.action == again.action[::-1]).all() and (whole.policy == again.policy[::-1]).all()
    for i in (0, len(states) // 2):
        alone = search.search(C4, forward, states[i : i + 1], drawn[i : i + 1])
        assert alone.action[0] == whole.action[i] and (alone.policy[0] == whole.policy[i]).all()
    other = search.search(C4, forward, states, noise(C4, len(states), seed=2))
    assert (other.action != whole.action).any()


def test_settings_are_refused_by_key() -> None:
    with pytest.raises(ValueError, match=r"search\.simulations=-1: at least 0"):
        Gumbel(-1)
    with pytest.raises(ValueError, match=r"search\.considered=1"):
        Gumbel(considered=1)
    with pytest.raises(ValueError, match=r"search\.simulations=\[0, 4\]: one whole number"):
        Gumbel([0, 4]).search(C4, constant(0), C4.start()[None], None)
    assert FORBIDDEN < -1e8
