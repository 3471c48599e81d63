"""Checkpoints of the EDM family: pickles that embed their Python source, read without running any of it; state dicts.

Such a pickle is a dict with the network under "ema". Each module of it is written as a call

    torch_utils.persistence._reconstruct_persistent_obj({type, version, module_src, class_name, state})

which in the original project executes `module_src`. Here the call records `class_name` and `state`, the globals that
tensors and plain values need are listed, and any other is refused by name.
"""

import collections
import io
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from students.diffusion.denoiser import CONSISTENCY, EDM, Denoiser
from students.diffusion.schedules import VE
from students.errors import FewstepError, WeightsError, reading
from students.models.weights import load_into
from students.networks.edm import NETWORKS

TRAINING_ONLY = ("dropout", "label_dropout")


@dataclass
class EDMNetwork:
    """What a checkpoint says of its network.

    architecture, arguments: a class of students/networks/edm.py and how it is built. state: its parameters by name.
    precond: the class that surrounds it, with its sigma_data and sigma_min. path: of the file, for messages.
    """

    architecture: str
    arguments: dict
    state: dict[str, Tensor]
    precond: str = "EDMPrecond"
    precond_arguments: dict = field(default_factory=lambda: {"sigma_data": 0.5, "sigma_min": 0.0})
    path: Path = Path()


def build_denoiser(network: EDMNetwork) -> Denoiser:
    """The denoiser of a checkpoint; raises WeightsError naming the first parameter that does not fit."""
    arguments = network.arguments
    if network.architecture not in [*NETWORKS]:
        raise FewstepError(
            f"{network.path} holds a {network.architecture}, not {' or '.join(NETWORKS)}: no network here fits it"
        )
    with reading(network.path, f"{network.architecture} with arguments that fit"), torch.device("meta"):
        if (blocks := arguments.get("num_blocks", 1)) > len(network.state):
            raise ValueError(f"{blocks} blocks at each resolution, but {len(network.state)} parameters in all")
        module = NETWORKS[network.architecture](**arguments).eval()
    load_into(module, network.state, network.path)
    shape = (arguments["in_channels"], arguments["img_resolution"], arguments["img_resolution"])
    classes = arguments.get("label_dim") or None
    sigma_data, sigma_min = network.precond_arguments["sigma_data"], network.precond_arguments["sigma_min"]
    if network.precond == "EDMPrecond":
        return Denoiser(module, VE(), EDM, shape, classes, sigma_data)
    if network.precond == "ECMPrecond":
        return Denoiser(module, VE(t_min=sigma_min), CONSISTENCY, shape, classes, sigma_data)
    raise FewstepError(
        f"{network.path} is preconditioned by {network.precond}: only EDMPrecond and ECMPrecond can be read"
    )


def read_edm_pickle(path: Path) -> EDMNetwork:
    """The network of an EDM pickle; nothing in the file is executed.

    Raises WeightsError for a file that is missing, cut short or incomplete, and FewstepError naming the first global
    that such a pickle does not need.
    """
    with reading(path, "EDM pickle"), open(path, "rb") as file:
        content = _Unpickler(file, path).load()
        network = content.get("ema", content.get("model")) if isinstance(content, dict) else None  # "model": SFD
        if not isinstance(network, _Object):
            raise WeightsError(f"{path} holds no network under 'ema': take another file")
        return _describe(network, path)


def from_state_dict(state: Mapping[str, Tensor], path: Path) -> EDMNetwork:
    """A state dict of EDM's networks without anything else, as DMD2 publishes: the names and shapes say which it is.

    The preconditioning is EDM's with sigma_data 0.5. Raises WeightsError if the names are not of this family.
    """
    state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    with reading(path, "state dict of EDM's family"):
        return EDMNetwork(*arguments_of(state), state, path=path)


def arguments_of(state: Mapping[str, Tensor]) -> tuple[str, dict]:
    """The class and arguments of a network from the names and shapes of its parameters."""
    names = " ".join(state)
    resolutions = sorted({int(r) for r in re.findall(r"\benc\.(\d+)x\1_", names)}, reverse=True)
    first = resolutions[0]
    adm = "out_conv.weight" in state
    into_embedding = state["map_layer0.weight"].shape
    stem = state[f"enc.{first}x{first}_conv.weight"].shape
    channels = into_embedding[1] if adm else stem[0]
    arguments = {
        "img_resolution": first,
        "in_channels": stem[1],
        "out_channels": len(state["out_conv.weight" if adm else f"dec.{first}x{first}_aux_conv.weight"]),
        "label_dim": state["map_label.weight"].shape[1] if "map_label.weight" in state else 0,
        "augment_dim": state["map_augment.weight"].shape[1] if "map_augment.weight" in state else 0,
        "model_channels": channels,
        "channel_mult": [len(state[f"enc.{r}x{r}_block0.conv1.weight"]) // channels for r in resolutions],
        "channel_mult_emb": into_embedding[0] // channels,
        "num_blocks": len(set(re.findall(rf"\benc\.{first}x{first}_block\d+", names))),
        "attn_resolutions": [r for r in resolutions if f"enc.{r}x{r}_block0.qkv.weight" in state],
    }
    if adm:
        return "DhariwalUNet", arguments
    filters = (tensor for name, tensor in state.items() if name.endswith("resample_filter"))
    return "SongUNet", arguments | {
        "embedding_type": "fourier" if "map_noise.freqs" in state else "positional",
        "channel_mult_noise": into_embedding[1] // channels,
        "encoder_type": "residual" if "aux_residual" in names else "skip" if "aux_skip" in names else "standard",
        "decoder_type": "skip" if "aux_up" in names else "standard",
        "resample_filter": next(filters, torch.ones(1, 1, 2, 2))[0, 0].sum(0).tolist(),
    }


class _Object:
    """Stands for an object of the pickle: the name of its class, and its attributes. Runs nothing."""

    class_name = ""
    _modules: dict
    _parameters: dict
    _buffers: dict


def _describe(precond: _Object, path: Path) -> EDMNetwork:
    model = precond._modules["model"]
    if getattr(precond, "training_kwargs", {}).get("use_step_condition"):
        raise FewstepError(f"{path}: SFD's networks with a step condition cannot be read; take one of fixed steps")
    # SFD's networks carry parameters for a step condition that its networks of fixed steps never use
    state = {name: tensor for name, tensor in _tensors(model) if "_step" not in name}
    recorded = getattr(model, "_init_kwargs", {})
    if recorded and not getattr(model, "_init_args", ()):
        architecture = model.class_name
        plain = json.dumps({key: value for key, value in recorded.items() if key not in TRAINING_ONLY})
        arguments = json.loads(plain)
    else:
        architecture, arguments = arguments_of(state)
    given = {key: float(getattr(precond, key, default)) for key, default in (("sigma_data", 0.5), ("sigma_min", 0.0))}
    return EDMNetwork(architecture, arguments, state, precond.class_name, given, path)


def _tensors(module: _Object, prefix: str = ""):
    """(name, tensor) of every parameter and buffer, as in `nn.Module.state_dict`."""
    temporary = getattr(module, "_non_persistent_buffers_set", ())
    for kind in (module._parameters, module._buffers):
        for name, tensor in kind.items():
            if isinstance(tensor, Tensor) and name not in temporary:
                yield prefix + name, tensor
    for name, child in module._modules.items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.")


def _reconstruct(meta: dict) -> _Object:
    recorded = _Object()
    recorded.__dict__.update(meta["state"] or {})
    recorded.class_name = meta["class_name"]
    return recorded


def _load_storage(content: bytes):
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _rebuild_tensor(storage, offset, size, stride, *rest) -> Tensor:
    flat = torch.tensor([], dtype=storage.dtype).set_(storage)
    return flat.as_strided(size, stride, offset)  # raises if it reaches beyond the storage


def _rebuild_parameter(tensor: Tensor, *rest) -> Tensor:
    return tensor


class _NumpyType:
    """Stands for numpy.dtype."""

    def __init__(self, name: str, *rest):
        self.name = name

    def __setstate__(self, state: tuple):
        self.order = state[1]


def _numpy_scalar(kind: _NumpyType, content: bytes):
    return np.frombuffer(content, kind.order + kind.name)[0].item()


class _EasyDict(dict):
    """Stands for dnnlib.util.EasyDict."""


ALLOWED = {
    "torch_utils.persistence._reconstruct_persistent_obj": _reconstruct,
    "torch.storage._load_from_bytes": _load_storage,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.Size": lambda sizes: tuple(sizes),
    "collections.OrderedDict": collections.OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,
    "dnnlib.util.EasyDict": _EasyDict,
    "numpy.dtype": _NumpyType,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
# Classes of modules that are pickled by name: torch's containers, and the networks of SFD.
RECORDED = {"torch.nn.modules.container": ("ModuleDict", "ModuleList", "Sequential")} | {
    "models.networks_edm": (
        *("EDMPrecond", "SongUNet", "DhariwalUNet", "UNetBlock", "Conv2d", "Linear", "GroupNorm"),
        *("PositionalEmbedding", "FourierEmbedding"),
    )
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, path: Path):
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str):
        if name in RECORDED.get(module, ()):
            return type(name, (_Object,), {"class_name": name})
        found = ALLOWED.get(f"{module}.{name}")
        if found is None:
            raise FewstepError(
                f"{self.path} asks for {module}.{name}, which could run code, so it is not read: "
                "if you trust its source, convert it with --trust-pickle"
            )
        # made anew for each pickle, which may set attributes of what it is given
        return type(name, (found,), {}) if isinstance(found, type) else lambda *arguments: found(*arguments)  # type: ignore[operator]
