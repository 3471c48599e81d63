"""Table 1 of progressive distillation [2202.00512]: parameterisation x loss weight of an undistilled model, on digits.

    python -m benchmarks.progressive_ablation --steps 2000

Trains one network for each pair from scratch, on the paper's cosine schedule with t uniform, and measures the Fréchet
distance (fd_digits_cnn, 899 samples) of ancestral sampling and of DDIM. A training whose loss is no longer finite, or
samples that are not, show as N/A. The (x, eps) row of the paper, whose network has two outputs, is left out.
"""

import argparse
import math

import pandas as pd
import torch

from bench.evaluate import Evaluator
from bench.measure import METRICS
from bench.measure.features import to_uint8
from bench.measure.statistics import FeatureStats
from bench.tasks import load_task
from students.base import SolverStudent
from students.data import load_data
from students.diffusion.denoiser import Denoiser, expand
from students.diffusion.schedules import VPCosine
from students.distillation.progressive import WEIGHTS
from students.errors import FewstepError
from students.networks.unet import UNet
from students.recipes import RECIPES
from students.training.loop import train
from students.training.teacher import draw_batch

SAMPLERS = {"stochastic": "ddpm", "DDIM": "ddim"}
FIRST_SEED = 2**44  # of the samples: far from the seeds that tasks evaluate


def trained(prediction: str, weight: str, steps: int) -> Denoiser:
    """A denoiser of digits trained with one parameterisation and one weight; raises FewstepError if it diverges."""
    recipe, split = RECIPES["digits"], load_data("digits").train
    torch.manual_seed(0)
    network = UNet(recipe.shape, classes=recipe.classes, **recipe.network)
    denoiser = Denoiser(network, VPCosine(), prediction, recipe.shape, recipe.classes)
    schedule = denoiser.schedule

    def loss(generator, step):
        x0, labels = draw_batch(split.samples, split.labels, recipe.batch_size, generator)
        t = schedule.t_min + (schedule.t_max - schedule.t_min) * torch.rand(len(x0), generator=generator).double()
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        eps = torch.randn(x0.shape, generator=generator)
        x = expand(alpha, x0) * x0 + expand(sigma, x0) * eps
        error = (denoiser(x, t, labels) - x0).square().flatten(1).mean(1)
        return (WEIGHTS[weight]((alpha / sigma) ** 2).to(error) * error).mean()

    title = f"{prediction}, {weight}"
    return train(denoiser, loss, steps=steps, batch_size=recipe.batch_size, lr=1e-3, title=title)[0]


def distance(denoiser: Denoiser, solver: str, n_steps: int, evaluator: Evaluator) -> float:
    """fd_digits_cnn of samples on a uniform grid; NaN where they are not finite."""
    statistics = FeatureStats(keep_rows=False)
    student = SolverStudent(denoiser, solver, grid="uniform")
    for start in range(0, evaluator.task.samples, 256):
        stop = min(start + 256, evaluator.task.samples)
        images = student.sample(n_steps, seeds=range(FIRST_SEED + start, FIRST_SEED + stop))
        if not images.isfinite().all():
            return math.nan
        statistics.update(evaluator.extractor.features(to_uint8(images, evaluator.task.rounding))[0])
    return METRICS["fd"].compute({"features": statistics}, evaluator.reference)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000, help="updates of each training")
    parser.add_argument("--sampling-steps", type=int, default=64)
    arguments = parser.parse_args()
    evaluator = Evaluator(load_task("digits"), ["fd"], "cpu", "float32")
    rows = {}
    for prediction in ("x0", "eps", "v"):
        for weight in WEIGHTS:
            try:
                denoiser = trained(prediction, weight, arguments.steps)
                found = [distance(denoiser, name, arguments.sampling_steps, evaluator) for name in SAMPLERS.values()]
            except FewstepError as error:
                print(f"{prediction}, {weight}: {error}")
                found = [math.nan] * len(SAMPLERS)
            rows[prediction, weight] = ["N/A" if math.isnan(value) else f"{value:.3g}" for value in found]
    print(pd.DataFrame(rows, index=list(SAMPLERS)).T.rename_axis(["output", "weight"]).to_string())


if __name__ == "__main__":
    main()
