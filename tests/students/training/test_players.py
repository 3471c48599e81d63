"""Two players in one loop: a generator, and a critic that scores it, each with a loss and an optimiser of its own.

However a run is cut into pieces, by an exception, a kill or the clock, it ends as the uninterrupted one did.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from students.data import load_data
from students.errors import FewstepError
from students.training import loop
from students.training.checkpoint import load_checkpoint
from students.training.ema import EMA
from students.training.history import History
from students.training.loop import batch_share, train
from students.training.players import Player
from tests.students.training.runs import ROOT, equal, torchrun

STEPS, BATCH = 12, 8
RECORDED = ("steps", "images_seen", "evaluations", "final_loss", "loss_curve", "loss_curves", "quality_curve")


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Dropout(0.1), nn.Linear(8, 2))


class Game:
    """A generator of points that are to lie where the eight Gaussians do, and a critic of points, updated before it.

    before(name, step): called at the start of every loss. spoil: what the critic's loss is multiplied by, by step.
    """

    def __init__(self, before=lambda name, step: None, spoil=lambda step: 1.0):
        self.generator, self.critic, self.before, self.spoil = network(0), network(1), before, spoil
        self.data, self.share = load_data("gaussians").train.samples.float(), batch_share(BATCH)
        self.target = EMA(self.generator, 0.5)

    def points(self, generator):
        return self.generator(torch.randn(self.share, 2, generator=generator))

    def critic_loss(self, generator, step):
        self.before("critic", step)
        rows = torch.randint(len(self.data), (self.share,), generator=generator)
        real, fake = self.critic(self.data[rows]).mean(), self.critic(self.points(generator)).mean()
        return {"real": -real * self.spoil(step), "fake": fake, "size": 0.1 * (real**2 + fake**2)}

    def generator_loss(self, generator, step):
        self.before("generator", step)
        z = torch.randn(self.share, 2, generator=generator)
        points = self.generator(z)
        with torch.no_grad():
            before = self.target.module(z)
        return -self.critic(points).mean() + (points - before).square().mean()

    def players(self):
        return {
            "critic": Player(self.critic, self.critic_loss, lr=3e-2, betas=(0.0, 0.9), clip=0.5, warmup=2, every=2),
            "student": Player(
                self.generator, self.generator_loss, lr=1e-2, weight_decay=0.01, warmup=3, ema_decay=0.9,
                averages={"target": self.target},
            ),
        }  # fmt: skip

    def train(self, state=None, players=None, **options):
        """All that training leaves behind, and what its record says apart from times."""
        trained, record = train(
            players or self.players(),
            steps=STEPS,
            batch_size=BATCH,
            state=state,
            config={"game": 1},
            networks={"critic": [self.critic], "student": [self.generator, self.target.module]},
            measure=lambda module: next(module.parameters()).sum().item(),
            **options,
        )
        modules = {"generator": self.generator, "critic": self.critic, "target": self.target.module, **trained}
        tensors = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
        return tensors, {key: record.get(key) for key in RECORDED}


def same(one, other) -> bool:
    return equal(one[0], other[0]) and json.dumps(one[1], sort_keys=True) == json.dumps(other[1], sort_keys=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted game, and the checkpoint it ends with, optimisers included."""
    state = tmp_path_factory.mktemp("game") / "state"
    ended = Game().train(state)
    return *ended, load_checkpoint(state, {"game": 1, "processes": 1, "players": ["critic", "student"]})


def test_the_game_is_played(whole):
    tensors, record, _ = whole
    assert (record["steps"], record["images_seen"]) == (STEPS, STEPS * BATCH)
    # the critic moves in every second step, and then sees real and generated points, the generator's one batch more
    moves = STEPS // 2
    assert record["evaluations"] == {
        "critic": BATCH * (2 * moves + STEPS), "student": BATCH * (moves + 2 * STEPS)
    }  # fmt: skip
    assert [step for step, _ in record["loss_curve"]] == list(range(1, STEPS + 1))
    assert record["loss_curves"].keys() == {"critic", "critic.real", "critic.fake", "critic.size"}
    for curve in record["loss_curves"].values():
        assert [step for step, _ in curve] == list(range(1, STEPS + 1, 2))
    total, *terms = (dict(record["loss_curves"][f"critic{term}"]) for term in ("", ".real", ".fake", ".size"))
    for step, value in total.items():
        assert sum(term[step] for term in terms) == pytest.approx(value, abs=3e-5)
    assert any(not tensors[f"student.{name}"].equal(tensors[f"generator.{name}"]) for name in ("0.weight", "3.bias"))
    for name in ("critic", "generator"):
        fresh = getattr(Game(), name).state_dict()
        assert not any(tensors[f"{name}.{key}"].equal(tensor) for key, tensor in fresh.items())


def test_the_clock_may_stop_it_after_every_step(whole, tmp_path):
    for step in range(1, STEPS + 1):
        ended = Game().train(tmp_path / "s", time_limit=0.0)
        assert ended[1]["steps"] == step
    assert same(ended, whole[:2])
    tensors, progress = load_checkpoint(tmp_path / "s", {"game": 1, "processes": 1, "players": ["critic", "student"]})
    kept = [{name: t.nan_to_num(9.0) for name, t in found.items()} for found in (tensors, whole[2][0])]
    assert equal(*kept)  # with the moments of both optimisers, and the curves
    assert progress["evaluations"] == whole[2][1]["evaluations"]
    assert any(name.startswith("critic.optimiser.") for name in tensors)
    assert not any(name.startswith("critic.ema.") for name in tensors)


@pytest.mark.parametrize("who, at", [("critic", 4), ("student", 5), ("student", 8), ("critic", 10), ("student", 0)])
def test_an_exception_in_a_loss(whole, tmp_path, monkeypatch, who, at):
    monkeypatch.setattr(loop, "LOG_EVERY", 3)

    def fail(name, step):
        if (name, step) == ("generator" if who == "student" else who, at):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Game(fail).train(tmp_path / "s", save_every=-1)
    assert (tmp_path / "s" / f"step-{at // 3 * 3:08d}").is_dir() == (at >= 3)
    assert same(Game().train(tmp_path / "s"), whole[:2])


KILLED = """
import time
from pathlib import Path

from students.training import loop
from tests.students.training.test_players import Game

loop.LOG_EVERY = 3

def wait(name, step):
    if (name, step) == ("generator", 7):
        Path("waiting").touch()
        time.sleep(600)

Game(wait).train(Path("s"), save_every=-1)
"""


@pytest.mark.slow
def test_a_process_that_is_killed(whole, tmp_path):
    (tmp_path / "script.py").write_text(KILLED)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 240
    while not (tmp_path / "waiting").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["step-00000006"]
    assert same(Game().train(tmp_path / "s"), whole[:2])


def test_no_player_learns_from_the_loss_of_the_other():
    """The critic's gradient would flow into the generator, and the other way round, if both were let learn."""
    alone = {}
    for name in ("critic", "student"):
        game = Game()
        players = {name: game.players()[name]}
        tensors, _ = game.train(players=players, time_limit=0.0)
        alone[name] = {key: t for key, t in tensors.items() if key.startswith(("generator.", "critic."))}
    fresh = Game()
    for key, tensor in fresh.generator.state_dict().items():
        assert alone["critic"][f"generator.{key}"].equal(tensor)
        assert not alone["student"][f"generator.{key}"].equal(tensor)
    for key, tensor in fresh.critic.state_dict().items():
        assert alone["student"][f"critic.{key}"].equal(tensor)
        assert not alone["critic"][f"critic.{key}"].equal(tensor)

    seen = []
    game = Game(lambda name, step: seen.append((name, learns(game.critic), learns(game.generator))))
    game.train(time_limit=0.0)
    assert seen == [("critic", True, False), ("generator", False, True)]
    assert all(parameter.grad is None for parameter in game.target.module.parameters())
    assert learns(game.critic) and learns(game.generator)  # as before, for a next stage


def learns(module: nn.Module) -> bool:
    return all(parameter.requires_grad for parameter in module.parameters())


def test_players_draw_different_numbers():
    drawn = {}

    def loss_of(name, module):
        def loss(generator, step):
            drawn.setdefault(step, {})[name] = torch.randn(3, generator=generator), torch.rand(3)
            return module.weight.square().sum()

        return loss

    modules = {name: nn.Linear(1, 1) for name in ("critic", "score", "student")}
    players = {name: Player(module, loss_of(name, module), lr=0.1) for name, module in modules.items()}
    train(players, steps=3, batch_size=1)
    values = [tensor for step in drawn.values() for pair in step.values() for tensor in pair]
    assert len(values) == 18 and len({tuple(tensor.tolist()) for tensor in values}) == 18
    together, drawn = drawn, {}
    train({"student": players["student"]}, steps=3, batch_size=1)
    for step in range(3):  # opponents leave the student's stream as it is without them
        assert drawn[step]["student"][0].equal(together[step]["student"][0])


def test_an_opponent_s_loss_that_is_not_finite_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 4)
    game = Game(spoil=lambda step: float("inf") if step == 6 else 1.0)
    with pytest.raises(FewstepError, match=r"the loss of the critic or its gradient became -?inf|nan at step 6"):
        game.train(tmp_path / "s", save_every=-1)
    tensors, progress = load_checkpoint(tmp_path / "s", {"game": 1, "processes": 1, "players": ["critic", "student"]})
    assert progress["step"] == 4 and all(t.isfinite().all() for n, t in tensors.items() if "history" not in n)


def test_of_two_losses_that_are_not_finite_the_first_is_named():
    history = History(10, "student")
    for step in range(4):  # what the student became at step 2 spoils its opponent at step 3
        spoilt = torch.tensor(float("nan"))
        history.add(
            step, {"critic": spoilt if step == 3 else torch.ones(()), "student": spoilt if step > 1 else torch.ones(())}
        )
    with pytest.raises(FewstepError, match="the loss or its gradient became nan at step 2"):
        history.collect(4)


SHARED = """
import json
from pathlib import Path

import torch
from accelerate import PartialState

from tests.students.training.test_players import STEPS, Game

rank = PartialState(cpu=True).process_index
whole = Game().train()
for step in range(1, STEPS + 1):
    pieces = Game().train(Path("s"), time_limit=0.0 if step % 5 == 0 or rank else 1e9)
    if pieces[1]["steps"] == STEPS:
        break
# one step a call: the clock of the first process decides
steps = []
for call in range(3):
    steps.append(Game().train(Path("one"), time_limit=0.0 if rank == 0 else 1e9)[1]["steps"])
last = Game().train(Path("one"))
torch.save((whole, pieces, last, steps), f"{rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_play_one_game(whole, tmp_path):
    (tmp_path / "script.py").write_text(SHARED)
    done = torchrun(2, ["script.py"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for one, other in zip(first[:3], second[:3], strict=True):
        assert equal(one[0], other[0])
    assert same(first[1], first[0]) and same(first[2], first[0])
    assert first[3] == second[3] == [1, 2, 3]
    assert first[0][1]["evaluations"] == whole[1]["evaluations"]  # of both, together
    assert not equal(first[0][0], whole[0])
    with pytest.raises(FewstepError, match="processes: 2 there, 1 asked"):
        Game().train(tmp_path / "one")
