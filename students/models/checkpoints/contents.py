"""What a file of somebody else's training holds: the weights of one network, found by the names of its parameters.

A file may hold them in dictionaries (`{"ema": ..., "step": 10}`), under prefixes of wrappers (`module._orig_mod.net.`),
several times over, and beside counters and the state of an optimiser. `find_weights` is the one place that knows.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from students.errors import WeightsError

# A family of networks -> parameters that every one of it has
FAMILIES = {
    "edm": ("map_layer0.weight", "map_layer1.weight"),
    "edm2": ("emb_noise.weight", "out_gain"),
    "openai": ("input_blocks.0.0.weight", "time_embed.0.weight"),
    "diffusers": ("conv_in.weight", "time_embedding.linear_1.weight"),
}
TITLES = {"edm": "EDM's family", "edm2": "EDM2's", "openai": "OpenAI's networks", "diffusers": "a UNet2DModel"}
OTHERS = {  # a part of a name -> what holds it
    "emb_noise.weight": "an EDM2 network",
    "x_embedder.proj.weight": "a DiT",
    "quant_conv.weight": "an autoencoder",
    "add_embedding.linear_1.weight": "a text-to-image network of diffusers",
    "b4.conv1.affine.weight": "a StyleGAN",
    "exp_avg": "the state of an optimiser",
}
INTO = "/"  # between the key of a dictionary and what is in it
AVERAGED = re.compile(r"(?:^|[/._])(?:ema|swa|avg|averaged?|shadow)(?=[/._\d]|$)", re.IGNORECASE)
COUNTERS = re.compile(r"(?:^|\.)(?:\w*num_updates|\w*decay|n_averaged|initted|\w*steps?|epoch|iteration)$")
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def find_weights(content, path: Path, *families: str) -> tuple[str, dict[str, Tensor]]:
    """The family and the state dict, under its own names, of the network in `content`: dictionaries around tensors.

    Of several the averaged one is taken, with a note on stderr. Raises WeightsError that says what is there instead,
    if there is none, more than one that could be meant, or one with values that are not finite.
    """
    tensors = dict(_flat(content))
    found = {
        name.removesuffix(FAMILIES[family][0]): family
        for family in families
        for name in tensors
        if _ends_in(name, FAMILIES[family][0])
    }
    found = {
        prefix: family
        for prefix, family in found.items()
        if all(f"{prefix}{name}" in tensors for name in FAMILIES[family])
    }
    if not found:
        raise WeightsError(
            f"{path} {_instead(tensors)}: take a checkpoint of {' or '.join(TITLES[family] for family in families)}"
        )
    prefix = _chosen(list(found), path)
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    own = {name: tensor for name, tensor in inside.items() if INTO not in name and not _counts(name, tensor)}
    state = {WRAPPERS.sub("", name): tensor for name, tensor in own.items()}
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            raise WeightsError(f"{path} holds {name!r} as no dense tensor: save it with its values")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsError(f"{path} holds values in {name!r} that are not finite: take an earlier checkpoint")
    return found[prefix], state


def averaged(keys: list, path: Path):
    """The key of the averaged one of several networks, or of the first, with a note on stderr."""
    key = next((key for key in keys if AVERAGED.search(str(key))), keys[0])
    if len(keys) > 1:
        print(f"note: of the networks in {path} ({', '.join(map(repr, keys))}) {key!r} is taken", file=sys.stderr)
    return key


def _flat(content, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor), the names of what it lies in before its own."""
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        else:
            yield from _flat(value, f"{prefix}{key}{INTO}")


def _ends_in(name: str, last: str) -> bool:
    return name == last or name.endswith((f".{last}", f"{INTO}{last}"))


def _counts(name: str, tensor: Tensor) -> bool:
    """Whether it is a number that training keeps, rather than a weight."""
    return tensor.numel() == 1 and COUNTERS.search(name) is not None


def _chosen(prefixes: list[str], path: Path) -> str:
    """The prefix that most averages are named in."""
    ranks = {prefix: len(AVERAGED.findall(prefix)) for prefix in prefixes}
    best = [prefix for prefix in prefixes if ranks[prefix] == max(ranks.values())]
    named = [repr(_shown(prefix)) for prefix in (best if len(best) > 1 else prefixes)]
    if len(best) > 1:
        raise WeightsError(f"{path} holds several networks ({', '.join(named)}): save the one that is meant, alone")
    if len(prefixes) > 1:
        print(f"note: of the weights in {path} ({', '.join(named)}) {_shown(best[0])!r} are taken", file=sys.stderr)
    return best[0]


def _shown(prefix: str) -> str:
    return prefix.rstrip(f".{INTO}").replace(INTO, ".")


def _instead(tensors: Mapping[str, Tensor]) -> str:
    for part, what in OTHERS.items():
        if any(_ends_in(name, part) for name in tensors):
            return f"is of another kind, {what}"
    if not tensors:
        return "holds no weights by name"
    return f"is no state dict of a known network: it holds {next(iter(tensors))!r}"
