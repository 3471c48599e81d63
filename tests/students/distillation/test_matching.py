"""Score distillation: gradients and weights against closed forms on Gaussians, and every method trained for real."""

import pytest
import torch

import students
from bench.measure.vectors import mode_coverage, sliced_wasserstein
from students.data import load_data
from students.diffusion.analytic import GaussianMixture
from students.diffusion.schedules import VE, VPLinear
from students.distillation.matching.core import (
    WEIGHTS,
    denoising,
    mean_absolute,
    score_difference,
    surrogate,
)
from students.distillation.matching.dmd import TABLE_2
from students.distillation.matching.sid import identity_loss
from students.errors import FewstepError, Stopped
from students.models.load import load_start
from students.nfe import count_nfe
from students.samplers.consistency import consistency
from students.samplers.load import load_trained
from students.training import quality
from students.training.batches import Batch, Data, PairRows
from students.training.distill import method_class, train_method
from students.training.settings import updates_of_stages

NAMES = ["vsd", "diff_instruct", "dmd", "dmd2", "sid", "disback"]
SEEDS = range(10**6, 10**6 + 2000)  # which no training draws


def gaussian(mean: float, deviation: float, dim: int = 3) -> GaussianMixture:
    return GaussianMixture([1.0], torch.full((1, dim), mean), deviation**2 * torch.eye(dim)[None], VE())


def states(n: int = 5, dim: int = 3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    sigma = torch.linspace(0.3, 3.0, n, dtype=torch.float64)
    return x, sigma, x + sigma[:, None] * torch.randn(n, dim, generator=generator, dtype=torch.float64)


# The core


def test_the_gradient_of_the_surrogate_is_the_one_given():
    x, given = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    surrogate(x, given).backward()
    torch.testing.assert_close(x.grad, given / x.numel())


def test_the_score_difference_is_the_gradient_of_the_log_density_ratio():
    fake, real = (0.5, 0.8), (-1.0, 0.3)
    _, sigma, x_t = states()
    x_t = x_t.requires_grad_(True)

    def log_density(mean, deviation):
        return -(x_t - mean).square().sum(1) / (2 * (deviation**2 + sigma**2))

    (wanted,) = torch.autograd.grad((log_density(*fake) - log_density(*real)).sum(), x_t)
    found = score_difference(gaussian(*fake)(x_t, sigma), gaussian(*real)(x_t, sigma), sigma)
    torch.testing.assert_close(found, wanted)


def test_following_it_moves_one_gaussian_to_another():
    """x = m + s z with the exact fake score: m and s descend the KL divergence to its minimum."""
    mean, deviation = torch.tensor(2.0, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    real = gaussian(-1.0, 0.7)
    optimiser, generator = torch.optim.SGD([mean, deviation], 0.5), torch.Generator().manual_seed(0)
    for _ in range(400):
        x = mean + deviation * torch.randn(512, 3, generator=generator)
        sigma = torch.rand(512, generator=generator, dtype=torch.float64) + 0.1
        x_t = x + sigma[:, None].float() * torch.randn(512, 3, generator=generator)
        with torch.no_grad():
            fake = gaussian(float(mean), float(deviation))(x_t, sigma)
            gradient = sigma[:, None].float() ** 2 * score_difference(fake, real(x_t, sigma), sigma)
        optimiser.zero_grad()
        (surrogate(x, gradient) * 3).backward()
        optimiser.step()
    assert mean.item() == pytest.approx(-1.0, abs=0.02) and deviation.item() == pytest.approx(0.7, abs=0.03)


def test_the_denoising_loss_is_least_at_the_posterior_mean():
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + 0.8 * torch.randn(20_000, 3, generator=generator)
    noise, sigma = torch.randn(x.shape, generator=generator), torch.full((len(x),), 0.6, dtype=torch.float64)
    losses = {
        mean: denoising(gaussian(mean, 0.8), x, noise, sigma, None, torch.ones(len(x))).item()
        for mean in (0.3, 0.5, 0.7)
    }
    assert min(losses, key=losses.get) == 0.5
    assert losses[0.5] == pytest.approx(0.8**2 * 0.6**2 / (0.8**2 + 0.6**2), rel=0.02)


def test_weights_are_those_of_the_formulas():
    x, sigma, _ = states()
    real = x + torch.tensor([[0.1, -0.2, 0.6]])
    assert mean_absolute(x, real).tolist() == pytest.approx([0.3] * 5)
    weights = {name: weight(sigma, x, real).tolist() for name, weight in WEIGHTS.items()}
    s = sigma.tolist()
    assert weights["eq8"] == pytest.approx([v**2 / 1.0 * 3 / 0.9 for v in s])  # sigma^2 / alpha C S / |.|_1
    assert weights["sigma/alpha"] == pytest.approx(s)
    assert weights["sigma^3/alpha"] == pytest.approx([v**3 for v in s])
    assert weights["sigma^2"] == pytest.approx([v**2 for v in s])
    assert set(TABLE_2) < WEIGHTS.keys()


def test_the_weight_of_vsd_is_that_of_a_noise_estimate_in_variance_preserving_coordinates():
    """sigma_t^2 (eps_real - eps_fake) of x_t = cos x + sin eps is the same vector."""
    x, sigma, x_t = states()
    real, fake = gaussian(-1.0, 0.3)(x_t, sigma), gaussian(0.5, 0.8)(x_t, sigma)
    angle = sigma.atan()[:, None]
    noise = [(angle.cos() * x_t - angle.cos() * estimate) / angle.sin() for estimate in (real, fake)]
    wanted = angle.sin() ** 2 * (noise[0] - noise[1])
    found = WEIGHTS["vp"](sigma, x, real)[:, None] * score_difference(fake, real, sigma)
    torch.testing.assert_close(found, wanted)


def test_the_identity_loss_is_the_one_of_the_paper():
    x, sigma, x_t = states()
    real, fake = gaussian(-1.0, 0.3)(x_t, sigma), gaussian(0.5, 0.8)(x_t, sigma)
    for alpha in (0.0, 1.0, 1.2):
        rows = []
        for i in range(len(x)):
            difference = real[i] - fake[i]
            weight = 3 / (x[i] - real[i]).abs().sum()
            rows.append(weight * ((1 - alpha) * difference @ difference + difference @ (fake[i] - x[i])) / 3)
        assert identity_loss(x, real, fake, alpha).item() == pytest.approx(torch.stack(rows).mean().item())


# The methods


def begun(name: str, task: str = "gaussians", **options):
    kind = method_class(name)
    method = kind(*load_start(task), kind.Options(**options))
    method.begin(method.stages[0], {}, 100)
    method.prepare()
    return method


def batch_of(method, n: int = 16) -> Batch:
    noise, classes = torch.randn(n, *method.start.shape), method.start.classes
    condition = None if classes is None else torch.arange(n) % classes
    x0 = noise.clamp(-1, 1)
    return Batch(noise=noise, condition=condition, data=Data(x0, condition), pairs=PairRows(noise, x0, condition))


@pytest.mark.parametrize("name", ["vsd", "diff_instruct", "dmd"])
def test_a_generator_whose_scores_agree_stands_still(name):
    method = begun(name, **({"regression": False} if name == "dmd" else {}))
    method.teacher = method.fake
    loss = method.loss(batch_of(method), 0, torch.Generator().manual_seed(0))
    assert (loss["matching"] if isinstance(loss, dict) else loss).item() == 0


@pytest.mark.parametrize("task", ["gaussians", "digits"])
@pytest.mark.parametrize("name", ["vsd", "diff_instruct", "dmd", "dmd2", "sid"])
def test_each_player_learns_from_its_own_loss_alone(name, task):
    method = begun(name, task)
    (fake,) = method.opponents().values()
    with torch.no_grad():  # where the teacher is a network, the fake score is that network at first
        for parameter in fake.module.parameters():
            parameter.add_(0.01)
    for loss, own, other in ((method.loss, method.model, fake.module), (fake.loss, fake.module, method.model)):
        other.requires_grad_(False)
        value = loss(batch_of(method), 0, torch.Generator().manual_seed(0))
        (sum(value.values()) if isinstance(value, dict) else value).backward()
        other.requires_grad_(True)
        assert all(p.grad is None for p in other.parameters())
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in own.parameters())
        own.zero_grad(set_to_none=True)
    assert all(not p.requires_grad for p in method.source.denoiser.parameters())


def test_dmd_makes_pairs_and_a_fake_score_only_where_it_needs_them():
    both, matching, regression = begun("dmd"), begun("dmd", regression=False), begun("dmd", matching=False)
    alone = begun("dmd", regression=False, fake=False)
    assert both.pairs and regression.pairs and matching.pairs is None and "pairs" not in matching.needs
    assert both.opponents() and matching.opponents() and not regression.opponents() and not alone.opponents()
    costs = [(m.evaluations, m.opponent_evaluations) for m in (both, matching, regression, alone)]
    assert costs == [(4, 2), (3, 2), (1, 0), (2, 0)]
    with pytest.raises(FewstepError, match="nothing to learn"):
        begun("dmd", matching=False, regression=False)


@pytest.mark.parametrize("every", [1, 5])
def test_a_budget_knows_how_often_the_student_moves(every):
    method = begun("vsd")
    (steps,) = updates_of_stages(method, 1_000_000, 0, 1.0, {"batch_size": 100, "every": every})
    assert steps == round(1_000_000 / 100 / (3 / every + 2))


def test_without_a_fake_score_dmd_follows_the_score_of_the_data_alone():
    method = begun("dmd", regression=False, fake=False)
    x, condition = torch.randn(2000, 2) / 4, None
    x.requires_grad_()
    method.matching(x, condition, torch.Generator().manual_seed(0)).backward()
    x_t, sigma = method.noised(x.detach(), torch.Generator().manual_seed(0))
    real = method.teacher(x_t, sigma)
    weight = WEIGHTS["eq8"](sigma, x.detach(), real)[:, None]
    score_of_one, score_of_data = (x.detach() - x_t) / sigma[:, None] ** 2, (real - x_t) / sigma[:, None] ** 2
    torch.testing.assert_close(
        x.grad * x.numel(), (weight * (score_of_one - score_of_data)).float(), rtol=1e-2, atol=5e-3
    )


@pytest.mark.parametrize("option", [{"matching": False, "weight": "sigma/alpha"}, {"regression": False, "ratio": 1.0}])
def test_an_option_of_a_term_that_is_off_is_refused(option):
    with pytest.raises(FewstepError, match="says nothing without"):
        begun("dmd", **option)


def test_disback_records_its_points_however_often_it_is_called():
    method = begun("disback", checkpoints=4)
    for step in range(0, 100, 7):
        with torch.no_grad():
            next(method.path.end.parameters()).fill_(step)
        method.path.record(step, 100)
    assert [next(node.parameters()).flatten()[0].item() for node in method.path.kept] == [21, 42, 63, 84]


def test_disback_walks_back_along_the_path_it_came():
    method = begun("disback", checkpoints=3, back=0.6)
    path = method.path
    for step in range(100):
        method.loss(batch_of(method), step, torch.Generator().manual_seed(step))
        with torch.no_grad():
            next(path.end.parameters()).fill_(step)
    values = [next(node.parameters()).flatten()[0].item() for node in (*path.kept, path.end)]
    assert values == [24, 49, 74, 99]
    method.begin("", {}, 100)
    seen = [method.real(step) for step in range(100)]
    expected = [path.kept[2]] * 20 + [path.kept[1]] * 20 + [path.kept[0]] * 20 + [method.teacher] * 40
    assert all(a is b for a, b in zip(seen, expected, strict=True))
    assert torch.equal(next(method.inner.fake.parameters()), next(path.end.parameters()))
    assert not any(p.requires_grad for p in path.parameters())


def test_dmd2_trains_on_what_sampling_comes_to():
    """Its inputs are those of the sampler: with one network and the same draws, the same images."""
    method = begun("dmd2")
    method.begin("4", {}, 100)
    noise = torch.randn(64, 2)
    assert method.sampler(method.model).options["levels"] == {"4": method.path.tolist()}
    levels = {float(method.simulate(noise, None, torch.Generator().manual_seed(i))[1]) for i in range(40)}
    assert levels == set(method.path[:-1].tolist())
    for seed in range(8):
        x, s = method.simulate(noise, None, torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        torch.randint(4, (1,), generator=generator)
        x_s = noise * method.path[0].float()
        before = method.path[: method.path.tolist().index(s)]
        with torch.no_grad():
            for level, following in zip(before, method.path[1:], strict=False):
                again = consistency(method.model, x_s, torch.stack([level, method.path[-1]]))
                x_s = again + (following**2 - method.path[-1] ** 2).sqrt().float() * torch.randn(
                    noise.shape, generator=generator
                )
        torch.testing.assert_close(x, x_s)


def test_dmd2_without_a_gan_needs_no_data():
    whole, plain = begun("dmd2"), begun("dmd2", gan=0.0)
    assert "data" in whole.needs and "data" not in plain.needs
    assert plain.evaluations == whole.evaluations - 1
    assert plain.opponent_evaluations == whole.opponent_evaluations - 1
    with pytest.raises(FewstepError, match="classify says nothing without gan"):
        begun("dmd2", gan=0.0, classify=1.0)


@pytest.mark.parametrize("name", ["dmd", "dmd2", "disback"])
def test_a_run_that_was_stopped_ends_with_the_weights_of_an_uninterrupted_one(name, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "SAMPLES", 20)
    settings = {"settings": {"steps": 20, "batch_size": 8} | ({"pairs": 40} if name == "dmd" else {})}
    whole = train_method(name, "gaussians", out=tmp_path / "a", state=tmp_path / "a-state", **settings)
    with pytest.raises(Stopped):
        train_method(name, "gaussians", out=tmp_path / "b", state=tmp_path / "b-state", time_limit=0.0, **settings)
    resumed = train_method(name, "gaussians", out=tmp_path / "b", state=tmp_path / "b-state", **settings)
    assert [path.read_bytes() for path in whole] == [path.read_bytes() for path in resumed]


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_on_classes(name, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "SAMPLES", 20)
    settings = {"steps": 3, "batch_size": 4} | ({"pairs": 8} if name == "dmd" else {})
    train_method(name, "digits", out=tmp_path / "out", state=tmp_path / "state", settings=settings)
    student = load_trained(name, "digits", tmp_path / "out")
    assert student.supported_steps == ((1, 2, 4) if name == "dmd2" else (1,))
    assert all(student.sample(n, seeds=range(2)).isfinite().all() for n in student.supported_steps)
    if name == "disback":  # one update of degradation, three of backtracking
        assert student.training["evaluations"] == 4 * (2 + 3 * 5)


@pytest.mark.slow
def test_dmd_covers_every_mode_in_one_step_and_without_its_regression_does_not(tmp_path):
    data, ddim = load_data("gaussians"), students.load("ddim", task="gaussians").sample(1, seeds=SEEDS)
    found = {}
    for regression in (True, False):
        folder, options = tmp_path / str(regression), {"regression": regression}
        train_method("dmd", "gaussians", out=folder, state=folder / "state", options=options)
        found[regression] = load_trained("dmd", "gaussians", folder).sample(1, seeds=SEEDS)
    coverage = {key: mode_coverage(data.mixture, samples) for key, samples in found.items()}
    assert coverage[True] == 1 > coverage[False]
    assert sliced_wasserstein(found[True], data.train.samples) < sliced_wasserstein(ddim, data.train.samples) / 4


@pytest.mark.parametrize("name", NAMES)
def test_one_step_of_what_ships_beats_one_of_ddim_by_far(name):
    """By a factor of four; that each trains to something good is in test_distillation.py."""
    data, ddim = load_data("gaussians"), students.load("ddim", task="gaussians").sample(1, seeds=SEEDS)
    samples = students.load(name, task="gaussians").sample(1, seeds=SEEDS)
    assert sliced_wasserstein(samples, data.train.samples) < sliced_wasserstein(ddim, data.train.samples) / 4


# Images that are optimised themselves


@pytest.mark.parametrize("name", ["sds", "nfsd"])
def test_an_update_is_one_evaluation_and_images_depend_on_their_seed_alone(name):
    student = students.load(name, task="gaussians")
    with count_nfe(student) as nfe:
        samples = student.sample(20, seeds=range(6))
    assert nfe.per_image == 20
    torch.testing.assert_close(student.sample(20, seeds=[4])[0], samples[4])


@pytest.mark.parametrize("name", ["sds", "nfsd"])
def test_it_finds_the_mean_of_a_gaussian_and_little_of_its_spread(name):
    denoiser = gaussian(0.4, 0.5, dim=2)
    denoiser.schedule = VPLinear()
    samples = students.load(name, task=denoiser).sample(400, seeds=range(500))
    assert samples.mean().item() == pytest.approx(0.4, abs=0.03)
    assert samples.std().item() < 0.25  # of 0.5


@pytest.mark.parametrize("name", ["sds", "nfsd"])
def test_it_seeks_modes(name):
    """Nearer to the centres of the modes than data are."""
    data = load_data("gaussians")
    samples = students.load(name, task="gaussians").sample(400, seeds=range(500))
    near = [torch.cdist(x.double(), data.mixture.means).min(1).values.median() for x in (samples, data.train.samples)]
    assert near[0] < near[1] / 2
