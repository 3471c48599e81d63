"""Feature extractors by name: one table, and what identifies them. Importing this module imports no torch."""

import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from bench.identity import code_hash
from students.datafiles import DataFile, MissingFile, file_hash
from students.errors import WeightsError, unknown
from students.models.weights import verified_hash


@dataclass(frozen=True)
class ExtractorEntry:
    """A feature extractor. target: of a torch-fidelity FeatureExtractorBase subclass.

    weights: a path, if they ship with their record (`python -m <module>` makes them again), else a DataFile, whose
    path the class takes as `feature_extractor_weights_path`. batch_size: images at a time; None: all it is given.
    cpu_batch_size: the same on a CPU, where few large images at a time take less memory and no longer.
    """

    target: str
    weights: Path | DataFile
    batch_size: int | None = None
    cpu_batch_size: int | None = None

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]

    @property
    def ships(self) -> bool:
        return isinstance(self.weights, Path)

    def problem(self) -> str:
        """Why the weights cannot be used, and what to do about it; empty if they can. Reads no network."""
        if not isinstance(self.weights, Path):
            return self.weights.problem()
        try:
            verified_hash(self.weights)
        except WeightsError as error:
            return str(error)
        return ""

    def hash(self) -> str:
        """The sha256 of the weights, downloaded where they are missing; raises WeightsError or MissingFile."""
        return verified_hash(self.weights) if isinstance(self.weights, Path) else file_hash(self.weights.fetch())

    def code(self) -> str:
        """The hash of the code that computes the features, or the version of the package it comes from."""
        package = self.module.partition(".")[0]
        return code_hash(self.module) if package == "bench" else f"{package} {version(package)}"


@dataclass(frozen=True)
class HubFile(DataFile):
    """A file that torch.hub may have downloaded before."""

    @property
    def path(self) -> Path:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cached = Path(os.environ.get("TORCH_HOME") or Path(cache, "torch"), "hub", "checkpoints", self.name)
        wanted = super().path
        return cached if cached.is_file() and not wanted.is_file() else wanted


WEIGHTS = Path(__file__).parent.parent / "weights"
CIFAR_RESNETS = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"

INCEPTION = HubFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "torch-fidelity's Inception-v3 of 2015-12-05, the network of FID",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
)
INCEPTION768 = DataFile(
    "inception-2015-12-05-to-768.fp16.safetensors",
    "the network of FID from its stem to Mixed_6e",
    sha256="9ece067515b930bb024dcfa00b3ca05254dea60252ede7fb72af06dab9897dc5",
)
VARIANTS = "bench.measure.inception_variants"

EXTRACTORS = {
    "digits_cnn": ExtractorEntry("bench.measure.digits_cnn:DigitsExtractor", WEIGHTS / "digits_cnn.safetensors"),
    "inception": ExtractorEntry(
        "torch_fidelity.feature_extractor_inceptionv3:FeatureExtractorInceptionV3",
        INCEPTION,
        batch_size=50,
        cpu_batch_size=10,
    ),
    "inception768": ExtractorEntry(
        "bench.measure.inception:Inception768",
        INCEPTION768,
        batch_size=50,
        cpu_batch_size=10,
    ),
    "inception_clean": ExtractorEntry(f"{VARIANTS}:CleanInception", INCEPTION, 50, 10),
    "inception768_clean": ExtractorEntry(f"{VARIANTS}:CleanInception768", INCEPTION768, 50, 10),
    "inception_spatial": ExtractorEntry(f"{VARIANTS}:SpatialInception", INCEPTION768, 50, 10),
    "cifar_resnet56": ExtractorEntry(
        "bench.measure.cifar_resnet:CifarResNetExtractor",
        DataFile(
            "resnet56-4bfd9763.th",
            "akamaster's ResNet-56 for CIFAR-10",
            CIFAR_RESNETS + "resnet56-4bfd9763.th",
            "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367",
        ),
        batch_size=500,
    ),
    "cifar_resnet20": ExtractorEntry(
        "bench.measure.cifar_resnet:CifarResNetExtractor",
        DataFile(
            "resnet20-12fca82f.th",
            "akamaster's ResNet-20 for CIFAR-10",
            CIFAR_RESNETS + "resnet20-12fca82f.th",
            "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
        ),
        batch_size=500,
    ),
    "dinov2": ExtractorEntry(
        "bench.measure.dinov2:DinoV2",
        HubFile(
            "dinov2_vitl14_pretrain.pth",
            "DINOv2 ViT-L/14",
            "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        ),
        batch_size=50,
        cpu_batch_size=10,
    ),
}


def extractor_problem(name: str) -> str:
    """Why the extractor's weights cannot be had, even by download, and what to do; empty if they are there."""
    try:
        extractor_identity(name)
    except (MissingFile, WeightsError) as error:
        return str(error)
    return ""


def extractor_identity(name: str) -> dict:
    """What the numbers of an extractor depend on, for a cell's id; downloads weights that are missing.

    Raises FewstepError for an unknown name, MissingFile or WeightsError for weights that are missing or altered.
    """
    if ":" in name:
        from bench.third_party import extractor_hash

        return {"name": name, "code": code_hash(name.partition(":")[0]), "weights": extractor_hash(name)}
    if name not in EXTRACTORS:
        raise unknown("extractor", name, [*EXTRACTORS, "package.module:attribute"])
    entry = EXTRACTORS[name]
    return {"name": name, "weights": entry.hash(), "code": entry.code()}
