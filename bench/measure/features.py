"""From samples to rows of features: 8-bit images, and the extractors of torch-fidelity by name."""

import torch
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from bench.identity import state_hash
from bench.measure import EXTRACTORS
from bench.measure.digits_cnn import DigitsExtractor
from students.errors import FewstepError, unknown
from students.registry import import_object

# torch_fidelity.calculate_metrics(feature_extractor="digits-cnn", ...)
if "digits-cnn" not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor("digits-cnn", DigitsExtractor)


def to_uint8(x: Tensor, rounding: str = "round") -> Tensor:
    """Images in [-1, 1] to 8 bits, values outside clipped; raises FewstepError for another rounding rule.

    round: floor(127.5 (x + 1) + 1/2), which is also EDM's floor(127.5 x + 128). Inverts v / 127.5 - 1.
    truncate: floor(127.5 (x + 1)), the rule of ADM and consistency models; darker by half a level on average.
    """
    levels = (x.float() + 1) * 127.5
    if rounding == "round":
        levels = levels + 0.5
    elif rounding != "truncate":
        raise unknown("rounding", rounding, ("round", "truncate"))
    return levels.floor().clamp(0, 255).to(torch.uint8)


class Extractor:
    """A feature extractor of torch-fidelity: its layer for FID as rows, its layer for the inception score as logits.

    name: as asked for. hash: sha256 of its weights.
    """

    def __init__(self, name: str, cls: type[FeatureExtractorBase], device):
        features, logits = (cls.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc"))
        self.name = name
        self.module = cls(name, [features] if logits == features else [features, logits])
        self.module.requires_grad_(False).eval().to(device)
        self.device = torch.device(device)
        self.hash = getattr(self.module, "weights_hash", None) or state_hash([self.module])

    @torch.inference_mode()
    def features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows (N, F) and class logits (N, K), float32, of uint8 images (N, C, H, W); grey is repeated three times.

        Logits are None for an extractor without classes, one that has the same layer for both.
        """
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        outputs = [output.float() for output in self.module(images.to(self.device))]
        return outputs[0], outputs[1] if len(outputs) == 2 else None


def load_extractor(name: str, device="cpu") -> Extractor:
    """An extractor of EXTRACTORS, or `package.module:attribute` of a FeatureExtractorBase subclass.

    Raises FewstepError for an unknown name or something else than such a class, WeightsError for bad weights.
    """
    if name not in EXTRACTORS and ":" not in name:
        raise unknown("extractor", name, [*EXTRACTORS, "package.module:attribute"])
    cls = import_object(EXTRACTORS[name].target if name in EXTRACTORS else name)
    if not (isinstance(cls, type) and issubclass(cls, FeatureExtractorBase)):
        raise FewstepError(f"{name!r} is no feature extractor: give a subclass of torch_fidelity.FeatureExtractorBase")
    return Extractor(name, cls, device)
