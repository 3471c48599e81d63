"""A method with an opponent, in two stages, through the command that trains any method; what methods start from."""

import json

import pytest
import torch
from torch import nn

import students
from students.diffusion.schedules import VE
from students.distillation.method import Distillation, needs_guidance, trainable, untrained
from students.errors import FewstepError, Stopped
from students.models.load import load_start, load_teacher
from students.models.teacher import Teacher
from students.networks.network import set_dropout
from students.samplers import Sampler
from students.spec import METHODS, Entry
from students.training import quality
from students.training.batches import DATA, NOISE
from students.training.distill import method_class, train_method
from students.training.players import Player


class Toy(Distillation):
    """One step from noise, scored by a critic of points; the critic is one and the same in both stages."""

    needs = {NOISE, DATA}
    stages, shares = ("2", "1"), (0.5, 0.5)

    def build(self, stage, trained):
        self.critics = getattr(self, "critics", None) or {"critic": self.critic()}
        assert list(trained) == ([] if stage == "2" else ["2"])
        return trainable(self.start, VE)

    def critic(self) -> Player:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            module = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))
        return Player(module, self.critic_loss, lr=1e-2, every=2)

    def opponents(self):
        return self.critics

    def images(self, batch):
        schedule = self.model.schedule
        return self.model(batch.noise * schedule.t_max, schedule.t_max, batch.condition)

    def score(self, x):
        return self.critics["critic"].module(x).mean()

    def critic_loss(self, batch, step, generator):
        return {"real": -self.score(batch.data.x0), "fake": self.score(self.images(batch).detach())}

    def loss(self, batch, step, generator):
        return -self.score(self.images(batch))

    def sampler(self, model):
        steps = int(self.stage)
        return Sampler(
            "levels", {"levels": {self.stage: [model.schedule.t_max, 1.0, model.schedule.t_min][-1 - steps :]}}
        )


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(METHODS, "toy", Entry(f"{__name__}:Toy", "a toy"))
    monkeypatch.setattr(quality, "SAMPLES", 20)
    return {"settings": {"steps": 8, "batch_size": 4}}


def test_a_method_with_an_opponent_is_trained_stopped_and_resumed(toy, tmp_path):
    whole = train_method("toy", "gaussians", out=tmp_path / "a", state=tmp_path / "a-state", **toy)
    assert [path.name for path in whole] == ["toy-2.safetensors", "toy-1.safetensors"]
    for path in whole:
        record = json.loads(path.with_suffix(".json").read_text())
        # four steps: the student's own, and the critic's two, which draw a batch of the student as well
        assert record["evaluations"] == {"teacher": 0, "critic": 4 * 4 + 2 * 2 * 4, "student": 4 * 4 + 2 * 4}
        assert record["loss_curves"].keys() == {"critic", "critic.real", "critic.fake"}
        assert "critic" not in record["model"] and record["images_seen"] == 16
    stops = 0
    while True:
        try:
            limit = {"time_limit": 0.0} if stops < 7 else {}
            pieces = train_method("toy", "gaussians", out=tmp_path / "b", state=tmp_path / "b-state", **limit, **toy)
            break
        except Stopped:
            stops += 1
    assert stops >= 6
    for path, other in zip(whole, pieces, strict=True):
        assert path.read_bytes() == other.read_bytes()
        one, two = (json.loads(name.with_suffix(".json").read_text()) for name in (path, other))
        for key in ("evaluations", "loss_curve", "loss_curves", "quality_curve", "final_loss"):
            assert one[key] == two[key]
    student = students.load(f"toy:weights={tmp_path / 'a'}", task="gaussians")
    assert student.supported_steps == (1, 2) and student.sample(2).isfinite().all()
    assert student.training["evaluations"] == 2 * (32 + 24)


# What methods start from


def test_what_is_trained_is_a_copy_under_another_schedule():
    _, start = load_start("digits")
    copied = trainable(start, VE, extra=1)
    assert copied.network is not start.network and isinstance(copied.schedule, VE) and copied.network.extra == 1
    assert start.network.extra == 0 and not any(p.requires_grad for p in start.parameters())
    assert all(p.requires_grad for p in copied.parameters())
    assert {module.p for module in copied.modules() if isinstance(module, nn.Dropout)} <= {0.0}
    set_dropout(copied, 0.2)
    assert max(module.p for module in copied.modules() if isinstance(module, nn.Dropout)) == 0.2


def test_from_scratch_is_the_same_network_with_parameters_drawn_anew():
    _, start = load_start("digits")
    torch.manual_seed(0)
    one, two = untrained(start), untrained(start)
    states = [module.state_dict() for module in (start, one, two)]
    assert states[0].keys() == states[1].keys()
    name = "network.network.conv_in.weight"
    assert len({states[i][name].sum().item() for i in range(3)}) == 3


def test_guidance_needs_classes_and_their_absence():
    needs_guidance("lcm", load_teacher("digits"))
    with pytest.raises(FewstepError, match="which an unconditional teacher has not"):
        needs_guidance("lcm", load_teacher("gaussians"))
    denoiser = load_teacher("digits").denoiser
    denoiser.has_no_class = False
    with pytest.raises(FewstepError, match="was trained without label dropout"):
        needs_guidance("lcm", Teacher(denoiser))


@pytest.mark.parametrize("distance, spaces", [("l2", []), ("lpips", ["lpips"])])
def test_a_student_that_is_trained_by_lpips_says_so(distance, spaces):
    kind = method_class("consistency")
    assert kind(*load_start("gaussians"), kind.Options(distance=distance)).feature_spaces() == spaces
