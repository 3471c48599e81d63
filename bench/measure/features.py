"""Feature extractors by name: rows of features, and of logits, of 8-bit images."""

from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from bench.measure.digits_cnn import DigitsExtractor
from bench.measure.extractors import EXTRACTORS
from students.errors import FewstepError, one_line, unknown
from students.models.weights import state_hash
from students.spec import import_object

# torch_fidelity.calculate_metrics(feature_extractor="digits-cnn", ...)
if "digits-cnn" not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor("digits-cnn", DigitsExtractor)


class Extractor:
    """A feature extractor of torch-fidelity: its layer for FID as rows, its layer for the inception score as logits.

    name: as asked for. hash: of its weights. has_classes: whether it gives logits. batch_size: images it is given at a
    time, None for all.
    """

    def __init__(self, name: str, module: FeatureExtractorBase, device, digest: str, batch_size: int | None):
        self.name, self.hash, self.batch_size = name, digest, batch_size
        self.has_classes = len(module.features_list) == 2
        # on a CPU, convolutions with many channels run half as fast again in this order
        self.module = module.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
        self.device = torch.device(device)

    @torch.inference_mode()
    def features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows (N, F) and class logits (N, K), float32, of uint8 images (N, C, H, W); grey is repeated three times.

        Logits are None for an extractor without classes, one that has the same layer for both.
        """
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        parts = [self.module(part.to(self.device)) for part in images.split(self.batch_size or max(1, len(images)))]
        outputs = [torch.cat(layer).float() for layer in zip(*parts, strict=True)]
        return outputs[0], outputs[1] if self.has_classes else None


def load_extractor(name: str, device="cpu") -> Extractor:
    """An extractor of EXTRACTORS, or `package.module:attribute` of a FeatureExtractorBase subclass.

    Raises FewstepError for an unknown name or something else than such a class, MissingFile or WeightsError for
    weights that are missing or bad.
    """
    entry = EXTRACTORS.get(name)
    if entry is None and ":" not in name:
        raise unknown("extractor", name, [*EXTRACTORS, "package.module:attribute"])
    cls = import_object(entry.target if entry else name)
    if not (isinstance(cls, type) and issubclass(cls, FeatureExtractorBase)):
        raise FewstepError(f"{name!r} is no feature extractor: give a subclass of torch_fidelity.FeatureExtractorBase")
    try:
        features, logits = (cls.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc"))  # type: ignore[attr-defined]
        layers = [features] if logits == features else [features, logits]
        if entry is None or isinstance(entry.weights, Path):
            module = cls(name, layers)
            digest = getattr(module, "weights_hash", None) or state_hash(module)
        else:
            module = cls(name, layers, feature_extractor_weights_path=entry.weights.fetch())
            digest = entry.hash()
    except FewstepError:
        raise
    except Exception as error:  # it may be anybody's
        raise FewstepError(f"cannot load extractor {name!r}: {one_line(error)}") from error
    on_cpu = torch.device(device).type == "cpu"
    batch_size = None if entry is None else (on_cpu and entry.cpu_batch_size) or entry.batch_size
    return Extractor(name, module, device, digest, batch_size)
