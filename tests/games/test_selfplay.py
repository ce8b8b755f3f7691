"""Games against itself, generations as data, matches: each pitfall of self-play that is known as a test."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.games.reference import fake_network

from hydratune.core.types import MOVE_FORBIDDEN, MOVE_UNKNOWN, Batch, PositionTargets
from hydratune.data.boards.generations import Generations, Play, as_outcomes, write_shard
from hydratune.data.boards.solved import SolvedPositions, hashed_place
from hydratune.data.stream import Batches, Placement
from hydratune.games.connect4 import Connect4
from hydratune.games.match import elo, openings, play_match
from hydratune.games.othello import Othello
from hydratune.games.players import Minmax, RandomPlayer, Searcher, named
from hydratune.games.search import Gumbel
from hydratune.games.selfplay import Played, Rules, play
from hydratune.games.tictactoe import TicTacToe
from hydratune.tasks.policy_value import PolicyValue

C4, TTT = Connect4(), TicTacToe()
CPU = torch.device("cpu")


def same(a: Played, b: Played) -> bool:
    return all((getattr(a, f.name) == getattr(b, f.name)).all() for f in fields(Played))


def of_games(played: Played, numbers: list[int]) -> Played:
    kept = np.isin(played.game, numbers)
    return Played(*(getattr(played, f.name)[kept] for f in fields(Played)))


# ---- games


def test_what_a_game_is_does_not_depend_on_those_beside_it() -> None:
    """Rows, their number and their order: fixed game numbers, each to its end, also the long ones."""
    forward = fake_network(C4)
    whole = play(Rules(C4, Gumbel(8), 16, 4), forward, range(40), 7)
    assert sorted({*whole.game.tolist()}) == list(range(40))
    few = play(Rules(C4, Gumbel(8), 3, 4), forward, [31, 2, 17], 7)
    for number in (2, 17, 31):
        assert same(of_games(whole, [number]), of_games(few, [number]))


def test_games_of_one_generation_differ_and_those_of_the_same_seed_do_not() -> None:
    """Workers that share a seed play one game many times (PARL issue 401)."""
    rules, forward = Rules(C4, Gumbel(8), 32, 4), fake_network(C4)
    played = play(rules, forward, range(32), 7)
    games = {of_games(played, [n]).states.tobytes() for n in range(32)}
    assert len(games) >= 30
    assert same(played, play(rules, forward, range(32), 7))
    assert not np.array_equal(played.states[:50], play(rules, forward, range(32), 8).states[:50])


@pytest.mark.parametrize("game", [C4, TTT, Othello(4)])
def test_outcomes_belong_to_the_side_to_move(game: object) -> None:
    """Played to the end again by hand, from the recorded positions."""
    played = play(Rules(game, Gumbel(6), 16, 3), fake_network(game), range(24), 3)
    for number in range(24):
        one = of_games(played, [number])
        assert (np.diff(one.ply) == 1).all() and one.ply[0] <= 3
        last = one.states[-1:]
        moves = np.flatnonzero(game.legal(last)[0])
        ends = game.result(game.play(np.repeat(last, len(moves), 0), moves))
        assert (-ends == one.outcome[-1]).any()
        signs = np.where((one.ply[-1] - one.ply) % 2 == 0, 1, -1)
        assert (one.outcome == signs * one.outcome[-1]).all()


def test_playing_changes_nothing_of_the_network() -> None:
    """BatchNorm's statistics moved while alpha-zero-general played (issue 15); and a batch is of one size."""
    from hydratune.core.types import LayerGroup
    from hydratune.distributed.runtime import Runtime
    from hydratune.experiment.evaluator import Evaluator
    from hydratune.models.network import Network

    body = torch.nn.Sequential(torch.nn.Conv2d(2, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    head = PolicyValue().build_head(torch.zeros(1, 8, 3, 3), Tiny(TTT).spec())
    network = Network([LayerGroup("body", body, {k: k for k in body.state_dict()}),
                       LayerGroup("head", head, {k: f"head.{k}" for k in head.state_dict()})])  # fmt: skip
    body.train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    evaluator = Evaluator(network, TTT, Runtime(device="cpu", precision="fp32"), 8)
    played = play(Rules(TTT, Gumbel(4), 8, 2), evaluator, range(12), 1)
    assert all((before[k] == v).all() for k, v in network.state_dict().items())
    one = evaluator(played.states[:1])
    many = evaluator(played.states[:20])
    assert (one[0][0] == many[0][0]).all() and one[1][0] == many[1][0]


# ---- generations as data


class Tiny(Generations):
    def __init__(self, game: object, **settings: object) -> None:
        super().__init__(Play(20, 8, 10), task=PolicyValue(monitor="negative_loss"), game=game, **settings)


def generation(home: Path, game: object, number: int = 1, games: int = 20, seed: int = 0) -> Path:
    import json

    directory = home / f"generation-{number}"
    directory.mkdir(parents=True)
    for shard in (0, 1):
        numbers = range(shard * games // 2, (shard + 1) * games // 2)
        played = play(Rules(game, Gumbel(4), 8, 2), fake_network(game), numbers, seed + number)
        write_shard(directory / f"games-{shard:05d}.safetensors", played)
    content = {"id": f"{number}-{seed}", "generation": number, "game": game.name, "seed": seed, "games": games}
    (directory / "manifest.json").write_text(json.dumps({**content, "statistics": {"draws": 0.1}}))
    return directory


def test_train_and_val_have_no_game_in_common_and_the_newest_are_kept(tmp_path: Path) -> None:
    """Positions of a game resemble each other: split by game, and bounded (leela-zero issue 1197)."""
    made = [str(generation(tmp_path, C4, n)) for n in (1, 2, 3)]
    data = Tiny(C4, directories=made, window=2, val_share=0.3)
    train, val = data.split("train"), data.split("val")
    assert "generation 2, 3" in train.summary and len(train) > len(val) > 0
    alone = [len(Tiny(C4, directories=[d], val_share=0.3).split(part)) for d in made for part in ("train", "val")]
    assert len(train) == alone[2] + alone[4] and len(val) == alone[3] + alone[5]
    few = Tiny(C4, directories=made[:1], val_share=0.3, per_game=3).split("train")
    assert len(few) <= 3 * 20 and len(few) < alone[0]
    assert Tiny(C4, directories=made).files() == "1-0 2-0 3-0"
    assert Tiny(C4, directories=made, grows=True).files() == "1-0"
    with pytest.raises(ValueError, match="holds games of connect4, not of tictactoe"):
        Tiny(TTT, directories=made).split("train")
    with pytest.raises(ValueError, match=r"dataset\.directories: stage=selfplay makes them"):
        Tiny(C4).split("train")


def test_the_value_that_is_learned_has_the_expectation_that_was_asked_for() -> None:
    outcome, value = torch.tensor([1.0, 0.0, -1.0, 1.0]), torch.tensor([0.5, -0.4, -1.0, -0.2])
    shares = as_outcomes(outcome, value)
    assert (shares.sum(1) - 1).abs().max() < 1e-6 and (shares >= 0).all()
    assert (shares @ torch.tensor([-1.0, 0.0, 1.0]) - value).abs().max() < 1e-6
    assert shares[1, 1] == pytest.approx(0.6) and shares[0, 1] == 0


@pytest.mark.parametrize("game", [C4, TTT, Othello(4)])
def test_a_turned_board_has_its_policy_turned(tmp_path: Path, game: object) -> None:
    """Every view of training against the rules: the moves of a turned position lead where the turned moves lead."""
    data = Tiny(game, directories=[str(generation(tmp_path, game))])
    split = data.split("train")
    place = Placement(CPU)
    stream = data.stream(split, None, Batches(len(split), 0, training=True), place)
    assert stream.views == len(game.symmetries()) + 1
    plain = data.stream(split, None, Batches(len(split), 0), place)
    ids = torch.arange(len(split))
    seen = set()
    for epoch in range(stream.views):
        (batch,) = stream.batches(epoch, epoch + 1)
        planes = batch.inputs[:, :2].flatten(2).numpy() == 1
        states = game.from_stones(planes[:, 0], planes[:, 1])
        assert (game.canonical(states) == game.canonical(split.states[batch.ids])).all()
        assert ((batch.targets.moves == MOVE_UNKNOWN).numpy() == game.legal(states)).all()
        assert (batch.targets.policy.numpy()[~game.legal(states)] == 0).all()
        own = batch.targets.policy.sort(1).values
        assert (own == plain.known(batch.ids).policy.sort(1).values).all()
        for i, a in zip(*np.nonzero(batch.targets.policy.numpy() > 0.9), strict=True):  # where a clear best move leads
            row = batch.ids[i : i + 1]
            ways = [(states[i : i + 1], a), (split.states[row.numpy()], int(plain.known(row).policy.argmax()))]
            after = [game.canonical(game.play(s, np.array([m]))) for s, m in ways]
            assert (after[0] == after[1]).all()
        seen.add(batch.inputs[batch.ids.argsort()].numpy().tobytes())
    assert len(seen) == stream.views
    assert next(stream.unique_inputs(16)).shape[1:] == game.planes
    assert (torch.cat(list(plain.unique_inputs(16))) == plain.seen(ids)).all()


# ---- solved positions


def solved_file(path: Path, game: Connect4, count: int = 400) -> Path:
    """Positions, each beside its mirror image, with made-up scores that the mirror image has mirrored."""
    draw = np.random.default_rng(0)
    states = np.repeat(game.start()[None], count, 0)
    for _ in range(9):
        legal = game.legal(states)
        states = game.play(states, np.where(legal, draw.random(legal.shape), -1).argmax(1))
        states = states[np.isnan(game.result(states))]
    planes = game.inputs(states)[:, :2].reshape(len(states), 2, -1)
    lines = []
    for board, legal in zip(planes, game.legal(states), strict=True):
        score = {a: int(draw.integers(-9, 10)) for a in np.flatnonzero(legal)}
        for flipped in (False, True):
            cells = board[:, game.symmetries()[0].cells] if flipped else board
            text = "".join("m" if cells[0, i] else "o" if cells[1, i] else "." for i in game.text_order)
            moves = ",".join(f"{6 - a if flipped else a}:{s}" for a, s in score.items())
            lines.append(f"{text} 9 {moves}")
    path.write_text("\n".join(lines) + "\n")
    return path


def solved(path: Path, **settings: object) -> SolvedPositions:
    return SolvedPositions(PolicyValue(), C4, str(path), **{"val_share": 0.2, "test_share": 0.2, **settings})


def test_no_position_is_in_two_splits_not_even_mirrored(tmp_path: Path) -> None:
    data = solved(solved_file(tmp_path / "solved.txt", C4), children=1.0)
    parts = {name: {s.tobytes() for s in C4.canonical(data.split(name).states)} for name in ("train", "val", "test")}
    assert all(parts.values())
    assert not parts["train"] & parts["val"] and not parts["train"] & parts["test"] and not parts["val"] & parts["test"]
    assert "that a move leads to" in data.split("train").summary
    places = hashed_place(C4.canonical(data.split("test").states))
    assert places.max() < 0.2


def test_what_a_solver_says_becomes_targets(tmp_path: Path) -> None:
    """One position by hand: two moves win, the sooner one counts more; one draws, the others lose."""
    text = "mo....m.................oomm........o....."
    (tmp_path / "one.txt").write_text(f"{text} 8 0:-3,1:4,2:6,3:0,4:-4,5:-3,6:-2\n")
    data = solved(tmp_path / "one.txt", sharpness=0.5)
    (part,) = data.evaluated_parts().values()
    policy, value, moves = (t[0] for t in part.targets)
    share = np.exp(0.5 * 2)
    assert policy.tolist() == pytest.approx([0, 1 / (1 + share), share / (1 + share), 0, 0, 0, 0])
    assert value.tolist() == [0, 0, 1] and moves.tolist() == [-1, 1, 1, 0, -1, -1, -1]
    assert part.kind_names[part.kinds[0]] == "opening midway"  # 8 stones; the winner ends with 22 - 6 = 16, 4 are there


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("mo 2 0:1", "is no position of connect4"),
        ("." * 42 + " 0 0:1", "line 1 has not a score for each legal move"),
        ("." * 42 + " 0 zero", "line 1 is not a position, its stones and move:score"),
        ("", "holds no position"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "bad.txt").write_text(line + "\n" if line else "")
    with pytest.raises(ValueError, match=message):
        solved(tmp_path / "bad.txt").split("train")


def test_a_loss_counts_what_is_known(tmp_path: Path) -> None:
    """Positions of which the value alone is known have no part in the policy's term; illegal moves none in any."""
    task = PolicyValue()
    moves = torch.full((2, 7), MOVE_UNKNOWN, dtype=torch.int8)
    moves[0, 6] = MOVE_FORBIDDEN
    policy = torch.zeros(2, 7)
    policy[0, 0] = 1.0
    targets = PositionTargets(policy, torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), moves)
    logits = torch.zeros(2, 7)
    logits[0, 6] = 50.0
    loss = task.loss((logits, torch.zeros(2, 3)), Batch(None, targets, torch.arange(2)))
    assert float(loss.terms["policy"].mean()) == pytest.approx(np.log(6)) and float(loss.terms["policy"].count) == 1
    assert float(loss.terms["value"].mean()) == pytest.approx(np.log(3)) and loss.terms["value"].count == 2


# ---- matches


def test_games_of_a_match_are_distinct_and_both_colours_are_played() -> None:
    """A deterministic arena played two games forty times (alpha-zero-general issue 337)."""
    begins = openings(C4, 2)
    assert len(begins) == 25 and len({tuple(sorted(b)) for b in begins}) > 5
    one = Searcher("a", C4, fake_network(C4, 1), Gumbel(4))
    two = Searcher("b", C4, fake_network(C4, 2), None)
    result = play_match(C4, one, two, begins)
    assert result.games == 50 and result.distinct >= 45
    again = play_match(C4, one, two, begins)
    assert (result.points == again.points).all() and result.moves == again.moves
    turned = play_match(C4, two, one, begins)
    assert turned.wins == result.losses and turned.draws == result.draws
    assert len(openings(C4, 4)) == 568 and len(openings(C4, 4, 20, seed=3)) == 20
    with pytest.raises(ValueError, match="no game of tictactoe goes on for so long"):
        openings(TTT, 9)


def test_the_better_player_wins_and_the_interval_says_so() -> None:
    result = play_match(C4, Minmax(C4, 3), RandomPlayer(C4), openings(C4, 2))
    low, high = result.interval()
    assert result.share > 0.9 and low > 0.5 and high <= 1 and result.p_value() < 0.01
    assert elo(0.5) == 0 and elo(0.75) == pytest.approx(190.8, abs=0.1) and elo(1.0) == float("inf")
    othello = Othello(6)
    assert play_match(othello, Minmax(othello, 2), RandomPlayer(othello), openings(othello, 2)).share > 0.7
    even = play_match(C4, RandomPlayer(C4), RandomPlayer(C4), openings(C4, 2))
    assert 0.2 < even.share < 0.8


def test_minmax_sees_what_lies_within_its_depth() -> None:
    assert Minmax(C4, 1).choose(C4.after([3, 0, 3, 0, 3, 1])[None], [[1]])[0] == 3
    assert Minmax(C4, 2).choose(C4.after([0, 3, 0, 3, 1, 3])[None], [[1]])[0] == 3
    assert named("minmax:4", C4).name == "minmax:4" and named("outputs/run", C4) is None
    with pytest.raises(ValueError, match="minmax:x: a number follows"):
        named("minmax:x", C4)
    with pytest.raises(ValueError, match="open_spiel has no othello4"):
        named("mcts:10", Othello(4))


def test_open_spiels_mcts_plays(tmp_path: Path) -> None:
    pytest.importorskip("pyspiel", reason="needs open_spiel (hydratune[games])")
    result = play_match(C4, named("mcts:50", C4), RandomPlayer(C4), openings(C4, 1))
    assert result.share > 0.7
