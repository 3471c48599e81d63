"""The network of FID, from its stem to Mixed_6e: 768 features, where the layers after it are not at hand.

Inception-v3 as released for TensorFlow on 2015-12-05 (Szegedy et al. 2016 [1512.00567]), batch norm folded into the
convolutions. Its average pools leave padding out of the mean, unlike torchvision's.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity import FeatureExtractorBase

from students.models.weights import load_into

SIZE = 299


class Conv(nn.Conv2d):
    """A convolution that keeps the size at stride 1 unless told otherwise, with ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel, stride: int = 1, padding="same"):
        super().__init__(inputs, outputs, kernel, stride, padding if stride == 1 else 0)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x), inplace=True)


class Mixed(nn.Module):
    """Chains of convolutions side by side, and a pool, joined along the channels.

    chains: name -> (outputs, kernel) or (outputs, kernel, stride) of each convolution. With `pooled` outputs the
    pool is a mean followed by a convolution; without, it is a maximum of stride 2.
    """

    def __init__(self, inputs: int, pooled: int | None = None, **chains):
        super().__init__()
        self.chains = []
        for branch, chain in chains.items():
            names = [f"{branch}_{i}" for i in range(1, len(chain) + 1)] if len(chain) > 1 else [branch]
            width = inputs
            for name, (outputs, *rest) in zip(names, chain, strict=True):
                self.add_module(name, Conv(width, outputs, *rest))
                width = outputs
            self.chains.append(names)
        self.branch_pool = Conv(inputs, pooled, 1) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for names in self.chains:
            h = x
            for name in names:
                h = self.get_submodule(name)(h)
            parts.append(h)
        if self.branch_pool is None:
            parts.append(F.max_pool2d(x, 3, 2))
        else:
            parts.append(self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)))
        return torch.cat(parts, 1)


def mixed_5(inputs: int, pooled: int) -> Mixed:
    return Mixed(
        inputs,
        pooled,
        branch1x1=[(64, 1)],
        branch5x5=[(48, 1), (64, 5)],
        branch3x3dbl=[(64, 1), (96, 3), (96, 3)],
    )


def mixed_6(c: int) -> Mixed:
    across, down = (1, 7), (7, 1)
    return Mixed(
        768,
        192,
        branch1x1=[(192, 1)],
        branch7x7=[(c, 1), (c, across), (192, down)],
        branch7x7dbl=[(c, 1), (c, down), (c, across), (c, down), (192, across)],
    )


class InceptionTrunk(nn.Sequential):
    """Images (N, 3, 299, 299) in [-1, 1] -> Mixed_6e (N, 768, 17, 17)."""

    def __init__(self):
        super().__init__()
        layers = {
            "Conv2d_1a_3x3": Conv(3, 32, 3, stride=2),
            "Conv2d_2a_3x3": Conv(32, 32, 3, padding=0),
            "Conv2d_2b_3x3": Conv(32, 64, 3),
            "MaxPool_1": nn.MaxPool2d(3, 2),
            "Conv2d_3b_1x1": Conv(64, 80, 1),
            "Conv2d_4a_3x3": Conv(80, 192, 3, padding=0),
            "MaxPool_2": nn.MaxPool2d(3, 2),
            "Mixed_5b": mixed_5(192, 32),
            "Mixed_5c": mixed_5(256, 64),
            "Mixed_5d": mixed_5(288, 64),
            "Mixed_6a": Mixed(288, branch3x3=[(384, 3, 2)], branch3x3dbl=[(64, 1), (96, 3), (96, 3, 2)]),
            "Mixed_6b": mixed_6(128),
            "Mixed_6c": mixed_6(160),
            "Mixed_6d": mixed_6(160),
            "Mixed_6e": mixed_6(192),
        }
        for name, layer in layers.items():
            self.add_module(name, layer)


class Inception768(FeatureExtractorBase):
    """The mean of Mixed_6e over places, as `pytorch-fid --dims 768` defines it. Layer: "features"; no classes.

    Takes uint8 images (N, 3, H, W), resized bilinearly to 299 x 299 without antialiasing. Raises WeightsError for
    weights that do not fit.
    """

    def __init__(self, name, features_list, feature_extractor_weights_path, **kwargs):
        super().__init__(name, features_list)
        self.network = InceptionTrunk()
        path = Path(feature_extractor_weights_path)
        load_into(self.network, {key: tensor.float() for key, tensor in load_file(path).items()}, path)
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
        x = F.interpolate(images.float() / 255, (SIZE, SIZE), mode="bilinear", align_corners=False)
        return (self.network(2 * x - 1).mean((2, 3)),)
