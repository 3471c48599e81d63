"""Pickles in EDM's format: the same output as their definition, whatever they embed; nothing of theirs is executed."""

import io
import pickle
import sys
import types

import pytest
import torch
from torch import nn

import students
from students.diffusion.grids import GRIDS, make_grid
from students.diffusion.schedules import IDDPM, iddpm_levels
from students.errors import FewstepError, WeightsError
from students.models.checkpoints.convert import convert, load_checkpoint, load_converted
from students.models.checkpoints.edm_arguments import arguments_of
from students.models.checkpoints.edm_pickle import build_denoiser, read_edm_pickle
from students.models.checkpoints.unpickling import ALLOWED
from tests.students.models.checkpoints import edm_pickles as made
from tests.students.models.checkpoints.edm_pickles import (
    ADM,
    DDPMPP,
    NCSNPP,
    SKIPS,
    Global,
    denoise,
    edm_pickle,
    make_weights,
)

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

CASES = {
    "ddpmpp": ("SongUNet", DDPMPP | {"augment_dim": 9}, 0),
    "ncsnpp": ("SongUNet", NCSNPP, 4),
    "skips": ("SongUNet", SKIPS, 0),
    "adm": ("DhariwalUNet", ADM, 3),
}


@pytest.fixture
def source(tmp_path):
    """Python source that leaves a file behind if it is executed; the test ends by looking for that file."""
    marker = tmp_path / "executed"
    yield f"open({str(marker)!r}, 'w')"
    assert not marker.exists()


def write(path, content: bytes):
    path.write_bytes(content)
    return path


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


def check_against_formulas(denoiser, architecture, arguments, weights, classes, sigma_min=0.0):
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.01, 0.7, 60.0])
    x = x * (0.25 + sigma**2).sqrt()[:, None, None, None]
    condition = torch.tensor([classes, 0, 1]) if classes else None
    onehot = torch.eye(classes + 1)[condition][:, :classes] if classes else None
    expected = denoise(architecture, arguments, weights, x, sigma, onehot, sigma_min)
    with torch.inference_mode():
        got = denoiser(x, sigma, condition)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


# What is read


@pytest.mark.parametrize("name", CASES)
def test_pickles_and_their_conversions_compute_the_formulas(tmp_path, source, name):
    architecture, arguments, classes = CASES[name]
    weights = make_weights(architecture, arguments, classes)
    path = write(tmp_path / "net.pkl", edm_pickle(architecture, arguments, weights, classes, source))
    network = read_edm_pickle(path)
    assert (network.architecture, network.precond) == (architecture, "EDMPrecond")
    assert network.arguments == arguments | {"in_channels": 3, "out_channels": 3, "label_dim": classes}
    assert network.state.keys() == weights.keys()
    assert all(torch.equal(network.state[key], weights[key]) for key in weights)
    denoiser = build_denoiser(network)
    assert denoiser.shape == (3, 16, 16) and denoiser.classes == (classes or None)
    check_against_formulas(denoiser, architecture, arguments, weights, classes)

    out = convert(path, tmp_path / "out" / "net.safetensors")
    path.unlink()
    check_against_formulas(load_converted(out), architecture, arguments, weights, classes)


def test_a_file_is_a_student(tmp_path, source):
    weights = make_weights("SongUNet", DDPMPP, 3)
    path = write(tmp_path / "net.pkl", edm_pickle("SongUNet", DDPMPP, weights, 3, source))
    out = convert(path, tmp_path / "net.safetensors")
    images = students.load(f"file:{path}:heun").sample(2, seeds=range(2), conditions=[0, 2])
    assert images.shape == (2, 3, 16, 16) and images.isfinite().all()
    assert torch.equal(students.load(f"file:{out}:heun").sample(2, seeds=range(2), conditions=[0, 2]), images)


def test_ect_s_networks_are_the_identity_at_sigma_min(tmp_path, source):
    weights = make_weights("SongUNet", DDPMPP, 0)
    content = edm_pickle("SongUNet", DDPMPP, weights, 0, source, precond="ECMPrecond", constants={"sigma_min": 0.003})
    out = convert(write(tmp_path / "net.pkl", content), tmp_path / "net.safetensors")
    denoiser = load_converted(out)
    assert denoiser.prediction == "consistency" and denoiser.schedule.t_min == 0.003
    check_against_formulas(denoiser, "SongUNet", DDPMPP, weights, 0, sigma_min=0.003)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(denoiser(x, 0.003), x)


@pytest.mark.parametrize(
    "precond, architecture, arguments, constants, ends",
    [
        (
            "VPPrecond",
            "SongUNet",
            DDPMPP,
            {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "sigma_max": 152.4},
            (0.002, 80),
        ),
        ("VEPrecond", "SongUNet", NCSNPP, {"sigma_min": 0.02, "sigma_max": 100.0}, (0.02, 80)),
        ("iDDPMPrecond", "DhariwalUNet", ADM | {"out_channels": 6}, {"M": 1000}, (0.0064, 80.1)),
    ],
)
def test_edm_s_baselines_compute_their_formulas(tmp_path, precond, architecture, arguments, constants, ends):
    weights = make_weights(architecture, arguments, 0)
    content = edm_pickle(architecture, arguments, weights, precond=precond, constants=constants)
    path = write(tmp_path / "net.pkl", content)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.021, 0.7, 5.0, 60.0])  # of which iDDPM knows none
    x = x * (0.25 + sigma**2).sqrt()[:, None, None, None]
    expected = made.denoise_baseline(precond, architecture, arguments, weights, x, sigma)
    for file in (path, convert(path, tmp_path / "net.safetensors")):
        denoiser = load_checkpoint(file)
        with torch.inference_mode():
            scale = (1 + sigma)[:, None, None, None]
            torch.testing.assert_close(denoiser(x, sigma) / scale, expected / scale, rtol=1e-5, atol=2e-5)
        assert (denoiser.schedule.t_min, denoiser.schedule.t_max) == pytest.approx(ends, rel=1e-2)
        assert students.load(f"file:{file}:heun").sample(2, seeds=range(2)).isfinite().all()


def test_grids_take_the_levels_of_iddpm():
    levels = iddpm_levels()
    for grid in GRIDS:
        times = make_grid(grid, IDDPM(), 8)
        assert all((levels - t).abs().min() == 0 for t in times), grid
        assert times[0] == IDDPM().t_max and times[-1] == levels[0]
    assert torch.equal(IDDPM.nearest(levels), torch.arange(1000))


@pytest.mark.parametrize("name", CASES)
def test_a_state_dict_says_itself_what_it_is(tmp_path, name):
    architecture, arguments, classes = CASES[name]
    weights = make_weights(architecture, arguments, classes)
    guessed, found = arguments_of(weights)
    defaults = {"channel_mult_emb": 4, "augment_dim": 0, "in_channels": 3, "out_channels": 3, "label_dim": classes}
    if architecture == "SongUNet":
        defaults |= {"embedding_type": "positional", "channel_mult_noise": 1, "encoder_type": "standard"}
        defaults |= {"decoder_type": "standard"}
    taps = torch.tensor(found.pop("resample_filter", [1.0, 1.0]))
    expected = defaults | arguments
    expected_taps = torch.tensor(expected.pop("resample_filter", [1, 1])).float()
    assert (guessed, found) == (architecture, expected)
    torch.testing.assert_close(taps / taps.sum(), expected_taps / expected_taps.sum())

    path = tmp_path / "pytorch_model.bin"
    torch.save({f"model.{key}": tensor for key, tensor in weights.items()}, path)
    denoiser = load_converted(convert(path, tmp_path / "net.safetensors"))
    check_against_formulas(denoiser, architecture, arguments, weights, classes)


class EDMPrecond(nn.Module):
    """A plain module with the parameters of `weights`; `part` is the class of those inside."""

    def __init__(self, weights, part=nn.Module, **attributes):
        super().__init__()
        self.model = part()
        self.sigma_data, self.sigma_min = 0.5, 0.0
        self.__dict__.update(attributes)
        for name, tensor in weights.items():
            *parents, last = name.split(".")
            holder = self.model
            for parent in parents:
                if parent not in holder._modules:
                    holder.add_module(parent, part())
                holder = holder._modules[parent]
            if last in ("resample_filter", "freqs"):
                holder.register_buffer(last, tensor)
            else:
                holder.register_parameter(last, nn.Parameter(tensor))


def sfd_pickle(weights, **attributes) -> bytes:
    """Modules pickled by the names of their classes, as SFD does."""
    module = types.ModuleType("models.networks_edm")
    for name, base in (("EDMPrecond", EDMPrecond), ("UNetBlock", nn.Module)):
        setattr(module, name, type(name, (base,), {"__module__": module.__name__}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "models", types.ModuleType("models"))
        patch.setitem(sys.modules, module.__name__, module)
        return pickle.dumps({"model": module.EDMPrecond(weights, module.UNetBlock, **attributes)})


@pytest.mark.parametrize("name", ["ddpmpp", "adm"])
def test_sfd_pickles_modules_by_name(tmp_path, name):
    architecture, arguments, classes = CASES[name]
    weights = make_weights(architecture, arguments, classes)
    further = {"map_step_layer0.weight": torch.zeros(3, 3), "enc.16x16_block0.affine_step.bias": torch.zeros(3)}
    path = write(tmp_path / "net.pkl", sfd_pickle(weights | further))
    denoiser = load_converted(convert(path, tmp_path / "net.safetensors"))
    check_against_formulas(denoiser, architecture, arguments, weights, classes)
    path = write(tmp_path / "v.pkl", sfd_pickle(weights, training_kwargs={"use_step_condition": True}))
    with pytest.raises(FewstepError, match="step condition"):
        read_edm_pickle(path)


# What is refused


@pytest.mark.parametrize(
    "precond, constants, message",
    [
        ("SlowPrecond", {}, "preconditioned by SlowPrecond, which is not known here: take a network of EDMPrecond, "),
        ("VPPrecond", {"beta_d": 10.0}, "VPPrecond is read with beta_d 19.9, not 10"),
        ("iDDPMPrecond", {"M": 4000}, "iDDPMPrecond is read with M 1000, not 4000"),
        ("iDDPMPrecond", {}, "returns an image and its variance, this one does not"),
    ],
)
def test_a_pickle_of_another_preconditioning(tmp_path, source, precond, constants, message):
    weights = make_weights("SongUNet", DDPMPP, 0)
    content = edm_pickle("SongUNet", DDPMPP, weights, source=source, precond=precond, constants=constants)
    with pytest.raises(FewstepError, match=message) as error:
        convert(write(tmp_path / "net.pkl", content), tmp_path / "net.safetensors")
    one_line(error)
    assert not (tmp_path / "net.safetensors").exists()


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda w: w.pop("enc.8x8_block0.qkv.weight"), "lack 'enc.8x8_block0.qkv.weight'"),
        (lambda w: w.update({"map_layer1.bias": torch.zeros(5)}), r"have 'map_layer1.bias' of shape \(5,\), not"),
        (lambda w: w.update({"enc.16x16_block7.norm0.bias": torch.zeros(5)}), "hold 'enc.16x16_block7.norm0.bias'"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(tmp_path, change, problem):
    weights = make_weights("SongUNet", DDPMPP, 0)
    change(weights)
    path = write(tmp_path / "net.pkl", edm_pickle("SongUNet", DDPMPP, weights))
    with pytest.raises(WeightsError, match=f"do not fit SongUNet: they {problem}") as error:
        convert(path, tmp_path / "net.safetensors")
    one_line(error)


def test_an_argument_or_architecture_that_is_unknown(tmp_path):
    weights = make_weights("SongUNet", DDPMPP, 0)
    path = write(tmp_path / "a.pkl", edm_pickle("SongUNet", DDPMPP | {"width": 3}, weights))
    with pytest.raises(WeightsError, match="unexpected keyword argument 'width'") as error:
        convert(path, tmp_path / "net.safetensors")
    one_line(error)
    path = write(tmp_path / "b.pkl", edm_pickle("UViT", DDPMPP, weights))
    with pytest.raises(FewstepError, match="holds a UViT, not SongUNet or DhariwalUNet or UNet"):
        convert(path, tmp_path / "net.safetensors")


def test_truncated_pickles(tmp_path, source):
    content = edm_pickle("SongUNet", DDPMPP, make_weights("SongUNet", DDPMPP, 0), source=source)
    for length in (0, 1, 1000, len(content) // 2, len(content) - 1):
        with pytest.raises(WeightsError, match=r"is damaged or cut short .*get the file again") as error:
            read_edm_pickle(write(tmp_path / "net.pkl", content[:length]))
        one_line(error)
    with pytest.raises(WeightsError, match=r"cannot read .*No such file"):
        read_edm_pickle(tmp_path / "nowhere.pkl")


@pytest.mark.parametrize("content", [None, [1, 2], {"G_ema": 3}, {"ema": 3}, {"ema": Global(made.PERSISTENT, {})}])
def test_pickles_of_something_else(tmp_path, content):
    with pytest.raises(WeightsError, match=r"net\.pkl") as error:
        read_edm_pickle(write(tmp_path / "net.pkl", made.dump(content)))
    one_line(error)


@pytest.mark.parametrize(
    "arguments",
    [
        {"model_channels": 10**6},
        {"num_blocks": 10**8},
        {"channel_mult": []},
        {"img_resolution": 1e400},
        {"img_resolution": 2.5},
        {"channel_mult": {1, 2}},
        {"model_channels": torch.ones(1)},
    ],
)
def test_arguments_that_make_no_sense(tmp_path, arguments):
    weights = make_weights("SongUNet", DDPMPP, 0)
    path = write(tmp_path / "net.pkl", edm_pickle("SongUNet", DDPMPP | arguments, weights))
    with pytest.raises(WeightsError, match=r"net\.pkl") as error:
        convert(path, tmp_path / "net.safetensors")
    one_line(error)
    assert not list(tmp_path.glob("net.[!p]*"))


@pytest.mark.parametrize("architecture", [["SongUNet"], None])
def test_an_architecture_that_is_no_name(tmp_path, architecture):
    path = write(tmp_path / "a.pkl", edm_pickle(architecture, DDPMPP, make_weights("SongUNet", DDPMPP, 0)))
    with pytest.raises(FewstepError, match=r"a\.pkl"):
        convert(path, tmp_path / "net.safetensors")


def test_a_pickle_changes_no_class_for_the_next(tmp_path):
    """BUILD with slot state sets attributes of whatever is on the stack, here of a class that is allowed."""
    build = b"\x80\x02cdnnlib.util\nEasyDict\nN}X\x03\x00\x00\x00getK\x01s\x86b."
    with pytest.raises(WeightsError):
        read_edm_pickle(write(tmp_path / "net.pkl", build))
    assert ALLOWED["dnnlib.util.EasyDict"].get is dict.get


@pytest.mark.parametrize(
    "state",
    [
        {1: torch.zeros(2)},
        {"x": torch.zeros(2).to_sparse()},
        {"x": torch.zeros(2, device="meta")},
        {"input_blocks.0.0.weight": torch.zeros(2), "middle_block.1.qkv.weight": torch.zeros(2)},
        {"input_blocks.0.0.weight": torch.zeros(2), "middle_block.1.qkv.weight": torch.tensor(1.0)},
    ],
)
def test_state_dicts_that_make_no_sense(tmp_path, state):
    path = tmp_path / "cd_net.pt"
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"cd_net\.pt") as error:
        convert(path, tmp_path / "net.safetensors")
    one_line(error)


def malicious(kind: str, command: str) -> bytes:
    """A complete checkpoint with a call hidden in it."""
    weights = make_weights("SongUNet", DDPMPP, 0)
    call = Global("os.system", command)
    if kind == "storage":  # a call in the pickle inside a storage, which torch.load would make
        inner = pickle.dumps(call)
        return edm_pickle("SongUNet", DDPMPP, weights, hidden=Global("torch.storage._load_from_bytes", inner))
    if kind == "zipped storage":
        buffer = io.BytesIO()
        torch.save({"weight": call}, buffer)
        return edm_pickle(
            "SongUNet", DDPMPP, weights, hidden=Global("torch.storage._load_from_bytes", buffer.getvalue())
        )
    calls = {
        "os": call,
        "eval": Global("builtins.eval", f"__import__('os').system({command!r})"),
        "exec": Global("builtins.exec", f"__import__('os').system({command!r})"),
        "subprocess": Global("subprocess.check_output", ["sh", "-c", command]),
        "reconstructor": Global("copyreg._reconstructor", list, object, None),
        "numpy": Global("numpy.load", "file.npy", None, True),
        "import": Global("importlib.import_module", "antigravity"),
        "state": Global("collections.OrderedDict", state={"x": call}),
    }
    if kind == "dotted":
        content = pickle.dumps({"ema": 1})
        attack = b"\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93"
        return content[:-1] + attack + b"."
    return edm_pickle("SongUNet", DDPMPP, weights, hidden=calls[kind])


KINDS = ["os", "eval", "exec", "subprocess", "reconstructor", "numpy", "import", "state", "dotted"]


@pytest.mark.parametrize("kind", [*KINDS, "storage", "zipped storage"])
def test_a_malicious_pickle_executes_nothing(tmp_path, kind):
    marker = tmp_path / "executed"
    path = write(tmp_path / "net.pkl", malicious(kind, f"touch {marker}"))
    refused = (FewstepError, r"which could run code.*--trust-pickle")
    if "storage" in kind:
        refused = (WeightsError, "no EDM pickle")
    for read in (read_edm_pickle, lambda path: convert(path, tmp_path / "net.safetensors")):
        with pytest.raises(refused[0], match=refused[1]) as error:
            read(path)
        one_line(error)
    assert not marker.exists() and not (tmp_path / "net.safetensors").exists()
    if kind == "os":
        pickle.loads(pickle.dumps(Global("os.system", f"touch {marker}")))
        assert marker.exists()  # the attack is a real one


def test_a_malicious_state_dict_executes_nothing(tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "net.pt"
    for legacy in (False, True):
        torch.save({"weight": Global("os.system", f"touch {marker}")}, path, _use_new_zipfile_serialization=legacy)
        with pytest.raises(WeightsError, match="without running code") as error:
            convert(path, tmp_path / "net.safetensors")
        one_line(error)
    assert not marker.exists()


# Files that are trusted


class Trusted(EDMPrecond):
    """A preconditioning of one's own."""


def test_code_runs_only_for_those_who_trust_it(tmp_path):
    weights = make_weights("SongUNet", DDPMPP, 0)
    out = tmp_path / "net.safetensors"
    torch.save(EDMPrecond(weights), tmp_path / "module.pt")
    (tmp_path / "module.pkl").write_bytes(pickle.dumps({"ema": EDMPrecond(weights)}))
    for name in ("module.pt", "module.pkl"):
        with pytest.raises(FewstepError):
            convert(tmp_path / name, out)
        convert(tmp_path / name, out, trust_pickle=True)
        check_against_formulas(load_converted(out), "SongUNet", DDPMPP, weights, 0)
    torch.save(Trusted(weights), tmp_path / "other.pt")
    with pytest.raises(FewstepError, match="preconditioned by Trusted"):
        convert(tmp_path / "other.pt", out, trust_pickle=True)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="holds no weights by name"):
        convert(tmp_path / "list.pt", out, trust_pickle=True)


def test_trust_is_not_needed_for_what_can_be_read_without(tmp_path, source):
    weights = make_weights("SongUNet", DDPMPP, 0)
    path = write(tmp_path / "net.pkl", edm_pickle("SongUNet", DDPMPP, weights, 0, source))
    convert(path, tmp_path / "net.safetensors", trust_pickle=True)


# Conversion


def test_the_record_says_where_it_came_from(tmp_path):
    import hashlib
    import json

    weights = make_weights("SongUNet", NCSNPP, 4)
    path = write(tmp_path / "net.pkl", edm_pickle("SongUNet", NCSNPP, weights, 4))
    out = convert(path, tmp_path / "net.safetensors")
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["source"] == {"name": "net.pkl", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert (record["format"], record["architecture"]) == ("edm", "SongUNet")
    assert record["arguments"]["encoder_type"] == "residual" and record["precond_arguments"]["sigma_data"] == 0.5


def test_what_cannot_be_converted(tmp_path):
    with pytest.raises(FewstepError, match=r"ends in \.safetensors"):
        convert(tmp_path / "net.pkl", tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"cannot read .*name the checkpoint to convert"):
        convert(tmp_path / "net.pkl", tmp_path / "net.safetensors")
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match="no state dict of a known network"):
        convert(tmp_path / "net.pt", tmp_path / "net.safetensors")
    torch.save({"state": {"fc.weight": torch.zeros(3)}}, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match="no state dict"):
        convert(tmp_path / "net.pt", tmp_path / "net.safetensors")
    from students.models.weights import save_weights

    save_weights(tmp_path / "own.safetensors", {"w": torch.zeros(1)}, {"task": "digits"})
    with pytest.raises(WeightsError, match="no converted checkpoint"):
        load_converted(tmp_path / "own.safetensors")
