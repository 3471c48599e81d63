"""Classifiers of CIFAR-10 as a cheap feature space: the ResNets of He et al. 2016 [1512.03385], section 4.2.

6n + 2 layers: a convolution, three stages of n blocks of two convolutions at 16, 32 and 64 channels, a linear layer.
Where a stage halves the size, its shortcut takes every other pixel and pads the channels with zeros (option A).
"""

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity import FeatureExtractorBase

from students.errors import WeightsError
from students.models.weights import load_into

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet: what the weights were trained with
CLASSES = 10


class Block(nn.Module):
    """Two convolutions, added to the shortcut."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.stride = outputs // inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        padding = (h.shape[1] - x.shape[1]) // 2
        return F.relu(h + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, padding, padding)))


class CifarResNet(nn.Module):
    """Normalised images (N, 3, H, W) -> 64 features, the mean over places, and 10 logits linear in them."""

    def __init__(self, blocks: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(Block(inputs if i == 0 else outputs, outputs) for i in range(blocks)))
            for inputs, outputs in pairwise(widths)
        )
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.bn1(self.conv1(x)))
        features = self.layer3(self.layer2(self.layer1(h))).mean((2, 3))
        return features, self.linear(features)


class CifarResNetExtractor(FeatureExtractorBase):
    """A CifarResNet of the depth its weights have. Layers: "features", "logits", the classes in CIFAR-10's order.

    Takes uint8 images (N, 3, H, W), as large as they are. Raises WeightsError for weights of another network.
    """

    def __init__(self, name, features_list, feature_extractor_weights_path, **kwargs):
        super().__init__(name, features_list)
        path = Path(feature_extractor_weights_path)
        state = torch.load(path, map_location="cpu", weights_only=True).get("state_dict")
        if state is None:
            raise WeightsError(f"{path} holds no 'state_dict': get the file again")
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
        self.network = CifarResNet(sum(key.startswith("layer1.") and key.endswith("conv1.weight") for key in state))
        # counters of training steps, which files of old PyTorch versions lack
        unused = {key: tensor for key, tensor in self.network.state_dict().items() if "num_batches_tracked" in key}
        load_into(self.network, unused | state, path)
        self.register_buffer("mean", 255 * torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", 255 * torch.tensor(DEVIATION)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    @staticmethod
    def get_provided_features_list():
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled():
        return True

    @staticmethod
    def get_dummy_input_for_compile():
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features, logits = self.network((images - self.mean) / self.deviation)
        layers = {"features": features, "logits": logits}
        return tuple(layers[name] for name in self.features_list)
