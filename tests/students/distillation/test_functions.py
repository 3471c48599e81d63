"""What methods share: steps of those rows alone that move, a slow embedding of time."""

import copy
import json

import torch

from students.distillation.functions import SLOW, heun_jump, moved, slow_time
from students.models.load import load_start
from students.networks import build_network
from students.samplers.leaps import leap


def square(x, t, condition):
    assert len(x) == len(t) == len(condition) == 2
    return x**2 * condition[:, None]


def test_rows_that_stay_are_not_evaluated():
    x = torch.tensor([[2.0], [3.0], [4.0]], requires_grad=True)
    start, end, condition = torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0.5, 1.0, 1.0]), torch.tensor([1, 2, 3])
    out = moved(heun_jump, square, x, start, end, condition)
    rows = torch.tensor([0, 2])
    torch.testing.assert_close(out[rows], heun_jump(square, x[rows], start[rows], end[rows], condition[rows]))
    assert out[1] == x[1]
    out.sum().backward()
    assert x.grad[1] == 1 and (x.grad[rows] != 1).all()
    assert moved(leap, None, x, start, start, condition) is x


def test_a_network_given_a_slow_embedding_computes_what_it_did_and_is_built_again_from_its_config():
    network = copy.deepcopy(load_start("digits")[1].network).requires_grad_(True)
    x, t, condition = torch.randn(200, 1, 8, 8), torch.linspace(-1.2, 0.8, 200), torch.arange(200) % 10

    before = network(x, t, condition)
    slow_time(network, -1.2, 0.8)
    after = network(x, t, condition)
    assert 0 < (after - before).square().mean() < before.square().mean() / 1000
    config = json.loads(json.dumps(network.config))
    assert config["scale"] == SLOW and not any(p.grad is not None for p in network.parameters())
    again = build_network(config).eval()
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(again(x, t, condition), network(x, t, condition), atol=1e-4, rtol=1e-4)


def test_a_network_whose_embedding_is_slow_keeps_it():
    network = copy.deepcopy(load_start("gaussians")[1].network).requires_grad_(True)
    before = copy.deepcopy(network.state_dict())
    slow_time(network, -1.2, 0.8)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
