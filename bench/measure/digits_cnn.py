"""The feature extractor of the digits: a small classifier of 8x8 grey images.

`python -m bench.measure.digits_cnn` trains it on the training half and writes the weights that ship.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity import FeatureExtractorBase

from students.data import load_data
from students.errors import FewstepError
from students.models.weights import load_into, load_weights, save_weights

WEIGHTS = Path(__file__).parent.parent / "weights" / "digits_cnn.safetensors"

EPOCHS = 80
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2
DROPOUT = 0.4
NOISE = 0.1
MAX_SHIFT = 1


class DigitsCNN(nn.Module):
    """Images (N, 1, 8, 8) in [0, 1] -> 64 features, taken after the last ReLU, and 10 logits linear in them.

    Trained, the features have mean square 1 over the training half.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 2 * 2, 64)
        self.classes = nn.Linear(64, 10)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.conv1(images))
        h = F.max_pool2d(F.relu(self.conv2(h)), 2)
        h = F.max_pool2d(F.relu(self.conv3(h)), 2)
        features = F.relu(self.hidden(self.dropout(h.flatten(1))))
        return features, self.classes(self.dropout(features))


class DigitsExtractor(FeatureExtractorBase):
    """DigitsCNN as an extractor of torch-fidelity, with the weights that ship. Layers: "features", "logits".

    Takes uint8 images (N, 1, 8, 8), or (N, 3, 8, 8) with three equal channels. Raises WeightsError, and
    FewstepError for other images.
    """

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        state, record = load_weights(WEIGHTS)
        self.network = DigitsCNN()
        load_into(self.network, state, WEIGHTS)
        self.weights_hash = record["sha256"]
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
        return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        grey = images[:, :1]
        if images.dtype != torch.uint8 or images.shape[1:] not in ((1, 8, 8), (3, 8, 8)) or (images != grey).any():
            raise FewstepError(
                f"digits_cnn takes grey uint8 images (N, 1, 8, 8), got {images.dtype} {tuple(images.shape)}: "
                "choose another extractor for other images"
            )
        features, logits = self.network(grey.float() / 255)
        layers = {"features": features, "logits": logits}
        return tuple(layers[name] for name in self.features_list)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to one pixel either way, with Gaussian noise of a random strength."""
    n, _, height, width = images.shape
    padded = F.pad(images, [MAX_SHIFT] * 4)
    top, left = torch.randint(2 * MAX_SHIFT + 1, (2, n, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    shifted = padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]
    strength = NOISE * torch.rand(n, 1, 1, 1, generator=generator)
    return (shifted + strength * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def train(path: Path, seed: int = 0, epochs: int = EPOCHS) -> dict:
    """Train on the training half, write weights and record; returns the record.

    Deterministic for a seed, on one machine and thread count.
    """
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitsCNN()
        data = load_data("digits")
        images, labels = data.train.samples.float() / 255, data.train.labels
        batches = -(-len(images) // BATCH_SIZE)
        optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=epochs * batches)
        for _ in range(epochs):
            for rows in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):
                _, logits = network(augmented(images[rows], generator))
                loss = F.cross_entropy(logits, labels[rows])  # type: ignore[index]
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    network.eval()
    with torch.no_grad():
        # ReLU is homogeneous: another scale of the features, the same logits
        scale = network(images)[0].square().mean().sqrt()
        for tensor in (network.hidden.weight, network.hidden.bias):
            tensor /= scale
        network.classes.weight *= scale
        network.half().float()  # judge what is stored
        _, logits = network(data.heldout.samples.float() / 255)
    record = {
        "data": "digits",
        "heldout_accuracy": round((logits.argmax(1) == data.heldout.labels).double().mean().item(), 4),
        "epochs": epochs,
        "seed": seed,
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": round(time.perf_counter() - start, 1),
    }
    save_weights(path, network.state_dict(), record)
    return record


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the feature extractor of the digits and write its weights.")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for key, value in train(arguments.out, arguments.seed).items():
        print(f"{key}: {value}")
