"""Preconditionings: what a network sees of a noisy image, what it is told of the noise, and how its output is read.

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise),    x = x_0 + sigma eps    (EDM [2206.00364], Eq. 7)

Besides EDM's own and that of consistency functions there are those of the baselines that EDM compares itself with
(Table 1), whose networks learned as VP, VE and iDDPM do.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from students.diffusion.schedules import IDDPM, VPLinear

EDM, CONSISTENCY = "edm", "consistency"
VP_TIMES = 1000  # the time of VP's networks is told as (1000 - 1) t


def edm_scalings(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in of EDM (Table 1): c_skip = d^2 c_in^2, c_out = sigma d c_in, c_in = 1 / sqrt(sigma^2 + d^2).

    d = sigma_data.
    """
    c_in = 1 / (sigma**2 + sigma_data**2).sqrt()
    return sigma_data**2 * c_in**2, sigma * sigma_data * c_in, c_in


def consistency_scalings(sigma: Tensor, sigma_min: float, sigma_data: float) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in of f(x, sigma), which is x at sigma_min ([2303.01469], App. C).

    c_skip = d^2 / ((sigma - sigma_min)^2 + d^2), c_out = d (sigma - sigma_min) c_in, c_in = 1 / sqrt(sigma^2 + d^2),
    d = sigma_data.
    """
    above, c_in = sigma - sigma_min, 1 / (sigma**2 + sigma_data**2).sqrt()
    return sigma_data**2 / (above**2 + sigma_data**2), sigma_data * above * c_in, c_in


def _eps(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F is eps, and sees the state of a variance-preserving process."""
    return torch.ones_like(sigma), -sigma, 1 / (1 + sigma**2).sqrt()


# (sigma, sigma_min, sigma_data) -> c_skip, c_out, c_in, c_noise
PRECONDITIONINGS: dict[str, Callable[[Tensor, float, float], tuple[Tensor, ...]]] = {
    EDM: lambda sigma, low, data: (*edm_scalings(sigma, data), sigma.log() / 4),
    CONSISTENCY: lambda sigma, low, data: (*consistency_scalings(sigma, low, data), sigma.log() / 4),
    "edm_vp": lambda sigma, low, data: (*_eps(sigma), (VP_TIMES - 1) * VPLinear().time(-sigma.log())),
    "edm_ve": lambda sigma, low, data: (torch.ones_like(sigma), sigma, torch.ones_like(sigma), (sigma / 2).log()),
    "edm_iddpm": lambda sigma, low, data: (*_eps(sigma), IDDPM.nearest(sigma).to(sigma)),
}
