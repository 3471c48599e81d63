"""Training a teacher from its recipe: denoising score matching with EDM's preconditioning and label dropout."""

import math
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from students.data import load_data
from students.diffusion.denoiser import Denoiser, expand
from students.errors import FewstepError
from students.models.load import build
from students.models.teachers import entry, recipe, teacher_weights, trained_name
from students.provenance import commit
from students.training.batches import draw_data
from students.training.loop import batch_share, train
from students.training.players import Player
from students.training.processes import (
    check_time_limit,
    describe_device,
    own_device,
    stopped,
    weights_file,
    write_weights,
)


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    classes: Tensor | None,
    generator: torch.Generator,
    p_mean: float,
    p_std: float,
    label_dropout: float,
) -> Tensor:
    """E[w(sigma) |D(x_t) - x_0|^2], w = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (EDM [2206.00364], Eq. 2).

    log sigma ~ N(p_mean, p_std^2), where sigma = sigma_t / alpha_t, clipped to the schedule's range.
    x0: (N, ...), on the generator's device. classes: (N,); each becomes "no class" with probability `label_dropout`
    (guidance [2207.12598]).
    """
    schedule, n = denoiser.schedule, len(x0)
    noisiest, cleanest = (-schedule.lam([schedule.t_max, schedule.t_min])).tolist()
    log_sigma = p_mean + p_std * torch.randn(n, generator=generator, dtype=torch.float64, device=x0.device)
    t = schedule.time(-log_sigma.clamp(cleanest, noisiest))
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
    x = expand(schedule.alpha(t), x0) * x0 + expand(schedule.sigma(t), x0) * eps
    if classes is not None:
        dropped = torch.rand(n, generator=generator, device=x0.device) < label_dropout
        classes = classes.masked_fill(dropped, denoiser.classes)  # type: ignore[arg-type]
    sigma = expand(schedule.sigma(t) / schedule.alpha(t), x0)
    weight = (sigma**2 + denoiser.sigma_data**2) / (sigma * denoiser.sigma_data) ** 2
    return (weight * (denoiser(x, t, classes) - x0) ** 2).mean()


def train_teacher(
    name: str,
    out: Path | None = None,
    seed: int = 0,
    device="cpu",
    time_limit: float = math.inf,
    state: Path | None = None,
) -> list[Path]:
    """Train the teacher of a task from its recipe; returns the path of the weights, with a record beside them.

    state: a folder for checkpoints, from which the same call goes on; removed once training has ended. A training that
    `time_limit` stops early writes weights only to a given `out`, never over those that ship. Of several processes
    each takes its share of a batch, and the first one writes. Raises FewstepError for what can be known to be wrong
    before it starts.
    """
    if entry(name).exact:
        raise FewstepError(f"the teacher of {name!r} is an exact denoiser: it needs no training")
    check_time_limit(time_limit)
    name, made = trained_name(name), recipe(name)
    device = own_device(device)
    path = weights_file(out, teacher_weights(name), "a teacher")
    torch.manual_seed(seed)
    split = load_data(made.data).train
    samples = split.samples.to(device)
    labels = None if made.classes is None else split.labels.to(device)  # type: ignore[union-attr]
    denoiser, share = build(made).to(device), batch_share(made.batch_size)
    if device.type == "cuda":
        denoiser.network.to(memory_format=torch.channels_last).compile()

    def loss(generator: torch.Generator, step: int) -> Tensor:
        x0, classes = draw_data(samples, labels, share, generator, made.flips)
        return denoising_loss(denoiser, x0, classes, generator, made.p_mean, made.p_std, made.label_dropout)

    described = {"task": name, "method": "teacher", "seed": seed, "recipe": asdict(made)}
    trained, record = train(
        {"teacher": Player(denoiser, loss, made.lr, ema_decay=made.ema_decay)},
        steps=made.steps,
        batch_size=made.batch_size,
        dtype=getattr(torch, made.precision),
        seed=seed,
        state=state,
        config=described,
        time_limit=time_limit,
        networks={"teacher": [denoiser]},
        title=f"teacher of {name}",
    )
    finished = record["steps"] == record["planned_steps"]
    if not finished and out is None:
        raise stopped("the teacher", record, state, "; --out FILE writes the weights as they are")
    record = described | record | {
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "class_counts": None if labels is None else labels.bincount(minlength=made.classes).tolist(),  # type: ignore[arg-type]
        "device": describe_device(device),
        "commit": commit(),
    }  # fmt: skip
    return write_weights({path: (trained["teacher"].network, record)}, [state] if finished and state else [])  # type: ignore[dict-item]
