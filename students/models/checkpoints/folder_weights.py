"""The weights of a folder of diffusers: one file or several with an index, of any precision, under any prefix."""

import re
from pathlib import Path

from torch import Tensor

from students.errors import WeightsError
from students.models.checkpoints.contents import find_weights
from students.models.checkpoints.unpickling import read_tensors

STEM = "diffusion_pytorch_model"
# From the first that is there: an index of several files goes before these, safetensors before what torch has saved,
# and what names no variant, as `.fp16` does, before those that do
PATTERNS = [
    pattern.format(STEM, suffix)
    for variant in ("", ".*")
    for suffix in ("safetensors", "bin")
    for pattern in (f"{{}}.{{}}.index{variant}.json", f"{{}}{variant}.{{}}.index.json", f"{{}}{variant}.{{}}")
]
SHARD = re.compile(r"-\d+-of-\d+")
# The older names of attention, and those of now
OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
ATTENTION = re.compile(rf"(?<=\.)({'|'.join(OLDER)})(?=\.(?:weight|bias)$)")


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The state dict of a UNet2DModel; raises WeightsError if there is none that can be read."""
    file = weights_file(folder)
    _, state = find_weights(read_tensors(file), file, "diffusers")
    return {ATTENTION.sub(lambda found: OLDER[found[0]], name): tensor for name, tensor in state.items()}


def weights_file(folder: Path) -> Path:
    for pattern in PATTERNS:
        if found := sorted(path for path in folder.glob(pattern) if not SHARD.search(path.name)):
            return found[0]
    raise WeightsError(f"cannot read the weights in {folder}: no file named {STEM}.safetensors: get the whole folder")
