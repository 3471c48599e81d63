"""Fixtures that need no weights: Gaussian mixtures under every schedule."""

import pytest
import torch

from students.diffusion.analytic import GaussianMixture
from students.diffusion.schedules import SCHEDULES, VPLinear


def make_mixture(schedule=None, conditional=False) -> GaussianMixture:
    """Three anisotropic components in the plane."""
    return GaussianMixture(
        weights=[0.5, 0.3, 0.2],
        means=[[-1.0, 0.2], [0.8, 0.9], [0.6, -1.1]],
        covariances=[[[0.16, 0.05], [0.05, 0.09]], [[0.04, 0.0], [0.0, 0.12]], [[0.09, -0.02], [-0.02, 0.06]]],
        schedule=schedule or VPLinear(),
        conditional=conditional,
    )


def make_conditional() -> GaussianMixture:
    return make_mixture(conditional=True)


@pytest.fixture
def mixture() -> GaussianMixture:
    return make_mixture()


@pytest.fixture(params=sorted(SCHEDULES))
def schedule(request):
    return SCHEDULES[request.param]()


@pytest.fixture(autouse=True)
def few_threads():
    torch.set_num_threads(1)
