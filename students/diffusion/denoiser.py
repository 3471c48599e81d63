"""A denoiser is a network read as an estimate of the clean image: D(x_t, t) ~ E[x_0 | x_t].

Anything callable as `denoise(x, t, labels=None) -> x0` with a `.schedule` is one. `Denoiser` makes one of
a network by its parameterisation; `guided` mixes two evaluations of one into a third.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from students.diffusion.schedules import Schedule
from students.errors import unknown


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
EDM = "edm"


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
    prediction: "x0", "eps", "v", "flow", whose network is conditioned on t, or "edm", whose network is
        conditioned on log(sigma) / 4 and preconditioned as in EDM [2206.00364], Table 1, in VE coordinates.
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
        if prediction not in (*PREDICTIONS, EDM):
            raise unknown("prediction", prediction, [*PREDICTIONS, EDM])
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.shape = tuple(shape)
        self.classes = classes
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x: (N, *shape). t: 0-d or (N,). labels: (N,) int64, `classes` for none, or None for none at all."""
        t = torch.as_tensor(t, dtype=torch.float64)
        if t.ndim:
            t = t.to(x.device)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if self.prediction != EDM:
            f = self.evaluate(x, t, labels)
            return PREDICTIONS[self.prediction](f, x, expand(alpha, x), expand(sigma, x))
        sigma, data = sigma / alpha, self.sigma_data
        norm = (sigma**2 + data**2).sqrt()
        f = self.evaluate(x * expand(1 / (alpha * norm), x), sigma.log() / 4, labels)
        return expand(data**2 / (alpha * norm**2), x) * x + expand(sigma * data / norm, x) * f

    def evaluate(self, x: Tensor, condition: Tensor, labels: Tensor | None) -> Tensor:
        """The raw network output."""
        dtype = next(self.network.parameters()).dtype
        precise = torch.promote_types(dtype, torch.float32)
        if condition.ndim == 0:
            condition = x.new_empty(len(x), dtype=precise).fill_(condition)
        inputs = [x.to(dtype), condition.to(x.device, precise)]
        if self.classes is not None:
            inputs.append(x.new_full((len(x),), self.classes, dtype=torch.int64) if labels is None else labels)
        return self.network(*inputs).to(x.dtype)


def guided(denoise, labels: Tensor | None, scale: float):
    """Classifier-free guidance, eps_u + w (eps_c - eps_u), written for x0 [2207.12598].

    x0 is affine in eps at fixed x and t, so the same mixture holds for both. w = 1 is the plain
    conditional denoiser at one evaluation; any other w costs two, in one batch of 2N. `.rows(index)` is the
    same for a part of the batch, with that part's labels.
    """

    def plain(x: Tensor, t: Tensor) -> Tensor:
        return denoise(x, t, labels)

    def mixed(x: Tensor, t: Tensor) -> Tensor:
        both = torch.cat([torch.full_like(labels, denoise.classes), labels])
        times = t.repeat(2) if t.ndim else t
        without, with_class = denoise(torch.cat([x, x]), times, both).chunk(2)
        return without + scale * (with_class - without)

    result = plain if scale == 1 else mixed
    result.schedule = denoise.schedule
    result.rows = lambda index: guided(denoise, None if labels is None else labels[index], scale)
    return result
