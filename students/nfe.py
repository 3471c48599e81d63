"""Counting network evaluations by hooks: what a sample costs, measured rather than derived from a formula."""

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import nn

from students.errors import FewstepError


@dataclass
class NFE:
    """Network evaluations in rows (one image through one network once) and the images they made.

    `setup_rows` were spent inside `setup()`, once for a student and not for each image.
    """

    rows: int = 0
    images: int = 0
    setup_rows: int = 0
    _inside: int = field(default=0, repr=False)

    @property
    def per_image(self) -> float:
        return self.rows / self.images if self.images else float("nan")


_in_setup = ContextVar("in_setup", default=False)


@contextmanager
def setup():
    """Mark network calls that prepare a student (calibration) rather than make an image."""
    token = _in_setup.set(True)
    try:
        yield
    finally:
        _in_setup.reset(token)


def batch_rows(args: tuple, kwargs: dict) -> int:
    """The rows of the batch that a network is called with: the length of the first tensor that has one, else 1."""
    return next((len(value) for value in (*args, *kwargs.values()) if torch.is_tensor(value) and value.ndim), 1)


def module_attributes(student) -> list[nn.Module]:
    """Modules among the attributes of an object, also those in lists, tuples and dicts."""
    found = []
    for value in vars(student).values():
        members = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        found += [member for member in members if isinstance(member, nn.Module)]
    return found


def networks_of(student) -> list[nn.Module]:
    """The networks of any student: what its `networks()` returns, else its attributes that are modules."""
    return student.networks() if hasattr(student, "networks") else module_attributes(student)


@contextmanager
def count_nfe(student):
    """Count what `student.sample` costs inside the block, by hooks on its networks.

        with count_nfe(student) as nfe:
            student.sample(4)
        nfe.per_image

    A row of a batch is one evaluation, so guidance in one doubled batch counts two and an adaptive
    solver that drops finished rows counts what each row needed. A network called by another counted
    network is part of it. Raises FewstepError if the student shows no network.
    """
    networks = networks_of(student)
    if not networks:
        raise FewstepError(
            f"cannot count the network evaluations of {getattr(student, 'name', student)}: keep its networks "
            "as nn.Module attributes or return them from networks()"
        )
    nfe = NFE()

    def enter(module, args, kwargs):
        if nfe._inside == 0:
            rows = batch_rows(args, kwargs)
            if _in_setup.get():
                nfe.setup_rows += rows
            else:
                nfe.rows += rows
        nfe._inside += 1

    def leave(module, args, output):
        nfe._inside -= 1

    outer = vars(student).get("sample")  # that of another count, if this one is inside it
    plain_sample = student.sample

    def counted_sample(*args, **kwargs):
        images = plain_sample(*args, **kwargs)
        nfe.images += len(images)
        return images

    hooks = [n.register_forward_pre_hook(enter, with_kwargs=True) for n in networks]
    hooks += [n.register_forward_hook(leave, always_call=True) for n in networks]
    student.sample = counted_sample
    try:
        yield nfe
    finally:
        if outer is None:
            del student.sample
        else:
            student.sample = outer
        for hook in hooks:
            hook.remove()
