"""State dicts of OpenAI's consistency models [2303.01469] and their teachers, as diffusers' `UNet2DModel`.

Files of github.com/openai/consistency_models: `edm_*` are teachers, `cd_*` and `ct_*` consistency models. They hold
parameters alone; the architecture is in that project's README and is named here in its words.
"""

import math
import re
import sys
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor

from students.diffusion.preconditioning import EDM
from students.diffusion.schedules import VE
from students.errors import FewstepError, WeightsError, reading
from students.models.checkpoints.diffusers_folder import LOG_SIGMA, ConsistencyFunction, UNetDenoiser
from students.models.checkpoints.unpickling import load_tensors
from students.models.weights import load_into

CLASSES = 1000  # of ImageNet
SIGMA_DATA = 0.5
LOWEST = 8  # the resolution in the middle of OpenAI's networks, whatever the size
CHANNEL_MULT = {64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}
NETWORKS = {
    "imagenet64": {
        "image_size": 64,
        "num_channels": 192,
        "num_res_blocks": 3,
        "num_head_channels": 64,
        "attention_resolutions": "32,16,8",
        "resblock_updown": True,
        "use_scale_shift_norm": True,
        "class_cond": True,
    },
    "lsun256": {
        "image_size": 256,
        "num_channels": 256,
        "num_res_blocks": 2,
        "num_head_channels": 64,
        "attention_resolutions": "32,16,8",
        "resblock_updown": True,
        "use_scale_shift_norm": False,
        "class_cond": False,
    },
}
# OpenAI's names of the parts -> those of diffusers
ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}
PLAIN_BLOCKS = "DownBlock2D", "UpBlock2D"  # of diffusers, which resample by a convolution


def load_openai(path: Path, network: dict, consistency: bool) -> UNetDenoiser:
    """The consistency function or the teacher of a file; `network` as in NETWORKS.

    Raises WeightsError for a file that cannot be read or a parameter that does not fit.
    """
    return build_openai(read_state_dict(path), network, consistency, path)


def build_openai(state: dict[str, Tensor], network: dict, consistency: bool, path: Path) -> UNetDenoiser:
    """The same of a state dict under OpenAI's names."""
    if not ("channel_mult" in network or network["image_size"] in CHANNEL_MULT):
        raise FewstepError(f"{path}: OpenAI's networks at 64 and 256 pixels are read, others need their channel_mult")
    with reading(path, "state dict of OpenAI's networks"):
        with torch.device("meta"):
            unet = UNet2DModel(**_config(network))
        renamed = _renamed(state, network)
    load_into(unet, renamed, path)
    unet.eval().requires_grad_(False)
    classes = unet.config.num_class_embeds
    if consistency:
        return ConsistencyFunction(unet, VE(), classes, SIGMA_DATA, clip=True)
    return UNetDenoiser(unet, VE(), EDM, classes, SIGMA_DATA, scale=LOG_SIGMA)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors that `torch.save` has written, by name; raises WeightsError for anything else."""
    state = load_tensors(path)
    if not isinstance(state, dict) or not all(_is_entry(name, value) for name, value in state.items()):
        raise WeightsError(f"{path} is no state dict: it must hold dense tensors by name, and nothing else")
    return state


def _is_entry(name, value) -> bool:
    return isinstance(name, str) and torch.is_tensor(value) and value.layout == torch.strided and not value.is_meta


def network_of(state: dict[str, Tensor], path: Path) -> dict:
    """The architecture in the words of NETWORKS, from the names and shapes of its parameters.

    They say neither the size of images nor the heads of attention: these are those of NETWORKS where all else is equal,
    else guessed, with a note on stderr. A size that is part of the file's name, as OpenAI writes it, is taken.
    """
    with reading(path, "state dict of OpenAI's networks"):
        found, attention = _of_shapes(state)
    if len(state["out.2.weight"]) != state["input_blocks.0.0.weight"].shape[1]:
        raise FewstepError(f"{path} is of another kind: its network returns more channels than it takes (a variance)")
    for network in NETWORKS.values():
        same = all(network.get(key, value) == value for key, value in found.items() if key != "classes")
        if same and _mult(network) == found["channel_mult"] and _attention_levels(network) == attention:
            return network | {key: found[key] for key in ("classes", "channels")}
    levels = len(attention)
    named = re.findall(r"(?<!\d)(32|64|128|256|512)(?!\d)", path.stem)
    size = int(named[-1]) if named else LOWEST << (levels - 1)
    widths = [int(found["num_channels"] * mult) for mult in found["channel_mult"]]
    head = math.gcd(64, widths[-1], *(width for width, attends in zip(widths, attention, strict=True) if attends))
    print(f"note: {path} is read as a network for {size} pixels with heads of {head} channels", file=sys.stderr)
    resolutions = ",".join(str(size >> level) for level in range(levels) if attention[level])
    return found | {"image_size": size, "num_head_channels": head, "attention_resolutions": resolutions}


def _of_shapes(state: dict[str, Tensor]) -> tuple[dict, list[bool]]:
    """What shapes say of a network, and whether there is attention, for each resolution."""
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("output_blocks."))
    residual, plain = (
        [i for i in range(blocks) if any(f"output_blocks.{i}.{k}.{part}.weight" in state for k in (1, 2))]
        for part in ("in_layers.0", "conv")
    )
    ups = residual or plain
    each = ups[0] + 1 if ups else blocks  # residual blocks of a resolution in the decoder, one more than in the encoder
    firsts = [f"input_blocks.{1 + level * each}" for level in range(blocks // each)]
    channels = len(state["input_blocks.0.0.weight"])
    embedded, wide = (len(state[f"{firsts[0]}.0.{part}.weight"]) for part in ("emb_layers.1", "out_layers.3"))
    found = {
        "channels": state["input_blocks.0.0.weight"].shape[1],
        "num_channels": channels,
        "channel_mult": [len(state[f"{first}.0.out_layers.3.weight"]) / channels for first in firsts],
        "num_res_blocks": each - 1,
        "resblock_updown": not plain,
        "use_scale_shift_norm": embedded == 2 * wide,
        "class_cond": "label_emb.weight" in state,
        "classes": len(state["label_emb.weight"]) if "label_emb.weight" in state else None,
    }
    return found, [f"{first}.1.qkv.weight" in state for first in firsts]


def _mult(network: dict) -> list[float]:
    return list(network.get("channel_mult") or CHANNEL_MULT[network["image_size"]])


def _attention_levels(network: dict) -> list[bool]:
    """Whether there is attention, for each resolution."""
    resolutions = [int(r) for r in network["attention_resolutions"].split(",") if r]
    return [network["image_size"] >> level in resolutions for level in range(len(_mult(network)))]


def _config(network: dict) -> dict:
    """The same architecture in the words of diffusers."""
    attention, resampling = _attention_levels(network), "resnet" if network["resblock_updown"] else "conv"
    without = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if network["resblock_updown"] else PLAIN_BLOCKS
    down = ["AttnDownBlock2D" if attends else without[0] for attends in attention]
    up = ["AttnUpBlock2D" if attends else without[1] for attends in reversed(attention)]
    return {
        "sample_size": network["image_size"],
        "in_channels": network.get("channels", 3),
        "out_channels": network.get("channels", 3),
        "layers_per_block": network["num_res_blocks"],
        "block_out_channels": [int(network["num_channels"] * mult) for mult in _mult(network)],
        "attention_head_dim": network["num_head_channels"],
        "down_block_types": down,
        "up_block_types": up,
        "num_class_embeds": network.get("classes", CLASSES) if network["class_cond"] else None,
        "resnet_time_scale_shift": "scale_shift" if network["use_scale_shift_norm"] else "default",
        "attn_norm_num_groups": 32,
        "downsample_type": resampling,
        "upsample_type": resampling,
    }


def _blocks(network: dict) -> tuple[dict[str, str], dict[str, str]]:
    """What resamples or is a residual block, and the attentions, by OpenAI's names."""
    attention, depth = _attention_levels(network), network["num_res_blocks"]
    top = len(attention) - 1
    resnets = {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}
    attentions = {"middle_block.1": "mid_block.attentions.0"}
    index = 1  # 0 is the first convolution
    for level, attends in enumerate(attention):
        for i in range(depth):
            resnets[f"input_blocks.{index}.0"] = f"down_blocks.{level}.resnets.{i}"
            if attends:
                attentions[f"input_blocks.{index}.1"] = f"down_blocks.{level}.attentions.{i}"
            index += 1
        if level < top:
            resnets[f"input_blocks.{index}.0"] = f"down_blocks.{level}.downsamplers.0"
            index += 1
    index = 0
    for up, attends in enumerate(reversed(attention)):
        for i in range(depth + 1):
            resnets[f"output_blocks.{index}.0"] = f"up_blocks.{up}.resnets.{i}"
            if attends:
                attentions[f"output_blocks.{index}.1"] = f"up_blocks.{up}.attentions.{i}"
            if i == depth and up < top:
                resnets[f"output_blocks.{index}.{2 if attends else 1}"] = f"up_blocks.{up}.upsamplers.0"
            index += 1
    return resnets, attentions


def _renamed(state: dict[str, Tensor], network: dict) -> dict[str, Tensor]:
    """The state dict under the names of diffusers; a name that is unknown stays, and is refused in loading."""
    resnets, attentions = _blocks(network)
    parts = RESNET | {"op": "conv", "conv": "conv"}  # the last two of a plain convolution, down or up
    names = ENDS | {f"{old}.{a}": f"{new}.{b}" for old, new in resnets.items() for a, b in parts.items()}
    names |= {f"{old}.{a}": f"{new}.{b}" for old, new in attentions.items() for a, b in ATTENTION.items()}
    renamed = {}
    for name, tensor in state.items():
        part, _, kind = name.rpartition(".")
        block, _, last = part.rpartition(".")
        if block in attentions and kind == "weight" and last in ("qkv", "proj_out"):
            tensor = tensor.flatten(1)  # of a convolution over positions, as that of a linear map
        if block in attentions and last == "qkv":
            for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{attentions[block]}.to_{letter}.{kind}"] = rows
        else:
            renamed[f"{names.get(part, part)}.{kind}"] = tensor
    return renamed
