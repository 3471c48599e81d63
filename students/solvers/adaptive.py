"""Solvers that choose their own steps, and the student that gives them a budget of evaluations.

Only the first and the last of `times` are used. Every sample has its own step size, and only the samples still under
way are evaluated: t is (N,), and `denoise.rows(index)`, where the denoiser has it (see `guided`), is the denoiser of
those samples.

Both solvers move the state of unit scale, w = x / sqrt(alpha^2 + sigma^2) = cos(phi) x_0 + sin(phi) eps with
tan(phi) = sigma / alpha, in which all schedules are one and a tolerance means the same for each. w is held in float64,
the network is asked in the dtype of x.

What they promise: an image does not depend on its batch or on the processor beyond rounding, unless rounding decides
a step. In another batch or on another processor the network rounds otherwise, and a step size that followed the error
estimate exactly would pass that on to the image, many times enlarged. So the estimate is made coarse (`_coarse`) before
it sets the next step: a sample takes the same steps unless an estimate lies within rounding of a bound between two
coarse values, which is the rarer, the larger the tolerance is beside rounding. Where it does, an image of `rk45` moves
by about its error at that tolerance, and one of `adaptive_sde`, whose later noise then falls on other steps, may become
another sample of the same distribution. In float32 that is fewer than one image in 500 (see the tests).

`rk45` runs on torchode, although it needs torchtyping, which is no longer maintained: torchode has one step size for
each sample. torchdiffeq has one for the whole batch, so an image would depend on its neighbours.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from students.diffusion.denoiser import expand, guided
from students.diffusion.grids import LAM_CLIP, make_grid
from students.diffusion.noise import SeedNoise
from students.errors import FewstepError, UnsupportedSteps
from students.models.found_grids import FoundGrid
from students.nfe import setup
from students.options import Range
from students.solvers.euler import euler_step
from students.student import MAX_STEPS, SolverStudent

SAFETY, EXPONENT, FIRST_STEP, GREY_LEVEL = 0.9, 0.9, 0.01, 2 / 256  # theta, r, h_init, eps_abs of [2105.14080]
MAX_ODE_STEPS = 10_000


def _norm(schedule, t) -> Tensor:
    """sqrt(alpha^2 + sigma^2): x over this is w."""
    return torch.hypot(schedule.alpha(t), schedule.sigma(t))


class _UnitDenoiser:
    """D as a function of w, both float64, for some rows of the batch. `latest` keeps the last estimate of every row."""

    def __init__(self, denoise, x: Tensor):
        self.denoise, self.schedule, self.latest = denoise, denoise.schedule, torch.zeros_like(x)

    def __call__(self, w: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        # A denoiser without `rows` holds no classes and serves all rows alike
        denoise = self.denoise.rows(rows) if hasattr(self.denoise, "rows") else self.denoise
        x0 = denoise((expand(_norm(self.schedule, t), w) * w).to(self.latest.dtype), t)
        self.latest[rows] = x0
        return x0.double()

    def finish(self, w: Tensor, s: Tensor, t: Tensor, callback) -> Tensor:
        """x at the end t of the grid, from w at the end s of the integration; the callback is shown it."""
        x = (w * _norm(self.schedule, s)).to(self.latest.dtype)
        if s != t:
            self.latest = self.denoise(x, s)
            x = euler_step(self.schedule, x, self.latest, s, t)
        if callback:
            callback(0, t, x, self.latest)
        return x


def _coarse(error: Tensor, octaves: float, least: float) -> Tensor:
    """The middle of the interval [2^(k octaves), 2^((k + 1) octaves)) that holds an error ratio, or `least` if larger.

    It is below 1 exactly where the error is.
    """
    k = (error.log2() / octaves).floor()
    return (2.0 ** ((k + 0.5) * octaves)).clamp(min=least)


def _integration_end(schedule, t: Tensor) -> Tensor:
    """t, or the time of log-SNR 20 where t is past it: no denoiser is asked at sigma = 0."""
    return t if schedule.lam(t) <= LAM_CLIP else schedule.time(LAM_CLIP)


def _check_tolerance(tolerance: float) -> None:
    if not tolerance > 0:
        raise FewstepError(f"tolerance must be a positive number, got {tolerance}")


class _BrownianPath:
    """The increments of one Brownian motion a row, asked for step by step.

    A rejected step has seen its noise: drawing afresh would prefer the noise that is accepted and bias the samples.
    So what is known of the path is kept, and a shorter step takes a Brownian bridge of it ("rejection sampling with
    memory", Rackauckas & Nie 2017). Positions are times left. The known pieces ahead of a row are a stack, the
    nearest on top; each is stored as the position where it ends and the increment over it.
    """

    def __init__(self, w: Tensor, noise):
        self.noise = noise
        self.ends = torch.zeros(len(w), 4, dtype=torch.float64, device=w.device)
        self.increments = w.new_zeros(len(w), 4, *w.shape[1:])
        self.depth = torch.zeros(len(w), dtype=torch.int64, device=w.device)

    def propose(self, rows: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """The increments from start to end, or to the next known point where that comes first; and where they end."""
        if self.depth.max() + 1 >= self.ends.shape[1]:
            self.ends = torch.cat([self.ends, torch.zeros_like(self.ends)], 1)
            self.increments = torch.cat([self.increments, torch.zeros_like(self.increments)], 1)
        z = self.noise(rows)
        fresh, top = self.depth[rows] == 0, (self.depth[rows] - 1).clamp(min=0)
        piece_end = torch.where(fresh, end, self.ends[rows, top])
        piece = torch.where(
            fresh.reshape(-1, *[1] * (z.ndim - 1)), expand((start - end).sqrt(), z) * z, self.increments[rows, top]
        )
        end = torch.maximum(end, piece_end)
        fraction = (start - end) / (start - piece_end)
        increments = expand(fraction, z) * piece + expand((fraction * (end - piece_end)).sqrt(), z) * z
        # The piece becomes its far part and, on top of it, the part proposed
        self.ends[rows, top], self.increments[rows, top] = piece_end, piece - increments
        top = top + (end > piece_end)
        self.ends[rows, top], self.increments[rows, top] = end, increments
        self.depth[rows] = top + 1
        return end, increments

    def accept(self, rows: Tensor) -> None:
        """Leave the piece last proposed behind."""
        self.depth[rows] -= 1


def adaptive_sde(
    denoise,
    x: Tensor,
    times: Tensor,
    *,
    noise,
    callback=None,
    tolerance: Annotated[float, Range(0, open=True)] = 0.02,
) -> Tensor:
    """The adaptive SDE solver of "Gotta Go Fast" (Jolicoeur-Martineau et al. 2021 [2105.14080], Alg. 1).

    Euler-Maruyama w' and the stochastic improved Euler method w'' share their noise. A step of length h is accepted if

        E = |(w' - w'') / delta| / sqrt(D) < 1,    delta = max(eps_abs, tolerance max(|w'|, |w'_prev|)),

    and goes to w'' (extrapolation); next, h <- min(time left, 0.9 h E^-0.9), where E is taken to within a factor of 2
    and as no less than 2^-9 (see the module). The first step is 0.01 of the whole.
    Two evaluations a step, accepted or not, counted for each sample apart. tolerance: the paper's eps_rel; eps_abs is
    one of 256 grey levels, or the tolerance if that is less. The reverse SDE is the variance-preserving one of w in
    time lam = log(alpha / sigma), from log-SNR -20 at the lowest:

        dw = (2 cos(phi) D - (1 + cos(phi)^2) w) dlam + sqrt(2) sin(phi) dW

    Unlike the authors' code, it keeps the noise of a rejected step. A grid that ends at sigma = 0 costs one evaluation
    more, of the exact step there. Raises FewstepError for a tolerance that is not positive or a D that is not finite.
    """
    _check_tolerance(tolerance)
    schedule, unit_denoise = denoise.schedule, _UnitDenoiser(denoise, x)
    end = _integration_end(schedule, times[-1])
    lam_start, lam_end = (float(lam) for lam in (schedule.lam(times[0]).clamp(min=-LAM_CLIP), schedule.lam(end)))

    def drift(w, lam, rows):
        cos = expand(torch.sigmoid(2 * lam).sqrt(), w)
        return 2 * cos * unit_denoise(w, schedule.time(lam), rows) - (1 + cos**2) * w

    def diffusion(w, lam):
        return expand((2 * torch.sigmoid(-2 * lam)).sqrt(), w)

    state = x.double() / _norm(schedule, times[0])
    previous = state.clone()
    left = torch.full((len(x),), lam_end - lam_start, dtype=torch.float64, device=x.device)
    h = FIRST_STEP * left
    path = _BrownianPath(state, noise)
    while len(rows := left.nonzero()[:, 0]):
        w, start = state[rows], left[rows]
        stop, dw = path.propose(rows, start, (start - h[rows]).clamp(min=0))
        s, t, step = lam_end - start, lam_end - stop, expand(start - stop, w)
        k1 = step * drift(w, s, rows) + diffusion(w, s) * dw
        k2 = step * drift(w + k1, t, rows) + diffusion(w, t) * dw
        low, high = w + k1, w + (k1 + k2) / 2

        delta = (tolerance * torch.maximum(low.abs(), previous[rows].abs())).clamp(min=min(GREY_LEVEL, tolerance))
        error = ((k1 - k2) / 2 / delta).flatten(1).square().mean(1).sqrt()
        if not error.isfinite().all():
            raise FewstepError("adaptive_sde cannot go on: the denoiser's output is not finite")
        error = _coarse(error, octaves=2, least=2.0**-9)
        accepted = error < 1
        done = rows[accepted]
        state[done], previous[done], left[done] = high[accepted], low[accepted], stop[accepted]
        path.accept(done)
        h[rows] = SAFETY * (start - stop) * error**-EXPONENT
    return unit_denoise.finish(state, end, times[-1], callback)


def rk45(
    denoise,
    x: Tensor,
    times: Tensor,
    *,
    noise=None,
    callback=None,
    tolerance: Annotated[float, Range(0, open=True)] = 1e-5,
) -> Tensor:
    """The probability-flow ODE by the adaptive Dormand-Prince 5(4) method of the library `torchode`.

    NFE 1 + 6 a step, accepted or not, counted for each sample apart. The ODE is that of w in r = asinh(alpha / sigma),

        dw/dr = D - tanh(r) w,

    whose right side is bounded from pure noise (r = 0) on, vanishes for standard normal data, and changes at a rate
    of order one, so the first step is tolerance^(1/5). With E the root mean square of error / (tolerance (1 + |w|)), a
    step is accepted if E < 1, and the next is 0.9 E^(-1/5) times as long, where E is taken to within a factor of 2^2.5
    and as no less than 2^-7.5 (see the module): steps grow 1.3 or 2.5 times or shrink to 0.6, 0.3 or 0.2. A grid that
    ends at sigma = 0 costs one evaluation more, of the exact step there. Raises FewstepError for a tolerance that is
    not positive, or where `torchode` gives up.
    """
    import torchode

    _check_tolerance(tolerance)
    schedule, unit_denoise = denoise.schedule, _UnitDenoiser(denoise, x)
    end = _integration_end(schedule, times[-1])
    r_start, r_end = (float(torch.asinh(schedule.alpha(t) / schedule.sigma(t))) for t in (times[0], end))
    running = torch.ones(len(x), dtype=torch.bool, device=x.device)

    class RunningDopri5(torchode.Dopri5):
        """Says which rows are not finished: torchode evaluates all of them."""

        def step(self, term, running_now, *args, **kwargs):
            running.copy_(running_now)
            return super().step(term, running_now, *args, **kwargs)

    def slope(minus_left: Tensor, flat: Tensor) -> Tensor:
        rows = running.nonzero()[:, 0]
        w, r = flat[rows].reshape(-1, *x.shape[1:]), r_end + minus_left[rows]
        x0 = unit_denoise(w, schedule.time(r.sinh().log()), rows)
        result = torch.zeros_like(flat)
        result[rows] = (x0 - expand(r.tanh(), w) * w).flatten(1)
        return result

    def norm(errors: Tensor) -> Tensor:
        return _coarse(errors.square().mean(1).sqrt(), octaves=5, least=2.0**-7.5)

    def each(value: float) -> Tensor:
        return torch.full((len(x),), value, dtype=torch.float64, device=x.device)

    # Time runs up to 0: the last step ends there exactly, with no remainder from rounding
    start = (x.double() / _norm(schedule, times[0])).flatten(1)
    problem = torchode.InitialValueProblem(start, each(r_start - r_end), each(0.0))
    controller = torchode.IntegralController(tolerance, tolerance, norm=norm)
    solver = torchode.AutoDiffAdjoint(RunningDopri5(), controller, max_steps=MAX_ODE_STEPS).to(x.device)
    first_step = each(min(tolerance**0.2, r_end - r_start))
    solution = solver.solve(problem, torchode.ODETerm(slope, with_stats=False), first_step)
    if failed := solution.status[solution.status != torchode.Status.SUCCESS.value].tolist():
        raise FewstepError(
            f"rk45 at tolerance {tolerance:g} failed for {len(failed)} of {len(x)} samples "
            f"({torchode.Status(failed[0]).name}): try another tolerance"
        )
    return unit_denoise.finish(solution.ys[:, -1].reshape(x.shape), end, times[-1], callback)


FEWEST_EVALUATIONS: dict[Callable, int] = {adaptive_sde: 4, rk45: 7}  # at any tolerance, without guidance


class _Spent(Exception):
    """The pilot has cost more than the budget."""


class _Meter:
    """A guided denoiser that adds what each row costs to `spent`, and stops when all rows together pass `limit`."""

    def __init__(self, denoise, cost: int, spent: Tensor, limit: float, index: Tensor | None = None):
        self.denoise, self.cost, self.spent, self.limit = denoise, cost, spent, limit
        self.index = torch.arange(len(spent)) if index is None else index
        self.schedule = denoise.schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.spent[self.index] += self.cost
        if self.spent.sum() > self.limit:
            raise _Spent
        return self.denoise(x, t)

    def rows(self, index: Tensor):
        return _Meter(self.denoise.rows(index), self.cost, self.spent, self.limit, self.index[index.cpu()])


class BudgetStudent(SolverStudent):
    """A solver with a tolerance instead of steps: `n_steps` is an NFE budget, met on average.

    The tolerance is the tightest of TOLERANCES at which the mean NFE of PILOT images, plus two standard errors, is
    within the budget (by bisection). Their seeds start at 2^62, apart from those of any evaluation, so every process
    and batch size finds the same tolerance; another processor finds a neighbouring one if rounding decides a step of a
    pilot image. `count_nfe` books them as setup. Of a given grid only both ends matter.
    Raises UnsupportedSteps where the loosest tolerance costs more than the budget.
    """

    PILOT = 64
    TOLERANCES = tuple(2.0 ** -(k / 8) for k in range(-20 * 8, 30 * 8))

    def __init__(self, teacher, solver, grid=None, shape=None, **options):
        if "tolerance" in options:
            raise FewstepError("the tolerance follows from the number of steps, which is an NFE budget: leave it out")
        if isinstance(grid, FoundGrid):
            raise FewstepError(f"{options.get('name') or solver.__name__} chooses its own steps: leave its grid out")
        super().__init__(teacher, solver, grid, shape, **options)
        if "supported_steps" not in options:
            self.supported_steps = range(FEWEST_EVALUATIONS.get(self.solver, 1), MAX_STEPS + 1)
        self._tolerances = {}

    def times(self, n_steps: int = 1) -> Tensor:
        grid = self.grid if isinstance(self.grid, str) else [self.grid[0], self.grid[-1]]
        return make_grid(grid, self.denoiser.schedule, 1, **self.grid_options)

    def generate(self, n_steps, noise, conditions, guidance):
        return self._solve(guided(self.denoiser, conditions, guidance), noise, self.tolerance(n_steps, guidance))

    def _solve(self, denoise, noise: SeedNoise, tolerance: float) -> Tensor:
        times = self.times()
        x = noise() * self.denoiser.schedule.sigma(times[0])
        return self.solver(denoise, x, times, noise=noise, tolerance=tolerance, **self.solver_options)

    @torch.inference_mode()
    def tolerance(self, n_steps: int, guidance: float = 1.0) -> float:
        """The tolerance that a budget buys, found once for each budget and guidance."""
        if (n_steps, guidance) not in self._tolerances:
            with setup():
                self._tolerances[n_steps, guidance] = self._find_tolerance(n_steps, guidance)
        return self._tolerances[n_steps, guidance]

    def _find_tolerance(self, budget: int, guidance: float) -> float:
        lowest = self._pilot(self.TOLERANCES[0], guidance)
        if lowest > budget:
            raise UnsupportedSteps(
                f"{self.name} needs at least {lowest:.3g} evaluations an image here, more than the budget of {budget}"
            )
        affordable, too_tight = 0, len(self.TOLERANCES)
        while too_tight - affordable > 1:
            middle = (affordable + too_tight) // 2
            if self._pilot(self.TOLERANCES[middle], guidance, budget) <= budget:
                affordable = middle
            else:
                too_tight = middle
        return self.TOLERANCES[affordable]

    def _pilot(self, tolerance: float, guidance: float, budget: float = float("inf")) -> float:
        """Mean NFE of the pilot images plus two standard errors; infinite as soon as the mean is above the budget."""
        noise = SeedNoise(range(2**62, 2**62 + self.PILOT), self.shape, self.device)
        conditions = None if self.classes is None else noise.classes(self.classes, self.prior)
        spent = torch.zeros(self.PILOT)
        denoise = guided(self.denoiser, conditions, guidance)
        try:
            self._solve(_Meter(denoise, 1 if guidance == 1 else 2, spent, budget * self.PILOT), noise, tolerance)
        except _Spent:
            return float("inf")
        return (spent.mean() + 2 * spent.std() / self.PILOT**0.5).item()
