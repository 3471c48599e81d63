"""Training an encoder from the labels of a task's images: `python -m students train encoder --task digits`.

Adversarial students are judged by its features (students/distillation/adversarial/add.py). It has another architecture
and seed than the extractors that measure, since a student that was trained in a feature space looks better there than
it is.
"""

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from students.data import load_data
from students.errors import FewstepError, WeightsError, reading
from students.models.teachers import recipe, trained_name, weights_folder
from students.models.weights import load_into, load_weights, record_path
from students.networks.encoder import Encoder
from students.provenance import commit
from students.training.batches import draw_data, scaled
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

ENCODER = "encoder"
STEPS, BATCH_SIZE, LEARNING_RATE = 2000, 128, 3e-3
SEED = 20_260  # other than that of the extractor of the digits
MOST_NOISE = 0.3


def encoder_weights(task: str) -> Path:
    """Where the encoder of a task lies."""
    return weights_folder(task) / f"{ENCODER}.safetensors"


def load_encoder(path: Path, shape: tuple[int, ...], device="cpu") -> Encoder:
    """A frozen encoder for images of that shape; raises WeightsError, which names the file, where it cannot be had."""
    if not path.is_file():
        raise WeightsError(
            f"no encoder at {path}: train one (python -m students train {ENCODER} --task TASK), or name its file "
            f"(--options encoder=PATH)"
        )
    state, record = load_weights(path)
    with reading(record_path(path), "record of an encoder"):
        encoder = Encoder(**record["model"])
    load_into(encoder, state, path)
    if encoder.shape != shape:
        raise WeightsError(f"the encoder {path} reads images {encoder.shape}, not {shape}: train one for this task")
    return encoder.to(device).eval().requires_grad_(False)


def train_encoder(
    task: str,
    out: Path | None = None,
    seed: int = 0,
    device="cpu",
    time_limit: float = math.inf,
    state: Path | None = None,
) -> list[Path]:
    """Train the encoder of a task to tell classes, on images with noise of any strength; returns the weights' path.

    Raises FewstepError for a task without labelled images, and what `train` raises.
    """
    check_time_limit(time_limit)
    name = trained_name(task)
    made = recipe(name)
    if made.classes is None or len(made.shape) != 3:
        raise FewstepError(f"an encoder learns from the labels of images, which {task!r} has not")
    device = own_device(device)
    path = weights_file(out, encoder_weights(name), "an encoder")
    torch.manual_seed(seed := SEED + seed)
    data, share = load_data(made.data), batch_share(BATCH_SIZE)
    samples, labels = data.train.samples.to(device), data.train.labels.to(device)  # type: ignore[union-attr]
    encoder = Encoder(made.shape, made.classes).to(device)

    def loss(generator: torch.Generator, step: int) -> Tensor:
        images, classes = draw_data(samples, labels, share, generator, made.flips)
        strength = MOST_NOISE * torch.rand(share, 1, 1, 1, generator=generator, device=device)
        noise = torch.randn(images.shape, generator=generator, device=device)
        return cross_entropy(encoder.logits(images + strength * noise), classes)  # type: ignore[arg-type]

    described = {"task": name, "method": ENCODER, "seed": seed}
    trained, record = train(
        {ENCODER: Player(encoder, loss, LEARNING_RATE, weight_decay=1e-2, ema_decay=0.99)},
        steps=STEPS, batch_size=BATCH_SIZE, seed=seed, state=state, config=described, time_limit=time_limit,
        networks={ENCODER: [encoder]}, title=f"encoder of {name}",
    )  # fmt: skip
    if record["steps"] < record["planned_steps"]:
        raise stopped("the encoder", record, state)
    best = trained[ENCODER].eval()
    with torch.no_grad():
        found = best.logits(scaled(data.heldout.samples.to(device))).argmax(1).cpu()  # type: ignore[operator]
    record = described | record | {
        "model": encoder.config,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "heldout_accuracy": round((found == data.heldout.labels).double().mean().item(), 4),
        "device": describe_device(device),
        "commit": commit(),
    }  # fmt: skip
    return write_weights({path: (best, record)}, [state] if state else [])
