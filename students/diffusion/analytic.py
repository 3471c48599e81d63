"""Gaussian mixtures: the one data distribution whose denoiser, samples and moments are all exact.

With x_0 ~ sum_k w_k N(m_k, C_k), the noisy marginal is sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I) and

    E[x_0 | x_t] = sum_k r_k(x_t) (m_k + alpha C_k (alpha^2 C_k + sigma^2 I)^-1 (x_t - alpha m_k)),

where r_k is the posterior probability of component k.
"""

import math

import torch
from torch import Tensor, nn

from students.diffusion.noise import SeedNoise
from students.diffusion.schedules import Schedule


class GaussianMixture(nn.Module):
    """An exact denoiser `(x, t, condition=None) -> x0` on vectors of size D.

    weights: (K,). means: (K, D). covariances: (K, D, D). With `conditional`, component k is class k and
    class K stands for "no class". Computed in float64, returned in the dtype of x.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor

    def __init__(self, weights, means, covariances, schedule: Schedule, conditional: bool = False):
        super().__init__()
        weights, means, covariances = (torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, covariances))
        self.schedule = schedule
        self.shape = (means.shape[1],)
        self.classes = len(means) if conditional else None
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means)
        variances, axes = torch.linalg.eigh(covariances)
        self.register_buffer("variances", variances.clamp(min=0))  # (K, D), along the principal axes
        self.register_buffer("axes", axes)  # (K, D, D), columns are the axes

    @property
    def prior(self) -> Tensor | None:
        """The probabilities of the classes; None for an unconditional mixture."""
        return None if self.classes is None else self.weights

    def forward(self, x: Tensor, t, condition: Tensor | None = None) -> Tensor:
        """x: (N, D). t: 0-d or (N,). condition: (N,), only for a conditional mixture."""
        t = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        alpha, sigma = (c(t).reshape(-1, 1, 1) for c in (self.schedule.alpha, self.schedule.sigma))
        noisy_variances = alpha**2 * self.variances + sigma**2  # (1 or N, K, D)
        offset = x.double()[:, None, :] - alpha * self.means
        along = torch.einsum("nkd,kde->nke", offset, self.axes)
        component_mean = self.means + torch.einsum(
            "nke,kde->nkd", along * alpha * self.variances / noisy_variances, self.axes
        )
        log_r = self.weights.log() - 0.5 * (along**2 / noisy_variances + noisy_variances.log()).sum(-1)
        if condition is not None:
            components = torch.arange(len(self.weights), device=x.device)
            other = (condition[:, None] != components) & (condition[:, None] != len(components))
            log_r = log_r.masked_fill(other, -math.inf)
        return torch.einsum("nk,nkd->nd", log_r.softmax(-1), component_mean).to(x)

    def sample(self, seeds) -> tuple[Tensor, Tensor]:
        """Exact samples (N, D) float64 and their components (N,), one per seed."""
        noise = SeedNoise(seeds, self.shape, self.means.device, torch.float64)
        component = noise.classes(len(self.weights), self.weights)
        along = noise() * self.variances[component].sqrt()
        return self.means[component] + torch.einsum("ne,nde->nd", along, self.axes[component]), component

    def moments(self) -> tuple[Tensor, Tensor]:
        """The exact mean (D,) and covariance (D, D)."""
        mean = self.weights @ self.means
        within = torch.einsum("k,kde,ke,kfe->df", self.weights, self.axes, self.variances, self.axes)
        offset = self.means - mean
        return mean, within + torch.einsum("k,kd,ke->de", self.weights, offset, offset)
