"""Checkpoints of the EDM family: pickles of networks, the state of their training, state dicts.

Such a pickle is a dict with the network under "ema"; how it is read without running it, unpickling.py says.
"""

import json
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from students.diffusion.denoiser import Denoiser
from students.diffusion.preconditioning import CONSISTENCY, EDM
from students.diffusion.schedules import IDDPM, VE, Schedule
from students.errors import FewstepError, reading
from students.models.checkpoints.contents import averaged, find_weights
from students.models.checkpoints.edm_arguments import NETWORKS, arguments_of, with_filters
from students.models.checkpoints.unpickling import Recorded, unpickle
from students.models.weights import load_into

TRAINING_ONLY = ("dropout", "label_dropout")
# The class around a network -> how it is read, and the constants that this stands for
PRECONDS: dict[str, tuple[str, dict[str, float]]] = {
    "EDMPrecond": (EDM, {}),
    "ECMPrecond": (CONSISTENCY, {}),
    "Precond": (EDM, {}),  # EDM2's
    "VPPrecond": ("edm_vp", {"beta_d": 19.9, "beta_min": 0.1, "M": 1000}),
    "VEPrecond": ("edm_ve", {}),
    "iDDPMPrecond": ("edm_iddpm", {"C_1": 0.001, "C_2": 0.008, "M": 1000}),
}
RANGE = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}  # of EDM, where a class says nothing
LATENT_CHANNELS = 4  # of EDM2 for 512 pixels
LAST = re.compile(r"(?:out|aux)_conv\.(?:weight|bias)$")


@dataclass
class EDMNetwork:
    """What a checkpoint says of its network.

    architecture, arguments: a class of students/networks/edm.py and how it is built. state: its parameters by name.
    precond: the class that surrounds it, a name in PRECONDS, with its constants. path: of the file, for messages.
    label_dropout: how often training left the class out, None where the file does not say.
    """

    architecture: str
    arguments: dict
    state: dict[str, Tensor]
    precond: str = "EDMPrecond"
    precond_arguments: dict = field(default_factory=dict)
    path: Path = Path()
    label_dropout: float | None = None


def build_denoiser(network: EDMNetwork) -> Denoiser:
    """The denoiser of a checkpoint; raises WeightsError naming the first parameter that does not fit."""
    if network.architecture not in [*NETWORKS]:
        raise FewstepError(
            f"{network.path} holds a {network.architecture}, not {' or '.join(NETWORKS)}: no network here fits it"
        )
    if network.arguments.get("img_channels") == LATENT_CHANNELS:
        raise FewstepError(
            f"{network.path} is of another kind, EDM2 on latents of an autoencoder: take one on pixels, edm2-img64-..."
        )
    prediction, schedule, sigma_data = _read_as(network)
    arguments, state = _without_variance(network) if prediction == "edm_iddpm" else (network.arguments, network.state)
    with reading(network.path, f"{network.architecture} with arguments that fit"), torch.device("meta"):
        if (blocks := arguments.get("num_blocks", 1)) > len(state):
            raise ValueError(f"{blocks} blocks at each resolution, but {len(state)} parameters in all")
        module = NETWORKS[network.architecture](**arguments).eval()
        channels, size = arguments.get("in_channels") or arguments["img_channels"], arguments["img_resolution"]
    load_into(module, state, network.path)
    shape, classes = (channels, size, size), arguments.get("label_dim") or None
    denoiser = Denoiser(module, schedule, prediction, shape, classes, sigma_data)
    denoiser.has_no_class = network.label_dropout != 0  # type: ignore[assignment]
    return denoiser


def _read_as(network: EDMNetwork) -> tuple[str, Schedule, float]:
    """The prediction, the schedule over the levels that EDM samples with (0.002 to 80 at most), and sigma_data."""
    if network.precond not in [*PRECONDS]:
        raise FewstepError(
            f"{network.path} is preconditioned by {network.precond}, which is not known here: "
            f"take a network of {', '.join(PRECONDS)}"
        )
    prediction, constants = PRECONDS[network.precond]
    given = RANGE | constants | network.precond_arguments
    for name, value in constants.items():
        if given[name] != value:
            raise FewstepError(f"{network.path}: {network.precond} is read with {name} {value}, not {given[name]:g}")
    if prediction == "edm_iddpm":
        return prediction, IDDPM(), given["sigma_data"]
    if prediction == CONSISTENCY:
        return prediction, VE(t_min=given["sigma_min"]), given["sigma_data"]
    low, high = (given[name] for name in ("sigma_min", "sigma_max"))
    return prediction, VE(max(low, RANGE["sigma_min"]), min(high, RANGE["sigma_max"])), given["sigma_data"]


def _without_variance(network: EDMNetwork) -> tuple[dict, dict[str, Tensor]]:
    """The arguments and state of iDDPM's network without the half of its output that is a variance."""
    channels = network.arguments.get("in_channels", 0)
    if network.arguments.get("out_channels") != 2 * channels:
        raise FewstepError(f"{network.path}: iDDPM's network returns an image and its variance, this one does not")
    state = {name: tensor[:channels] if LAST.search(name) else tensor for name, tensor in network.state.items()}
    return network.arguments | {"out_channels": channels}, state


def precond_arguments(precond, name: str) -> dict[str, float]:
    """The constants among the attributes of the class around a network, whose name that is."""
    names = (*RANGE, *PRECONDS.get(name, (EDM, {}))[1])
    found = {name: float(getattr(precond, name)) for name in names if hasattr(precond, name)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


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
        return assumed(from_state_dict(content, path))
    networks = _networks(content)
    return _describe(networks[averaged(list(networks), path)], path)


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
    return of_weights(find_weights(content, path, "edm", "edm2")[1], path)


def assumed(network: EDMNetwork) -> EDMNetwork:
    """The same network, after a note on stderr of what its state dict does not say."""
    assumptions = "preconditioned by EDM, sigma_data 0.5"
    if network.arguments["label_dim"] and network.label_dropout is None:
        assumptions += ", trained to know no class too"
    print(f"note: {network.path} holds weights alone, which are read as {assumptions}", file=sys.stderr)
    return network


def of_weights(state: dict[str, Tensor], path: Path) -> EDMNetwork:
    """The same of a state dict under the names of EDM's networks."""
    with reading(path, "state dict of EDM's family"):
        architecture, arguments = arguments_of(state)
        dropout = 0.0 if architecture == "UNet" else None  # EDM2 guides by a second network
        return EDMNetwork(
            architecture, arguments, with_filters(state, architecture, arguments), path=path, label_dropout=dropout
        )


def _describe(precond: Recorded, path: Path) -> EDMNetwork:
    model = precond._modules.get("model", precond._modules.get("unet"))
    if not isinstance(model, Recorded):
        inside = [part.class_name for part in precond._modules.values() if isinstance(part, Recorded)]
        raise FewstepError(
            f"{path} is of another kind, {precond.class_name} around {' and '.join(inside) or 'nothing'}: "
            "only EDM's and EDM2's own networks can be read"
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
    constants = precond_arguments(precond, precond.class_name)
    dropout = float(recorded.get("label_dropout", 0)) if recorded else None
    return EDMNetwork(architecture, arguments, state, precond.class_name, constants, path, dropout)


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
