"""What an update holds in memory: by hand for a linear map, and the table of methods."""

import pandas as pd
import torch
from torch import nn

from bench.cli import main
from students.training.ema import EMA
from students.training.memory import held
from students.training.players import Player

FLOAT = 4


def test_a_linear_map_holds_what_one_counts_by_hand():
    first, second, frozen = nn.Linear(10, 20, bias=False), nn.Linear(20, 1, bias=False), nn.Linear(7, 7, bias=False)
    model = nn.Sequential(first, nn.ReLU(), second)
    x, weights = torch.randn(32, 10), 10 * 20 + 20

    def loss(generator, step):
        return model(x).sum()

    player = Player(model, loss, lr=1e-3)
    graph = 32 * (10 + 20)  # the input of each linear map; the ReLU keeps its output, which is one of them
    expected = FLOAT * (weights * (1 + 1 + 2) + graph)
    assert held({"student": player}, [], torch.Generator()) == expected
    assert held({"student": player}, [frozen, model], torch.Generator()) == expected + FLOAT * 49
    averaged = Player(model, loss, lr=1e-3, ema_decay=0.9, averages={"target": EMA(model, 0.9)})
    assert held({"student": averaged}, [], torch.Generator()) == expected + 2 * FLOAT * weights
    opponent = Player(frozen, lambda generator, step: frozen(torch.randn(3, 7)).sum(), lr=1e-3)
    both = held({"opponent": opponent, "student": player}, [], torch.Generator())
    assert both == expected + FLOAT * 49 * 4  # its graph is the smaller one, and not there at the same time


def test_the_table_has_a_row_for_each_method_and_nothing_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["memory", "gaussians", "--methods", "knowledge", "dmd", "ddgan", "guidance"]) == 0
    table = pd.read_csv(tmp_path / "reports" / "gaussians" / "memory.csv", index_col="method")
    assert list(table.index) == ["knowledge", "dmd", "ddgan"] and "guidance is left out" in capsys.readouterr().err
    assert table["x_diffusion"].is_monotonic_increasing and 1 < table.loc["knowledge", "x_diffusion"] < 1.5
    assert table.loc["dmd", "networks"] == 4  # the teacher stands for a network here
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["memory.csv"]
    assert main(["memory", "gaussians", "--methods", "dmd"]) == 0
    again = pd.read_csv(tmp_path / "reports" / "gaussians" / "memory.csv", index_col="method")
    pd.testing.assert_frame_equal(again, table)


def test_an_unknown_method_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["memory", "gaussians", "--methods", "dmd3"]) == 2
    assert "dmd" in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert main(["memory", "gaussians", "--methods", "guidance"]) == 2
    assert "none of guidance can be trained on gaussians" in capsys.readouterr().err


def test_the_loss_of_a_player_keeps_nothing_for_the_parameters_of_others():
    """As in training, where gradients go to one player only."""
    model, critic = nn.Linear(10, 20, bias=False), nn.Linear(20, 30, bias=False)
    x = torch.randn(32, 10)
    student = Player(model, lambda generator, step: critic(model(x)).sum(), lr=1e-3)
    opponent = Player(critic, lambda generator, step: critic.weight.sum(), lr=1e-3)
    weights, graph = 10 * 20 + 20 * 30, 32 * 10  # the input of the critic would serve its own weights alone
    found = held({"opponent": opponent, "student": student}, [], torch.Generator())
    assert found == FLOAT * (weights * (1 + 1 + 2) + graph)
    assert all(parameter.requires_grad for module in (model, critic) for parameter in module.parameters())
