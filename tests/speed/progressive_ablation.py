"""Table 1 of progressive distillation [2202.00512]: parameterisation x loss weight of an undistilled model, on digits.

    python -m tests.speed.progressive_ablation --steps 2000

Trains one network for each pair from scratch, on the paper's cosine schedule with t uniform, and measures the Fréchet
distance (fd_digits_cnn, 899 samples) of ancestral sampling and of DDIM. A training whose loss is no longer finite, or
samples that are not, show as N/A. The (x, eps) row of the paper, whose network has two outputs, is left out.
"""

import argparse
import math

import pandas as pd
import torch

from bench.context import Context, context_of
from bench.measure import METRICS
from bench.measure.representations import to_uint8
from bench.measure.statistics import FeatureStats
from bench.plan import Setup
from bench.tasks import load_task
from students.data import load_data
from students.diffusion.denoiser import Denoiser, expand
from students.diffusion.schedules import VPCosine
from students.distillation.trajectory.progressive import WEIGHTS
from students.errors import FewstepError
from students.models.teachers import recipe
from students.networks.unet import UNet
from students.student import SolverStudent
from students.training.batches import draw_data
from students.training.loop import train
from students.training.players import Player

SAMPLERS = {"stochastic": "ddpm", "DDIM": "ddim"}
FIRST_SEED = 2**44  # of the samples: far from the seeds that tasks evaluate


def trained(prediction: str, weight: str, steps: int) -> Denoiser:
    """A denoiser of digits trained with one parameterisation and one weight; raises FewstepError if it diverges."""
    made, split = recipe("digits"), load_data("digits").train
    torch.manual_seed(0)
    network = UNet(made.shape, classes=made.classes, **made.network)
    denoiser = Denoiser(network, VPCosine(), prediction, made.shape, made.classes)
    schedule = denoiser.schedule

    def loss(generator, step):
        x0, labels = draw_data(split.samples, split.labels, made.batch_size, generator)
        t = schedule.t_min + (schedule.t_max - schedule.t_min) * torch.rand(len(x0), generator=generator).double()
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        eps = torch.randn(x0.shape, generator=generator)
        x = expand(alpha, x0) * x0 + expand(sigma, x0) * eps
        error = (denoiser(x, t, labels) - x0).square().flatten(1).mean(1)
        return (WEIGHTS[weight]((alpha / sigma) ** 2).to(error) * error).mean()

    player = Player(denoiser, loss, lr=1e-3, ema_decay=0.999)
    title = f"{prediction}, {weight}"
    return train({"student": player}, steps=steps, batch_size=made.batch_size, title=title)[0]["student"]


def distance(denoiser: Denoiser, solver: str, n_steps: int, context: Context) -> float:
    """fd_digits_cnn of samples on a uniform grid; NaN where they are not finite."""
    statistics = FeatureStats(keep_rows=False)
    student = SolverStudent(denoiser, solver, grid="uniform")
    for start in range(0, context.task.samples, 256):
        stop = min(start + 256, context.task.samples)
        images = student.sample(n_steps, seeds=range(FIRST_SEED + start, FIRST_SEED + stop))
        if not images.isfinite().all():
            return math.nan
        statistics.update(context.extractor.features(to_uint8(images, context.task.rounding))[0])
    return METRICS["fd"].compute({"features": statistics}, context.reference)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000, help="updates of each training")
    parser.add_argument("--sampling-steps", type=int, default=64)
    arguments = parser.parse_args()
    context = context_of(Setup(load_task("digits"), ("fd",), "cpu", "float32", False))
    rows = {}
    for prediction in ("x0", "eps", "v"):
        for weight in WEIGHTS:
            try:
                denoiser = trained(prediction, weight, arguments.steps)
                found = [distance(denoiser, name, arguments.sampling_steps, context) for name in SAMPLERS.values()]
            except FewstepError as error:
                print(f"{prediction}, {weight}: {error}")
                found = [math.nan] * len(SAMPLERS)
            rows[prediction, weight] = ["N/A" if math.isnan(value) else f"{value:.3g}" for value in found]
    print(pd.DataFrame(rows, index=list(SAMPLERS)).T.rename_axis(["output", "weight"]).to_string())


if __name__ == "__main__":
    main()
