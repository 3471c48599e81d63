"""Variational score distillation (ProlificDreamer, Wang et al. 2023 [2305.16213]), as an amortised generator."""

from students.distillation.matching.core import ScoreDistillation


class VariationalScore(ScoreDistillation):
    """The gradient of the variational objective,

        E w(t) (eps_real(x_t, t) - eps_fake(x_t, t)) dx/dtheta,    w(t) = sigma_t^2,

    of a variance-preserving process; the paper draws t uniformly from 0.02 T to 0.98 T, and later to 0.5 T. Its
    particles are parameters of 3-d scenes, a few for each prompt; here one generator stands for infinitely many, each
    noise z being a particle, so nothing is optimised when a sample is asked for. The fake score is a full copy of the
    teacher, where the paper trains a LoRA of it.
    """

    weight = "vp"
