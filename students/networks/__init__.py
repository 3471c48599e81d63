"""The networks: one contract (network.py), and a table from which each can be built again, untrained.

Importing this package imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from students.errors import FewstepError, unknown
from students.spec import import_object

if TYPE_CHECKING:
    from torch import nn

# The "kind" of a network's config -> what is called with the rest of it.
NETWORKS = {
    "unet": "students.networks.unet:UNet",
    "unet2d": "students.networks.unet:build_unet2d",
    "mlp": "students.networks.mlp:MLP",
    "song_unet": "students.networks.edm:SongUNet",
    "dhariwal_unet": "students.networks.edm:DhariwalUNet",
    "edm2_unet": "students.networks.edm2:EDM2UNet",
    "genie_head": "students.networks.genie_head:GenieHead",
}


def build_network(config: Mapping) -> nn.Module:
    """The network whose `config` this is, with fresh parameters drawn from the global generator.

    Raises FewstepError for a kind that is not in NETWORKS, and for arguments that the kind does not take.
    """
    arguments = dict(config)
    kind = arguments.pop("kind", None)
    if kind not in [*NETWORKS]:
        raise unknown("network", str(kind), NETWORKS)
    extra, states = arguments.pop("extra", 0), arguments.pop("states", None)
    try:
        network = import_object(NETWORKS[kind])(**arguments)
    except TypeError as error:
        raise FewstepError(f"cannot build a network {kind!r} ({error}): give the config of such a network") from error
    if extra:
        network.add_extra(extra)
    if states:
        network.add_states(*states)
    return network
