"""What the names and shapes of parameters say of a network of EDM's family: its class and how it is built."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from students.networks.edm import NETWORKS as EDM_NETWORKS
from students.networks.edm2 import EDM2UNet

NETWORKS = EDM_NETWORKS | {"UNet": EDM2UNet}  # by the names of the classes in checkpoints
FILTER = "resample_filter"


def arguments_of(state: Mapping[str, Tensor]) -> tuple[str, dict]:
    """The class, a name in NETWORKS, and the arguments of a network from the names and shapes of its parameters."""
    names = " ".join(state)
    resolutions = sorted({int(r) for r in re.findall(r"\benc\.(\d+)x\1_", names)}, reverse=True)
    first = resolutions[0]
    found = {"num_blocks": len(set(re.findall(rf"\benc\.{first}x{first}_block\d+", names))), "img_resolution": first}
    return _edm2(state, resolutions, found) if "out_gain" in state else _edm(state, resolutions, found)


def _edm2(state: Mapping[str, Tensor], resolutions: list[int], found: dict) -> tuple[str, dict]:
    first = found["img_resolution"]
    channels, stem = state[f"enc.{first}x{first}_conv.weight"].shape[:2]
    return "UNet", found | {
        "img_channels": stem - 1,
        "label_dim": state["emb_label.weight"].shape[1] if "emb_label.weight" in state else 0,
        "model_channels": channels,
        "channel_mult": [len(state[f"enc.{r}x{r}_block0.conv_res0.weight"]) / channels for r in resolutions],
        "channel_mult_noise": len(state["emb_fourier.freqs"]) / channels,
        "channel_mult_emb": len(state["emb_noise.weight"]) / channels,
        "attn_resolutions": [r for r in resolutions if f"enc.{r}x{r}_block0.attn_qkv.weight" in state],
    }


def _edm(state: Mapping[str, Tensor], resolutions: list[int], found: dict) -> tuple[str, dict]:
    first = found["img_resolution"]
    adm = "out_conv.weight" in state
    into_embedding = state["map_layer0.weight"].shape
    stem = state[f"enc.{first}x{first}_conv.weight"].shape
    channels = into_embedding[1] if adm else stem[0]
    arguments = found | {
        "in_channels": stem[1],
        "out_channels": len(state["out_conv.weight" if adm else f"dec.{first}x{first}_aux_conv.weight"]),
        "label_dim": state["map_label.weight"].shape[1] if "map_label.weight" in state else 0,
        "augment_dim": state["map_augment.weight"].shape[1] if "map_augment.weight" in state else 0,
        "model_channels": channels,
        "channel_mult": [len(state[f"enc.{r}x{r}_block0.conv1.weight"]) // channels for r in resolutions],
        "channel_mult_emb": into_embedding[0] // channels,
        "attn_resolutions": [r for r in resolutions if f"enc.{r}x{r}_block0.qkv.weight" in state],
    }
    if adm:
        return "DhariwalUNet", arguments
    names = " ".join(state)
    filters = (tensor for name, tensor in state.items() if name.endswith(FILTER))
    return "SongUNet", arguments | {
        "embedding_type": "fourier" if "map_noise.freqs" in state else "positional",
        "channel_mult_noise": into_embedding[1] // channels,
        "encoder_type": "residual" if "aux_residual" in names else "skip" if "aux_skip" in names else "standard",
        "decoder_type": "skip" if "aux_up" in names else "standard",
        "resample_filter": next(filters, torch.ones(1, 1, 2, 2))[0, 0].sum(0).tolist(),
    }


def with_filters(state: dict[str, Tensor], architecture: str, arguments: dict) -> dict[str, Tensor]:
    """The state with the resampling filters of DDPM++, which are no parameters, where it was saved without buffers."""
    if any(name.endswith(FILTER) for name in state) or arguments.get("encoder_type") != "standard":
        return state
    with torch.device("meta"):
        names = [name for name in NETWORKS[architecture](**arguments).state_dict() if name.endswith(FILTER)]
    return state | {name: torch.full((1, 1, 2, 2), 0.25) for name in names}
