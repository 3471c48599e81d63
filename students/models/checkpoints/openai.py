"""State dicts of OpenAI's consistency models [2303.01469] and their teachers, as diffusers' `UNet2DModel`.

Files of github.com/openai/consistency_models: `edm_*` are teachers, `cd_*` and `ct_*` consistency models. They hold
parameters alone; the architecture is in that project's README and is named here in its words.
"""

import re
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor

from students.diffusion.denoiser import EDM
from students.diffusion.schedules import VE
from students.errors import FewstepError, WeightsError, reading
from students.models.checkpoints.diffusers_folder import LOG_SIGMA, ConsistencyFunction, UNetDenoiser
from students.models.weights import load_into

CLASSES = 1000  # of ImageNet
SIGMA_DATA = 0.5
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


def load_openai(path: Path, network: dict, consistency: bool) -> UNetDenoiser:
    """The consistency function or the teacher of a file; `network` as in NETWORKS.

    Raises WeightsError for a file that cannot be read or a parameter that does not fit.
    """
    return build_openai(read_state_dict(path), network, consistency, path)


def build_openai(state: dict[str, Tensor], network: dict, consistency: bool, path: Path) -> UNetDenoiser:
    """The same of a state dict under OpenAI's names."""
    if network["image_size"] not in CHANNEL_MULT or not network["resblock_updown"]:
        raise FewstepError(f"{path}: only OpenAI's networks with resblock_updown at 64 and 256 pixels can be read")
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
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"cannot read {path} ({error.strerror}): get the file again") from error
    except Exception as error:  # torch.load raises many kinds, all about the same file
        reason = " ".join(str(error).split())
        reason = next(iter(re.findall(r"Unsupported \w+: \w+ [\w.]+", reason)), reason[:200])
        raise WeightsError(f"{path} is no state dict that can be read without running code ({reason})") from error
    if not isinstance(state, dict) or not all(_is_entry(name, value) for name, value in state.items()):
        raise WeightsError(f"{path} is no state dict: it must hold dense tensors by name, and nothing else")
    return state


def _is_entry(name, value) -> bool:
    return isinstance(name, str) and torch.is_tensor(value) and value.layout == torch.strided and not value.is_meta


def _attention_levels(network: dict) -> list[bool]:
    """Whether there is attention, for each resolution."""
    resolutions = [int(r) for r in network["attention_resolutions"].split(",")]
    levels = len(CHANNEL_MULT[network["image_size"]])
    return [network["image_size"] >> level in resolutions for level in range(levels)]


def _config(network: dict) -> dict:
    """The same architecture in the words of diffusers."""
    attention = _attention_levels(network)
    down = ["AttnDownBlock2D" if attends else "ResnetDownsampleBlock2D" for attends in attention]
    up = ["AttnUpBlock2D" if attends else "ResnetUpsampleBlock2D" for attends in reversed(attention)]
    return {
        "sample_size": network["image_size"],
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": network["num_res_blocks"],
        "block_out_channels": [network["num_channels"] * mult for mult in CHANNEL_MULT[network["image_size"]]],
        "attention_head_dim": network["num_head_channels"],
        "down_block_types": down,
        "up_block_types": up,
        "num_class_embeds": CLASSES if network["class_cond"] else None,
        "resnet_time_scale_shift": "scale_shift" if network["use_scale_shift_norm"] else "default",
        "attn_norm_num_groups": 32,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    }


def _blocks(network: dict) -> tuple[dict[str, str], dict[str, str]]:
    """The residual blocks, and the attentions, by OpenAI's names."""
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
    names = ENDS | {f"{old}.{a}": f"{new}.{b}" for old, new in resnets.items() for a, b in RESNET.items()}
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
