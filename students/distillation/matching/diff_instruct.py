"""Diff-Instruct (Luo et al. 2023 [2305.18455]): the KL divergence over all noise levels at once."""

from students.distillation.matching.core import ScoreDistillation


class DiffInstruct(ScoreDistillation):
    """The integral KL divergence, of w(sigma) KL(generated_sigma | real_sigma) over all levels, by its gradient

        E w(sigma) (s_fake(x_t, sigma) - s_real(x_t, sigma)) dx/dtheta,    w = sigma^2,

    for which each update moves an image from one denoised estimate towards the other, as in the authors' code. That
    draws levels as EDM's training does, log sigma ~ N(-1.2, 1.2^2) at sigma_data = 0.5, somewhat above those here.
    """

    weight = "sigma^2"
