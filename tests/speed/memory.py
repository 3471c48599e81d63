"""Peak memory of the process that measures a cell of many samples: `python -m tests.speed.memory [SAMPLES [FEATURES]]`.

Runs one step of DDIM on CIFAR-10 with a stand-in for Inception: 2048 random projections of the pixels, or as many as
asked for, since it is the rows of features that take memory, and the network itself takes long on a CPU. Two runs: the
first computes the statistics of the real images, the second finds them on disk. Needs the data below FEWSTEP_DATA.
"""

import os
import subprocess
import sys
import tempfile

import torch
from torch_fidelity import FeatureExtractorBase

FEATURES = "FEWSTEP_BENCHMARK_FEATURES"
MEASURED = """
import resource, sys
from bench.cli import main
status = main(sys.argv[1:])
print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
sys.exit(status)
"""


class Projections(FeatureExtractorBase):
    """Non-negative numbers of an image (N, 3, 32, 32), with no classes."""

    def __init__(self, name, features_list):
        super().__init__(name, features_list)
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("matrix", torch.randn(3 * 32 * 32, int(os.environ[FEATURES]), generator=generator) / 32)

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
    samples, features = (*sys.argv[1:], *("50000", "2048")[len(sys.argv) - 1 :])
    with tempfile.TemporaryDirectory() as folder:
        command = f"run cifar10 --steps 1 --seed-blocks 1 --device cpu --samples {samples} --metrics fd kid prc"
        arguments = [*command.split(), "--extractor", "tests.speed.memory:Projections", "--out", folder]
        # in a cache of its own: nobody else wants these statistics of the data
        environment = os.environ | {"XDG_CACHE_HOME": folder, FEATURES: features}
        for student in ("ddim", "euler"):
            print(f"{samples} samples of {features} features", flush=True)
            command = [sys.executable, "-c", MEASURED, *arguments, "--students", student]
            subprocess.run(command, env=environment, check=True)
