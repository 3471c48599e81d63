"""Checkpoints of other projects as safetensors with a JSON record, so that they load without any pickle."""

import pickle
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from students.datafiles import file_hash
from students.diffusion.denoiser import Denoiser
from students.errors import FewstepError, WeightsError, one_line, reading
from students.models.checkpoints.edm_pickle import EDMNetwork, build_denoiser, from_state_dict, read_edm_pickle
from students.models.checkpoints.openai import NETWORKS, build_openai, read_state_dict
from students.models.weights import load_weights, save_weights
from students.networks.edm import NETWORKS as EDM_NETWORKS

ZIP = b"PK\x03\x04"  # what torch.save writes
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # what torch.save wrote before version 1.6
KINDS = {"edm_": "teacher", "cd_": "consistency", "ct_": "consistency"}  # how OpenAI's files are called

DESCRIPTION = ("architecture", "arguments", "precond", "precond_arguments")  # of an EDMNetwork, in the record


def convert(path_in: Path, path_out: Path, trust_pickle: bool = False) -> Path:
    """Write an EDM pickle, or a state dict under the names of EDM's or OpenAI's networks, as safetensors; its path.

    Nothing in the file is executed unless `trust_pickle`. Raises WeightsError for a file that is cut short or of
    another kind and FewstepError for a network that is not known here; nothing is written then.
    """
    path_in, path_out = Path(path_in), Path(path_out)
    if path_out.suffix != ".safetensors":
        raise FewstepError(f"cannot write {path_out}: name a file that ends in .safetensors")
    found = _read(path_in, trust_pickle)
    if isinstance(found, EDMNetwork):
        state, record = found.state, {"format": "edm"} | {key: getattr(found, key) for key in DESCRIPTION}
    else:
        state = found
        record = {"format": "openai", "kind": _kind(path_in), "network": _network(state)}
    record["source"] = {"name": path_in.name, "sha256": file_hash(path_in)}
    _build(state, record, path_in)
    save_weights(path_out, state, record, half=False)
    return path_out


def load_converted(path: Path) -> Denoiser:
    """The denoiser of a converted checkpoint; raises WeightsError if the files are not as they were written."""
    state, record = load_weights(path)
    with reading(path, "converted checkpoint"):
        return _build(state, record, path)


def _build(state: dict[str, Tensor], record: dict, path: Path) -> Denoiser:
    if record.get("format") == "edm":
        return build_denoiser(EDMNetwork(state=state, path=path, **{key: record[key] for key in DESCRIPTION}))
    if record.get("format") == "openai":
        return build_openai(state, record["network"], record["kind"] == "consistency", path)
    raise WeightsError(f"weights {path} are no converted checkpoint: make them by python -m students convert")


def _read(path: Path, trust_pickle: bool) -> EDMNetwork | dict[str, Tensor]:
    """An EDM network, or a state dict under OpenAI's names."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(LEGACY))
    except OSError as error:
        raise WeightsError(f"cannot read {path} ({error.strerror}): name the checkpoint to convert") from error
    saved_by_torch = start.startswith(ZIP) or start == LEGACY
    try:
        return _named(read_state_dict(path), path) if saved_by_torch else read_edm_pickle(path)
    except FewstepError:
        if not trust_pickle:
            raise
    return _of_object(_execute(path, saved_by_torch), path)


def _named(state: dict[str, Tensor], path: Path) -> EDMNetwork | dict[str, Tensor]:
    return state if "input_blocks.0.0.weight" in state else from_state_dict(state, path)


def _execute(path: Path, saved_by_torch: bool):
    """The object of a pickle, by running what it asks for."""
    try:
        if saved_by_torch:
            return torch.load(path, map_location="cpu", weights_only=False)
        with open(path, "rb") as file:
            return pickle.load(file)
    except Exception as error:  # whatever its code raises
        raise WeightsError(f"cannot unpickle {path} ({one_line(error)})") from error


def _of_object(content, path: Path) -> EDMNetwork | dict[str, Tensor]:
    """Of an unpickled module or state dict, alone or under the keys of EDM's pickles."""
    if isinstance(content, dict):
        content = content.get("ema", content.get("model", content))
    if not isinstance(content, nn.Module):
        if not isinstance(content, dict) or not all(torch.is_tensor(value) for value in content.values()):
            raise WeightsError(f"{path} holds neither a network nor its state dict: take another file")
        return _named(content, path)
    found = _named(content.state_dict(), path)
    if isinstance(found, EDMNetwork) and (precond := type(content).__name__) not in EDM_NETWORKS:
        given = {key: float(getattr(content, key, value)) for key, value in found.precond_arguments.items()}
        return replace(found, precond=precond, precond_arguments=given)
    return found


def _kind(path: Path) -> str:
    for prefix, kind in KINDS.items():
        if path.name.startswith(prefix):
            return kind
    raise FewstepError(
        f"the name of {path} does not say what it is: as OpenAI's, call it edm_... (a teacher), cd_... or ct_..."
    )


def _network(state: dict[str, Tensor]) -> dict:
    return NETWORKS["imagenet64" if "label_emb.weight" in state else "lsun256"]
