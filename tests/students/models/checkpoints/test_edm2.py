"""EDM2's checkpoints: the same output as the paper's formulas; guidance and latents are refused."""

import pytest
import torch

import students
from students.errors import FewstepError
from students.models.checkpoints.convert import convert, load_checkpoint
from students.networks import build_network
from students.networks.edm2 import EDM2UNet
from tests.students.models.checkpoints.edm2_pickles import EDM2, denoise, edm2_pickle, make_weights

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


@pytest.mark.parametrize("form", ["pickle", "state dict"])
@pytest.mark.parametrize("classes", [0, 4])
def test_the_formulas(tmp_path, capsys, classes, form):
    weights = make_weights(EDM2, classes)
    path = tmp_path / "edm2-img16.pkl"
    if form == "pickle":
        path.write_bytes(edm2_pickle(EDM2, weights, classes))
    else:
        torch.save({"ema": {f"module.unet.{name}": tensor for name, tensor in weights.items()}}, path)
    sigma = torch.tensor([0.01, 0.7, 60.0])
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    x = x * (0.25 + sigma**2).sqrt()[:, None, None, None]
    condition = torch.tensor([0, 3, 1]) if classes else None
    onehot = torch.eye(classes)[condition] if classes else None
    expected = denoise(EDM2, weights, x, sigma, onehot)
    for file in (path, convert(path, tmp_path / "net.safetensors")):
        denoiser = load_checkpoint(file)
        assert (denoiser.shape, denoiser.classes) == ((3, 16, 16), classes or None)
        with torch.inference_mode():
            torch.testing.assert_close(denoiser(x, sigma, condition), expected, rtol=1e-5, atol=1e-5)
        student = students.load(f"file:{file}:heun")
        assert student.sample(2, seeds=range(2)).isfinite().all()
        if classes:
            with pytest.raises(FewstepError, match="without label dropout"):
                student.check(2, 1.5)
    assert ("holds weights alone" in capsys.readouterr().err) == (form == "state dict")


def test_training_keeps_weights_at_unit_magnitude():
    network = EDM2UNet(**EDM2)
    network.load_state_dict(make_weights(EDM2, 0))
    x, t = torch.randn(2, 3, 16, 16), torch.zeros(2)
    network.train()(x, t)
    for name, parameter in network.named_parameters():
        if name.endswith(".weight"):
            magnitudes = parameter.flatten(1).square().mean(1).sqrt()
            torch.testing.assert_close(magnitudes, torch.ones_like(magnitudes), rtol=1e-2, atol=0)
    trained = network(x, t)
    torch.testing.assert_close(network.eval()(x, t), trained, rtol=1e-3, atol=1e-3)


def test_latents_are_refused(tmp_path):
    arguments = EDM2 | {"img_channels": 4}
    (tmp_path / "edm2-img512.pkl").write_bytes(edm2_pickle(arguments, make_weights(arguments, 0)))
    with pytest.raises(FewstepError, match="EDM2 on latents of an autoencoder: take one on pixels"):
        load_checkpoint(tmp_path / "edm2-img512.pkl")


def test_networks_keep_the_contract():
    network = EDM2UNet(**EDM2, label_dim=3).eval()
    network.load_state_dict(make_weights(EDM2, 3))
    x, t = torch.randn(4, 3, 16, 16), torch.randn(4)
    plain = network(x, t)
    out, features = network(x, t, return_features=True)
    assert torch.equal(out, plain) and features[-1].shape[1] == network.feature_channels
    network.add_extra(1)
    network.add_states(2)
    torch.testing.assert_close(network(x, t, extra=torch.ones(4, 1)), plain)
    again = build_network(network.config)
    again.load_state_dict(network.state_dict())
    half = again.to(torch.bfloat16)
    assert half.emb_fourier.freqs.dtype == torch.float32
    assert half(x.bfloat16(), t, extra=torch.ones(4, 1)).dtype == torch.bfloat16
