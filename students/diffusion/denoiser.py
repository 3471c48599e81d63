"""A denoiser is a network read as an estimate of the clean image: D(x_t, t) ~ E[x_0 | x_t].

Anything callable as `denoise(x, t, labels=None) -> x0` with a `.schedule` is one. `Denoiser` makes one of
a network by its parameterisation; `guided` mixes two evaluations of one into a third.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from students.diffusion.schedules import Schedule
from students.errors import FewstepError, unknown


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """A 0-d or (N,) coefficient in a shape and dtype that multiplies x of shape (N, ...).

    A 0-d one stays on its device: from the CPU it multiplies a tensor on a GPU as a number, without a transfer.
    """
    if coefficient.ndim == 0:
        return coefficient.to(x.dtype)
    return coefficient.to(x).reshape(-1, *[1] * (x.ndim - 1))


# What the network's output F means: (F, x, alpha, sigma) -> x0, with x = alpha x0 + sigma eps.
PREDICTIONS: dict[str, Callable[..., Tensor]] = {
    "x0": lambda f, x, alpha, sigma: f,
    "eps": lambda f, x, alpha, sigma: (x - sigma * f) / alpha,
    # v = alpha eps - sigma x0 (Salimans & Ho 2022, App. D); the denominator is 1 for a VP schedule
    "v": lambda f, x, alpha, sigma: (alpha * x - sigma * f) / (alpha**2 + sigma**2),
    # the velocity eps - x0 of rectified flow
    "flow": lambda f, x, alpha, sigma: (x - sigma * f) / (alpha + sigma),
}
EDM, CONSISTENCY = "edm", "consistency"


def edm_scalings(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in of D(x, sigma) = c_skip x + c_out F(c_in x) (EDM [2206.00364], Table 1).

    c_skip = d^2 c_in^2, c_out = sigma d c_in, c_in = 1 / sqrt(sigma^2 + d^2), d = sigma_data.
    """
    c_in = 1 / (sigma**2 + sigma_data**2).sqrt()
    return sigma_data**2 * c_in**2, sigma * sigma_data * c_in, c_in


def consistency_scalings(sigma: Tensor, sigma_min: float, sigma_data: float) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in of f(x, sigma) = c_skip x + c_out F(c_in x), which is x at sigma_min ([2303.01469], App. C).

    c_skip = d^2 / ((sigma - sigma_min)^2 + d^2), c_out = d (sigma - sigma_min) c_in, c_in = 1 / sqrt(sigma^2 + d^2),
    d = sigma_data.
    """
    above, c_in = sigma - sigma_min, 1 / (sigma**2 + sigma_data**2).sqrt()
    return sigma_data**2 / (above**2 + sigma_data**2), sigma_data * above * c_in, c_in


class Denoiser(nn.Module):
    """A network, a noise schedule and a parameterisation.

    network: called as `network(x, condition)` or, with `classes`, `network(x, condition, labels)`, where
        label `classes` stands for "no class".
    prediction: "x0", "eps", "v", "flow", whose network is conditioned on t; or "edm" (`edm_scalings`) and
        "consistency" (`consistency_scalings`, which are the identity at the data end), whose network is conditioned
        on log(sigma) / 4 and sees x in VE coordinates, so that it can be read under any schedule (`under`).
    shape: of one sample, without the batch. classes: how many, or None.
    The network runs on x in the dtype of its parameters, its condition in float32 or better (bfloat16 cannot
    tell near noise levels apart); the result comes back in the dtype of x.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction: str,
        shape: tuple[int, ...],
        classes: int | None = None,
        sigma_data: float = 0.5,
    ):
        super().__init__()
        if prediction not in (*PREDICTIONS, EDM, CONSISTENCY):
            raise unknown("prediction", prediction, [*PREDICTIONS, EDM, CONSISTENCY])
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.shape = tuple(shape)
        self.classes = classes
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None, numbers: Tensor | None = None) -> Tensor:
        """x: (N, *shape). t: 0-d or (N,). labels: (N,) int64, `classes` for none, or None for none at all.

        numbers: (N, n) for networks that take some, such as a guidance scale or a second time.
        """
        t = torch.as_tensor(t, dtype=torch.float64)
        if t.ndim:
            t = t.to(x.device)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if self.prediction in PREDICTIONS:
            f = self.evaluate(x, t, labels, numbers)
            return PREDICTIONS[self.prediction](f, x, expand(alpha, x), expand(sigma, x))
        sigma = sigma / alpha
        if self.prediction == EDM:
            c_skip, c_out, c_in = edm_scalings(sigma, self.sigma_data)
        else:
            c_skip, c_out, c_in = consistency_scalings(sigma, self.sigma_min, self.sigma_data)
        f = self.evaluate(x * expand(c_in / alpha, x), sigma.log() / 4, labels, numbers)
        return expand(c_skip / alpha, x) * x + expand(c_out, x) * f

    @property
    def sigma_min(self) -> float:
        """sigma / alpha at the data end of the schedule."""
        return math.exp(-self.schedule.lam(self.schedule.t_min))

    def evaluate(
        self, x: Tensor, condition: Tensor, labels: Tensor | None = None, numbers: Tensor | None = None
    ) -> Tensor:
        """The raw network output."""
        dtype = next(self.network.parameters()).dtype
        precise = torch.promote_types(dtype, torch.float32)
        if condition.ndim == 0:
            condition = x.new_empty(len(x), dtype=precise).fill_(condition)
        inputs = [x.to(dtype), condition.to(x.device, precise)]
        if self.classes is not None:
            inputs.append(x.new_full((len(x),), self.classes, dtype=torch.int64) if labels is None else labels)
        if numbers is not None:
            return self.network(*inputs, numbers=numbers.to(x.device, precise)).to(x.dtype)
        return self.network(*inputs).to(x.dtype)


def under(denoiser, kind: type[Schedule]):
    """The same denoiser read under a schedule of another kind, over the same range of sigma / alpha.

    At equal sigma / alpha two schedules' states differ by a factor alone, which an exact denoiser and an "edm" network
    take out themselves. The copy shares its parameters with the original. Raises FewstepError for other networks.
    """
    if getattr(denoiser, "prediction", EDM) not in (EDM, CONSISTENCY):
        raise FewstepError(
            f"a {denoiser.prediction!r} network knows one schedule only, this needs {kind.__name__}: "
            "take a teacher with EDM's preconditioning"
        )
    schedule, other = denoiser.schedule, kind()
    t_min, t_max = other.time(schedule.lam([schedule.t_min, schedule.t_max])).tolist()
    view = copy.copy(denoiser)
    view.schedule = kind(t_min=t_min, t_max=t_max)
    return view


def guided(denoise, labels: Tensor | None, scale: float | Tensor):
    """Classifier-free guidance, eps_u + w (eps_c - eps_u), written for x0 [2207.12598].

    x0 is affine in eps at fixed x and t, so the same mixture holds for both. w = 1 is the plain
    conditional denoiser at one evaluation; any other w costs two, in one batch of 2N. A tensor of scales has a shape
    that multiplies x. `.rows(index)` is the
    same for a part of the batch, with that part's labels.
    """

    def plain(x: Tensor, t: Tensor) -> Tensor:
        return denoise(x, t, labels)

    def mixed(x: Tensor, t: Tensor) -> Tensor:
        both = torch.cat([torch.full_like(labels, denoise.classes), labels])
        times = t.repeat(2) if t.ndim else t
        without, with_class = denoise(torch.cat([x, x]), times, both).chunk(2)
        return without + scale * (with_class - without)

    result = mixed if torch.is_tensor(scale) or scale != 1 else plain
    result.schedule = denoise.schedule
    result.rows = lambda index: guided(denoise, None if labels is None else labels[index], scale)
    return result
