"""Schedules, grids, per-seed noise, exact mixtures, denoisers."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from students.diffusion.analytic import GaussianMixture
from students.diffusion.denoiser import Denoiser, guided
from students.diffusion.grids import GRIDS, make_grid
from students.diffusion.noise import SeedNoise, philox, uniforms
from students.diffusion.schedules import SCHEDULES, VE, Flow, VPCosine, VPLinear
from students.errors import FewstepError
from tests.conftest import make_mixture

names = st.sampled_from(sorted(SCHEDULES))
fractions = st.floats(0, 1)


def inside(schedule, fraction):
    """A time from t_min to just below t_max, where the alpha of flow is 0."""
    t = schedule.t_min + fraction * (schedule.t_max * (1 - 1e-6) - schedule.t_min)
    return torch.tensor(t, dtype=torch.float64)


# Schedules


@settings(deadline=None)
@given(names, fractions)
def test_time_inverts_lam_and_u(name, fraction):
    schedule = SCHEDULES[name]()
    t = inside(schedule, fraction)
    assert schedule.time(schedule.lam(t)).item() == pytest.approx(t.item(), rel=1e-9)
    assert schedule.time_of_u(schedule.u(t)).item() == pytest.approx(t.item(), rel=1e-9)


@settings(deadline=None)
@given(names, fractions)
def test_lam_u_and_scale_fit_alpha_and_sigma(name, fraction):
    schedule = SCHEDULES[name]()
    t = inside(schedule, fraction)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert schedule.lam(t).item() == pytest.approx(math.log(alpha / sigma), abs=1e-9)
    assert (schedule.scale(t) * schedule.u(t)).item() == pytest.approx(sigma.item(), rel=1e-12)
    if name.startswith("vp"):
        assert (alpha**2 + sigma**2).item() == pytest.approx(1, abs=1e-14)


def test_values():
    # beta(t) = 0.1 + 19.9 t, log alpha = -1/2 int beta
    assert VPLinear().log_alpha(1.0).item() == pytest.approx(-5.025, abs=1e-14)
    assert VPLinear().alpha(0.5).item() == pytest.approx(math.exp(-0.5 * (0.1 * 0.5 + 19.9 * 0.125)), abs=1e-14)
    assert VPCosine().alpha(0.5).item() == pytest.approx(2**-0.5, abs=1e-15)
    assert 2 * VPCosine().lam(VPCosine().t_max).item() == pytest.approx(-20, abs=1e-9)
    assert (VE().alpha(3.0).item(), VE().sigma(3.0).item()) == (1, 3)
    assert (Flow().alpha(0.25).item(), Flow().sigma(0.25).item()) == (0.75, 0.25)


def test_flow_starts_without_signal():
    assert Flow().alpha(1.0) == 0
    assert Flow().lam(1.0) == -math.inf
    assert (Flow().scale(1.0), Flow().u(1.0)) == (1, 1)


def test_sigma_keeps_its_digits_near_the_data(schedule):
    """1 - alpha^2 would lose them: sigma(t) is about sqrt(beta_min t), pi t / 2 or t."""
    t = 1e-12
    leading = {"VPLinear": math.sqrt(0.1 * t), "VPCosine": math.pi * t / 2}.get(type(schedule).__name__, t)
    assert schedule.sigma(t).item() == pytest.approx(leading, rel=1e-9)


def test_zero_noise_is_a_time(schedule):
    assert schedule.u(0.0) == 0
    assert schedule.time_of_u(0.0) == 0


def test_everything_is_float64(schedule):
    for t in (0.5, torch.tensor(0.5), torch.tensor([0.5, 0.2]), [0.5, 0.2]):
        for function in (schedule.alpha, schedule.sigma, schedule.lam, schedule.scale, schedule.u, schedule.time):
            assert function(t).dtype == torch.float64
            assert function(t).shape == torch.as_tensor(t).shape


def test_remembered_coefficients_are_those_computed(schedule):
    times = torch.linspace(schedule.t_min, schedule.t_max, 5, dtype=torch.float64)
    for coefficient in (schedule.alpha, schedule.sigma):
        with torch.inference_mode():
            remembered = [[coefficient(t) for t in times] for _ in range(2)]
            coefficient(times[1]).mul_(2)  # a solver's own affair
            remembered.append([coefficient(t) for t in times])
            remembered.append(list(torch.vmap(coefficient)(times)))
        for values in remembered:
            torch.testing.assert_close(torch.stack(values), coefficient(times), rtol=1e-15, atol=0)
        t = times[2].clone().requires_grad_()
        if (value := coefficient(t)).requires_grad:  # alpha of VE is constant
            value.backward()
            step = 1e-6 * t.item()
            expected = (coefficient(t.item() + step) - coefficient(t.item() - step)) / (2 * step)
            assert t.grad.item() == pytest.approx(expected.item(), rel=1e-6)


def test_schedules_are_frozen_values(schedule):
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.t_max = 2.0
    assert schedule == type(schedule)()
    assert hash(schedule) == hash(type(schedule)())


# Grids


@pytest.mark.parametrize("grid", sorted(GRIDS))
@pytest.mark.parametrize("n_steps", [1, 2, 7, 100])
def test_grids_decrease_between_pinned_ends(grid, n_steps, schedule):
    times = make_grid(grid, schedule, n_steps)
    assert times.shape == (n_steps + 1,)
    assert times.dtype == torch.float64
    assert (times[0].item(), times[-1].item()) == (schedule.t_max, schedule.t_min)
    assert (times.diff() < 0).all()


@pytest.mark.parametrize("grid", sorted(GRIDS))
def test_ends_can_be_given(grid, schedule):
    times = make_grid(grid, schedule, 5, t_max=0.9, t_min=0.0)
    assert (times[0].item(), times[-1].item()) == (0.9, 0.0)
    assert (times.diff() < 0).all()


def test_polynomial_grid_is_edm_eq_5():
    """sigma_i = (80^(1/7) + i / (N - 1) (0.002^(1/7) - 80^(1/7)))^7 for N = 18, the paper's CIFAR-10 setting."""
    times = make_grid("polynomial", VE(), 17).numpy()
    i = np.arange(18)
    np.testing.assert_allclose(times, (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, rtol=1e-12)
    np.testing.assert_allclose(times[1:3], [57.5859859, 40.7855729], rtol=1e-7)


def test_polynomial_grid_in_sigma_is_edm_s_for_vp():
    levels = VPLinear().u(make_grid("polynomial", VPLinear(), 10, rho=3.0))
    roots = levels ** (1 / 3)
    torch.testing.assert_close(roots.diff(), ((roots[-1] - roots[0]) / 10).expand(10))


def test_uniform_quadratic_and_log_snr_grids():
    schedule = VPLinear()
    torch.testing.assert_close(
        make_grid("uniform", schedule, 4, t_max=1.0, t_min=0.2).diff(), torch.full((4,), -0.2, dtype=torch.float64)
    )
    roots = make_grid("quadratic", schedule, 4, t_max=1.0, t_min=0.04).sqrt()
    torch.testing.assert_close(roots.diff(), torch.full((4,), -0.2, dtype=torch.float64))
    lam = schedule.lam(make_grid("log_snr", schedule, 8))
    torch.testing.assert_close(lam.diff(), ((lam[-1] - lam[0]) / 8).expand(8))


def test_a_list_is_a_grid(schedule):
    assert make_grid([0.9, 0.5, 0.1], schedule, 2).tolist() == [0.9, 0.5, 0.1]


@pytest.mark.parametrize(
    "grid, n_steps, message",
    [
        ([0.9, 0.5, 0.1], 3, "3 times makes 2 steps, not 3"),
        ([0.1, 0.5], 1, "decrease strictly"),
        ([0.5, 0.5, 0.1], 2, "decrease strictly"),
        ("log_snrr", 4, "did you mean 'log_snr'"),
        ("quadratik", 4, "did you mean 'quadratic'"),
    ],
)
def test_wrong_grids(grid, n_steps, message):
    with pytest.raises(FewstepError, match=message) as error:
        make_grid(grid, VPLinear(), n_steps)
    assert "\n" not in str(error.value)


# Noise


@pytest.mark.parametrize(
    "counter, key, words",
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter, key, words):
    """The vectors of the authors' Random123 library for Philox4x32-10."""
    read = lambda text: [torch.tensor(int(word, 16)) for word in text.split()]
    assert [f"{word.item():08x}" for word in philox(read(counter), read(key))] == words.split()


def test_noise_is_standard_normal():
    noise = SeedNoise(range(500), (10, 10), dtype=torch.float64)
    first, second = noise(), noise()
    for x in (first, second):
        assert stats.kstest(x.flatten(), "norm").pvalue > 0.01
    # across seeds, draws and neighbours, within four standard errors
    for x, y in (
        (first, second),
        (first[1:], first[:-1]),
        (first[..., 1:], first[..., :-1]),
        (first[:, 1:], first[:, :-1]),
    ):
        assert abs((x * y).mean()) < 4 / x.numel() ** 0.5


def test_a_seed_s_noise_depends_on_nothing_else():
    draw = lambda seeds, shape=(3, 5): SeedNoise(seeds, shape)()
    together = draw(range(64))
    assert draw([63, 5, 0]).equal(together[[63, 5, 0]])
    assert torch.cat([draw([i]) for i in range(64)]).equal(together)
    assert draw(torch.tensor([7, 7])).equal(together[[7, 7]])
    assert len(together.flatten().unique()) > 950  # different seeds and elements, different numbers


def test_seeds_beyond_32_bits_differ():
    a, b = SeedNoise([5], (8,))(), SeedNoise([5 + 2**32], (8,))()
    assert (a - b).abs().min() > 0


def test_rows_advance_at_their_own_pace():
    noise, reference = SeedNoise(range(4), (3,)), SeedNoise(range(4), (3,))
    draws = [reference() for _ in range(3)]
    assert noise().equal(draws[0])
    assert noise(torch.tensor([1, 3])).equal(draws[1][[1, 3]])
    assert noise(torch.tensor([False, True, False, False])).equal(draws[2][[1]])
    assert noise().equal(torch.stack([draws[1][0], reference()[1], draws[1][2], draws[2][3]]))


def test_dtype_is_a_rounding_of_one_number():
    assert SeedNoise(range(9), (7,))().equal(SeedNoise(range(9), (7,), dtype=torch.float64)().float())


def test_classes_follow_the_prior():
    prior = torch.tensor([0.5, 0.0, 0.2, 0.3])
    classes = SeedNoise(range(20_000), (2,)).classes(4, prior)
    counts = classes.bincount(minlength=4)
    assert counts[1] == 0
    assert stats.chisquare(counts[[0, 2, 3]], 20_000 * prior[[0, 2, 3]].double().numpy()).pvalue > 0.01
    assert SeedNoise([19_999, 3], (2,)).classes(4, 10 * prior).equal(classes[[19_999, 3]])


def test_classes_are_independent_of_the_noise():
    noise = SeedNoise(range(20_000), (1,), dtype=torch.float64)
    before = noise.classes(2)
    x = noise()[:, 0]
    assert noise.classes(2, torch.ones(2)).equal(before)  # no matter how much noise was drawn
    assert stats.ks_2samp(x[before == 0], x[before == 1]).pvalue > 0.01
    u = uniforms(noise.seeds, torch.zeros_like(noise.seeds), 1, 1)[:, 0]
    assert abs(np.corrcoef(u, x)[0, 1]) < 4 / 20_000**0.5


@pytest.mark.parametrize("seeds", [[-1], [[0, 1]], 3])
def test_bad_seeds(seeds):
    with pytest.raises(FewstepError, match="non-negative whole numbers"):
        SeedNoise(seeds, (2,))


# Gaussian mixtures


def log_density(mixture, x, t):
    """log p_t(x) from its definition, sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I), by torch.distributions."""
    alpha, sigma = mixture.schedule.alpha(t), mixture.schedule.sigma(t)
    covariances = mixture.axes @ torch.diag_embed(mixture.variances) @ mixture.axes.mT
    components = torch.distributions.MultivariateNormal(
        alpha * mixture.means, alpha**2 * covariances + sigma**2 * torch.eye(2, dtype=torch.float64)
    )
    weights = torch.distributions.Categorical(mixture.weights)
    return torch.distributions.MixtureSameFamily(weights, components).log_prob(x)


@pytest.mark.parametrize("fraction", [0.05, 0.4, 0.9])
def test_mixture_is_tweedie_s_formula(fraction, schedule):
    """E[x0 | x] = (x + sigma^2 grad log p_t(x)) / alpha"""
    mixture, t = make_mixture(schedule), inside(schedule, fraction)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0, _ = mixture.sample(range(20))
    x = (alpha * x0 + sigma * SeedNoise(range(20), (2,), dtype=torch.float64)()).requires_grad_()
    (score,) = torch.autograd.grad(log_density(mixture, x, t).sum(), x)
    torch.testing.assert_close(mixture(x, t), (x + sigma**2 * score) / alpha, rtol=1e-7, atol=1e-7)


def test_mixture_is_the_posterior_mean_by_integration():
    """int x0 p(x0) N(x; alpha x0, sigma^2) dx0 over int p(x0) N(x; alpha x0, sigma^2) dx0, on a lattice."""
    mixture, t = make_mixture(), torch.tensor(0.3, dtype=torch.float64)
    axis = torch.linspace(-4, 4, 801, dtype=torch.float64)
    x0 = torch.cartesian_prod(axis, axis)
    x = torch.tensor([[0.1, 0.4], [-0.9, 0.0]], dtype=torch.float64)
    alpha, sigma = mixture.schedule.alpha(t), mixture.schedule.sigma(t)
    for point in x:
        log_joint = log_density(mixture, x0, 0.0) - ((point - alpha * x0) ** 2).sum(-1) / (2 * sigma**2)
        expected = log_joint.softmax(0) @ x0
        torch.testing.assert_close(mixture(point[None], t)[0], expected, rtol=0, atol=1e-8)


def test_mixture_at_pure_noise_is_the_mean():
    mixture = make_mixture(Flow())
    mean, _ = mixture.moments()
    torch.testing.assert_close(mixture(torch.randn(5, 2, dtype=torch.float64), 1.0), mean.expand(5, 2))


def test_mixture_without_noise_is_the_state(schedule):
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    torch.testing.assert_close(make_mixture(schedule)(x, 0.0), x)


def test_times_may_differ_by_row():
    mixture, x = make_mixture(), torch.randn(3, 2, dtype=torch.float64)
    t = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    torch.testing.assert_close(mixture(x, t), torch.cat([mixture(x[i : i + 1], t[i]) for i in range(3)]))


def test_samples_have_the_moments():
    mixture = make_mixture()
    x, component = mixture.sample(range(40_000))
    mean, covariance = mixture.moments()
    products = torch.einsum("nd,ne->nde", x - mean, x - mean)
    for values, expected in ((x, mean), (products, covariance)):
        assert ((values.mean(0) - expected).abs() < 4 * values.std(0) / len(x) ** 0.5).all()
    torch.testing.assert_close(component.bincount() / 40_000, mixture.weights.float(), rtol=0, atol=0.01)
    within = x[component == 0].T.cov()
    torch.testing.assert_close(within, torch.tensor([[0.16, 0.05], [0.05, 0.09]]).double(), rtol=0, atol=0.005)


def test_conditions_choose_the_component():
    mixture = make_mixture(conditional=True)
    x, t = torch.randn(6, 2, dtype=torch.float64), 0.4
    condition = torch.tensor([0, 1, 2, 3, 0, 3])
    out = mixture(x, t, condition)
    for k in range(3):
        alone = GaussianMixture([1.0], mixture.means[k : k + 1], covariance_of(mixture, k)[None], mixture.schedule)
        torch.testing.assert_close(out[condition == k], alone(x[condition == k], t))
    torch.testing.assert_close(out[condition == 3], mixture(x[condition == 3], t))
    assert mixture.prior.equal(mixture.weights)
    assert mixture.classes == 3


def covariance_of(mixture, k):
    return mixture.axes[k] @ torch.diag(mixture.variances[k]) @ mixture.axes[k].T


def test_mixture_returns_the_dtype_of_x():
    assert make_mixture()(torch.zeros(2, 2), 0.5).dtype == torch.float32


# Denoisers


class Answer(nn.Module):
    """A network that returns a set answer and keeps what it was given."""

    def __init__(self, answer, dtype=torch.float32):
        super().__init__()
        self.answer = answer
        self.parameter = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, *inputs):
        self.inputs = inputs
        return self.answer.to(inputs[0])


def known(schedule, t):
    """x0, eps and x = alpha x0 + sigma eps of two images, float64."""
    x0, eps = (SeedNoise(seeds, (1, 4, 4), dtype=torch.float64)() for seeds in ([0, 1], [2, 3]))
    return x0, eps, schedule.alpha(t) * x0 + schedule.sigma(t) * eps


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "flow"])
def test_every_prediction_gives_x0(prediction, schedule):
    t = 0.4
    x0, eps, x = known(schedule, t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    answer = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "flow": eps - x0}[prediction]
    network = Answer(answer, torch.float64)
    denoise = Denoiser(network, schedule, prediction, (1, 4, 4))
    torch.testing.assert_close(denoise(x, t), x0)
    seen, condition = network.inputs
    assert seen.equal(x)
    assert condition.tolist() == [t, t]


def test_rows_at_their_own_times(schedule):
    t = torch.tensor([0.7, 0.2], dtype=torch.float64)
    x0, eps = (torch.ones(2, 3, dtype=torch.float64) * v for v in (0.5, -2.0))
    x = schedule.alpha(t)[:, None] * x0 + schedule.sigma(t)[:, None] * eps
    network = Answer(eps, torch.float64)
    torch.testing.assert_close(Denoiser(network, schedule, "eps", (3,))(x, t), x0)
    assert network.inputs[1].equal(t)


def test_edm_preconditioning(schedule):
    """D = c_skip y + c_out F(c_in y, ln(sigma) / 4) of EDM, Table 1, for y = x / alpha at noise level sigma / alpha."""
    t, data = 0.4, 0.6
    _, _, x = known(schedule, t)
    f = torch.randn_like(x)
    network = Answer(f, torch.float64)
    out = Denoiser(network, schedule, "edm", (1, 4, 4), sigma_data=data)(x, t)
    level = (schedule.sigma(t) / schedule.alpha(t)).item()
    y = x / schedule.alpha(t)
    c_skip, c_out = data**2 / (level**2 + data**2), level * data / math.sqrt(level**2 + data**2)
    torch.testing.assert_close(out, c_skip * y + c_out * f)
    torch.testing.assert_close(network.inputs[0], y / math.sqrt(level**2 + data**2))
    torch.testing.assert_close(network.inputs[1], torch.full((2,), math.log(level) / 4, dtype=torch.float64))


def test_edm_of_a_network_that_learnt_nothing_is_the_wiener_filter():
    """F = 0 is the best linear estimate for data of variance sigma_data^2: the exact denoiser of that Gaussian."""
    gaussian = GaussianMixture([1.0], [[0.0, 0.0]], [(0.25 * torch.eye(2)).tolist()], VE())
    x = torch.randn(3, 2, dtype=torch.float64)
    denoise = Denoiser(Answer(torch.zeros(3, 2)), VE(), "edm", (2,), sigma_data=0.5)
    torch.testing.assert_close(denoise(x, 1.7), gaussian(x, 1.7))


def test_network_runs_in_its_own_dtype():
    network = Answer(torch.ones(2, 3), torch.float32)
    for dtype in (torch.float32, torch.float64):
        out = Denoiser(network, VPLinear(), "x0", (3,))(torch.zeros(2, 3, dtype=dtype), 0.5)
        assert out.dtype == dtype
        assert {i.dtype for i in network.inputs} == {torch.float32}
    network = Answer(torch.ones(2, 3), torch.bfloat16)
    Denoiser(network, VPLinear(), "x0", (3,))(torch.zeros(2, 3), 0.5)
    assert [i.dtype for i in network.inputs] == [torch.bfloat16, torch.float32], "noise levels stay precise"


def test_no_label_is_the_class_behind_the_last():
    network = Answer(torch.ones(2, 3))
    denoise = Denoiser(network, VPLinear(), "x0", (3,), classes=10)
    denoise(torch.zeros(2, 3), 0.5)
    assert network.inputs[2].tolist() == [10, 10]
    assert network.inputs[2].dtype == torch.int64
    denoise(torch.zeros(2, 3), 0.5, torch.tensor([4, 7]))
    assert network.inputs[2].tolist() == [4, 7]


def test_unknown_prediction():
    with pytest.raises(FewstepError, match="did you mean 'eps'"):
        Denoiser(nn.Identity(), VPLinear(), "epps", (3,))


# Guidance


def counted(denoise):
    calls = []

    def call(x, t, condition=None):
        calls.append(len(x))
        return denoise(x, t, condition)

    call.schedule, call.classes = denoise.schedule, denoise.classes
    return call, calls


def test_guidance_one_is_off():
    mixture = make_mixture(conditional=True)
    denoise, calls = counted(mixture)
    x, condition = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    assert guided(denoise, condition, 1.0)(x, 0.5).equal(mixture(x, torch.tensor(0.5), condition))
    assert calls == [4]


@pytest.mark.parametrize("w", [0.0, 2.0, 7.5])
def test_guidance_mixes_eps(w, schedule):
    """eps_u + w (eps_c - eps_u), at two evaluations."""
    mixture = make_mixture(schedule, conditional=True)
    denoise, calls = counted(mixture)
    t = torch.tensor(0.5, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x, condition = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    eps = lambda x0: (x - alpha * x0) / sigma
    eps_u, eps_c = eps(mixture(x, t)), eps(mixture(x, t, condition))
    guided_denoise = guided(denoise, condition, w)
    torch.testing.assert_close(eps(guided_denoise(x, t)), eps_u + w * (eps_c - eps_u))
    assert sum(calls) == 8
    assert guided_denoise.schedule == schedule
    torch.testing.assert_close(guided_denoise(x, t.expand(4)), guided_denoise(x, t))


def test_guidance_of_some_rows():
    mixture = make_mixture(conditional=True)
    x, condition, t = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0]), torch.tensor(0.5)
    denoise = guided(mixture, condition, 3.0)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(denoise.rows(rows)(x[rows], t), denoise(x, t)[rows])
