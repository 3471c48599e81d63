"""Compiled and recorded networks: when each way is taken, and that none changes the result."""

import copy
from functools import partial

import pytest
import torch

from students.diffusion.denoiser import Denoiser
from students.diffusion.schedules import VPLinear
from students.models import acceleration
from students.models.acceleration import QuickForward, accelerate
from students.models.load import load_teacher
from students.networks.unet import UNet
from students.nfe import count_nfe
from students.solvers.euler import ddim
from students.student import SolverStudent
from tests.conftest import make_mixture


class Log:
    """Stands for the compiler and for CUDA graphs, and keeps which way each call went."""

    def __init__(self):
        self.ways = []

    def way(self, name, forward):
        def call(*inputs, **named):
            self.ways.append(name)
            return forward(*inputs, **named)

        return call

    def compile(self, forward):
        return self.way("compiled", forward)

    def record(self, forward, inputs):
        """Like a graph, a recording takes no other shapes."""
        self.ways.append("record")
        shapes = [x.shape for x in inputs]

        def replay(*inputs):
            assert [x.shape for x in inputs] == shapes
            self.ways.append("replayed")
            return double(*inputs)

        return replay


def double(x, condition):
    return 2 * x + condition[:, None]


def inputs(n):
    return torch.ones(n, 3), torch.arange(float(n))


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def quick(log):
    return QuickForward(double, log.compile, log.record)


def test_shapes_that_come_again_are_recorded_each_for_itself(quick, log):
    with torch.inference_mode():
        for n in (2, 2, 5, 2, 2, 5, 5, 2):
            assert quick(*inputs(n)).equal(double(*inputs(n)))
    assert log.ways == [*["compiled"] * 3, "record", "replayed", "replayed", "compiled", "record", *["replayed"] * 2]


def test_a_recording_is_of_one_dtype_and_of_named_inputs(log):
    def forward(x, condition, labels=None):
        return double(x, condition) if labels is None else x + labels[:, None]

    quick = QuickForward(forward, log.compile, lambda run, inputs: log.way("replayed", run))
    x, condition = inputs(2)
    with torch.inference_mode():
        for _ in range(3):
            assert quick(x, condition).equal(double(x, condition))
        for _ in range(3):
            assert quick(x, condition, labels=condition).equal(x + condition[:, None])
        quick(x.double(), condition)
        assert quick(x, condition).equal(double(x, condition))
    once_more = ["compiled", "compiled", "replayed", "compiled"]  # what is replayed here is the compiled function
    assert log.ways == [*once_more, *once_more, "compiled", "replayed", "compiled"]


def test_recordings_are_limited(quick, log, monkeypatch):
    monkeypatch.setattr(acceleration, "MAX_RECORDINGS", 2)
    with torch.inference_mode():
        for n in (1, 2, 3):
            for _ in range(4):
                quick(*inputs(n))
    assert log.ways.count("record") == 2
    assert log.ways[-4:] == ["compiled"] * 4


def test_outside_of_inference_mode_the_plain_function_runs(quick, log):
    x = torch.ones(2, 3, requires_grad=True)
    quick(x, torch.zeros(2)).sum().backward()
    assert x.grad.equal(torch.full((2, 3), 2.0))
    with torch.no_grad():
        for _ in range(4):
            quick(x, torch.zeros(2))
    assert log.ways == []


def test_without_a_compiler_a_note_is_given_and_the_plain_function_runs(log, capsys):
    def compile(forward):
        def fail(*inputs):
            raise RuntimeError("no compiler\nat all")

        return fail

    quick = QuickForward(double, compile, log.record)
    with torch.inference_mode():
        for _ in range(4):
            assert quick(*inputs(2)).equal(double(*inputs(2)))
    assert log.ways == ["record", "replayed", "replayed"]
    expected = "note: the network runs slower than it could, because compiling it failed: no compiler\n"
    assert capsys.readouterr().err == expected


def test_where_recording_fails_a_note_is_given_and_the_compiled_function_runs(log, capsys):
    def record(forward, inputs):
        raise RuntimeError("operation not permitted when stream is capturing")

    quick = QuickForward(double, log.compile, record)
    with torch.inference_mode():
        for _ in range(5):
            assert quick(*inputs(2)).equal(double(*inputs(2)))
    assert log.ways == ["compiled"] * 5
    notes = capsys.readouterr().err
    assert notes.count("note:") == 1 and "recording its calls failed: operation not permitted" in notes


def test_a_device_that_is_full_is_no_failure_of_the_compiler(log, capsys):
    def compile(forward):
        def fail(*inputs):
            raise torch.OutOfMemoryError("full")

        return fail

    quick = QuickForward(double, compile, log.record)
    with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError):
        quick(*inputs(2))
    assert capsys.readouterr().err == ""


def test_a_call_that_is_wrong_raises_what_the_function_raises(quick, capsys):
    with torch.inference_mode(), pytest.raises(RuntimeError, match="must match the size"):
        quick(torch.ones(2, 3), torch.ones(4))
    assert capsys.readouterr().err == ""


def small_denoiser(classes=3):
    torch.manual_seed(0)
    network = UNet((1, 8, 8), channels=(16,), patch=2, attention=True, classes=classes)
    return Denoiser(network, VPLinear(), "edm", (1, 8, 8), classes).eval().requires_grad_(False)


def test_evaluations_are_counted_and_samples_stay(log):
    student = SolverStudent(small_denoiser(), ddim)
    plain = student.sample(5, seeds=range(4), guidance=2.0)
    network = student.denoiser.network
    forward = network.forward
    network.forward = QuickForward(forward, log.compile, lambda _, inputs: log.way("replayed", forward))
    names = list(student.denoiser.state_dict())
    with count_nfe(student) as nfe:
        assert student.sample(5, seeds=range(4), guidance=2.0).equal(plain)
    assert nfe.per_image == 10
    assert log.ways == ["compiled"] * 2 + ["replayed"] * 3
    assert list(student.denoiser.state_dict()) == names


def test_a_copy_is_a_network_of_its_own(log):
    denoiser = small_denoiser()
    x, t = torch.ones(2, 1, 8, 8), 0.5
    denoiser.network.forward = QuickForward(denoiser.network.forward, log.compile, log.record)
    with torch.inference_mode():
        expected = denoiser(x, t)
    other = copy.deepcopy(denoiser)
    for parameter in other.network.parameters():
        parameter.data.zero_()
    with torch.inference_mode():
        assert denoiser(x, t).equal(expected)
        assert not other(x, t).equal(expected)
    assert log.ways == ["compiled"] * 3


def test_on_the_cpu_nothing_changes():
    denoiser = load_teacher("digits").denoiser
    strides = [parameter.stride() for parameter in denoiser.parameters()]
    assert accelerate(denoiser) is denoiser
    assert "forward" not in vars(denoiser.network)
    assert [parameter.stride() for parameter in denoiser.parameters()] == strides


def test_a_denoiser_without_a_network_is_left_alone():
    mixture = make_mixture()
    assert accelerate(mixture) is mixture
    denoise = lambda x, t: x
    assert accelerate(denoise) is denoise


@pytest.mark.slow
def test_the_network_is_traced_whole_at_any_batch_size(capsys):
    """One graph, without a break; `aot_eager` traces as the default compiler does and needs none installed."""
    denoiser = small_denoiser()
    batches = [torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(n)) for n in (6, 9, 7)]
    with torch.inference_mode():
        expected = [denoiser(x, 0.5) for x in batches]
        denoiser.network.forward = QuickForward(
            denoiser.network.forward, partial(torch.compile, backend="aot_eager", fullgraph=True)
        )
        for x, plain in zip(batches, expected, strict=True):
            torch.testing.assert_close(denoiser(x, 0.5), plain)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_samples_agree_with_those_of_the_plain_network(dtype, capsys):
    student = SolverStudent(load_teacher("digits", device="cuda", dtype=dtype), ddim, device="cuda")
    vars(student.denoiser.network).pop("forward", None)
    plain = {n: student.sample(8, seeds=range(n)) for n in (1, 16)}
    accelerate(student.denoiser)
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    for _ in range(2):  # the second time from recordings alone
        for n, expected in plain.items():
            with count_nfe(student) as nfe:
                assert (student.sample(8, seeds=range(n)) - expected).abs().mean() < tolerance
            assert nfe.per_image == 8
    assert len(student.denoiser.network.forward._recordings) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_an_answer_outlives_the_next_call():
    network = accelerate(load_teacher("digits", device="cuda").denoiser).network
    given = [torch.randn(4, 1, 8, 8, device="cuda"), torch.zeros(4, device="cuda"), torch.arange(4, device="cuda")]
    with torch.inference_mode():
        answers = [network(*given) for _ in range(4)]
        kept = answers[-1].clone()
        network(-given[0], *given[1:])
        torch.testing.assert_close(answers[-1], kept, rtol=0, atol=0)
        torch.testing.assert_close(answers[-1], answers[0])
