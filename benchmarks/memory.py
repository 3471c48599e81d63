"""Peak memory of the process that measures a cell of many samples: `python -m benchmarks.memory [SAMPLES]`.

Runs one step of DDIM on CIFAR-10 with a stand-in for Inception: 2048 random projections of the pixels, since it is
the rows of features that take memory, and the network itself takes long on a CPU. Needs the data below FEWSTEP_DATA.
"""

import os
import resource
import sys
import tempfile

import torch
from torch_fidelity import FeatureExtractorBase

from bench.cli import main

FEATURES = 2048


class Projections(FeatureExtractorBase):
    """2048 non-negative numbers an image (N, 3, 32, 32), with no classes."""

    def __init__(self, name, features_list):
        super().__init__(name, features_list)
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("matrix", torch.randn(3 * 32 * 32, FEATURES, generator=generator) / 32)

    @staticmethod
    def get_provided_features_list():
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "features"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images):
        return (((images.flatten(1) / 127.5 - 1) @ self.matrix).relu(),)


if __name__ == "__main__":
    samples = sys.argv[1] if len(sys.argv) > 1 else "50000"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # nobody else wants these statistics of the data
        command = f"run cifar10 --students ddim --steps 1 --seed-blocks 1 --device cpu --samples {samples}"
        status = main([*command.split(), "--extractor", "benchmarks.memory:Projections", "--out", folder])
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    sys.exit(status)
