"""Checkpoints of the EDM family: pickles of networks, the state of their training, state dicts.

Such a pickle is a dict with the network under "ema"; how it is read without running it, unpickling.py says.
"""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from students.diffusion.denoiser import CONSISTENCY, EDM, Denoiser
from students.diffusion.schedules import VE
from students.errors import FewstepError, reading
from students.models.checkpoints.contents import AVERAGED, find_weights
from students.models.checkpoints.unpickling import Recorded, unpickle
from students.models.weights import load_into
from students.networks.edm import NETWORKS

TRAINING_ONLY = ("dropout", "label_dropout")
FILTER = "resample_filter"


@dataclass
class EDMNetwork:
    """What a checkpoint says of its network.

    architecture, arguments: a class of students/networks/edm.py and how it is built. state: its parameters by name.
    precond: the class that surrounds it, with its sigma_data and sigma_min. path: of the file, for messages.
    label_dropout: how often training left the class out, None where the file does not say.
    """

    architecture: str
    arguments: dict
    state: dict[str, Tensor]
    precond: str = "EDMPrecond"
    precond_arguments: dict = field(default_factory=lambda: {"sigma_data": 0.5, "sigma_min": 0.0})
    path: Path = Path()
    label_dropout: float | None = None


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
        denoiser = Denoiser(module, VE(), EDM, shape, classes, sigma_data)
    elif network.precond == "ECMPrecond":
        denoiser = Denoiser(module, VE(t_min=sigma_min), CONSISTENCY, shape, classes, sigma_data)
    else:
        raise FewstepError(
            f"{network.path} is preconditioned by {network.precond}: only EDMPrecond and ECMPrecond can be read"
        )
    denoiser.has_no_class = network.label_dropout != 0  # type: ignore[assignment]
    return denoiser


def read_edm_pickle(path: Path) -> EDMNetwork:
    """The network of an EDM pickle, or of the weights that a pickle holds; nothing in the file is executed.

    Raises WeightsError for a file that is missing, cut short or of another kind, and FewstepError naming the first
    global that such a pickle does not need.
    """
    with reading(path, "EDM pickle"):
        return of_content(unpickle(path), path)


def of_content(content, path: Path) -> EDMNetwork:
    """The network of what a file holds: recorded modules, of which the averaged one is taken, or a state dict."""
    if not has_networks(content):
        return from_state_dict(content, path)
    networks = _networks(content)
    key = next((key for key in networks if AVERAGED.search(str(key))), next(iter(networks)))
    if len(networks) > 1:
        print(f"note: of the networks in {path} ({', '.join(map(repr, networks))}) {key!r} is taken", file=sys.stderr)
    return _describe(networks[key], path)


def has_networks(content) -> bool:
    """Whether there are recorded modules in it, rather than tensors by name."""
    return bool(_networks(content))


def _networks(content) -> dict:
    entries = content if isinstance(content, dict) else {"": content}
    return {key: value for key, value in entries.items() if _is_network(value)}


def _is_network(value) -> bool:
    return isinstance(value, Recorded) and bool(getattr(value, "_modules", None))


def from_state_dict(content, path: Path) -> EDMNetwork:
    """The network of a state dict (students/models/checkpoints/contents.py): names and shapes say which it is.

    The preconditioning is EDM's with sigma_data 0.5. Raises WeightsError if the names are not of this family.
    """
    return of_weights(find_weights(content, path, "edm")[1], path)


def of_weights(state: dict[str, Tensor], path: Path) -> EDMNetwork:
    """The same of a state dict under the names of EDM's networks."""
    with reading(path, "state dict of EDM's family"):
        architecture, arguments = arguments_of(state)
        return EDMNetwork(architecture, arguments, _with_filters(state, architecture, arguments), path=path)


def _with_filters(state: dict[str, Tensor], architecture: str, arguments: dict) -> dict[str, Tensor]:
    """The state with the resampling filters of DDPM++, which are no parameters, where it was saved without buffers."""
    if any(name.endswith(FILTER) for name in state) or arguments.get("encoder_type") != "standard":
        return state
    with torch.device("meta"):
        names = [name for name in NETWORKS[architecture](**arguments).state_dict() if name.endswith(FILTER)]
    return state | {name: torch.full((1, 1, 2, 2), 0.25) for name in names}


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
    filters = (tensor for name, tensor in state.items() if name.endswith(FILTER))
    return "SongUNet", arguments | {
        "embedding_type": "fourier" if "map_noise.freqs" in state else "positional",
        "channel_mult_noise": into_embedding[1] // channels,
        "encoder_type": "residual" if "aux_residual" in names else "skip" if "aux_skip" in names else "standard",
        "decoder_type": "skip" if "aux_up" in names else "standard",
        "resample_filter": next(filters, torch.ones(1, 1, 2, 2))[0, 0].sum(0).tolist(),
    }


def _describe(precond: Recorded, path: Path) -> EDMNetwork:
    model = precond._modules.get("model")
    if not isinstance(model, Recorded):
        inside = [part.class_name for part in precond._modules.values() if isinstance(part, Recorded)]
        raise FewstepError(
            f"{path} is of another kind, {precond.class_name} around {' and '.join(inside) or 'nothing'}"
            f"{', as EDM2 writes it' if precond.class_name == 'Precond' else ''}: only EDM's own networks can be read"
        )
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
    dropout = float(recorded.get("label_dropout", 0)) if recorded else None
    return EDMNetwork(architecture, arguments, state, precond.class_name, given, path, dropout)


def _tensors(module: Recorded, prefix: str = ""):
    """(name, tensor) of every parameter and buffer, as in `nn.Module.state_dict`."""
    temporary = getattr(module, "_non_persistent_buffers_set", ())
    for kind in (module._parameters, module._buffers):
        for name, tensor in kind.items():
            if isinstance(tensor, Tensor) and name not in temporary:
                yield prefix + name, tensor
    for name, child in module._modules.items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.")
