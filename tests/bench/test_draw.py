"""Drawing in batches: which seeds and conditions they get, and what they cost."""

import torch
from torch import nn

from bench.draw import draw
from bench.plan import Cell

CPU = torch.device("cpu")


class Counting:
    """A student that answers with its seeds, and evaluates its network once a step."""

    def __init__(self):
        self.network, self.calls = nn.Identity(), []

    def sample(self, n_steps, seeds, **given):
        self.calls.append(
            (len(seeds), {name: getattr(value, "tolist", lambda v=value: v)() for name, value in given.items()})
        )
        x = torch.tensor(list(seeds), dtype=torch.float32)[:, None]
        for _ in range(n_steps):
            x = self.network(x)
        return x


def test_batches_in_order_with_their_conditions_and_cost():
    student, seeds, conditions = Counting(), range(10, 17), torch.arange(7)
    batches = list(draw(student, Cell("s", 3, 2.0, 0, {}), seeds, conditions, 3, CPU))
    assert [batch.seeds for batch in batches] == [range(10, 13), range(13, 16), range(16, 17)]
    assert torch.cat([batch.samples for batch in batches])[:, 0].tolist() == list(seeds)
    assert [(batch.nfe.rows, batch.nfe.per_image) for batch in batches] == [(9, 3.0), (9, 3.0), (3, 3.0)]
    assert student.calls[1] == (3, {"conditions": [3, 4, 5], "guidance": 2.0}) and batches[2].conditions.tolist() == [6]


def test_what_there_is_not_is_not_passed():
    student = Counting()
    list(draw(student, Cell("s", 1, 1.0, 0, {}), range(2), None, 4, CPU))
    assert student.calls == [(2, {})]


def test_out_of_memory_halves_what_was_asked_for_last():
    student = Counting()
    sample = student.sample

    def refuse(n_steps, seeds, **given):
        if len(seeds) > 2:
            raise torch.OutOfMemoryError
        return sample(n_steps, seeds, **given)

    student.sample = refuse
    batches = list(draw(student, Cell("s", 1, 1.0, 0, {}), range(7), None, 100, CPU))
    assert [len(batch.seeds) for batch in batches] == [2, 2, 2, 1]
    assert sum(batch.nfe.rows for batch in batches) == 7
