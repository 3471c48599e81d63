"""Checkpoints of other projects as safetensors with a JSON record, so that they load without any pickle."""

import pickle
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from students.datafiles import file_hash
from students.diffusion.denoiser import Denoiser
from students.errors import FewstepError, WeightsError, one_line, reading
from students.models.checkpoints.contents import averaged, find_weights
from students.models.checkpoints.edm_arguments import NETWORKS
from students.models.checkpoints.edm_pickle import (
    EDMNetwork,
    assumed,
    build_denoiser,
    has_networks,
    of_content,
    of_weights,
    precond_arguments,
    read_edm_pickle,
)
from students.models.checkpoints.openai import build_openai, network_of
from students.models.checkpoints.unpickling import holds_tensors, read_tensors, saved_by_torch
from students.models.weights import load_weights, record_path, save_weights

KINDS = {"edm_": "teacher", "cd_": "consistency", "ct_": "consistency"}  # how OpenAI's files are called

# What a record says of an EDMNetwork
DESCRIPTION = ("architecture", "arguments", "precond", "precond_arguments", "label_dropout")


def convert(path_in: Path, path_out: Path, trust_pickle: bool = False) -> Path:
    """Write an EDM pickle, or a state dict under the names of EDM's or OpenAI's networks, as safetensors; its path.

    Nothing in the file is executed unless `trust_pickle`. Raises WeightsError for a file that is cut short or of
    another kind and FewstepError for a network that is not known here; nothing is written then.
    """
    path_in, path_out = Path(path_in), Path(path_out)
    if path_out.suffix != ".safetensors":
        raise FewstepError(f"cannot write {path_out}: name a file that ends in .safetensors")
    state, record = _described(_read(path_in, trust_pickle), path_in)
    record["source"] = {"name": path_in.name, "sha256": file_hash(path_in)}
    _build(state, record, path_in)
    save_weights(path_out, state, record, half=False)
    return path_out


def load_checkpoint(path: Path) -> Denoiser:
    """The denoiser of a checkpoint as `convert` takes it, or as it writes it; nothing is written."""
    if path.suffix == ".safetensors" and record_path(path).is_file():
        return load_converted(path)
    return _build(*_described(_read(path, trust_pickle=False), path), path)


def load_converted(path: Path) -> Denoiser:
    """The denoiser of a converted checkpoint; raises WeightsError if the files are not as they were written."""
    state, record = load_weights(path)
    with reading(path, "converted checkpoint"):
        return _build(state, record, path)


def _described(found: EDMNetwork | dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict]:
    """The weights, and the record that says what they are."""
    if isinstance(found, EDMNetwork):
        return found.state, {"format": "edm"} | {key: getattr(found, key) for key in DESCRIPTION}
    return found, {"format": "openai", "kind": _kind(path), "network": network_of(found, path)}


def _build(state: dict[str, Tensor], record: dict, path: Path) -> Denoiser:
    if record.get("format") == "edm":
        given = {key: record[key] for key in DESCRIPTION if key in record}  # older records say less
        return build_denoiser(EDMNetwork(state=state, path=path, **given))
    if record.get("format") == "openai":
        return build_openai(state, record["network"], record["kind"] == "consistency", path)
    raise WeightsError(f"weights {path} are no converted checkpoint: make them by python -m students convert")


def _read(path: Path, trust_pickle: bool) -> EDMNetwork | dict[str, Tensor]:
    """An EDM network, or a state dict under OpenAI's names."""
    try:
        return _named(read_tensors(path), path) if holds_tensors(path) else read_edm_pickle(path)
    except FewstepError:
        if not trust_pickle or not path.is_file():
            raise
    return _of_object(_execute(path), path)


def _named(content, path: Path) -> EDMNetwork | dict[str, Tensor]:
    """Of what a file holds, by the names of the parameters."""
    if has_networks(content):
        return of_content(content, path)
    found = _of_state_dict(content, path)
    return assumed(found) if isinstance(found, EDMNetwork) else found


def _of_state_dict(content, path: Path) -> EDMNetwork | dict[str, Tensor]:
    family, state = find_weights(content, path, "edm", "edm2", "openai")
    return state if family == "openai" else of_weights(state, path)


def _execute(path: Path):
    """The object of a pickle, by running what it asks for."""
    try:
        if saved_by_torch(path):
            return torch.load(path, map_location="cpu", weights_only=False)
        with open(path, "rb") as file:
            return pickle.load(file)
    except Exception as error:  # whatever its code raises
        raise WeightsError(f"cannot unpickle {path} ({one_line(error)})") from error


def _of_object(content, path: Path) -> EDMNetwork | dict[str, Tensor]:
    """Of an unpickled module or state dict, alone or in a dictionary."""
    if modules := [key for key in content if isinstance(content[key], nn.Module)] if isinstance(content, dict) else []:
        content = content[averaged(modules, path)]
    if not isinstance(content, nn.Module):
        return _named(content, path)
    found = _of_state_dict(content.state_dict(), path)
    if isinstance(found, EDMNetwork) and (name := type(content).__name__) not in NETWORKS:
        return replace(found, precond=name, precond_arguments=precond_arguments(content, name))
    return found


def _kind(path: Path) -> str:
    for prefix, kind in KINDS.items():
        if path.name.startswith(prefix):
            return kind
    raise FewstepError(
        f"the name of {path} does not say what it is: as OpenAI's, call it edm_... (a teacher), cd_... or ct_..."
    )
