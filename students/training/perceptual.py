"""LPIPS, the perceptual distance of Zhang et al. 2018 [1801.03924], through the `lpips` package, from files at hand.

The package brings the linear heads (v0.1); the backbone is torchvision's SqueezeNet 1.1 below the data root.
"""

import torch
from torch import nn

from students.datafiles import DataFile
from students.errors import WeightsError

SQUEEZENET = DataFile(
    "squeezenet1_1-b8a52dc0.pth",
    "torchvision's SqueezeNet 1.1",
    "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
    "b8a52dc0",
)
SQUEEZENET_FEATURES = DataFile(
    "squeezenet1_1_features_only.pth", "the feature layers of torchvision's SqueezeNet 1.1", sha256="addf3a06417d44a9"
)


def lpips_problem() -> str:
    """Why LPIPS cannot be loaded without a download, and what to do; empty if it can."""
    return SQUEEZENET_FEATURES.problem() and SQUEEZENET.problem()


def load_lpips(device="cpu") -> nn.Module:
    """LPIPS (squeeze): called on two batches (N, 3, H, W) in [-1, 1], gives distances (N, 1, 1, 1).

    Raises MissingFile where the backbone is neither at hand nor to be downloaded, WeightsError for a file that
    holds another network.
    """
    import lpips

    file = SQUEEZENET if SQUEEZENET_FEATURES.problem() else SQUEEZENET_FEATURES
    state = torch.load(file.fetch(), weights_only=True, map_location="cpu")
    distance = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    backbone = distance.net.state_dict()
    found = {name: state.get("features" + name[name.index(".") :]) for name in backbone}
    if missing := [name for name, tensor in found.items() if tensor is None or tensor.shape != backbone[name].shape]:
        raise WeightsError(f"{file.path} is not {file.what}: it does not fit {missing[0]!r}; get the file again")
    distance.net.load_state_dict(found)
    return distance.requires_grad_(False).eval().to(device)
