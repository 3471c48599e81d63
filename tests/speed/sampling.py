"""Our sampling against that of `diffusers`: `python -m tests.speed.sampling [--device cuda] [--dtype bfloat16]`.

Both run the U-Net of a recipe with random weights, DDIM and DPM-Solver++ 2M in 8 steps on a VP schedule, at batch 1
and at a throughput batch, in turns. The diffusers side is the loop of its pipelines, `unet` then `scheduler.step`, on
the `UNet2DModel` inside our network, with images as it takes them and noise from `torch.randn`. Ours is what a cell
of the benchmark runs: `student.sample`, with per-seed noise and labels, on the network as `accelerate` leaves it.

Prints images a second, the ratio of the two in each pair of turns (median and range), and for ours the network
evaluations, the share of per-seed noise and labels, and the share of everything else that is not the network.
"""

import argparse
import copy
import time

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch.nn.functional import pixel_shuffle

from bench.measure.latency import NetworkClock, measure_latency, synchronise
from students.devices import check_device
from students.diffusion.denoiser import Denoiser
from students.diffusion.noise import SeedNoise
from students.diffusion.schedules import VPLinear
from students.loading import DTYPES
from students.models.acceleration import accelerate
from students.models.load import build
from students.models.teachers import TEACHERS, recipe
from students.nfe import count_nfe
from students.solvers.diffusers_schedulers import trained_betas
from students.student import SolverStudent

STEPS = 8
WARM_UP = 4
SCHEDULERS = {
    "ddim": lambda betas: DDIMScheduler(trained_betas=betas, clip_sample=False, timestep_spacing="trailing"),
    "dpm_solver_pp": lambda betas: DPMSolverMultistepScheduler(trained_betas=betas, timestep_spacing="trailing"),
}


def diffusers_loop(network, scheduler, classes: int, device: torch.device):
    """n -> n images, as the unconditional pipelines of diffusers make them; `network`: students.networks.unet.UNet."""
    unet = network.network
    shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)

    @torch.inference_mode()
    def sample(n: int) -> torch.Tensor:
        image = torch.randn(n, *shape, device=device, dtype=unet.dtype)
        labels = torch.randint(classes, (n,), device=device)
        scheduler.set_timesteps(STEPS, device=device)
        for t in scheduler.timesteps:
            output = unet(image, t, labels, return_dict=False)[0]
            image = scheduler.step(output, t, image, return_dict=False)[0]
        return pixel_shuffle(image, network.patch).float().clamp(-1, 1)

    return sample


def seconds(run, device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def compare(name: str, student, theirs, n: int, device: torch.device, repeats: int) -> str:
    """One line of the table: the two timed in turns, the first turn changing sides."""
    sides = [lambda: student.sample(STEPS, seeds=range(n)), lambda: theirs(n)]
    for run in sides * WARM_UP:
        run()
    spent = np.empty((repeats, 2))
    for i in range(repeats):
        for side in (0, 1) if i % 2 else (1, 0):
            spent[i, side] = seconds(sides[side], device)
    ours, other = n / np.median(spent, axis=0)
    ratios = spent[:, 1] / spent[:, 0]

    def noise_and_labels():
        noise = SeedNoise(range(n), student.shape, device)
        noise.classes(student.classes)
        noise()

    with count_nfe(student) as nfe, NetworkClock([student.denoiser.network], device) as clock:
        total = sum(seconds(sides[0], device) for _ in range(repeats))
    noise = np.median(measure_latency(noise_and_labels, device, repeats)) / np.median(spent[:, 0])
    rest = 1 - clock.seconds / total - noise
    ratio = f"{np.median(ratios):>8.2f}  {ratios.min():.2f} to {ratios.max():.2f}"
    return f"{name:<15}{n:>6}{ours:>11.1f}{other:>11.1f}{ratio}{nfe.per_image:>6.1f}{noise:>8.1%}{rest:>8.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--batch", type=int, help="the throughput batch (default: 64 on the CPU, 1024 elsewhere)")
    parser.add_argument("--repeats", type=int, default=15)
    recipes = [name for name, entry in TEACHERS.items() if entry.recipe]
    parser.add_argument("--recipe", default="cifar10-cond", choices=recipes)
    arguments = parser.parse_args()
    device, made, schedule = check_device(arguments.device), recipe(arguments.recipe), VPLinear()
    torch.manual_seed(0)
    network = build(made).network.to(device, DTYPES[arguments.dtype]).eval().requires_grad_(False)
    plain = copy.deepcopy(network)
    denoiser = accelerate(Denoiser(network, schedule, "eps", made.shape, made.classes))
    betas = trained_betas(schedule, 1000)
    print(f"{arguments.recipe} in {arguments.dtype} on {device}, {torch.get_num_threads()} threads, {STEPS} steps")
    print("                        images a second      ratio             ours:  noise  other,")
    print("solver          batch       ours  diffusers  median, range   NFE  labels  no network")
    for n in (1, arguments.batch or (64 if device.type == "cpu" else 1024)):
        for name, scheduler in SCHEDULERS.items():
            student = SolverStudent(denoiser, name, "uniform", device=device)
            theirs = diffusers_loop(plain, scheduler(betas), made.classes, device)
            print(compare(name, student, theirs, n, device, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()
