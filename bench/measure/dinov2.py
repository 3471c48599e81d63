"""DINOv2 ViT-L/14 features (Oquab et al. 2023 [2304.07193]), the space of FD-DINOv2 (Stein et al. 2023 [2306.04675]).

The network is timm's, the weights are the official file. torch-fidelity has this extractor too, but only with code
and weights that torch.hub downloads.
"""

from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity import FeatureExtractorBase
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import normalize, resize

from students.models.checkpoints.openai import read_state_dict
from students.models.weights import load_into

SIZE, PATCH = 224, 14
NETWORK = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
POSITION_OFFSET = 0.1  # added to the size of the grid by the official code when it resizes the positions
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoV2(FeatureExtractorBase):
    """The normalised class token. Layer: "features"; no classes.

    Takes uint8 images (N, 3, H, W), resized bicubically to 224 x 224 in 8 bits with antialiasing, as dgm-eval does.
    Raises WeightsError for weights of another network.
    """

    def __init__(self, name, features_list, feature_extractor_weights_path, **kwargs):
        super().__init__(name, features_list)
        path = Path(feature_extractor_weights_path)
        state = read_state_dict(path)
        state.pop("mask_token", None)  # only for training
        if "pos_embed" in state:
            state["pos_embed"] = resized_positions(state["pos_embed"], SIZE // PATCH)
        with torch.device("meta"):
            network = VisionTransformer(img_size=SIZE, patch_size=PATCH, init_values=1, num_classes=0, **NETWORK)
        self.network = network.to_empty(device="cpu")
        load_into(self.network, state, path)
        self.requires_grad_(False).eval()

    @staticmethod
    def get_provided_features_list():
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "features"

    @staticmethod
    def can_be_compiled():
        return True

    @staticmethod
    def get_dummy_input_for_compile():
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        x = resize(images, [SIZE, SIZE], InterpolationMode.BICUBIC, antialias=True)
        return (self.network(normalize(x.float() / 255, MEAN, DEVIATION)),)


def resized_positions(positions: Tensor, size: int) -> Tensor:
    """(1, 1 + g^2, C) -> (1, 1 + size^2, C): the class token's position kept, the grid's resized as officially done."""
    token, grid = positions[:, :1], positions[:, 1:]
    side = round(grid.shape[1] ** 0.5)
    grid = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(size + POSITION_OFFSET) / side, mode="bicubic", align_corners=False)
    return torch.cat([token, grid.flatten(2).transpose(1, 2)], 1)
