"""Folders of diffusers: a `UNet2DModel` and the configuration of a scheduler, as `save_pretrained` writes them.

    config.json, diffusion_pytorch_model.safetensors (folder_weights.py tells the others), scheduler_config.json
    unet/config.json, unet/diffusion_pytorch_model..., scheduler/scheduler_config.json        of a pipeline
    unet/..., unet_ema/..., ../scheduler/scheduler_config.json                                of a run, checkpoint-N

A scheduler with betas makes a denoiser on discrete times; `CMStochasticIterativeScheduler` a consistency function.
"""

import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from students.diffusion.denoiser import Denoiser
from students.diffusion.preconditioning import CONSISTENCY
from students.diffusion.schedules import VE, Schedule
from students.errors import FewstepError, WeightsError, reading, unknown
from students.models.checkpoints.folder_weights import read_folder
from students.models.weights import load_into
from students.networks.unet import UNet2D

NAME = "scheduler_config.json"
AVERAGED = "unet_ema"  # the name that diffusers' training examples give it
CONSISTENCY_SCHEDULER = "CMStochasticIterativeScheduler"
PREDICTION_TYPES = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
BETA_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
LOG_SIGMA = 1000.0  # the timestep of consistency models and their teachers is 250 log sigma, of t = log(sigma) / 4


@dataclass(frozen=True)
class DiscreteVP(Schedule):
    """Variance preserving at n discrete times t_i = i / n, i = 0 ... n, and between them with log alpha linear in t.

    alphas_cumprod: prod_{j <= i} (1 - beta_j), i = 1 ... n, which is alpha(t_i)^2; alpha(0) is 1. Timestep i of
    diffusers, counted from 0, is t_{i + 1} (DPM-Solver [2206.00927], App. D.4, Type-1). A network has seen
    t_1 ... t_n, so sampling ends at t_1 and not at 0.
    """

    t_min: float
    t_max: float
    alphas_cumprod: tuple[float, ...]

    @classmethod
    def from_betas(cls, betas: Tensor) -> "DiscreteVP":
        alphas_cumprod = torch.cumprod(1 - betas.double(), dim=0)
        return cls(1 / len(betas), 1.0, tuple(alphas_cumprod.tolist()))

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor]:
        """-log alpha, increasing, and the times at which it is known."""
        minus_log_alpha = -torch.tensor((1.0, *self.alphas_cumprod), dtype=torch.float64).log() / 2
        return minus_log_alpha, torch.linspace(0, 1, len(minus_log_alpha), dtype=torch.float64)

    def log_alpha(self, t) -> Tensor:
        minus_log_alpha, times = self._knots
        return -_interpolate(torch.as_tensor(t, dtype=torch.float64), times, minus_log_alpha)

    def alpha(self, t) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def time(self, lam) -> Tensor:
        minus_log_alpha = torch.nn.functional.softplus(-2 * torch.as_tensor(lam, dtype=torch.float64)) / 2
        return _interpolate(minus_log_alpha, *self._knots)


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The line through the points (xs, ys), xs increasing, continued beyond both ends."""
    xs, ys = xs.to(x.device), ys.to(x.device)
    right = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    weight = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return torch.lerp(ys[right - 1], ys[right], weight)


class UNetDenoiser(Denoiser):
    """A `UNet2DModel` as a denoiser. The timestep is scale * t + shift of what other networks are told, t.

    It may know classes without knowing the absence of one.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        schedule: Schedule,
        prediction: str,
        classes: int | None,
        sigma_data: float = 0.5,
        scale: float = 1.0,
        shift: float = 0.0,
    ):
        size = unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = unet.config.in_channels, height, width
        super().__init__(UNet2D(unet, classes, scale, shift), schedule, prediction, shape, classes, sigma_data)
        self.has_no_class = unet.config.num_class_embeds != classes

    def _inputs(self, x: Tensor, t: Tensor, condition: Tensor | None) -> list[Tensor]:
        if condition is None and self.classes is not None and not self.has_no_class:
            raise FewstepError("this class-conditional network knows no 'no class': give a condition, classes (N,)")
        return super()._inputs(x, t, condition)


class ConsistencyFunction(UNetDenoiser):
    """A `UNet2DModel` that carries a state to sigma_min along its trajectory (Song et al. [2303.01469], App. C).

    Its timestep is 250 log sigma. clip: the result is limited to [-1, 1].
    """

    def __init__(self, unet: UNet2DModel, schedule: VE, classes: int | None, sigma_data: float, clip: bool):
        super().__init__(unet, schedule, CONSISTENCY, classes, sigma_data, scale=LOG_SIGMA)
        self.clip = clip

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
        x0 = super().forward(x, t, condition, extra)
        return x0.clamp(-1, 1) if self.clip else x0


def load_diffusers_folder(path: Path, classes: int | None = None) -> UNetDenoiser:
    """The denoiser, or consistency function, of a folder.

    classes: how many the model is expected to have; a last class embedding beyond them stands for "no class".
    Raises WeightsError for a file that is missing or cut short, or weights that do not fit the configuration, and
    FewstepError for a network, scheduler or number of classes that cannot be taken.
    """
    with reading(path, "folder that diffusers has saved"):
        return _load(Path(path), classes)


def _load(path: Path, classes: int | None) -> UNetDenoiser:
    parts = _network_folder(path)
    unet = _load_unet(parts)
    where = _scheduler_file(path)
    scheduler = _read_json(where)
    known = unet.config.num_class_embeds
    if classes is None:
        classes = known
    elif known is None or known - classes not in (0, 1):
        raise FewstepError(f"{parts} has {known or 'no'} classes, not {classes}: take a checkpoint that matches")
    if scheduler.get("_class_name") == CONSISTENCY_SCHEDULER:
        if lacking := [key for key in ("sigma_min", "sigma_max", "sigma_data") if key not in scheduler]:
            raise WeightsError(f"{where} lacks {lacking[0]}: get the file again")
        schedule = VE(scheduler["sigma_min"], scheduler["sigma_max"])
        clip = scheduler.get("clip_denoised", True)
        return ConsistencyFunction(unet, schedule, classes, scheduler["sigma_data"], clip)
    betas, prediction = _of_betas(scheduler, where)
    return UNetDenoiser(unet, betas, prediction, classes, scale=len(betas.alphas_cumprod), shift=-1)


def _network_folder(path: Path) -> Path:
    """Where the network is: the folder itself, or of those in it the averaged one."""
    if (path / "config.json").is_file():
        return path
    if not (path / AVERAGED / "config.json").is_file():
        return path / "unet"
    print(f"note: of the networks in {path} the averaged one, {AVERAGED}, is taken", file=sys.stderr)
    return path / AVERAGED


def _scheduler_file(path: Path) -> Path:
    """In the folder, or beside the network; for a checkpoint of training, in the folder above."""
    above = path.resolve().parent / "scheduler" / NAME
    for file in (path / NAME, path / "scheduler" / NAME, above):
        if file.is_file():
            if file == above:
                print(f"note: {path} has no scheduler of its own: that of {above.parent} is taken", file=sys.stderr)
            return file
    raise WeightsError(
        f"{path} holds no {NAME}, which says what the times mean, nor is there one in {above.parent}: "
        "get the whole folder"
    )


def _of_betas(config: dict, where: Path) -> tuple[DiscreteVP, str]:
    """The schedule and the prediction of a scheduler that has betas."""
    if not {"beta_schedule", "trained_betas"} & config.keys():
        raise FewstepError(
            f"{where}: {config.get('_class_name')} has no betas: only {CONSISTENCY_SCHEDULER} can do without"
        )
    if config.get("rescale_betas_zero_snr"):
        raise FewstepError(f"{where}: betas rescaled to zero signal are not supported; take the unscaled checkpoint")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise FewstepError(f"{where}: {unknown('prediction type', prediction, PREDICTION_TYPES)}")
    try:
        betas = DDPMScheduler(**{key: config[key] for key in BETA_KEYS if key in config}).betas
    except NotImplementedError as error:
        raise FewstepError(f"{where}: unknown beta schedule {config.get('beta_schedule')!r}") from error
    return DiscreteVP.from_betas(betas), PREDICTION_TYPES[prediction]


def _load_unet(folder: Path) -> UNet2DModel:
    if not (folder / "config.json").is_file():
        raise WeightsError(f"no config.json in {folder.parent} or {folder}: name a folder that diffusers has saved")
    config = _read_json(folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise FewstepError(f"{folder} holds a {config.get('_class_name')!s:.80}: only UNet2DModel can be read")
    if config.get("time_embedding_type", "positional") != "positional":
        raise FewstepError(f"{folder}: a network with {config['time_embedding_type']} time embedding cannot be read")
    if config.get("out_channels", 3) != config.get("in_channels", 3) or config.get("sample_size") is None:
        raise FewstepError(f"{folder}: the network must name its sample_size and return as many channels as it takes")
    blocks = [*config.get("down_block_types", ()), *config.get("up_block_types", ())]
    if any("Skip" in block for block in blocks) or config.get("mid_block_type", "UNetMidBlock2D") is None:
        raise FewstepError(f"{folder}: a network with skips of images, or without blocks in the middle, cannot be read")
    if config.get("class_embed_type") is not None:
        raise FewstepError(f"{folder}: class embeddings of type {config['class_embed_type']!r} cannot be read")
    state = read_folder(folder)
    with torch.device("meta"):
        unet = UNet2DModel.from_config(config)
    load_into(unet, state, folder)
    return unet.eval().requires_grad_(False)


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise WeightsError(f"{path} is no JSON ({error}): get the file again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no settings by name: get the file again")
    return content
