"""Other readings of the network of FID: with clean-fid's resize, and the spatial features of sFID.

clean: images are resized to 299 x 299 by Pillow's bicubic filter, in floats, a channel at a time (Parmar, Zhang & Zhu
2022 [2104.11222]), where the network itself would resize bilinearly and without antialiasing.
spatial: the first 7 channels of `mixed_6/conv`, the 1x1 branch of Mixed_6d, flattened in the order (H, W, C) to 2023
features (Nash et al. 2021 [2103.03841], as the evaluator of guided-diffusion takes them).
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from bench.measure.inception import SIZE, Inception768

SPATIAL_CHANNELS = 7


def clean_resize(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> float32 (N, C, 299, 299) on the same device, in levels that may leave 0 to 255."""
    planes = images.flatten(0, 1).cpu().numpy().astype(np.float32)
    resized = [np.array(Image.fromarray(plane).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for plane in planes]
    return torch.from_numpy(np.stack(resized)).unflatten(0, images.shape[:2]).to(images.device)


class CleanInception(FeatureExtractorInceptionV3):
    """torch-fidelity's Inception-v3 on images resized as clean-fid does. Layers: "2048" and "logits_unbiased"."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = (clean_resize(x) - 128) / 128
        for name, layer in self.named_children():
            x = x if name == "fc" else layer(x)
        features = x.flatten(1)
        layers = {"2048": features, "logits_unbiased": features @ self.fc.weight.T}
        return tuple(layers[name] for name in self.features_list)


class CleanInception768(Inception768):
    """`Inception768` on images resized as clean-fid does."""

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.network(clean_resize(images) / 127.5 - 1).mean((2, 3)),)


class SpatialInception(Inception768):
    """The features of sFID. Layer: "features"; no classes."""

    def forward(self, images: Tensor) -> tuple[Tensor]:
        x = F.interpolate(images.float() / 255, (SIZE, SIZE), mode="bilinear", align_corners=False)
        x = 2 * x - 1
        for name, layer in self.network.named_children():
            if name == "Mixed_6d":
                return (layer.get_submodule("branch1x1")(x)[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1),)
            x = layer(x)
        raise AssertionError("there is no Mixed_6d")
